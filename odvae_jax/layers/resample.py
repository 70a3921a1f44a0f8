"""Halving and doubling the number of frames, rows and columns."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import Interpolation, Kind, ODVAEConfig
from odvae_jax.layers.carry import WHOLE, Carry
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.lowering.doubled_linear import interpolated


class Downsample(nnx.Module):
    """A convolution with strides.

    Args:
      features: the number of channels, in and out.
      kind: the kind of the convolution, "2d" or "3d".
      strides: the strides in time and in space, 1 or 2 each. With 2 in time, T = 2m + 1 frames
        become m + 1. With 2 in space, half of the rows and columns are left.
      config: the config of the model.
      rng: draws the initial kernel.
    """

    def __init__(
        self,
        features: int,
        kind: Kind,
        strides: tuple[int, int],
        *,
        config: ODVAEConfig,
        rng: Generator,
    ):
        kt = 3 if kind == "3d" else 1
        self.conv = CausalConv(features, features, (kt, 3), strides, config=config, rng=rng)

    def __call__(
        self, x: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y c"]:
        """Returns the smaller clip, or the next chunk of it."""
        return self.conv(x, carry)


class Upsample(nnx.Module):
    """Doubling in time, in space or in both, followed by a convolution.

    Args:
      features: the number of channels, in and out.
      kind: the kind of the convolution, "2d" or "3d".
      space: how rows and columns are doubled; None keeps their number.
      time: how T frames become 2T - 1; None keeps their number.
      config: the config of the model.
      rng: draws the initial kernel.
    """

    def __init__(
        self,
        features: int,
        kind: Kind,
        *,
        space: Interpolation | None,
        time: Interpolation | None,
        config: ODVAEConfig,
        rng: Generator,
    ):
        self.time = time
        kt = 3 if kind == "3d" else 1
        self.conv = CausalConv(features, features, (kt, 3), doubling=space, config=config, rng=rng)

    def __call__(
        self, x: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y c"]:
        """Returns the larger clip, or the next chunk of it."""
        if self.time is not None:
            x = double_time(x, self.time, carry)
        return self.conv(x, carry)


def double_time(
    x: Float[Array, "b t *rest"], how: Interpolation, carry: Carry = WHOLE
) -> Float[Array, "b u *rest"]:
    """Returns a clip with 2T - 1 frames in place of T.

    The first frame is kept as it is, and the others are doubled among themselves. If a clip comes
    in chunks, "linear" holds back the last frame of each chunk, which needs the next chunk, and
    carries the last of the frames that it doubles. The final chunk gives that frame too. "nearest"
    holds back nothing.

    Args:
      x: the clip, or its next chunk.
      how: "linear" interpolates with half-pixel centres and clamped edges; "nearest" repeats.
      carry: takes and keeps frames from chunk to chunk.
    """
    before = carry.take()
    first, x = (x[:, :1], x[:, 1:]) if before is None else (x[:, :0], x)
    before = x[:, :0] if before is None else before
    known = jnp.concatenate([before, x], axis=1)
    if carry.in_chunks:
        carry.leave(known[:, :0] if how == "nearest" else known[:, -1:])
    if known.shape[1] == 0:
        return first
    doubled = jnp.repeat(known, 2, axis=1) if how == "nearest" else interpolated(known, 1)
    owed = how == "linear" and not carry.final
    doubled = doubled[:, before.shape[1] : doubled.shape[1] - owed]
    return jnp.concatenate([first, doubled], axis=1)
