"""Group normalisation over a clip or over each frame, with its activation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax import lowering
from odvae_jax.config import GROUP_NORM_EPSILON, ODVAEConfig


@dataclasses.dataclass(frozen=True)
class Normed:
    """A clip and the norm that it goes through, not yet computed.

    A convolution takes it as it takes an array, and can compute the norm on its own way.

    Attributes:
      x: [B, T, H, W, C].
      scales: what each channel is multiplied by and what is added, float32, [B, S, 1, 1, C] each,
        with S = T per frame or S = 1 per clip.
      activation: whether SiLU follows.
    """

    x: Float[Array, "b t h w c"]
    scales: lowering.Scales
    activation: bool

    def array(self) -> Float[Array, "b t h w c"]:
        """The norm, computed."""
        return lowering.normalise(self.x, *self.scales, activation=self.activation)


class GroupNorm(nnx.Module):
    """Group norm over [B, T, H, W, C], epsilon 1e-6, statistics in float32.

    Args:
      features: channels.
      over_time: take statistics over all frames of the clip together, else per frame. With
        `config.norm == "frame"` they are per frame whatever is said here.
      activation: apply SiLU to the result.
      config: gives groups, norm and dtypes.
    """

    def __init__(self, features: int, *, over_time: bool, activation: bool, config: ODVAEConfig):
        self.groups = config.groups
        self.over_time = over_time and config.norm == "clip"
        self.activation = activation
        self.scale = nnx.Param(jnp.ones((features,), config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), config.param_dtype))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Normed:
        """The norm of a clip, with its statistics known and the rest not yet computed."""
        return Normed(x, self._scales(x), self.activation)

    @jax.named_scope("norm")  # in profiles
    def _scales(self, x):
        axes = (1, 2, 3) if self.over_time else (2, 3)
        mean, variance = _group_statistics(x, axes, self.groups)
        deviation = jax.lax.rsqrt(variance + GROUP_NORM_EPSILON)
        multiplier = self.scale[...].astype(jnp.float32) * deviation
        addend = self.bias[...].astype(jnp.float32) - mean * multiplier
        return multiplier, addend


def _group_statistics(x, axes, groups):
    """Mean and variance of each channel's group, in float32, shaped to broadcast against `x`.

    Sums are taken per channel, which leaves the large array as it lies, and folded to groups as
    small vectors. bfloat16 input takes one pass, E[x²] - E[x]²: its own rounding is coarser than
    what cancels there. float32 input is centred first.
    """
    if x.dtype == jnp.float32:
        centre = _group_mean(jnp.mean(x, axes, keepdims=True), groups)
        return centre, _group_mean(jnp.mean((x - centre) ** 2, axes, keepdims=True), groups)
    mean, square = (_group_mean(moment, groups) for moment in lowering.moments(x, axes))
    return mean, jnp.maximum(square - mean**2, 0.0)


def _group_mean(channels, groups):
    """Replaces each channel's value by the mean over its group."""
    *rest, c = channels.shape
    grouped = channels.reshape(*rest, groups, c // groups)
    grouped = jnp.broadcast_to(jnp.mean(grouped, -1, keepdims=True), grouped.shape)
    return grouped.reshape(*rest, c)
