"""Latte, the denoiser that Table 2 trains on the latents of each autoencoder (arXiv 2401.03048).

Blocks take turns: a spatial one attends among the tokens of a frame, a temporal one among the
frames at a token's place. Latents are [B, F, H, W, C] (clips, latent frames, rows, columns,
channels), and tokens [B, F, N, W] with N tokens per frame and W values per token.

The network is given normalised latents. Normalising, per channel or by one factor, is the business
of `odvae_jax.scale.Scale`, outside of the network and of the process.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real

from odvae_jax import registry
from odvae_jax.diffusion import positions
from odvae_jax.diffusion.attention import attend
from odvae_jax.diffusion.config import LatteConfig
from odvae_jax.layers.causal_conv import Generator, generator
from odvae_jax.types import AnyArray

_EPSILON = 1e-6  # of every norm
_MLP_RATIO = 4
_PRODUCT = "product"  # what remat="products" keeps


class Linear(nnx.Module):
    """A product with a kernel [in, out], plus a bias.

    Args:
      in_features: the number of values that come in.
      out_features: the number of values that come out.
      init: how the kernel starts: "xavier" (uniform), "normal" (deviation 0.02) or "zeros". The
        bias starts at zero.
      dtype: the dtype of the computation.
      config: gives the dtype of the parameters and the precision.
      rng: draws the initial kernel; None makes it zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init: Literal["xavier", "normal", "zeros"] = "xavier",
        dtype: str | None = None,
        config: LatteConfig,
        rng: Generator,
    ):
        self.dtype = dtype or config.dtype
        self.precision = config.precision
        shape = (in_features, out_features)
        self.kernel = nnx.Param(_initial(init, shape, config.param_dtype, rng))
        self.bias = nnx.Param(jnp.zeros((out_features,), config.param_dtype))

    def __call__(self, x: Float[Array, "*positions i"]) -> Float[Array, "*positions o"]:
        """Returns the product and the bias, in the dtype of the computation."""
        kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
        y = jnp.matmul(x.astype(self.dtype), kernel, precision=self.precision)
        y = y + jax.lax.broadcast_to_rank(bias, y.ndim)
        return checkpoint_name(y, _PRODUCT)


def _initial(init, shape, dtype, rng: Generator):
    """A kernel or table to begin with; JAX draws it under a trace, NumPy compiles nothing."""
    if rng is None or init == "zeros":
        return jnp.zeros(shape, dtype)
    limit = math.sqrt(6 / sum(shape))
    if isinstance(rng, nnx.RngStream):
        if init == "normal":
            return (0.02 * jax.random.normal(rng(), shape, jnp.float32)).astype(dtype)
        return jax.random.uniform(rng(), shape, jnp.float32, -limit, limit).astype(dtype)
    if init == "normal":
        return jnp.asarray((0.02 * rng.standard_normal(shape, np.float32)).astype(dtype))
    uniform = 2 * rng.random(shape, np.float32) - 1
    return jnp.asarray((np.float32(limit) * uniform).astype(dtype))


class Conditioning(nnx.Module):
    """The embedding of a clip's time, plus that of its label: what modulates every block.

    Args:
      config: the config of the denoiser.
      rng: draws the initial parameters.
    """

    def __init__(self, config: LatteConfig, *, rng: Generator):
        # Float32, for it costs nothing and the sines of large times lose digits.
        make = functools.partial(Linear, init="normal", dtype="float32", config=config, rng=rng)
        self.time_1 = make(positions.TIME_VALUES, config.width)
        self.time_2 = make(config.width, config.width)
        if config.classes is None:
            self.labels = None
        else:  # the last row stands for "no label"
            shape = (config.classes + 1, config.width)
            self.labels = nnx.Param(_initial("normal", shape, config.param_dtype, rng))

    def __call__(self, t: Real[Array, "b"], labels: Int[Array, "b"] | None) -> Float[Array, "b w"]:
        """Returns one vector per clip, in float32; NaN for a label that the table does not have."""
        c = self.time_2(jax.nn.silu(self.time_1(positions.of_times(t))))
        if self.labels is None:
            return c
        table = self.labels[...].astype(jnp.float32)
        labels = jnp.where(labels < 0, len(table), labels)  # else they count from the end
        return c + jnp.take(table, labels, axis=0, mode="fill")


class Attention(nnx.Module):
    """Attention with several heads, over the tokens of each frame or over the frames.

    Args:
      over: "space" attends among the tokens of a frame, "time" among the frames at a token's place.
      config: the config of the denoiser.
      rng: draws the initial kernels.
    """

    def __init__(self, over: Literal["space", "time"], *, config: LatteConfig, rng: Generator):
        self.over, self.heads, self.precision = over, config.heads, config.precision
        self.qkv = Linear(config.width, 3 * config.width, config=config, rng=rng)
        self.out = Linear(config.width, config.width, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b f n w"]) -> Float[Array, "b f n w"]:
        """Returns what the tokens get from the others that they attend to."""
        b, f, n, w = x.shape
        qkv = self.qkv(x).reshape(b, f, n, 3, self.heads, w // self.heads)
        with jax.named_scope(f"attention_in_{self.over}"):  # for profiles
            if self.over == "time":
                qkv = jnp.swapaxes(qkv, 1, 2)  # [B, N, F, 3, heads, W / heads]
            q, k, v = (
                qkv[:, :, :, i].reshape(-1, *qkv.shape[2:3], *qkv.shape[4:]) for i in range(3)
            )
            y = attend(q, k, v, precision=self.precision).reshape(*qkv.shape[:3], w)
            y = jnp.swapaxes(y, 1, 2) if self.over == "time" else y
        return self.out(y)


class Mlp(nnx.Module):
    """Two products with GELU (its tanh approximation) in between, four times as wide inside.

    Args:
      config: the config of the denoiser.
      rng: draws the initial kernels.
    """

    def __init__(self, config: LatteConfig, *, rng: Generator):
        self.linear_1 = Linear(config.width, _MLP_RATIO * config.width, config=config, rng=rng)
        self.linear_2 = Linear(_MLP_RATIO * config.width, config.width, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b f n w"]) -> Float[Array, "b f n w"]:
        """Returns what the network computes of each token by itself."""
        return self.linear_2(_gelu(self.linear_1(x)))


class Modulation(nnx.Module):
    """Vectors by which a block shifts, scales and gates all tokens of a clip.

    Args:
      count: the number of vectors.
      config: the config of the denoiser.
      rng: unused, for the kernel starts at zero; it is there as in other layers.
    """

    def __init__(self, count: int, *, config: LatteConfig, rng: Generator):
        self.count = count
        self.linear = Linear(
            config.width, count * config.width, init="zeros", config=config, rng=rng
        )

    def __call__(self, c: Float[Array, "b w"]) -> list[Float[Array, "b 1 1 w"]]:
        """Returns the vectors, computed once per clip."""
        vectors = self.linear(jax.nn.silu(c))
        return jnp.split(vectors[:, None, None, :], self.count, axis=-1)


class Block(nnx.Module):
    """Attention and an MLP, each modulated before and gated after, each added to the tokens.

    Args:
      over: "space" or "time", what its attention goes over.
      config: the config of the denoiser.
      rng: draws the initial kernels.
    """

    def __init__(self, over: Literal["space", "time"], *, config: LatteConfig, rng: Generator):
        self.modulation = Modulation(6, config=config, rng=rng)
        self.attention = Attention(over, config=config, rng=rng)
        self.mlp = Mlp(config, rng=rng)

    def __call__(
        self, x: Float[Array, "b f n w"], c: Float[Array, "b w"]
    ) -> Float[Array, "b f n w"]:
        """Returns the tokens after the block, given the vector of each clip."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)
        x = x + gate_1 * self.attention(modulated(x, shift_1, scale_1))
        return x + gate_2 * self.mlp(modulated(x, shift_2, scale_2))


class Last(nnx.Module):
    """The end of the network: a modulated norm, and a product that gives each token's patch.

    Args:
      config: the config of the denoiser.
      rng: unused, for both kernels start at zero; it is there as in other layers.
    """

    def __init__(self, config: LatteConfig, *, rng: Generator):
        outputs = config.patch**2 * config.outputs
        self.modulation = Modulation(2, config=config, rng=rng)
        self.linear = Linear(config.width, outputs, init="zeros", config=config, rng=rng)

    def __call__(
        self, x: Float[Array, "b f n w"], c: Float[Array, "b w"]
    ) -> Float[Array, "b f n o"]:
        """Returns the values of each token's patch, in float32."""
        shift, scale = self.modulation(c)
        return self.linear(modulated(x, shift, scale)).astype(jnp.float32)


# Gradients keep the input of these two and compute them again: they cost one pass over the tokens,
# and what they would keep in float32 is most of a step's memory.
@jax.checkpoint
@jax.named_scope("norm")
def modulated(
    x: Float[Array, "b f n w"], shift: Float[Array, "b 1 1 w"], scale: Float[Array, "b 1 1 w"]
) -> Float[Array, "b f n w"]:
    """Returns tokens after a norm without parameters, scaled and shifted; it computes in float32.

    Args:
      x: the tokens.
      shift: what is added, one vector per clip.
      scale: what is multiplied by, less 1.
    """
    x32 = x.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + _EPSILON)
    shift, scale = shift.astype(jnp.float32), scale.astype(jnp.float32)
    return (y * (1 + scale) + shift).astype(x.dtype)


@jax.checkpoint
@jax.named_scope("gelu")
def _gelu(x):
    return jax.nn.gelu(x, approximate=True)


class Latte(nnx.Module, registry.Saved):
    """The denoiser of Table 2.

    It is a Flax NNX module and a pytree: pass it to `jax.jit`, `jax.grad` and other transformations
    as an argument.

    Args:
      config: the config of the denoiser; see `LatteConfig.of`.
      rngs: decides the initial parameters. An int is a seed; None makes all of them zero. Inside
        `jit` and `nnx.eval_shape`, JAX draws the values instead of NumPy.

    Attributes:
      config: the config of the denoiser.

    Raises:
      ValueError: if `config` is no `LatteConfig`, or `rngs` is none of the types that it may have.
    """

    config_class: ClassVar[type[LatteConfig]] = LatteConfig

    def __init__(self, config: LatteConfig, *, rngs: nnx.Rngs | int | None = 0):
        if not isinstance(config, LatteConfig):
            raise ValueError(
                f"config is a {type(config).__name__}, not a LatteConfig: "
                'use LatteConfig.of("XL/2").'
            )
        rng = generator(rngs)
        self.config = config
        patch = config.channels * config.patch**2
        self.patches = Linear(patch, config.width, config=config, rng=rng)
        self.conditioning = Conditioning(config, rng=rng)
        kinds = ("space", "time") * (config.depth // 2)
        self.blocks = nnx.List(Block(over, config=config, rng=rng) for over in kinds)
        self.last = Last(config, rng=rng)

    def __call__(
        self,
        z: Float[AnyArray, "b f h w c"],
        t: Real[AnyArray, "b"],
        labels: Int[AnyArray, "b"] | None = None,
    ) -> Float[Array, "b f h w o"]:
        """Returns what the network makes of noisy latents, in float32.

        For the Gaussian process the first C channels are the predicted noise, and the last C say
        where the variance lies between its bounds. For rectified flow the C channels are the
        velocity. A network with its initial parameters returns exactly 0.

        Args:
          z: noisy latents, normalised, [B, F, H, W, C] as the config says.
          t: the time of each clip, 0 (data) to 999 or 1000 (noise).
          labels: the class of each clip, 0 to `classes` - 1, or `classes` for "no label"; None for
            a network without labels. A class that there is not gives NaN.

        Raises:
          ValueError: if the latents have another shape, or labels are missing or not expected.
        """
        self.check(z.shape, labels)
        config = self.config
        x = self.patches(_patches(jnp.asarray(z), config.patch))
        x = _plus(x, positions.of_places(*config.grid, config.width)[None, None])
        c = self.conditioning(jnp.asarray(t), None if labels is None else jnp.asarray(labels))
        for i, block in enumerate(self.blocks):
            if i == 1:  # on entering the first temporal block
                x = _plus(x, positions.of_frames(config.frames, config.width)[None, :, None])
            x = _run(block, x, c, config.remat)
        return _unpatched(self.last(x, c), *config.grid, config.patch)

    def check(self, shape: tuple[int, ...], labels: Any = None) -> None:
        """Checks that the network takes latents of a shape, with or without labels.

        Args:
          shape: the shape of the latents, [B, F, H, W, C].
          labels: the labels, or None.

        Raises:
          ValueError: if it does not. The message says what was given and what is expected.
        """
        config = self.config
        names = ("latent frames", "rows", "columns", "channels")
        if len(shape) != 5:
            raise ValueError(
                f"latents have the shape {tuple(shape)}; expected [B, F, H, W, C] with "
                f"{list(config.latent_shape)} after the clips."
            )
        for name, found, expected in zip(names, shape[1:], config.latent_shape, strict=True):
            if found != expected:
                raise ValueError(
                    f"latents have {found} {name}, and this denoiser is for {expected} (shape "
                    f"{tuple(shape)}, expected [B, {', '.join(map(str, config.latent_shape))}])."
                )
        if labels is None and config.classes is not None:
            raise ValueError(
                f"labels are missing: this denoiser knows {config.classes} classes. Give one "
                f"number per clip; {config.classes} means no label."
            )
        if labels is not None and config.classes is None:
            raise ValueError("labels were given, and this denoiser has no classes: leave them out.")
        if labels is not None and np.shape(labels) != tuple(shape[:1]):
            raise ValueError(
                f"labels have the shape {np.shape(labels)}; expected one per clip, ({shape[0]},)."
            )

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, *, verify: bool = True, **overrides: Any
    ) -> Latte:
        """Loads a denoiser of this package, or a released checkpoint of Latte.

        Args:
          source: a folder that `save_pretrained` wrote; a released `.pt`, of which the EMA weights
            are taken if there are any; or the hub id of such a folder.
          verify: whether the files are compared with the digests that this package writes with a
            model. Files without digests pass.
          **overrides: config fields to change that change no parameter's shape, such as
            `dtype="bfloat16"`; for a released checkpoint of a width that the table of sizes does
            not have, also `heads`, which the file does not tell.

        Raises:
          FileNotFoundError: if the source or one of its files is missing.
          ValueError: if the files hold no such model, are damaged, or hold values that are not
            finite. The message says which names differ and how.
        """
        return registry.load_as(cls, source, verify=verify, **overrides)


def drop_labels(
    labels: Int[Array, "b"], key: PRNGKeyArray, *, rate: float, classes: int
) -> Int[Array, "b"]:
    """Returns labels of which some have become "no label", as training for guidance needs.

    Args:
      labels: the class of each clip.
      key: decides which are dropped.
      rate: the probability that a label is dropped; the paper's is 0.1.
      classes: the number of classes, which is also the number that means no label.
    """
    dropped = jax.random.bernoulli(key, rate, labels.shape)
    return jnp.where(dropped, classes, labels)


def _run(block: Callable, x, c, remat: str):
    """A block of which a gradient keeps what `remat` says; the only place that decides it."""
    if remat == "none":
        return block(x, c)
    names = (_PRODUCT,) if remat == "products" else ()
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint(lambda x, c: block(x, c), policy=policy)(x, c)


def _plus(x, embedding):
    return x + jnp.asarray(embedding, x.dtype)


def _patches(z, p):
    """[B, F, H, W, C] to [B, F, N, C p p]: the values of a patch run channel, row, column."""
    b, f, h, w, c = z.shape
    z = z.reshape(b, f, h // p, p, w // p, p, c).transpose(0, 1, 2, 4, 6, 3, 5)
    return z.reshape(b, f, (h // p) * (w // p), c * p * p)


def _unpatched(x, rows, columns, p):
    """[B, F, N, p p O] to [B, F, H, W, O]: here the values of a patch run row, column, channel."""
    b, f, _, values = x.shape
    x = x.reshape(b, f, rows, columns, p, p, values // p**2).transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(b, f, rows * p, columns * p, values // p**2)
