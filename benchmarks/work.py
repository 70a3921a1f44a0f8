"""Time against work: clips of many lengths and sizes, encoded and decoded, as a table and a plot.

python benchmarks/work.py --output=docs/work.png

Once the device is full, time should be linear in the positions (frames × height × width). Each line
says how far its time a position is from that of the largest clip of its row of the plot.
"""

import statistics

import jax
from absl import app, flags
from common import VARIANT, WIDTH, device, function_and_input, model
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odvae_jax.compilation import use_compilation_cache
from odvae_jax.evaluation.speed import time_calls

_FRAMES = flags.DEFINE_list("frames", ["17", "33", "65", "97", "129", "161"], "at --size")
_SIZES = flags.DEFINE_list(
    "sizes", ["128", "256", "384", "512", "768"], "sides, of --length frames"
)
_SIZE = flags.DEFINE_integer("size", 256, "side of the clips of many lengths")
_LENGTH = flags.DEFINE_integer("length", 33, "frames of the clips of many sizes")
_REPEATS = flags.DEFINE_integer("repeats", 6, "timings, each of four calls in flight")
_OUTPUT = flags.DEFINE_string("output", "work.png", "the plot")


def milliseconds(vae, work, frames, size):
    function, x = function_and_input(vae, work, (1, frames, size, size))
    compiled = jax.jit(function).lower(vae, x).compile()
    return 1e3 * statistics.median(time_calls(compiled, vae, x, repeats=_REPEATS.value))


def main(_):
    use_compilation_cache()
    vae = model()
    print(f"{device()}; variant {VARIANT.value}, width {WIDTH.value}, batch 1")
    print(f"{'':8}{'clip':>14}{'positions':>12}{'ms':>10}{'ns/position':>13}{'of largest':>12}")
    rows = {
        f"{_SIZE.value}×{_SIZE.value}, more frames": [(int(t), _SIZE.value) for t in _FRAMES.value],
        f"{_LENGTH.value} frames, larger": [(_LENGTH.value, int(s)) for s in _SIZES.value],
    }
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{device()}; variant {VARIANT.value}, batch 1")
    for work, axes in zip(("encode", "decode"), figure.subplots(1, 2), strict=True):
        for name, clips in ((name, sorted(clips)) for name, clips in rows.items()):
            # The largest first: the others are compared with it.
            taken = [(t * s * s, milliseconds(vae, work, t, s), t, s) for t, s in reversed(clips)]
            rate = taken[0][1] / taken[0][0]
            for positions, ms, t, s in taken:
                print(
                    f"{work:8}{f'{t}×{s}×{s}':>14}{positions:12}{ms:10.2f}"
                    f"{ms / positions * 1e6:13.2f}{ms / positions / rate:12.3f}",
                    flush=True,
                )
            points = [(positions / 1e6, ms) for positions, ms, *_ in taken]
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        line = [points[-1][0], points[0][0]]
        axes.plot(line, [rate * 1e6 * x for x in line], "k:", label="linear")
        axes.set(title=work, xlabel="positions, millions", ylabel="ms", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(_OUTPUT.value, dpi=120)  # the second takes long


if __name__ == "__main__":
    app.run(main)
