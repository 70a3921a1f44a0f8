"""Group normalisation over a clip or over each frame, together with its activation."""

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
    """A clip and the norm that it goes through, which is not computed yet.

    A convolution takes it in place of an array, and can compute the norm on the way.

    Attributes:
      x: the clip, [B, T, H, W, C].
      scales: what each channel is multiplied by, and what is then added, in float32, [B, S, 1, 1,
        C] each. S is T if statistics are per frame, and 1 if they are per clip.
      activation: whether SiLU follows.
    """

    x: Float[Array, "b t h w c"]
    scales: lowering.Scales
    activation: bool

    def array(self) -> Float[Array, "b t h w c"]:
        """Returns the clip after the norm and the activation, in the dtype of `x`."""
        return lowering.normalise(self.x, *self.scales, activation=self.activation)


class GroupNorm(nnx.Module):
    """Group normalisation over [B, T, H, W, C], with statistics in float32.

    Args:
      features: the number of channels.
      over_time: whether statistics are taken over all frames of a clip together; otherwise they are
        taken per frame. With `config.norm == "frame"` they are always taken per frame.
      activation: whether SiLU follows.
      epsilon: what is added to the variance; 1e-6 by default.
      config: gives the groups, the norm and the dtypes.
    """

    def __init__(
        self,
        features: int,
        *,
        over_time: bool,
        activation: bool,
        epsilon: float = GROUP_NORM_EPSILON,
        config: ODVAEConfig,
    ):
        self.groups = config.groups
        self.epsilon = epsilon
        self.over_time = over_time and config.norm == "clip"
        self.activation = activation
        self.scale = nnx.Param(jnp.ones((features,), config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), config.param_dtype))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Normed:
        """Returns the norm of a clip: its statistics are known, the rest is not computed yet."""
        return Normed(x, self._scales(x), self.activation)

    @jax.named_scope("norm")  # the name that profiles show
    def _scales(self, x):
        axes = (1, 2, 3) if self.over_time else (2, 3)
        mean, variance = _group_statistics(x, axes, self.groups)
        deviation = jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (
            jax.lax.broadcast_to_rank(p[...].astype(jnp.float32), x.ndim)
            for p in (self.scale, self.bias)
        )
        multiplier = scale * deviation
        addend = bias - mean * multiplier
        return multiplier, addend


def _group_statistics(x, axes, groups):
    """Mean and variance of each channel's group, in float32, shaped to broadcast against `x`.

    Sums are taken per channel, because splitting the channel axis of the large array would copy it.
    They are folded to groups as small vectors. bfloat16 input takes one pass, E[x²] - E[x]²: its
    own rounding is coarser than what cancels there. float32 input is centred first.
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
