"""Self-attention over the positions of each frame."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import Kind, ODVAEConfig
from odvae_jax.layers.carry import WHOLE, Carry
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.layers.group_norm import GroupNorm

_MOST_SCORES = 2**28  # attention scores that are in memory at once, in float32: 1 GiB


class Attention(nnx.Module):
    """Residual self-attention of one head over the H·W positions of each frame; frames do not meet.

    Args:
      features: channels, which are also the width of the head.
      kind: "2d" takes the norm's statistics per frame.
      config: the model's.
      rng: for the initial kernels.
    """

    def __init__(self, features: int, kind: Kind, *, config: ODVAEConfig, rng: Generator):
        self.precision = config.precision
        self.norm = GroupNorm(features, over_time=kind != "2d", activation=False, config=config)
        self.q = CausalConv(features, features, (1, 1), config=config, rng=rng)
        self.k = CausalConv(features, features, (1, 1), config=config, rng=rng)
        self.v = CausalConv(features, features, (1, 1), config=config, rng=rng)
        self.proj_out = CausalConv(features, features, (1, 1), config=config, rng=rng)

    def __call__(
        self, x: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b t h w c"]:
        """The layer's output; frames do not meet, so that chunks leave nothing in the carry."""
        b, t, h, w, c = x.shape
        y = self.norm(x).array()
        q, k, v = (layer(y).reshape(b, t, h * w, c) for layer in (self.q, self.k, self.v))
        if b * t * (h * w) ** 2 <= _MOST_SCORES:
            y = self._attend(q, k, v)
        else:  # a frame at a time, whose scores a gradient computes again
            by_frame = (jnp.moveaxis(a, 1, 0)[:, :, None] for a in (q, k, v))
            one = jax.checkpoint(lambda frame: self._attend(*frame)[:, 0])
            y = jnp.moveaxis(jax.lax.map(one, tuple(by_frame)), 0, 1)
        return x + self.proj_out(y.reshape(x.shape))

    def _attend(self, q, k, v):
        scores = jnp.einsum(
            "btqc,btkc->btqk", q, k, precision=self.precision, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
        return jnp.einsum("btqk,btkc->btqc", weights, v, precision=self.precision)
