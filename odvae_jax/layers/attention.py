"""Self-attention over the positions of each frame."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import GROUP_NORM_EPSILON, Kind, ODVAEConfig
from odvae_jax.layers.carry import WHOLE, Carry
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.layers.group_norm import GroupNorm

_MOST_SCORES = 2**28  # the most attention scores in memory at once; in float32 they take 1 GiB


class Attention(nnx.Module):
    """Residual self-attention with one head over the H·W positions of each frame.

    Frames do not see each other.

    Args:
      features: the number of channels, which is also the width of the head.
      kind: with "2d" the norm takes its statistics per frame.
      epsilon: what the norm adds to the variance; 1e-6 by default.
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        features: int,
        kind: Kind,
        *,
        epsilon: float = GROUP_NORM_EPSILON,
        config: ODVAEConfig,
        rng: Generator,
    ):
        self.precision = config.precision
        over_time = kind != "2d"
        self.norm = GroupNorm(
            features, over_time=over_time, activation=False, epsilon=epsilon, config=config
        )
        self.q = CausalConv(features, features, (1, 1), config=config, rng=rng)
        self.k = CausalConv(features, features, (1, 1), config=config, rng=rng)
        self.v = CausalConv(features, features, (1, 1), config=config, rng=rng)
        self.proj_out = CausalConv(features, features, (1, 1), config=config, rng=rng)

    def __call__(
        self, x: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b t h w c"]:
        """Returns the clip, or its next chunk, after the layer.

        It leaves nothing in the carry, because frames do not see each other.
        """
        return x + self.added(x)

    def added(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Returns what the layer adds to a clip."""
        b, t, h, w, c = x.shape
        y = self.norm(x).array()
        q, k, v = (layer(y).reshape(b, t, h * w, c) for layer in (self.q, self.k, self.v))
        if b * t * (h * w) ** 2 <= _MOST_SCORES:
            y = attend(q, k, v, self.precision)
        else:  # one frame after another; a gradient computes its scores again
            by_frame = (jnp.moveaxis(a, 1, 0)[:, :, None] for a in (q, k, v))
            one = jax.checkpoint(lambda frame: attend(*frame, self.precision)[:, 0])
            y = jnp.moveaxis(jax.lax.map(one, tuple(by_frame)), 0, 1)
        return self.proj_out(y.reshape(x.shape))


def attend(
    q: Float[Array, "b t q c"],
    k: Float[Array, "b t k c"],
    v: Float[Array, "b t k c"],
    precision: str,
) -> Float[Array, "b t q c"]:
    """Returns attention with one head, from each query to all keys of the same b and t.

    Scores are divided by the square root of C; they and the softmax are float32.

    Args:
      q: the queries.
      k: the keys.
      v: the values.
      precision: the precision of float32 products, as in `ODVAEConfig`.
    """
    scores = jnp.einsum(
        "btqc,btkc->btqk", q, k, precision=precision, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("btqk,btkc->btqc", weights, v, precision=precision)
