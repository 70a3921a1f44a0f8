"""Speed and memory of the training step, in one run.

python benchmarks/training.py                   # the complete step against the autoencoder alone
python benchmarks/training.py --largest 80,141  # the largest batches for GPUs of these GB
python benchmarks/training.py --scaling 1,2,4   # clips per second on so many of the GPUs
python benchmarks/training.py --scaling 1,4,fsdp=4,data=2:height=2   # other meshes beside
python benchmarks/training.py --scaling 8 --batch=1  # the paper's setting: a clip on each of eight
python benchmarks/training.py --task=denoiser --scaling 1,4,fsdp=4  # Latte-XL/2 on latents

A line per program: devices, clips per step, median time and spread (10th to 90th percentile), clips
per second, the memory that the compiled step needs on each device (all it keeps included), what the
device reports as its peak so far, and the time to compile. With --scaling, a second line has the
share of linear growth, if one device was timed before, and the days that the paper's number of
steps takes. With --largest, XLA's autotuning is off, for the search and for the run of the largest
batch: it takes many minutes at such sizes, and has little to do with memory.
"""

import math
import os
import statistics
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.96")

import jax
import numpy as np
from absl import app, flags

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.compilation import bytes_needed, use_compilation_cache
from odvae_jax.diffusion import Latte, LatteConfig
from odvae_jax.flops import count_flops, peak_flops
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.parameters import abstract_model
from odvae_jax.scale import Scale
from odvae_jax.sharding import clip_sharding, make_mesh, replicated, state_shardings
from odvae_jax.training.config import default_config
from odvae_jax.training.denoiser_data import on_devices
from odvae_jax.training.denoising import denoiser_config, denoiser_step, initial_state
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.guard import guarded
from odvae_jax.training.state import create_state, make_optimizers
from odvae_jax.training.step import autoencoder_step

_VARIANT = flags.DEFINE_integer("variant", 4, "1 to 4")
_WIDTH = flags.DEFINE_integer("width", 128, "base width")
_REMAT = flags.DEFINE_list("remat", ["convolutions"], "policies to compare")
_FRAMES = flags.DEFINE_integer("frames", 25, "of a clip")
_SIZE = flags.DEFINE_integer("size", 256, "side of a clip")
_BATCH = flags.DEFINE_integer("batch", 2, "clips per device")
_REPEATS = flags.DEFINE_integer("repeats", 12, "timed steps")
_LARGEST = flags.DEFINE_list("largest", [], "GPU sizes in GB (1e9 bytes) to find the batch for")
_SCALING = flags.DEFINE_list("scaling", [], "devices to compare: 4, or fsdp=4, data=2:height=2")
_TASK = flags.DEFINE_enum("task", "autoencoder", ["autoencoder", "denoiser"], "what is trained")
_LATTE = flags.DEFINE_string("latte", "XL/2", "the denoiser: S, B, L or XL, a slash, the patch")
_LATENT_FRAMES = flags.DEFINE_integer("latent_frames", 21, "of the denoiser")
_LATENT = flags.DEFINE_integer("latent", 32, "rows and columns of the denoiser's latents")
_HEADROOM = 0.94  # of a GPU's memory that a program may plan for
UNTUNED = {"xla_gpu_autotune_level": 0}
PAPER_STEPS = {"autoencoder": 650_000, "denoiser": 200_000}
ALONE = {"discriminator.weight": 0.0, "loss.perceptual_weight": 0.0}


class Program:
    """A compiled step, for a mesh of devices and a batch per device.

    A subclass sets `make_state`, `step` and `inputs`, arrays or their shapes by name.
    """

    def __init__(self, mesh):
        self.mesh = mesh
        self.devices = mesh.size

    def compile(self, **options):
        abstract = jax.eval_shape(self.make_state)
        self.shardings = state_shardings(self.mesh, abstract)
        self.state = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            abstract, self.shardings,
        )  # fmt: skip
        start = time.perf_counter()
        jitted = jax.jit(
            guarded(self.step, self.mesh), donate_argnums=0,
            out_shardings=(self.shardings, replicated(self.mesh)),
        )  # fmt: skip
        self.compiled = jitted.lower(self.state, *self.inputs()).compile(options or None)
        self.seconds = time.perf_counter() - start
        self.bytes = bytes_needed(self.compiled)
        return self

    def time(self, repeats, warm=2):
        """Seconds of each timed step, on random inputs and random weights."""
        state = jax.device_put(self.make_state(random=True), self.shardings)
        inputs = self.inputs()
        seconds = []
        for _ in range(warm + repeats):
            start = time.perf_counter()
            state, metrics = self.compiled(state, *inputs)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
        assert np.isfinite(float(metrics["loss"])) and int(metrics["skipped_steps"]) == 0
        return seconds[warm:]


class Autoencoder(Program):
    """A step of an autoencoder's training, with all losses."""

    def __init__(self, lpips, mesh=None, batch=None, remat="convolutions", **fields):
        super().__init__(mesh or make_mesh(devices=jax.devices()[:1]))
        self.batch = (batch or _BATCH.value) * self.devices
        config = default_config()
        model = ODVAEConfig.variant(
            _VARIANT.value, width=_WIDTH.value, dtype="bfloat16", remat=remat
        )
        config.model = model.to_dict()
        config.update_from_flattened_dict({"discriminator.start": 0, **fields})
        self.optimizers = make_optimizers(config)
        self.adversary = Discriminator(dtype="bfloat16") if config.discriminator.weight else None
        self.config, self.model = config, model
        self.lpips = lpips if config.loss.perceptual_weight else None
        self.step = autoencoder_step(
            config, abstract_model(model), self.adversary, self.optimizers, self.mesh
        )

    def make_state(self, random=False):
        vae = ODVAE(self.model, rngs=0 if random else None)
        return create_state(vae, self.adversary, self.optimizers, self.config)

    def inputs(self):
        rng = np.random.default_rng(0)
        shape = (self.batch, _FRAMES.value, _SIZE.value, _SIZE.value, 3)
        clips = jax.device_put(rng.integers(0, 256, shape, np.uint8), clip_sharding(self.mesh))
        return clips, jax.device_put(self.lpips, replicated(self.mesh))

    def flops(self):
        return count_flops(self.step, jax.eval_shape(self.make_state), *self.inputs())


class Denoiser(Program):
    """A step of Latte's training on latents."""

    def __init__(self, mesh, batch):
        super().__init__(mesh)
        self.batch = batch * self.devices
        self.model = LatteConfig.of(
            _LATTE.value, frames=_LATENT_FRAMES.value, rows=_LATENT.value, columns=_LATENT.value,
            classes=101, dtype="bfloat16",
        )  # fmt: skip
        self.config = denoiser_config()
        abstract = jax.eval_shape(lambda: Latte(self.model, rngs=None))
        self.step = denoiser_step(self.config, abstract, Scale(None, None, 1.0), mesh)

    def make_state(self, random=False):
        return initial_state(Latte(self.model, rngs=0 if random else None), self.config)

    def inputs(self):
        rng = np.random.default_rng(0)
        shape = (self.batch, *self.model.latent_shape)
        batch = {
            "latents": rng.standard_normal(shape, np.float32),
            "labels": rng.integers(0, 101, self.batch, np.int32),
        }
        key = np.asarray(jax.random.key_data(jax.random.key(0)))
        constants = jax.device_put((key, None), replicated(self.mesh))
        return on_devices(batch, self.mesh), constants


def mesh_of(text):
    """Of "4" or "data=2:height=2": a mesh of the first devices."""
    if "=" not in text:
        text = f"data={text}"
    sizes = {name: int(size) for name, size in (part.split("=") for part in text.split(":"))}
    sizes = {"data": 1, **sizes}
    return make_mesh(**sizes, devices=jax.devices()[: math.prod(sizes.values())])


def report(name, program, repeats=None, **options):
    """Compiles, times and prints; returns clips per second and the median time."""
    program.compile(**options)
    seconds = program.time(repeats or _REPEATS.value, warm=2 if repeats is None else 1)
    low, high = np.percentile(seconds, [10, 90])
    median = statistics.median(seconds)
    rate = program.batch / median
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    print(
        f"{name:28}{program.devices:4}{program.batch:6}{median * 1e3:9.1f}"
        f"{f'{low * 1e3:.1f}-{high * 1e3:.1f}':>16}{rate:9.2f}"
        f"{program.bytes / 2**30:9.2f}{peak / 2**30:9.2f}{program.seconds:9.0f}",
        flush=True,
    )
    return rate, median


def largest(lpips, gigabytes, known):
    """The largest batch whose compiled step fits: guessed from two sizes, then checked."""
    room = _HEADROOM * gigabytes * 1e9

    def needs(batch):
        if batch not in known:
            known[batch] = Autoencoder(lpips, batch=batch).compile(**UNTUNED).bytes
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
    device = jax.devices()[0]
    on_latents = _TASK.value == "denoiser"
    if on_latents and not _SCALING.value:
        raise SystemExit("training.py: --task=denoiser needs --scaling=1,2; see denoiser.py else.")
    lpips = None if on_latents else load_lpips("vgg", dtype="bfloat16")
    what = (
        f"Latte-{_LATTE.value}, latents of {_LATENT_FRAMES.value}×{_LATENT.value}×{_LATENT.value}"
        if on_latents
        else f"variant {_VARIANT.value}, width {_WIDTH.value}, clips of "
        f"{_FRAMES.value}×{_SIZE.value}×{_SIZE.value}"
    )
    print(f"{device.device_kind}, jax {jax.__version__}; {what}, bfloat16")
    print(
        f"{'step':28}{'dev':>4}{'clips':>6}{'ms':>9}{'spread':>16}{'clips/s':>9}"
        f"{'GiB':>9}{'peak GiB':>9}{'compile s':>9}"
    )
    if _SCALING.value:
        alone = None
        for text in _SCALING.value:
            mesh = mesh_of(text)
            make = Denoiser(mesh, _BATCH.value) if on_latents else Autoencoder(lpips, mesh)
            rate, median = report(f"complete, {text}", make)
            alone = rate if mesh.size == 1 else alone
            share = f"{rate / (alone * mesh.size):.1%} of linear; " if alone else ""
            steps = PAPER_STEPS[_TASK.value]
            print(
                f"  {share}{steps:,} steps of {make.batch} clips take "
                f"{steps * median / 86400:.1f} days",
                flush=True,
            )
        return
    if _LARGEST.value:
        known = {}
        for gigabytes in map(float, _LARGEST.value):
            batch = largest(lpips, gigabytes, known)
            print(f"largest for {gigabytes:.0f} GB: {batch} ({known[batch] / 2**30:.1f} GiB)")
            if known[batch] < (device.memory_stats() or {}).get("bytes_limit", 0):
                report(
                    "complete, not autotuned", Autoencoder(lpips, batch=batch), repeats=2, **UNTUNED
                )
        return
    for remat in _REMAT.value:
        alone = Autoencoder(lpips, remat=remat, **ALONE)
        whole = Autoencoder(lpips, remat=remat)
        _, a = report(f"autoencoder alone, {remat}", alone)
        _, b = report(f"complete, {remat}", whole)
        print(f"  the losses and the discriminator's update add {b / a - 1:.1%}", flush=True)
        flops, peak = alone.flops(), peak_flops(device)
        used = f", {flops / a / peak:.0%} of the device's" if peak else ""
        print(f"  the autoencoder's {flops / 1e12:.1f} TFLOP at {flops / a / 1e12:.0f}/s{used}")
    kernel = 2 * 2 * 27 * _WIDTH.value * 3 * np.prod(whole.inputs()[0].shape[:4])
    print(f"  the adaptive weight is {kernel / whole.flops():.2%} of the step's operations")


if __name__ == "__main__":
    app.run(main)
