"""Compression speed as in Table 3: clips per second and memory, by batch size."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odvae_jax.baselines.base import Baseline
from odvae_jax.compilation import bytes_needed
from odvae_jax.evaluation.models import taken
from odvae_jax.inference import decode, encode
from odvae_jax.parameters import Autoencoder

IN_FLIGHT = 4
"""How many calls are started before waiting, so that the host's work overlaps with the device's."""
_GAIN = 1.02  # how much faster a batch twice as large must be for a larger one to be tried
LARGEST_BATCH = 64
"""The largest batch that is timed, unless another is asked for."""
_CHAIN = 10  # matrix products per call, so that launching costs nothing
_SIDES = {"cpu": (1024,)}  # sides of matrices, by platform
WORKS = ("encode", "decode")
"""What can be timed."""


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


def speeds(
    model: Autoencoder,
    work: str,
    size: tuple[int, int, int],
    *,
    repeats: int = 10,
    largest_batch: int = LARGEST_BATCH,
) -> Iterator[Speed]:
    """Times batches of 1, 2, 4, ... clips while larger ones are faster and fit in memory.

    Args:
      model: the model; its weights do not matter.
      work: "encode", to the mean of the posterior or to codes, or "decode".
      size: the number of frames, rows and columns of a clip, (T, H, W), which the model takes.
      repeats: the number of timings per batch size, each of four calls.
      largest_batch: the largest batch that is timed.

    Yields:
      The speed of each batch size.
    """
    best, batch = 0.0, 1
    while batch <= largest_batch:
        try:
            speed = _speed(model, work, (batch, *size, 3), repeats)
        except jax.errors.JaxRuntimeError as error:
            if not _is_memory(error) or batch == 1:
                raise
            return
        yield speed
        if speed.clips_per_second < best * _GAIN:
            return
        best, batch = max(best, speed.clips_per_second), 2 * batch


def _is_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _speed(model, work, shape, repeats):
    function, x = function_and_input(model, work, shape)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(model, x).compile()
    compile_seconds = time.perf_counter() - start
    rates = [shape[0] / s for s in time_calls(compiled, model, x, repeats=repeats)]
    low, high = map(float, np.percentile(rates, [10, 90]))
    return Speed(
        work,
        shape[0],
        statistics.median(rates),
        (low, high),
        bytes_needed(compiled) / 1e9,
        compile_seconds,
    )


def function_and_input(
    model: Autoencoder, work: str, shape: tuple[int, ...]
) -> tuple[Callable[..., jax.Array], jax.Array]:
    """Returns what is timed, a function of the model and its input, and a random input.

    Args:
      model: the model.
      work: "encode", to the mean of the posterior or to codes, or "decode".
      shape: the shape of the clips, [B, T, H, W, 3], which the model takes.
    """
    key, latents = jax.random.key(1), model.config.latent_shape(shape)
    if work == "encode":
        run = type(model).encode if isinstance(model, Baseline) else encode
        x = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)
        return lambda model, video: run(model, video).mode(), x
    if not isinstance(model, Baseline):
        return decode, jax.random.uniform(key, latents, jnp.float32, -1.0, 1.0)
    if codes := model.config.codes:
        x = jax.random.randint(key, latents, 0, codes, jnp.int32)
    else:
        x = jax.random.uniform(key, latents, jnp.float32, -1.0, 1.0)
    return lambda model, x: model.decode(x, frames=shape[1]), x


def best_of(measured: list[Speed]) -> Speed:
    """Returns the speed with the most clips per second."""
    return max(measured, key=lambda speed: speed.clips_per_second)


def speed_table(
    models: Iterable[tuple[str, Callable[[], Autoencoder]]],
    size: tuple[int, int, int],
    dtype: str,
    *,
    works: Sequence[str] = WORKS,
    repeats: int = 10,
    largest_batch: int = LARGEST_BATCH,
) -> Iterator[str]:
    """Times models one after another; each is freed before the next is made.

    A model that does not take clips of `size` is timed on the largest part of them that it takes,
    which its line says.

    Args:
      models: the models, each as its name and a function that makes it.
      size: the number of frames, rows and columns of a clip, (T, H, W).
      dtype: the name of the models' dtype, for the title.
      works: what is timed: "encode", "decode" or both.
      repeats: the number of timings per batch size.
      largest_batch: the largest batch that is timed.

    Yields:
      The lines of a table, each as soon as it is measured.
    """
    yield (
        f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {dtype}, clips of "
        f"{_shown(size)}; clips per second: median (10th–90th percentile)"
    )
    yield (
        f"{'model':24}{'work':>8}{'batch 1':>26}{'GB':>8}{'best batch':>12}{'':>26}{'GB':>8}"
        f"{'compile s':>11}"
    )
    for label, make in models:
        model = make()
        part = taken(model.config, *size)
        name = label if part == size else f"{label} ({_shown(part)})"
        for work in works:
            yield f"{name:24}{work:>8}{_cells(model, work, part, repeats, largest_batch)}"
        del model
        jax.clear_caches()  # compiled programs hold memory, too


def _cells(model, work, size, repeats, largest_batch) -> str:
    try:
        measured = list(speeds(model, work, size, repeats=repeats, largest_batch=largest_batch))
    except jax.errors.JaxRuntimeError as error:
        if not _is_memory(error):
            raise
        return f"{'not enough memory':>26}"
    best, cells = best_of(measured), []
    for s in (measured[0], best):
        rate = f"{s.clips_per_second:.2f} ({s.spread[0]:.2f}–{s.spread[1]:.2f})"
        cells.append(f"{rate:>26}{s.gigabytes:8.2f}")
    return f"{cells[0]}{best.batch:12}{cells[1]}{measured[0].compile_seconds:11.1f}"


def _shown(size: tuple[int, int, int]) -> str:
    return "×".join(map(str, size))
