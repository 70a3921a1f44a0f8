"""Compression speed as in Table 3: clips per second and memory, by batch size."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from odvae_jax.autoencoder import ODVAE
from odvae_jax.compilation import bytes_needed
from odvae_jax.inference import decode, encode

IN_FLIGHT = 4
"""How many calls are started before waiting, so that the host's work overlaps with the device's."""
_GAIN = 1.02  # how much faster a batch twice as large must be for a larger one to be tried
_LARGEST_BATCH = 64
_CHAIN = 10  # matrix products per call, so that launching costs nothing
_SIDES = {"cpu": (1024,)}  # sides of matrices, by platform


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast batches of one size are encoded or decoded.

    Attributes:
      work: "encode" or "decode".
      batch: the number of clips per call.
      clips_per_second: the median over the timings.
      spread: the 10th and the 90th percentile of the clips per second.
      gigabytes: the memory that the compiled program needs, in units of 1e9 bytes, with the model,
        the input and the output.
      compile_seconds: the seconds that it took to compile the program; few if the compilation cache
        holds it.
    """

    work: str
    batch: int
    clips_per_second: float
    spread: tuple[float, float]
    gigabytes: float
    compile_seconds: float


def time_calls(function: Callable[..., Any], *args: Any, repeats: int) -> list[float]:
    """Returns the seconds per call of a function, measured `repeats` times.

    Each measurement takes the mean over a few calls in flight at once, as in a stream of clips. Two
    calls before the first measurement are not timed.
    """
    for _ in range(2):
        jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready([function(*args) for _ in range(IN_FLIGHT)])
        seconds.append((time.perf_counter() - start) / IN_FLIGHT)
    return seconds


def matrix_rate(dtype: str, repeats: int) -> float:
    """Returns the operations per second of products of random square matrices.

    It is the rate of the side length that does best. A multiply-add counts as two operations.

    Args:
      dtype: the dtype of the matrices.
      repeats: the number of timings.
    """
    rates = []
    for side in _SIDES.get(jax.default_backend(), (4096, 8192, 16384)):
        a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
        b = b / side**0.5  # so that products of products neither grow nor shrink
        chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, _CHAIN, lambda _, x: x @ b, a))
        seconds = statistics.median(time_calls(chain, a, b, repeats=repeats))
        rates.append(_CHAIN * 2 * side**3 / seconds)
    return max(rates)


def speeds(vae: ODVAE, work: str, frames: int, size: int, *, repeats: int = 10) -> Iterator[Speed]:
    """Times batches of 1, 2, 4, ... clips while larger ones are faster and fit in memory.

    Args:
      vae: the model; its weights do not matter.
      work: "encode" or "decode".
      frames: the number of frames in a clip.
      size: the side of a clip in pixels.
      repeats: the number of timings per batch size, each of four calls.

    Yields:
      The speed of each batch size.
    """
    best, batch = 0.0, 1
    while batch <= _LARGEST_BATCH:
        try:
            speed = _speed(vae, work, (batch, frames, size, size, 3), repeats)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
            return
        yield speed
        if speed.clips_per_second < best * _GAIN:
            return
        best, batch = max(best, speed.clips_per_second), 2 * batch


def _speed(vae, work, shape, repeats):
    if work == "encode":
        function = lambda vae, video: encode(vae, video).mean  # noqa: E731
    else:
        function, shape = decode, vae.config.latent_shape(shape)
    x = jax.random.uniform(jax.random.key(1), shape, jnp.float32, -1.0, 1.0)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(vae, x).compile()
    compile_seconds = time.perf_counter() - start
    rates = sorted(shape[0] / s for s in time_calls(compiled, vae, x, repeats=repeats))
    deciles = statistics.quantiles(rates, n=10, method="inclusive") if len(rates) > 1 else rates * 9
    return Speed(
        work,
        shape[0],
        statistics.median(rates),
        (deciles[0], deciles[-1]),
        bytes_needed(compiled) / 1e9,
        compile_seconds,
    )


def best_of(measured: list[Speed]) -> Speed:
    """Returns the speed with the most clips per second."""
    return max(measured, key=lambda speed: speed.clips_per_second)
