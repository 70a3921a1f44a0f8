"""Where the device's time goes: convolutions, norms, what joins frames, the rest.

python benchmarks/breakdown.py --work encode:1x81x256x256,decode:1x81x256x256

Profiles a few calls of each, and sorts the device's kernels by the compiled program's instructions
that they belong to. The last line says which share of the rate of a large matrix product, measured
in the same run, the whole and the convolutions alone reach. Profiled without CUDA graphs, so that
each kernel is named.
"""

import collections
import os
import re
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="

import jax
from absl import app, flags
from common import DTYPE, VARIANT, device, function_and_input, model, work_and_shape

from odvae_jax.compilation import use_compilation_cache
from odvae_jax.evaluation.speed import matrix_rate
from odvae_jax.flops import count_flops

_WORK = flags.DEFINE_list(
    "work",
    ["encode:1x81x256x256", "decode:1x81x256x256", "train:2x25x256x256"],
    "encode, decode or train (forward and backward of L1), a colon, clips, frames, height, width",
)
_CALLS = flags.DEFINE_integer("calls", 5, "that are profiled")
_LONGEST = flags.DEFINE_integer("longest", 0, "instructions to list, the longest first")

CONVOLUTIONS = "convolutions"
PRODUCTS = "matrix products"
KERNEL = "norms, SiLU and what pairs convolve, by the kernels"
NORMS = "norms, SiLU and their gradients, by XLA, and what is fused with them"
JOINED = "frames joined or interleaved, products of pairs summed, interpolation"
SUMS = "other sums"
REST = "copies, residuals and the rest"


def instructions(text):
    """Of a compiled program: the kind of work that each instruction of its does."""
    bodies, name = collections.defaultdict(list), None
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = opened[1]
        elif line.startswith("}"):
            name = None
        elif name:
            bodies[name].append(line)
    kinds = {}
    for line in (line for body in bodies.values() for line in body):
        if found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line):
            called = re.search(r"calls=%?([\w.\-]+)", line)
            kinds[found[1]] = kind(line, "\n".join(bodies[called[1]]) if called else line)
    return kinds


def kind(line, body):
    """Of an instruction's line, and of what it fuses."""
    if "__cudnn$conv" in line or re.search(r"\sconvolution\(", body):
        return CONVOLUTIONS
    if "xla.gpu.triton" in line or "triton_kernel_call" in line:
        return KERNEL
    if "gemm" in line or "__cublas" in line or re.search(r"\sdot\(", body):
        return PRODUCTS
    if re.search(r"\sconcatenate\(", body):
        return JOINED
    if re.search(r'op_name="[^"]*[/("]norm[/)]', body):
        return NORMS
    return SUMS if re.search(r"\sreduce\(", body) else REST


def device_seconds(folder):
    """Seconds of the device a call, by instruction."""
    (path,) = Path(folder).rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    seconds = collections.Counter()
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue  # summaries of the same
            for event in line.events:
                stats = dict(event.stats)
                if devices or "hlo_op" in stats:
                    name = str(stats.get("hlo_op", event.name))
                    seconds[name] += event.duration_ns / 1e9 / _CALLS.value
    return seconds


def breakdown(text, rate):
    """Prints one work's."""
    work, shape = work_and_shape(text)
    vae = model(remat="convolutions" if work == "train" else "none")
    function, x = function_and_input(vae, work, shape)
    flops = count_flops(function, vae, x)
    compiled = jax.jit(function).lower(vae, x).compile()
    kinds = instructions(compiled.as_text())
    for _ in range(2):
        jax.block_until_ready(compiled(vae, x))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_CALLS.value):
                jax.block_until_ready(compiled(vae, x))
        seconds = device_seconds(folder)
    if not seconds:
        raise SystemExit("The profile names no kernels of this device: a GPU's and a CPU's do.")
    total, by_kind, counts = sum(seconds.values()), collections.Counter(), collections.Counter()
    for name, value in seconds.items():
        by_kind[kinds.get(name, REST)] += value
        counts[kinds.get(name, REST)] += 1
    print(f"{text}, variant {VARIANT.value}: {total * 1e3:.1f} ms of the device")
    for name, value in by_kind.most_common():
        print(f"  {name:70}{value * 1e3:9.2f} ms{value / total:8.1%}{counts[name]:6} instructions")
    whole, alone = (flops / s / rate for s in (total, max(by_kind[CONVOLUTIONS], 1e-12)))
    print(
        f"  {flops / 1e12:.2f} TFLOP: {whole:.2f} of the matrix rate, "
        f"and {alone:.2f} while convolutions run",
        flush=True,
    )
    for name, value in seconds.most_common(_LONGEST.value):
        print(f"    {value * 1e3:8.3f} ms  {kinds.get(name, '?'):70}{name}")


def main(_):
    use_compilation_cache()
    rate = matrix_rate(DTYPE.value, 5)
    print(f"{device()}; matrix product {rate / 1e12:.1f} TFLOP/s")
    for text in _WORK.value:
        breakdown(text, rate)


if __name__ == "__main__":
    app.run(main)
