"""Changing the number of frames and pixels by two."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import Interpolation, Kind, ODVAEConfig
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.layers.interpolation import interpolated
from odvae_jax.layers.state import State, carried, split


class Downsample(nnx.Module):
    """A strided convolution: half of the rows and columns, and 1/`time_stride` of the frames.

    Args:
      features: channels, in and out.
      kind: "2d" or "3d", the convolution's.
      time_stride: 1 or 2; with 2, T = 2m + 1 frames become m + 1.
      config: the model's.
      rng: for the initial kernel.
    """

    def __init__(
        self, features: int, kind: Kind, time_stride: int, *, config: ODVAEConfig, rng: Generator
    ):
        kt = 3 if kind == "3d" else 1
        self.conv = CausalConv(
            features, features, (kt, 3), (time_stride, 2), config=config, rng=rng
        )

    def chunk(
        self, x: Float[Array, "b t h w c"], state: State, final: bool
    ) -> tuple[Float[Array, "b u v x c"], State]:
        """Of one chunk of a clip, or a whole one (odvae_jax/layers/state.py)."""
        return self.conv.chunk(x, state)


class Upsample(nnx.Module):
    """Twice the rows and columns, and T to 2T - 1 frames where asked, then a convolution.

    Args:
      features: channels, in and out.
      kind: "2d" or "3d", the convolution's.
      space: how rows and columns are doubled.
      time: how frames are doubled; None keeps their number.
      config: the model's.
      rng: for the initial kernel.
    """

    def __init__(
        self,
        features: int,
        kind: Kind,
        *,
        space: Interpolation,
        time: Interpolation | None,
        config: ODVAEConfig,
        rng: Generator,
    ):
        self.space = space
        self.time = time
        kt = 3 if kind == "3d" else 1
        self.conv = CausalConv(features, features, (kt, 3), config=config, rng=rng)

    def chunk(
        self, x: Float[Array, "b t h w c"], state: State, final: bool
    ) -> tuple[Float[Array, "b u v x c"], State]:
        """Of one chunk of a clip, of which `final` is the last, or a whole one."""
        in_time, in_conv = split(state, 2)
        if self.time is not None:
            x, in_time = double_time(x, self.time, in_time, final)
        y, in_conv = self.conv.chunk(x, in_conv, doubled=self.space)
        return y, None if state is None else (in_time, in_conv)


def double_time(
    x: Float[Array, "b t *rest"], how: Interpolation, state: State = None, final: bool = True
) -> tuple[Float[Array, "b u *rest"], State]:
    """T to 2T - 1 frames: the first is left aside, the others are doubled among themselves.

    "linear" interpolates with half-pixel centres, edges clamped; "nearest" repeats. Of a clip's
    chunks "linear" owes each its last frame, which waits for the next one; the `final` pays it. The
    state holds the last of the frames that are doubled, or none of them.
    """
    before = carried(state)
    first, x = (x[:, :1], x[:, 1:]) if before is None else (x[:, :0], x)
    before = x[:, :0] if before is None or how == "nearest" else before
    known = jnp.concatenate([before, x], axis=1)
    if state is not None:
        state = known[:, :0] if how == "nearest" else known[:, -1:]
    if known.shape[1] == 0:
        return first, state
    doubled = jnp.repeat(known, 2, axis=1) if how == "nearest" else interpolated(known, 1)
    owed = how == "linear" and not final
    doubled = doubled[:, before.shape[1] : doubled.shape[1] - owed]
    return jnp.concatenate([first, doubled], axis=1), state
