"""The largest clip that runs whole under `tiling="auto"`, and that larger ones run in parts.

XLA_PYTHON_CLIENT_MEM_FRACTION=0.05 python benchmarks/auto_tiling.py --width=32

For encoding and decoding: clips about as long as two short ones promise to fit are computed until
one runs whole and the next longer one, of four frames more, does not; then one of twice the length,
and a short clip of large frames. All of them must run. "Failed" counts the choices that ran out of
memory all the same. Seconds are those of the first call, compiling included, and of the second.
"""

import logging
import os
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.05")

import numpy as np
from absl import app, flags
from common import WIDTH, device, model

from odvae_jax import AutoTiling, decode_uint8, encode_uint8
from odvae_jax.compilation import use_compilation_cache
from odvae_jax.tiling import auto
from odvae_jax.tiling.needs import Needs, Work

_WORK = flags.DEFINE_list("work", ["encode", "decode"], "what to do")
_NORM = flags.DEFINE_list("norm", ["clip"], "clip, frame: the norms of the models")
_SIZE = flags.DEFINE_integer("size", 256, "side of a frame")
_LARGE = flags.DEFINE_integer("large", 1536, "side of the large frames; 0 for none")
_GIGABYTES = flags.DEFINE_float("gigabytes", None, "memory; what the device says if not given")
_STEP = 4  # frames by which lengths differ
_MOST_FRAMES = 4096
_MOST_CLIPS = 8  # until the longest one that runs whole must be found


class _Log(logging.Handler):
    """What was chosen, and how often it did not fit."""

    def __init__(self):
        super().__init__()
        self.choice, self.failures = None, 0

    def emit(self, record):
        if record.args and isinstance(record.args[0], auto.Choice):
            self.choice = record.args[0]
        elif record.levelno == logging.WARNING:
            self.failures += 1


def shape_of(vae, work, frames, side):
    shape = (1, frames, side, side, 3)
    return shape if work == "encode" else vae.config.latent_shape(shape)


def needs(vae, work, frames):
    dtype = "uint8" if work == "encode" else "float32"
    return Needs(vae, Work(shape_of(vae, work, frames, _SIZE.value), dtype, work == "encode"))


def longest(vae, work, tiling, log):
    """The most frames of a clip that runs whole; one of `_STEP` frames more was seen not to."""
    choice = run(vae, work, 17, _SIZE.value, tiling, log)
    if choice.tilings:
        raise SystemExit(f"{work}: not even 17 frames run whole; give more memory")
    room, low, high = choice.room, 17, _MOST_FRAMES + 1
    lengths = range(low, high, _STEP)
    frames = max(n for n in lengths if needs(vae, work, n).predicted(()) <= room)
    for _ in range(_MOST_CLIPS):
        choice = run(vae, work, frames, _SIZE.value, tiling, log)
        low, high = (low, frames) if choice.tilings else (frames, high)
        if high - low == _STEP:
            return low
        needed = needs(vae, work, frames).known(()) or needs(vae, work, frames).predicted(())
        needed = min(needed, 1.1 * room)  # what could not even be compiled has no figure
        better = int(frames * room / needed) // _STEP * _STEP + 1
        frames = min(max(better, low + _STEP), high - _STEP)
    raise SystemExit(f"{work}: between {low} and {high} frames, more clips would have to be tried")


def run(vae, work, frames, side, tiling, log):
    """Computes a clip twice, prints a row, and returns the choice."""
    shape, rng = shape_of(vae, work, frames, side), np.random.default_rng(0)
    if work == "encode":
        x = rng.integers(0, 256, shape, np.uint8)
        call = lambda: encode_uint8(vae, x, tiling=tiling).mean  # noqa: E731
    else:
        x = rng.standard_normal(shape, np.float32)
        call = lambda: decode_uint8(vae, x, tiling=tiling)  # noqa: E731
    seconds, log.failures = [], 0
    auto.forget()  # so that the choice is said
    for _ in range(2):
        start = time.perf_counter()
        np.asarray(call())
        seconds.append(time.perf_counter() - start)
    choice = log.choice
    size = f"{frames}×{side}×{side}"
    print(
        f"{work:7} {vae.config.norm:6} {size:14} {choice.way:62} {choice.needed / 1e9:7.3f}"
        f"{choice.room / 1e9:7.3f} {log.failures:6} {seconds[0]:8.1f} {seconds[1]:8.2f}",
        flush=True,
    )
    return choice


def main(_):
    use_compilation_cache()
    log, logger = _Log(), logging.getLogger("odvae_jax.tiling")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(log)
    memory = None if _GIGABYTES.value is None else int(_GIGABYTES.value * 1e9)
    tiling = AutoTiling(memory)
    fraction = os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]
    print(f"{device()}, width {WIDTH.value}, XLA_PYTHON_CLIENT_MEM_FRACTION={fraction}")
    print(
        f"{'':7} {'norm':6} {'clip':14} {'choice':62} {'needs':>7}{'of, GB':>7} {'failed':>6} "
        f"{'first, s':>8} {'second':>8}"
    )
    for norm in _NORM.value:
        vae = model(norm=norm)
        for work in _WORK.value:
            frames = longest(vae, work, tiling, log)
            run(vae, work, 2 * frames - 1, _SIZE.value, tiling, log)
            if _LARGE.value:
                run(vae, work, 17, _LARGE.value, tiling, log)


if __name__ == "__main__":
    app.run(main)
