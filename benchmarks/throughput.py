"""Encoding and decoding speed against the device's own matrix-product rate, in one run.

python benchmarks/throughput.py --work encode:81x256x256,decode:81x256x256,decode:33x512x512

Each line: median time and spread (10th to 90th percentile), operations, the achieved rate, its
share of the rate of a large matrix product in the same dtype, and the compilation's temporary
memory, a device's. With --data=2 two devices take a clip each, with --height=2 half the rows.
With --check, a second line has the time on one device, how many times as fast several are, and how
far their result is from that of one.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags
from common import DTYPE, VARIANT, device, function_and_input, model, work_and_shape

from odvae_jax.compilation import use_compilation_cache
from odvae_jax.evaluation.speed import matrix_rate, time_calls
from odvae_jax.flops import count_flops
from odvae_jax.sharding import make_mesh, replicate, spread_clips

_WORK = flags.DEFINE_list(
    "work",
    ["encode:81x256x256", "decode:81x256x256", "encode:33x512x512", "decode:33x512x512"],
    "what to time: encode or decode, a colon, and the video's frames, height and width",
)
_DATA = flags.DEFINE_integer("data", 1, "devices that take a clip each")
_HEIGHT = flags.DEFINE_integer("height", 1, "devices that share the rows of a clip")
_CHECK = flags.DEFINE_boolean("check", False, "compare time and result with those of one device")
_REPEATS = flags.DEFINE_integer("repeats", 15, "timed runs of each")


def measured(compiled, *arguments):
    """The median of a call's seconds, their spread in ms, and the temporary memory in GiB."""
    seconds = time_calls(compiled, *arguments, repeats=_REPEATS.value)
    low, high = np.percentile(seconds, [10, 90])
    spread = f"{low * 1e3:.1f}-{high * 1e3:.1f}"
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
    return statistics.median(seconds), spread, memory


def main(_):
    use_compilation_cache()
    devices = jax.devices()[: _DATA.value * _HEIGHT.value]
    mesh = make_mesh(_DATA.value, height=_HEIGHT.value, devices=devices)
    vae = replicate(model(), mesh)
    peak = matrix_rate(DTYPE.value, _REPEATS.value)
    print(f"{len(devices)} {device()}; matrix product {peak / 1e12:.0f} TFLOP/s each")
    peak *= len(devices)
    print(
        f"{'work':26}{'ms':>9}{'spread':>16}{'TFLOP':>9}{'TFLOP/s':>9}"
        f"{'share':>7}{'GiB':>7}{'compile s':>10}"
    )
    for work in _WORK.value:
        name, shape = work_and_shape(work)
        function, x = function_and_input(vae, name, (_DATA.value, *shape))
        x = spread_clips(x, mesh)
        flops = count_flops(function, vae, x)
        start = time.perf_counter()
        compiled = jax.jit(function).lower(vae, x).compile()
        compile_seconds = time.perf_counter() - start
        median, spread, memory = measured(compiled, vae, x)
        print(
            f"v{VARIANT.value} {work:23}{median * 1e3:9.1f}"
            f"{spread:>16}{flops / 1e12:9.2f}"
            f"{flops / median / 1e12:9.0f}{flops / median / peak:7.2f}"
            f"{memory:7.2f}{compile_seconds:10.0f}",
            flush=True,
        )
        if _CHECK.value:
            ours = np.asarray(compiled(vae, x), np.float64)
            arguments = jax.device_put((vae, x), devices[0])
            alone = jax.jit(function).lower(*arguments).compile()
            median_alone, spread, memory = measured(alone, *arguments)
            result = np.asarray(alone(*arguments), np.float64)
            apart = np.sqrt(np.mean((ours - result) ** 2))
            print(
                f"  on one device {median_alone * 1e3:.1f} ms ({spread}), {memory:.2f} GiB: "
                f"{median_alone / median:.2f} times as fast; "
                f"apart by rms {apart:.1e} of {np.std(result):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
