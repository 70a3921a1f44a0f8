"""Speed and memory of the training step, in one run.

python benchmarks/training.py                   # the complete step against the autoencoder alone
python benchmarks/training.py --largest 80,141  # the largest batches for GPUs of these GB
python benchmarks/training.py --scaling 1,2,4   # clips per second on so many of the GPUs

A line a program: devices, clips a step, median time and spread (10th to 90th percentile), clips a
second, the memory that the compiled step needs on each device (all it keeps included), what the
device reports as its peak so far, and the time to compile. The largest batches are sought, and run,
with XLA's autotuning off: it takes many minutes at such sizes, and has little to do with memory.
"""

import os
import statistics
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.96")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.compilation import bytes_needed, use_compilation_cache
from odvae_jax.flops import count_flops, peak_flops
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.parameters import abstract_model
from odvae_jax.sharding import clip_sharding, make_mesh, replicated, state_shardings
from odvae_jax.training.config import default_config
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.guard import guarded
from odvae_jax.training.state import create_state, make_optimizers
from odvae_jax.training.step import autoencoder_step

_VARIANT = flags.DEFINE_integer("variant", 4, "1 to 4")
_WIDTH = flags.DEFINE_integer("width", 128, "base width")
_REMAT = flags.DEFINE_list("remat", ["convolutions"], "policies to compare")
_FRAMES = flags.DEFINE_integer("frames", 25, "of a clip")
_SIZE = flags.DEFINE_integer("size", 256, "side of a clip")
_BATCH = flags.DEFINE_integer("batch", 2, "clips a device")
_REPEATS = flags.DEFINE_integer("repeats", 12, "timed steps")
_LARGEST = flags.DEFINE_list("largest", [], "GPU sizes in GB (1e9 bytes) to find the batch for")
_SCALING = flags.DEFINE_list("scaling", [], "numbers of devices to compare")
_HEADROOM = 0.94  # of a GPU's memory that a program may plan for
UNTUNED = {"xla_gpu_autotune_level": 0}
ALONE = {"discriminator.weight": 0.0, "loss.perceptual_weight": 0.0}


class Program:
    """A compiled step for `devices` devices and a batch a device."""

    def __init__(self, lpips, devices=1, batch=None, remat="convolutions", **fields):
        self.batch = (batch or _BATCH.value) * devices
        self.devices = devices
        config = default_config()
        model = ODVAEConfig.variant(
            _VARIANT.value, width=_WIDTH.value, dtype="bfloat16", remat=remat
        )
        config.model = model.to_dict()
        config.update_from_flattened_dict({"discriminator.start": 0, **fields})
        self.mesh = make_mesh(devices, devices=jax.devices()[:devices])
        self.optimizers = make_optimizers(config)
        self.adversary = Discriminator(dtype="bfloat16") if config.discriminator.weight else None
        self.config, self.model = config, model
        self.lpips = lpips if config.loss.perceptual_weight else None
        state = jax.eval_shape(
            lambda: create_state(ODVAE(model, rngs=None), self.adversary, self.optimizers, config)
        )
        self.shardings = state_shardings(self.mesh, state)
        vae = abstract_model(model)
        step = autoencoder_step(config, vae, self.adversary, self.optimizers, self.mesh)
        self.step = guarded(step, self.mesh)
        shape = (self.batch, _FRAMES.value, _SIZE.value, _SIZE.value, 3)
        clips = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=clip_sharding(self.mesh))
        self.arguments = (
            jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
                state,
                self.shardings,
            ),
            clips,
            jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(self.mesh)),
                self.lpips,
            ),
        )
        self.clips = clips

    def compile(self, **options):
        start = time.perf_counter()
        jitted = jax.jit(
            self.step, donate_argnums=0, out_shardings=(self.shardings, replicated(self.mesh))
        )
        self.compiled = jitted.lower(*self.arguments).compile(options or None)
        self.seconds = time.perf_counter() - start
        self.bytes = bytes_needed(self.compiled)
        return self

    def flops(self):
        return count_flops(self.step, *self.arguments)

    def time(self, repeats, warm=2):
        """Seconds of each timed step, on random clips and random weights."""
        make = lambda: create_state(  # noqa: E731
            ODVAE(self.model, rngs=0), self.adversary, self.optimizers, self.config
        )
        state = jax.device_put(make(), self.shardings)
        rng = np.random.default_rng(0)
        clips = rng.integers(0, 256, self.clips.shape, dtype=np.uint8)
        clips = jax.device_put(clips, self.clips.sharding)
        lpips = jax.device_put(self.lpips, replicated(self.mesh))
        seconds = []
        for _ in range(warm + repeats):
            start = time.perf_counter()
            state, metrics = self.compiled(state, clips, lpips)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
        assert np.isfinite(float(metrics["loss"])) and int(metrics["skipped_steps"]) == 0
        return seconds[warm:]


def report(name, program, repeats=None, **options):
    """Compiles, times and prints; returns clips per second and the median time."""
    program.compile(**options)
    seconds = program.time(repeats or _REPEATS.value, warm=2 if repeats is None else 1)
    deciles, median = (
        statistics.quantiles(seconds, n=10, method="inclusive"),
        statistics.median(seconds),
    )
    rate = program.batch / median
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    print(
        f"{name:28}{program.devices:4}{program.batch:6}{median * 1e3:9.1f}"
        f"{f'{deciles[0] * 1e3:.1f}-{deciles[-1] * 1e3:.1f}':>16}{rate:9.2f}"
        f"{program.bytes / 2**30:9.2f}{peak / 2**30:9.2f}{program.seconds:9.0f}",
        flush=True,
    )
    return rate, median


def largest(lpips, gigabytes, known):
    """The largest batch whose compiled step fits: guessed from two sizes, then checked."""
    room = _HEADROOM * gigabytes * 1e9

    def needs(batch):
        if batch not in known:
            known[batch] = Program(lpips, batch=batch).compile(**UNTUNED).bytes
            print(f"batch {batch}: {known[batch] / 2**30:.2f} GiB", flush=True)
        return known[batch]

    b0, b1 = _BATCH.value, 2 * _BATCH.value
    slope = (needs(b1) - needs(b0)) / (b1 - b0)
    batch = max(int((room - needs(b1)) // slope) + b1, 1)
    while batch > 1 and needs(batch) > room:
        batch -= 1
    while needs(batch + 1) <= room:
        batch += 1
    return batch


def main(_):
    use_compilation_cache()
    lpips = load_lpips("vgg", dtype="bfloat16")
    device = jax.devices()[0]
    print(
        f"{device.device_kind}, jax {jax.__version__}; variant {_VARIANT.value}, width "
        f"{_WIDTH.value}, clips of {_FRAMES.value}×{_SIZE.value}×{_SIZE.value}, bfloat16"
    )
    print(
        f"{'step':28}{'dev':>4}{'clips':>6}{'ms':>9}{'spread':>16}{'clips/s':>9}"
        f"{'GiB':>9}{'peak GiB':>9}{'compile s':>9}"
    )
    if _SCALING.value:
        first = None
        for count in map(int, _SCALING.value):
            rate, _ = report("complete", Program(lpips, devices=count))
            first = first or rate / count
            print(f"  {rate / (first * count):.1%} of linear", flush=True)
        return
    if _LARGEST.value:
        known = {}
        for gigabytes in map(float, _LARGEST.value):
            batch = largest(lpips, gigabytes, known)
            print(f"largest for {gigabytes:.0f} GB: {batch} ({known[batch] / 2**30:.1f} GiB)")
            if known[batch] < (device.memory_stats() or {}).get("bytes_limit", 0):
                report("complete, not autotuned", Program(lpips, batch=batch), repeats=2, **UNTUNED)
        return
    for remat in _REMAT.value:
        alone = Program(lpips, remat=remat, **ALONE)
        whole = Program(lpips, remat=remat)
        _, a = report(f"autoencoder alone, {remat}", alone)
        _, b = report(f"complete, {remat}", whole)
        print(f"  the losses and the discriminator's update add {b / a - 1:.1%}", flush=True)
        flops, peak = alone.flops(), peak_flops(device)
        used = f", {flops / a / peak:.0%} of the device's" if peak else ""
        print(f"  the autoencoder's {flops / 1e12:.1f} TFLOP at {flops / a / 1e12:.0f}/s{used}")
    kernel = 2 * 2 * 27 * _WIDTH.value * 3 * np.prod(whole.clips.shape[:4])
    print(f"  the adaptive weight is {kernel / whole.flops():.2%} of the step's operations")


if __name__ == "__main__":
    app.run(main)
