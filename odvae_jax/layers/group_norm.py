"""Group normalisation over a clip or over each frame, with its activation."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import GROUP_NORM_EPSILON, ODVAEConfig
from odvae_jax.layers import norm_kernels, platforms
from odvae_jax.sharding import varying_alike

Scales = tuple[Float[Array, "b s 1 1 c"], Float[Array, "b s 1 1 c"]]
"""What a norm multiplies by and adds, float32, for each frame (s = t) or for all (s = 1)."""
_named = jax.named_scope("norm")  # in profiles


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

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        return scaled(x, self.scales(x), activation=self.activation)

    @_named
    def scales(self, x: Float[Array, "b t h w c"]) -> Scales:
        """What the norm multiplies each channel by, and then adds."""
        axes = (1, 2, 3) if self.over_time else (2, 3)
        mean, variance = _group_statistics(x, axes, self.groups)
        multiplier = self.scale[...].astype(jnp.float32) * jax.lax.rsqrt(
            variance + GROUP_NORM_EPSILON
        )
        addend = self.bias[...].astype(jnp.float32) - mean * multiplier
        return multiplier, addend


@_named
def scaled(
    x: Float[Array, "b t h w c"], scales: Scales, *, activation: bool
) -> Float[Array, "b t h w c"]:
    """The norm, once its scales are known, and SiLU if `activation`."""
    return _scaled(*varying_alike(x, *scales), activation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scaled(x, multiplier, addend, activation):
    def written_out(x, multiplier, addend):
        y = x.astype(jnp.float32) * multiplier + addend
        return (jax.nn.silu(y) if activation else y).astype(x.dtype)

    def in_one_pass(x, *scales):
        return norm_kernels.norm_silu(x, *(a[:, :, 0, 0] for a in scales))[0]

    arrays = x, multiplier, addend
    if activation and norm_kernels.runs_here(x):
        return platforms.by_platform(*arrays, cuda=in_one_pass, default=written_out)
    return written_out(*arrays)


def _scaled_forward(x, multiplier, addend, activation):
    return _scaled(x, multiplier, addend, activation), (x, multiplier, addend)


@_named
def _scaled_backward(activation, residuals, dy):
    """By hand for what SiLU's gradient is kept in, until it is summed and multiplied.

    That is x's dtype; XLA would keep float32, twice the bytes.
    """
    x, multiplier, addend = residuals
    x32 = x.astype(jnp.float32)
    if activation:
        _, pull = jax.vjp(jax.nn.silu, x32 * multiplier + addend)
        (dy,) = pull(dy.astype(jnp.float32))
        dy = jax.lax.optimization_barrier(dy.astype(x.dtype))
    dy32 = dy.astype(jnp.float32)
    axes = (1, 2, 3) if multiplier.shape[1] == 1 else (2, 3)
    dmultiplier, daddend = (jnp.sum(a, axes, keepdims=True) for a in (dy32 * x32, dy32))
    return (dy32 * multiplier).astype(x.dtype), dmultiplier, daddend


_scaled.defvjp(_scaled_forward, _scaled_backward)


def _group_statistics(x, axes, groups):
    """Mean and variance of each channel's group, in float32, shaped to broadcast against `x`.

    Sums are taken a channel, which leaves the large array as it lies, and folded to groups as small
    vectors. bfloat16 input takes one pass, E[x²] - E[x]²: its own rounding is coarser than what
    cancels there. float32 input is centred first.
    """
    if x.dtype == jnp.float32:
        centre = _group_mean(jnp.mean(x, axes, keepdims=True), groups)
        return centre, _group_mean(jnp.mean((x - centre) ** 2, axes, keepdims=True), groups)
    moments = _moments_in_one_pass if norm_kernels.runs_here(x) else _moments
    mean, square = (_group_mean(moment, groups) for moment in moments(x, axes))
    return mean, jnp.maximum(square - mean**2, 0.0)


def _moments(x, axes):
    """The means, in float32, of each channel and of its squares."""
    x32 = x.astype(jnp.float32)
    return jnp.mean(x32, axes, keepdims=True), jnp.mean(x32**2, axes, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _moments_in_one_pass(x, axes):
    def in_one_pass(x):
        count = math.prod(x.shape[axis] for axis in axes)
        sums = norm_kernels.channel_sums(x)
        return tuple(jnp.sum(y[:, :, :, None], axes, keepdims=True) / count for y in sums)

    def written_out(x):
        return _moments(x, axes)

    return platforms.by_platform(x, cuda=in_one_pass, default=written_out)


def _moments_forward(x, axes):
    return _moments_in_one_pass(x, axes), x


@_named
def _moments_backward(axes, x, gradients):
    return jax.vjp(lambda x: _moments(x, axes), x)[1](gradients)


_moments_in_one_pass.defvjp(_moments_forward, _moments_backward)


def _group_mean(channels, groups):
    """Replaces each channel's value by the mean over its group."""
    *rest, c = channels.shape
    grouped = channels.reshape(*rest, groups, c // groups)
    grouped = jnp.broadcast_to(jnp.mean(grouped, -1, keepdims=True), grouped.shape)
    return grouped.reshape(*rest, c)
