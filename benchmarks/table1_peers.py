"""Table 1's other autoencoders beside their PyTorch references, as far as those can be installed.

python benchmarks/table1_peers.py                      # on a GPU; needs torch and diffusers
python benchmarks/table1_peers.py --work=decode:1x81x256x256 --only=compiled --only=ours

Times SVD-VAE and diffusers' AutoencoderKLTemporalDecoder, as it is and under `torch.compile`, with
random weights and everything in bfloat16; each line is measured in a process of its own. diffusers
decodes clips whole, as ours does. cuDNN's algorithms are chosen by trying for both. Memory is
PyTorch's peak after the first calls, the whole model included, and what our compiled program needs.
The references of the others come in no package, and are marked "not run". All of ours are timed by
`odvae table1 --speed`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from common import DTYPE, WIDTH, device, work_and_shape

_WORK = flags.DEFINE_list(
    "work",
    ["encode:1x81x256x256", "decode:1x81x256x256"],
    "encode or decode, a colon, clips, frames, height, width",
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "timings, each of a few calls in flight")
_ONLY = flags.DEFINE_multi_enum(
    "only", ["compiled", "ours", "eager"], ["compiled", "ours", "eager"], "what to time"
)
_CHILD = flags.DEFINE_string("child", None, "used by the benchmark itself")
_NOT_RUN = {
    "VQGAN": "taming-transformers",
    "TATS": "TATS",
    "CV-VAE": "CV-VAE",
    "OPS-VAE": "Open-Sora 1.2",
}


def time_reference(work, shape, compiled):
    """Seconds per call, the peak of memory in bytes, and the seconds until all is compiled."""
    import torch
    from diffusers import AutoencoderKLTemporalDecoder

    from odvae_jax.evaluation.speed import IN_FLIGHT

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    on, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, DTYPE.value)
    width = WIDTH.value
    widths = tuple(width * m for m in (1, 2, 4, 4))
    down = ("DownEncoderBlock2D",) * 4
    model = AutoencoderKLTemporalDecoder(
        down_block_types=down, block_out_channels=widths, layers_per_block=2
    ).to(on, dtype)
    b, t, h, w = shape
    sizes = (b * t, 4, h // 8, w // 8) if work == "decode" else (b * t, 3, h, w)
    x = torch.rand(sizes, device=on, dtype=dtype) * 2 - 1
    if compiled:
        x = x.to(memory_format=torch.channels_last)

    def run(x):
        if work == "encode":
            return model.encode(x).latent_dist.mode()
        return model.decode(x, num_frames=t).sample

    run = torch.compile(run) if compiled else run

    def wait():
        if on == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(3):
            run(x)
        wait()
        ready = time.perf_counter() - start
        if on == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(_REPEATS.value):
            start = time.perf_counter()
            for _ in range(IN_FLIGHT):
                run(x)
            wait()
            seconds.append((time.perf_counter() - start) / IN_FLIGHT)
    return seconds, torch.cuda.max_memory_allocated() if on == "cuda" else 0, ready


def time_ours(work, shape):
    """Seconds per call, what the compiled program needs in bytes, and the seconds to compile it."""
    import jax

    from odvae_jax.baselines import SVDVAE, SVDVAEConfig
    from odvae_jax.compilation import bytes_needed
    from odvae_jax.evaluation.speed import function_and_input, time_calls

    config = SVDVAEConfig(width=WIDTH.value, dtype=DTYPE.value, param_dtype=DTYPE.value)
    model = SVDVAE(config, rngs=0)
    function, x = function_and_input(model, work, (*shape, 3))
    start = time.perf_counter()
    compiled = jax.jit(function).lower(model, x).compile()
    ready = time.perf_counter() - start
    return time_calls(compiled, model, x, repeats=_REPEATS.value), bytes_needed(compiled), ready


def child(name):
    """Prints what one process measures."""
    if name == "device":
        return print("\n" + json.dumps(device()))
    kind, text = name.split(":", 1)
    work, shape = work_and_shape(text)
    ours = kind == "ours"
    found = time_ours(work, shape) if ours else time_reference(work, shape, kind == "compiled")
    return print("\n" + json.dumps(found))


def measured(name):
    """What a process of its own prints last; None if it fails."""
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # so that nothing is found compiled
    with tempfile.TemporaryDirectory() as environment["TORCHINDUCTOR_CACHE_DIR"]:
        process = subprocess.run(
            [sys.executable, *sys.argv, f"--child={name}"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or ["no message"]
        print(f"{name}: {last[0]}", file=sys.stderr)
        return None
    return json.loads(process.stdout.splitlines()[-1])


def main(_):
    """Prints the table."""
    if _CHILD.value:
        return child(_CHILD.value)
    print(f"{measured('device')}, SVD-VAE, width {WIDTH.value}")
    print(f"{'work':24}{'':10}{'ms':>9}{'spread':>18}{'GiB':>8}{'ready s':>9}{'times':>7}")
    for work in _WORK.value:
        first = None
        for kind in _ONLY.value:
            result = measured(f"{kind}:{work}")
            if result is None:
                print(f"{work:24}{kind:10}{'failed':>9}", flush=True)
                continue
            seconds, memory, ready = result
            median = statistics.median(seconds)
            deciles = statistics.quantiles(seconds, n=10, method="inclusive")
            first = median if kind == "compiled" else first
            spread = f"{deciles[0] * 1e3:.1f}–{deciles[-1] * 1e3:.1f}"
            times = f"{first / median:.2f}" if first else ""
            print(
                f"{work:24}{kind:10}{median * 1e3:9.1f}{spread:>18}{memory / 2**30:8.2f}"
                f"{ready:9.1f}{times:>7}",
                flush=True,
            )
    for name, where in _NOT_RUN.items():
        print(f"{name}: not run; its reference ({where}) comes in no package")
    return None


if __name__ == "__main__":
    app.run(main)
