"""Fixed embeddings of places, frames and times: sines and cosines, which are not trained."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

TIME_VALUES = 256
"""The number of sines and cosines that a time is turned into."""
_PERIOD = 10_000


def of_places(rows: int, columns: int, width: int) -> Float[np.ndarray, "n w"]:
    """Returns the embedding of every token of a frame, row after row, in float32.

    The first half of the width encodes the token's column, the second half its row.

    Args:
      rows: the rows of tokens.
      columns: the columns of tokens.
      width: the number of values per token, a multiple of 4.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    halves = [_sines(places, width // 2) for places in (column, row)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def of_frames(frames: int, width: int) -> Float[np.ndarray, "f w"]:
    """Returns the embedding of the frames 0, 1, ... of a clip, in float32.

    Args:
      frames: the number of latent frames.
      width: the number of values per token, an even number.
    """
    return _sines(np.arange(frames), width).astype(np.float32)


def of_times(t: Real[Array, "b"]) -> Float[Array, "b k"]:
    """Returns 256 values of each time, 0 to 1000, in float32; here the cosines come first."""
    half = TIME_VALUES // 2
    frequencies = (_PERIOD ** (-np.arange(half) / half)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


def _sines(places, width):
    """[sin(p ω), cos(p ω)] in float64, with ω falling from 1 to nearly 1/10000."""
    frequencies = _PERIOD ** (-np.arange(width // 2) / (width / 2))
    angles = np.outer(places, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
