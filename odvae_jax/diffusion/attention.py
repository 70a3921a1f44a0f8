"""Attention among the tokens of a frame, or among the frames at a token's place.

There is one function, `attend`. What it computes is the same everywhere; what computes it depends
on the platform and on the shape. cuDNN's fused attention is fastest for the 256 tokens of a frame,
in half precision. It refuses float32, and sequences of odd length where gradients are asked for: 21
latent frames are such a sequence. XLA computes the rest.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Float

from odvae_jax.lowering import by_platform

_LEAST_TOKENS = 64
"""The shortest sequence that cuDNN is given: it computes in blocks of 64 tokens or more."""
_WIDEST_HEAD = 128


def attend(
    q: Float[Array, "n l h d"],
    k: Float[Array, "n l h d"],
    v: Float[Array, "n l h d"],
    *,
    precision: str,
) -> Float[Array, "n l h d"]:
    """Returns softmax(q kᵀ / √d) v for each sequence and each head, without a mask.

    The softmax is computed in float32. A gradient keeps no scores, and computes them again.

    Args:
      q: the queries, [sequences, tokens, heads, width of a head].
      k: the keys.
      v: the values.
      precision: the precision of float32 products, as in `LatteConfig`.
    """
    # Each way has a gradient of its own. What only the other one's would keep, XLA leaves out.
    ways = {"cuda": _by_cudnn} if cudnn_takes(q) else {}
    return by_platform(q, k, v, default=lambda *qkv: _by_xla(*qkv, precision), **ways)


def cudnn_takes(q: Float[Array, "n l h d"]) -> bool:
    """Returns whether cuDNN attends to such sequences on the devices of this process."""
    _, length, _, width = q.shape
    return (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and length % 2 == 0
        and length >= _LEAST_TOKENS
        and width % 8 == 0
        and width <= _WIDEST_HEAD
        and AxisType.Explicit not in jax.typeof(q).sharding.mesh.axis_types
        and _has_cudnn()
    )


def _has_cudnn() -> bool:
    # JAX asks for the version of cuDNN while it traces, so that without a GPU it cannot be named.
    devices = jax.local_devices() if jax.default_backend() == "gpu" else []
    return bool(devices) and all(
        "NVIDIA" in d.device_kind and float(d.compute_capability) >= 8.0 for d in devices
    )


# The scores of short sequences are cheap to compute and dear to keep.
@functools.partial(jax.checkpoint, static_argnums=3)
def _by_xla(q, k, v, precision):
    scores = jnp.einsum(
        "nqhd,nkhd->nhqk", q, k, precision=precision, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v, precision=precision)


def _by_cudnn(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
