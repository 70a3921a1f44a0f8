"""Clips in parts: the paper's temporal tiling (section 3.3), exact streaming, tiles of frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from odvae_jax.config import SPACE_COMPRESSION
from odvae_jax.layers.state import START, State
from odvae_jax.sharding import varying_alike

Part = Callable[[jax.Array, State, bool], tuple[jax.Array, State]]
"""Maps a part of a clip, the state before it and whether it is the last to its output and the state
after it (odvae_jax/layers/state.py); None stands for a part that nothing is carried to."""
TIME_COMPRESSION = 4
"""Of the video models, whatever their variant."""


@dataclasses.dataclass(frozen=True)
class TemporalTiling:
    """Groups of frames, each encoded and decoded alone; the first of each is the last before it.

    What it costs: a group does not see what came before its first frame, and where norms are taken
    over time, their statistics are the group's. Inside `jit` the program's size does not depend on
    the clip's length, and its memory is that of input, output and one group.

    Args:
      group: frames, 4k + 1 and at least 5.

    Raises:
      ValueError: for another number, naming the nearest that would do.
    """

    group: int = 33

    def __post_init__(self):
        if self.group < TIME_COMPRESSION + 1 or (self.group - 1) % TIME_COMPRESSION:
            nearest = TIME_COMPRESSION * max(round((self.group - 1) / TIME_COMPRESSION), 1) + 1
            raise ValueError(
                f"a group of {self.group} frames is not 4k + 1 with k at least 1; the nearest is "
                f"{nearest}."
            )

    @property
    def step(self) -> int:
        """Frames that a part adds to those before it; the first part has one more."""
        return self.group - 1

    def run(self, part: Part, x: Shaped[Array, "b t ..."], step: int) -> Shaped[Array, "b u ..."]:
        """What `part` makes of each group of `step` + 1 along axis 1 of `x`, joined."""
        length = x.shape[1]
        if length <= step + 1:
            return part(x, None, True)[0]
        whole, rest = divmod(length - 1, step)

        def group(start):
            return part(jax.lax.dynamic_slice_in_dim(x, start, step + 1, axis=1), None, True)[0]

        outputs = jax.lax.map(group, jnp.arange(whole) * step)  # [n, B, u, ...]
        parts = [outputs[0, :, :1], _joined(outputs[:, :, 1:])]
        if rest:
            parts.append(part(x[:, length - 1 - rest :], None, True)[0][:, 1:])
        return jnp.concatenate(parts, axis=1)


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Chunks of frames, each with what it needs of those before: exactly the whole clip's result.

    For models with `norm="frame"`. Each causal convolution carries the two frames before a chunk,
    and each linear upsampling in time the one that waits for the next, so that no frame is computed
    twice. Inside `jit` the program's size does not depend on the clip's length, and its memory is
    that of input, output and one chunk.

    Args:
      chunk: frames after the first, a multiple of 4.

    Raises:
      ValueError: for another number, naming the nearest that would do.
    """

    chunk: int = 32

    def __post_init__(self):
        if self.chunk < TIME_COMPRESSION or self.chunk % TIME_COMPRESSION:
            nearest = TIME_COMPRESSION * max(round(self.chunk / TIME_COMPRESSION), 1)
            raise ValueError(
                f"a chunk of {self.chunk} frames is not a multiple of 4; the nearest is {nearest}."
            )

    @property
    def step(self) -> int:
        """Frames that a part adds to those before it; the first part has one more."""
        return self.chunk

    def run(self, part: Part, x: Shaped[Array, "b t ..."], step: int) -> Shaped[Array, "b u ..."]:
        """What `part` makes of chunks of `step`, of which the first has one more, joined."""
        rest = x.shape[1] - 1 - step
        if rest <= 0:
            return part(x, None, True)[0]
        first, state = part(x[:, : step + 1], START, False)
        parts, between = [first], (rest - 1) // step
        if between:

            def chunk(state, start):
                y, state = part(jax.lax.dynamic_slice_in_dim(x, start, step, axis=1), state, False)
                return state, y

            starts = 1 + step + jnp.arange(between) * step
            state, outputs = jax.lax.scan(chunk, state, starts)
            parts.append(_joined(outputs))
        parts.append(part(x[:, 1 + step + between * step :], state, True)[0])
        return jnp.concatenate(parts, axis=1)


@dataclasses.dataclass(frozen=True)
class SpatialTiling:
    """Square tiles of frames, each computed alone and blended linearly where two overlap.

    For frames too large for the device. Tiles are spread evenly, the last ends with the frame, and
    neighbours overlap by at least `overlap`. What it costs: convolutions meet zeros at a tile's
    edges, and norms and attention see a tile instead of the frame. A frame no larger than a tile is
    computed whole.

    Args:
      tile: side in pixels, a multiple of 8.
      overlap: pixels, a multiple of 8, less than `tile`.

    Raises:
      ValueError: for other numbers, naming the nearest that would do.
    """

    tile: int = 256
    overlap: int = 64

    def __post_init__(self):
        for name, least in (("tile", SPACE_COMPRESSION), ("overlap", 0)):
            value = getattr(self, name)
            nearest = max(SPACE_COMPRESSION * round(value / SPACE_COMPRESSION), least)
            if value != nearest:
                raise ValueError(
                    f"{name}={value} is not a multiple of 8 of at least {least} pixels; the "
                    f"nearest is {nearest}."
                )
        if self.overlap >= self.tile:
            raise ValueError(
                f"overlap={self.overlap} is not less than tile={self.tile}: choose a smaller "
                f"overlap, such as {self.tile // 4 // SPACE_COMPRESSION * SPACE_COMPRESSION}."
            )

    def run(
        self,
        part: Part,
        x: Shaped[Array, "b t h w c"],
        state: State,
        final: bool,
        *,
        encodes: bool,
    ) -> tuple[Float[Array, "b u v x d"], State]:
        """What `part` makes of each tile of `x`, blended, and the states of all tiles, stacked.

        Args:
          part: float32 out of one tile.
          x: video or latents.
          state: of all tiles; None, or START.
          final: passed on.
          encodes: whether `x` is video and `part` an encoder; else latents and a decoder.
        """
        unit_in = SPACE_COMPRESSION if encodes else 1
        unit_out = 1 if encodes else SPACE_COMPRESSION
        tile, overlap = self.tile // SPACE_COMPRESSION, self.overlap // SPACE_COMPRESSION
        rows, columns = (_cover(side // unit_in, tile, overlap) for side in x.shape[2:4])
        if len(rows) == len(columns) == 1:
            return part(x, state, final)
        height, width = (min(side // unit_in, tile) for side in x.shape[2:4])  # of a tile
        row, column = (g.ravel() for g in np.meshgrid(*map(np.arange, map(len, (rows, columns)))))
        places = np.stack([rows[row], columns[column]], axis=1)
        of_rows = _weights(rows * unit_out, height * unit_out)[row]
        of_columns = _weights(columns * unit_out, width * unit_out)[column]
        carries = state is not None and state != START

        def one(place, before):
            start = (0, 0, place[0] * unit_in, place[1] * unit_in, 0)
            size = (*x.shape[:2], height * unit_in, width * unit_in, x.shape[4])
            return part(jax.lax.dynamic_slice(x, start, size), before, final)

        def add(blended, tile):
            place, of_row, of_column, before = tile
            y, after = one(place, before if carries else state)
            start = (0, 0, place[0] * unit_out, place[1] * unit_out, 0)
            y = y * of_row[:, None, None] * of_column[:, None]
            y += jax.lax.dynamic_slice(blended, start, y.shape)
            return jax.lax.dynamic_update_slice(blended, y, start), after

        first = jax.tree.map(lambda leaf: leaf[0], state) if carries else state
        b, t, _, _, c = jax.eval_shape(lambda: one(places[0], first)[0]).shape
        sides = (side // unit_in * unit_out for side in x.shape[2:4])
        blended = varying_alike(x, jnp.zeros((b, t, *sides, c), jnp.float32))[1]
        tiles = (places, of_rows, of_columns, state if carries else None)
        return jax.lax.scan(add, blended, jax.tree.map(jnp.asarray, tiles))


Tiling = TemporalTiling | Streaming | SpatialTiling


def in_time_and_space(
    tiling: Tiling | tuple[Tiling, ...] | None,
) -> tuple[TemporalTiling | Streaming | None, SpatialTiling | None]:
    """What is done in time and what in space, each None if nothing.

    Raises:
      ValueError: for what is no tiling, and for two of one kind.
    """
    given = tiling if isinstance(tiling, tuple) else () if tiling is None else (tiling,)
    space = [t for t in given if isinstance(t, SpatialTiling)]
    time = [t for t in given if isinstance(t, TemporalTiling | Streaming)]
    if len(space) > 1 or len(time) > 1 or len(space) + len(time) < len(given):
        raise ValueError(
            f"tiling={tiling!r}: expected TemporalTiling, Streaming or SpatialTiling, or a tuple "
            "of one in time and one in space."
        )
    return (*time, None)[0], (*space, None)[0]


def _joined(groups):
    """[n, B, u, ...] to [B, n u, ...]."""
    n, b, u, *rest = groups.shape
    return jnp.moveaxis(groups, 0, 1).reshape(b, n * u, *rest)


def _cover(length: int, tile: int, overlap: int) -> np.ndarray:
    """Where tiles begin that cover `length`, spread evenly; two share `overlap` or more."""
    if length <= tile:
        return np.zeros(1, int)
    count = math.ceil((length - overlap) / (tile - overlap))
    return np.round(np.linspace(0, length - tile, count)).astype(int)


def _weights(origins: np.ndarray, side: int) -> np.ndarray:
    """[n, side]: how much tiles count along one axis; the sum over tiles is 1 everywhere.

    Linear ramps over what two neighbours share.
    """
    weights = np.ones((len(origins), side))
    for i, shared in enumerate(side - np.diff(origins)):
        ramp = (np.arange(shared) + 0.5) / shared
        weights[i, side - shared :] *= ramp[::-1]
        weights[i + 1, :shared] *= ramp
    total = np.zeros(origins[-1] + side)
    for origin, weight in zip(origins, weights, strict=True):
        total[origin : origin + side] += weight
    shares = [w / total[o : o + side] for o, w in zip(origins, weights, strict=True)]
    return np.stack(shares).astype(np.float32)
