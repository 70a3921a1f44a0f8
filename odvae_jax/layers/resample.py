"""Changing the number of frames and pixels by two."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import Interpolation, Kind, ODVAEConfig
from odvae_jax.layers.carry import WHOLE, Carry
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.lowering.doubled_linear import interpolated


class Downsample(nnx.Module):
    """A strided convolution.

    Args:
      features: channels, in and out.
      kind: "2d" or "3d", the convolution's.
      strides: in time and in space, 1 or 2 each. With 2 in time, T = 2m + 1 frames become m + 1;
        with 2 in space, half of the rows and columns are left.
      config: the model's.
      rng: for the initial kernel.
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
        """The smaller clip, or the next chunk of it."""
        return self.conv(x, carry)


class Upsample(nnx.Module):
    """Twice the rows and columns, and T to 2T - 1 frames, where asked; then a convolution.

    Args:
      features: channels, in and out.
      kind: "2d" or "3d", the convolution's.
      space: how rows and columns are doubled; None keeps their number.
      time: how frames are doubled; None keeps their number.
      config: the model's.
      rng: for the initial kernel.
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
        """The larger clip, or the next chunk of it."""
        if self.time is not None:
            x = double_time(x, self.time, carry)
        return self.conv(x, carry)


def double_time(
    x: Float[Array, "b t *rest"], how: Interpolation, carry: Carry = WHOLE
) -> Float[Array, "b u *rest"]:
    """T to 2T - 1 frames: the first is left aside, the others are doubled among themselves.

    "linear" interpolates with half-pixel centres, edges clamped; "nearest" repeats. Of a clip's
    chunks "linear" owes each its last frame, which waits for the next chunk; the final one pays it.
    So it carries the last of the frames that are doubled; "nearest" carries none.
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
