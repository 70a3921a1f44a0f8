"""Where the device's time goes: convolutions, norms, what joins frames, the rest.

python benchmarks/breakdown.py --work encode:1x81x256x256,decode:1x81x256x256
python benchmarks/breakdown.py --height=4 --work encode:1x33x512x512   # rows on four devices

Profiles a few calls of each, and sorts the device's kernels by the compiled program's instructions
that they belong to. The last line says which share of the rate of a large matrix product, measured
in the same run, the whole and the convolutions alone reach. Profiled without CUDA graphs, so that
each kernel is named. With --height, the rows of each clip are spread over so many devices, and the
times are the mean of the devices.
"""

import os
import re

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="

import jax
from absl import app, flags
from common import DTYPE, VARIANT, device, function_and_input, model, work_and_shape
from profiled import REST, bodies_of, by_kind, device_seconds, print_kinds

from odvae_jax.compilation import use_compilation_cache
from odvae_jax.evaluation.speed import matrix_rate
from odvae_jax.flops import count_flops
from odvae_jax.sharding import make_mesh, replicate, spread_clips

_WORK = flags.DEFINE_list(
    "work",
    ["encode:1x81x256x256", "decode:1x81x256x256", "train:2x25x256x256"],
    "encode, decode or train (forward and backward of L1), a colon, clips, frames, height, width",
)
_HEIGHT = flags.DEFINE_integer("height", 1, "devices that share the rows of a clip")
_CALLS = flags.DEFINE_integer("calls", 5, "that are profiled")
_LONGEST = flags.DEFINE_integer("longest", 0, "instructions to list, the longest first")

CONVOLUTIONS = "convolutions"
PRODUCTS = "matrix products"
KERNEL = "norms, SiLU and what pairs convolve, by the kernels"
NORMS = "norms, SiLU and their gradients, by XLA, and what is fused with them"
JOINED = "frames joined or interleaved, products of pairs summed, interpolation"
SUMS = "other sums"
BETWEEN = "exchange between devices, with the time that one waits for another"
EXCHANGES = "collective-permute|all-reduce|all-gather|all-to-all|reduce-scatter"


def instructions(text):
    """Of a compiled program: the kind of work that each instruction of its does."""
    return {name: kind(line, body) for name, line, body in bodies_of(text)}


def kind(line, body):
    """Of an instruction's line, and of what it fuses."""
    if re.search(rf"\s({EXCHANGES})[a-z-]*\(", line):
        return BETWEEN
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


def breakdown(text, rate):
    """Prints one work's."""
    work, shape = work_and_shape(text)
    mesh = make_mesh(1, height=_HEIGHT.value, devices=jax.devices()[: _HEIGHT.value])
    vae = replicate(model(remat="convolutions" if work == "train" else "none"), mesh)
    function, x = function_and_input(vae, work, shape)
    x = spread_clips(x, mesh)
    flops = count_flops(function, vae, x)
    compiled = jax.jit(function).lower(vae, x).compile()
    kinds = instructions(compiled.as_text())
    for _ in range(2):
        jax.block_until_ready(compiled(vae, x))
    seconds = device_seconds(lambda: compiled(vae, x), _CALLS.value, mesh.size)
    # XLA renames some instructions after it has printed the text.
    exchange = re.compile(rf"(ppermute|{EXCHANGES})\b")
    kinds |= {name: BETWEEN for name in seconds if name not in kinds and exchange.match(name)}
    print_kinds(f"{text}, variant {VARIANT.value}", seconds, kinds)
    total = sum(seconds.values())
    convolving = next((s for kind, s, _ in by_kind(seconds, kinds) if kind == CONVOLUTIONS), 0)
    rate *= mesh.size
    whole, alone = (flops / s / rate for s in (total, max(convolving, 1e-12)))
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
