"""Encoding and decoding speed against the device's own matrix-product rate, in one run.

python benchmarks/throughput.py --work encode:81x256x256,decode:81x256x256,decode:33x512x512

Each line: median time and spread (10th to 90th percentile), operations, the achieved rate, its
share of the rate of a large matrix product in the same dtype, and the compilation's temporary
memory.
"""

import statistics
import time

import jax
from absl import app, flags

from odvae_jax import ODVAE, ODVAEConfig, decode, encode
from odvae_jax.compilation import use_compilation_cache
from odvae_jax.evaluation.speed import matrix_rate, time_calls
from odvae_jax.flops import count_flops

_WORK = flags.DEFINE_list(
    "work",
    ["encode:81x256x256", "decode:81x256x256", "encode:33x512x512", "decode:33x512x512"],
    "what to time: encode or decode, a colon, and the video's frames, height and width",
)
_VARIANT = flags.DEFINE_integer("variant", 4, "1 to 4")
_WIDTH = flags.DEFINE_integer("width", 128, "base width")
_UPSAMPLE = flags.DEFINE_enum(
    "upsample", "linear", ["linear", "nearest"], "of the decoder, in space"
)
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "of the computation and the parameters")
_REPEATS = flags.DEFINE_integer("repeats", 15, "timed runs of each")


def main(_):
    use_compilation_cache()
    config = ODVAEConfig.variant(
        _VARIANT.value,
        width=_WIDTH.value,
        upsample=_UPSAMPLE.value,
        dtype=_DTYPE.value,
        param_dtype=_DTYPE.value,
    )
    vae = ODVAE(config, rngs=0)
    peak = matrix_rate(_DTYPE.value, _REPEATS.value)
    device = jax.devices()[0].device_kind
    print(
        f"{device}, jax {jax.__version__}, {_DTYPE.value}; matrix product {peak / 1e12:.0f} TFLOP/s"
    )
    print(
        f"{'work':26}{'ms':>9}{'spread':>16}{'TFLOP':>9}{'TFLOP/s':>9}"
        f"{'share':>7}{'GiB':>7}{'compile s':>10}"
    )
    for work in _WORK.value:
        name, size = work.split(":")
        t, h, w = map(int, size.split("x"))
        shape = (1, t, h, w, 3)
        if name == "decode":
            shape = config.latent_shape(shape)
            function = decode
        else:
            function = lambda vae, video: encode(vae, video).mean  # noqa: E731
        x = jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)
        flops = count_flops(function, vae, x)
        start = time.perf_counter()
        compiled = jax.jit(function).lower(vae, x).compile()
        compile_seconds = time.perf_counter() - start
        seconds = time_calls(compiled, vae, x, repeats=_REPEATS.value)
        deciles = statistics.quantiles(seconds, n=10, method="inclusive")
        median = statistics.median(seconds)
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
        print(
            f"v{_VARIANT.value} {work:23}{median * 1e3:9.1f}"
            f"{f'{deciles[0] * 1e3:.1f}-{deciles[-1] * 1e3:.1f}':>16}{flops / 1e12:9.2f}"
            f"{flops / median / 1e12:9.0f}{flops / median / peak:7.2f}"
            f"{memory:7.2f}{compile_seconds:10.0f}",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
