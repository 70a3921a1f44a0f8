"""Tiles of frames, for frames that are too large for the device."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from odvae_jax.config import ODVAEConfig
from odvae_jax.layers.carry import START, State
from odvae_jax.sharding import varying_alike
from odvae_jax.tiling.parts import Part
from odvae_jax.types import whole_numbers


@dataclasses.dataclass(frozen=True)
class SpatialTiling:
    """Square tiles of frames, each computed alone and blended linearly where two of them overlap.

    It is meant for frames that are too large for the device. Tiles are spread evenly, the last one
    ends with the frame, and neighbours overlap by at least `overlap`. The result is an
    approximation: convolutions meet zeros at the edges of a tile, and norms and attention see a
    tile instead of the frame. A frame no larger than a tile is computed whole.

    Args:
      tile: the side of a tile in pixels, a multiple of 8 for the paper's variants.
      overlap: the least overlap of neighbours in pixels, a multiple of 8 for the paper's variants
        and less than `tile`.
    """

    tile: int = 256
    overlap: int = 64

    def __post_init__(self):
        whole_numbers(self, "pixels", "tile", "overlap")

    def check(self, config: ODVAEConfig) -> None:
        """Checks that a model can take such tiles.

        Raises:
          ValueError: if it cannot. The message has the nearest number of pixels that it can take.
        """
        unit = config.space_compression
        for name, least in (("tile", unit), ("overlap", 0)):
            value = getattr(self, name)
            nearest = max(unit * round(value / unit), least)
            if value != nearest:
                raise ValueError(
                    f"{name}={value} is not a multiple of {unit} of at least {least} pixels; the "
                    f"nearest is {nearest}."
                )
        if self.overlap >= self.tile:
            raise ValueError(
                f"overlap={self.overlap} is not less than tile={self.tile}: choose a smaller "
                f"overlap, such as {self.tile // 4 // unit * unit}."
            )

    def run(
        self,
        part: Part,
        x: Shaped[Array, "b t h w c"],
        state: State,
        final: bool,
        *,
        config: ODVAEConfig,
        encodes: bool,
    ) -> tuple[Float[Array, "b u v x d"], State]:
        """Runs a function on each tile and blends what it returns.

        Args:
          part: the function; it returns float32 for one tile.
          x: the video or the latents.
          state: the states of all tiles, stacked, as the last call returned them; START at the
            beginning of a clip, or None if nothing is carried.
          final: whether `x` is the last part of the clip.
          config: the config of the model.
          encodes: whether `x` is video and `part` encodes; otherwise `x` is latents and `part`
            decodes.

        Returns:
          The blended result, and the states of all tiles, stacked.
        """
        unit = config.space_compression
        unit_in, unit_out = (unit, 1) if encodes else (1, unit)
        tile, overlap = self.tile // unit, self.overlap // unit
        rows, columns = (_cover(side // unit_in, tile, overlap) for side in x.shape[2:4])
        if len(rows) == len(columns) == 1:
            return part(x, state, final)
        height, width = (min(side // unit_in, tile) for side in x.shape[2:4])  # the sides of a tile
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
            y = y * of_row[None, None, :, None, None] * of_column[None, None, None, :, None]
            y += jax.lax.dynamic_slice(blended, start, y.shape)
            return jax.lax.dynamic_update_slice(blended, y, start), after

        first = jax.tree.map(lambda leaf: leaf[0], state) if carries else state
        b, t, _, _, c = jax.eval_shape(lambda: one(places[0], first)[0]).shape
        sides = (side // unit_in * unit_out for side in x.shape[2:4])
        blended = varying_alike(x, jnp.zeros((b, t, *sides, c), jnp.float32))[1]
        tiles = (places, of_rows, of_columns, state if carries else None)
        return jax.lax.scan(add, blended, jax.tree.map(jnp.asarray, tiles))


def _cover(length: int, tile: int, overlap: int) -> np.ndarray:
    """Returns where tiles begin that cover `length`, spread evenly.

    Two neighbours share at least `overlap`.
    """
    if length <= tile:
        return np.zeros(1, int)
    count = math.ceil((length - overlap) / (tile - overlap))
    return np.round(np.linspace(0, length - tile, count)).astype(int)


def _weights(origins: np.ndarray, side: int) -> np.ndarray:
    """Returns how much each tile counts along one axis, [n, side].

    The weights are linear ramps over what two neighbours share. Their sum over tiles is 1
    everywhere.
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
