"""The causal video autoencoder (Fig. 1): an encoder, a decoder, and the model that holds both."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax import checks, registry
from odvae_jax.config import IMAGE_CHANNELS, Kind, ODVAEConfig
from odvae_jax.layers.attention import Attention
from odvae_jax.layers.carry import START, WHOLE, Carry, State, run
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.layers.resample import Downsample, Upsample
from odvae_jax.layers.residual_block import ResidualBlock
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.sharding import check_rows, sharding_of, with_automatic_axes
from odvae_jax.types import AnyArray


class Level(nnx.Module):
    """Residual blocks at one resolution, and a change of it: after them, or before the next level.

    Args:
      widths: channels of the input and after each block.
      kind: the blocks' convolutions.
      downsample: the encoder's change of resolution; None at its lowest level.
      upsample: the decoder's change of resolution; None at its level 0.
      config: the model's.
      rng: for the initial kernels.
    """

    def __init__(
        self,
        widths: list[int],
        kind: Kind,
        *,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
        config: ODVAEConfig,
        rng: Generator,
    ):
        self.block = nnx.List(
            ResidualBlock(a, b, kind, config=config, rng=rng) for a, b in itertools.pairwise(widths)
        )
        self.downsample = downsample
        self.upsample = upsample
        self.remat = config.remat

    def __call__(
        self, x: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y d"]:
        """The blocks, one after another, then the change of resolution."""
        for block in self.block:
            x = run(block, x, carry, self.remat)
        resample = self.downsample or self.upsample
        return x if resample is None else run(resample, x, carry, self.remat)


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution.

    Args:
      width: channels.
      config: the model's.
      rng: for the initial kernels.
    """

    def __init__(self, width: int, *, config: ODVAEConfig, rng: Generator):
        kind = config.parts.middle
        self.block_1 = ResidualBlock(width, width, kind, config=config, rng=rng)
        self.attn_1 = Attention(width, kind, config=config, rng=rng)
        self.block_2 = ResidualBlock(width, width, kind, config=config, rng=rng)
        self.remat = config.remat

    def __call__(
        self, x: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b t h w c"]:
        """The three layers, one after another."""
        for layer in (self.block_1, self.attn_1, self.block_2):
            x = run(layer, x, carry, self.remat)
        return x


class Encoder(nnx.Module):
    """Video to moments (before the quant convolution); widths and levels as in Fig. 2.

    Args:
      config: the model's.
      rng: for the initial kernels.
    """

    def __init__(self, config: ODVAEConfig, *, rng: Generator):
        parts, widths = config.parts, config.encoder_widths
        make = functools.partial(CausalConv, config=config, rng=rng)
        self.conv_in = make(IMAGE_CHANNELS, widths[0], (_length(parts.encoder_in), 3))
        self.down = nnx.List()
        for i, width in enumerate(widths):
            downsample = None
            if i < len(widths) - 1:
                strides = parts.time_strides[i], parts.space_strides[i]
                downsample = Downsample(width, parts.downsample[i], strides, config=config, rng=rng)
            of_blocks = [widths[max(i - 1, 0)]] + [width] * parts.encoder_blocks
            kind = parts.encoder_levels[i]
            self.down.append(Level(of_blocks, kind, downsample=downsample, config=config, rng=rng))
        self.mid = Middle(widths[-1], config=config, rng=rng)
        over_time = parts.ends != "2d"
        self.norm_out = GroupNorm(widths[-1], over_time=over_time, activation=True, config=config)
        size = _length(parts.ends), 3
        self.conv_out = make(widths[-1], 2 * config.latent_channels, size, out_dtype="float32")

    def __call__(
        self, video: Float[Array, "b t h w 3"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y c2"]:
        """Moments of a video in [-1, 1]; of a chunk: 4k + 1 frames at its beginning, then 4k."""
        x = self.conv_in(video, carry)
        for level in self.down:
            x = level(x, carry)
        x = self.mid(x, carry)
        return self.conv_out(self.norm_out(x), carry)


class Decoder(nnx.Module):
    """Latents (after the post-quant convolution) to video; `up[i]` is level i, level 0 the last.

    Args:
      config: the model's.
      rng: for the initial kernels.
    """

    def __init__(self, config: ODVAEConfig, *, rng: Generator):
        parts, widths = config.parts, config.decoder_widths
        top = len(widths) - 1
        make = functools.partial(CausalConv, config=config, rng=rng)
        size = _length(parts.ends), 3
        self.conv_in = make(config.latent_channels, widths[-1], size)
        self.mid = Middle(widths[-1], config=config, rng=rng)
        self.up = nnx.List()
        for i, width in enumerate(widths):
            upsample = _upsample(i - 1, width, config, rng) if i else None
            of_blocks = [widths[min(i + 1, top)]] + [width] * parts.decoder_blocks
            kind = parts.decoder_levels[i]
            self.up.append(Level(of_blocks, kind, upsample=upsample, config=config, rng=rng))
        over_time = parts.ends != "2d"
        self.norm_out = GroupNorm(widths[0], over_time=over_time, activation=True, config=config)
        self.conv_out = make(widths[0], IMAGE_CHANNELS, size, out_dtype="float32")
        self.remat = config.remat

    def __call__(
        self, z: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y 3"]:
        """The video, in float32; of a chunk, the frames that can be told."""
        return self.conv_out(self.hidden(z, carry), carry)

    def hidden(
        self, z: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y d"]:
        """All but the last convolution; training weighs gradients where the two meet."""
        x = self.conv_in(z, carry)
        x = self.mid(x, carry)
        for level in reversed(self.up):
            x = level(x, carry)
        return run(lambda x, _: self.norm_out(x).array(), x, remat=self.remat)


def _upsample(i: int, width: int, config: ODVAEConfig, rng: Generator) -> Upsample:
    """The upsampling number i; rows and columns follow `config.upsample` where frames double."""
    parts = config.parts
    in_time = parts.time_strides[i] > 1
    space = config.upsample if in_time else "nearest"
    return Upsample(
        width,
        parts.upsample[i],
        space=space if parts.space_strides[i] > 1 else None,
        time=config.time_upsample if in_time else None,
        config=config,
        rng=rng,
    )


def _length(kind: Kind) -> int:
    return 1 if kind == "2d" else 3


class ODVAE(nnx.Module):
    """The omni-dimensional video autoencoder (section 3): 4× in time, 8×8 in space, causal.

    A Flax NNX module, and a pytree: pass it to `jax.jit`, `jax.grad` and the like as an argument. A
    function that closes over it instead bakes its parameters into the program as constants.

    Args:
      config: what model; see `ODVAEConfig.variant` and `ODVAEConfig.image`.
      rngs: for the initial parameters; an int is a seed, None makes kernels zero. Inside `jit` and
        `nnx.eval_shape` the values are drawn by JAX: the same distribution, other values.

    Raises:
      ValueError: if `config` or `rngs` is something else.
    """

    def __init__(self, config: ODVAEConfig, *, rngs: nnx.Rngs | int | None = 0):
        if not isinstance(config, ODVAEConfig):
            raise ValueError(
                f"config is a {type(config).__name__}, not an ODVAEConfig: "
                "use ODVAEConfig.variant(4)."
            )
        rng = _generator(rngs)
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config, rng=rng)
        # In float32, so that the posterior is more than its last bfloat16 rounding.
        precise = dataclasses.replace(config, dtype="float32")
        self.quant_conv = CausalConv(2 * z, 2 * z, (1, 1), config=precise, rng=rng)
        self.post_quant_conv = CausalConv(z, z, (1, 1), config=config, rng=rng)
        self.decoder = Decoder(config, rng=rng)

    def moments(self, video: Float[AnyArray, "b t h w 3"]) -> Float[Array, "b u v x c2"]:
        """Mean and log-variance before the clamp, side by side in the channels, float32.

        Args:
          video: floating point in [-1, 1], [B, T, H, W, 3], T = 4k + 1 (any T for the image model),
            H and W multiples of 8.

        Raises:
          ValueError: for another shape or dtype, naming the nearest shape that would do; or rows
            spread over too many devices.
        """
        checks.check_video(video, self.config)
        check_rows("video", video.shape, sharding_of(video), self.config.space_compression)
        return encode_clip(self, video)

    def encode(self, video: Float[AnyArray, "b t h w 3"]) -> DiagonalGaussian:
        """The posterior over latents [B, k + 1, H / 8, W / 8, C] of a video (Eq. 1).

        Arguments and errors are those of `moments`. Latents come unscaled: diffusion models take
        them times `config.scaling_factor`.
        """
        return DiagonalGaussian.from_moments(self.moments(video))

    def reconstruct(self, video: Float[AnyArray, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
        """The video that the decoder makes of the posterior's mean: float32, about [-1, 1].

        Arguments and errors are those of `moments`.
        """
        return self.decode(self.encode(video).mode())

    def to_moments(
        self, video: Float[Array, "b t h w 3"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y c2"]:
        """What `moments` computes, as a plain function of the arrays: not checked, not compiled."""
        return self.quant_conv(self.encoder(video, carry))

    def to_video(
        self, latents: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y 3"]:
        """What `decode` computes, as a plain function of the arrays: not checked, not compiled."""
        return self.decoder(self.post_quant_conv(latents), carry)

    def decode(self, latents: Float[AnyArray, "b t h w c"]) -> Float[Array, "b u v x 3"]:
        """The video of unscaled latents (Eq. 2).

        It is float32 [B, 4(t - 1) + 1, 8h, 8w, 3], about [-1, 1].

        Raises:
          ValueError: if `latents` is not a floating-point array [B, t, h, w, C] with the model's C.
        """
        checks.check_latents(latents, self.config)
        check_rows("latents", latents.shape, sharding_of(latents), 1)
        return decode_clip(self, latents)

    def encode_chunk(
        self, video: Float[AnyArray, "b t h w 3"], state: State
    ) -> tuple[DiagonalGaussian, State]:
        """`encode` of a clip that comes in chunks: one's posterior, and the state for the next.

        Args:
          video: 4k + 1 frames at the clip's beginning, then 4k.
          state: START (odvae_jax/layers/carry.py) at the beginning, then what the last call gave; a
            pytree of arrays whose size does not depend on the clip's length.

        Raises:
          ValueError: if the model's norms are taken over time, or the chunk's shape will not do.
        """
        checks.check_streams(self.config)
        checks.check_video_chunk(video, self.config, first=state == START)
        moments, state = _encode_chunk(self, video, state)
        return DiagonalGaussian.from_moments(moments), state

    def decode_chunk(
        self, latents: Float[AnyArray, "b t h w c"], state: State, *, final: bool
    ) -> tuple[Float[Array, "b u v x 3"], State]:
        """`decode` of a clip that comes in chunks: the frames that can be told, and the state.

        With linear upsampling in time, n + 1 latents (n at least 1) at the beginning give 4n - 2
        frames and n more give 4n; the `final` chunk gives the 3 frames that are owed, too. With
        nearest upsampling none is owed.

        Raises:
          ValueError: as `encode_chunk` does.
        """
        checks.check_streams(self.config)
        checks.check_latents(latents, self.config)
        return _decode_chunk(self, latents, state, final=final)

    def save_pretrained(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes `config.json` and `model.safetensors` into the folder `path`.

        Raises:
          FileExistsError: if `path` holds something already and `overwrite` is not set.
        """
        registry.save(self, path, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        **overrides: Any,
    ) -> ODVAE:
        """Loads a model: one of ours, a released OD-VAE, or an SD-VAE (as a per-frame image model).

        Args:
          source: a folder that `save_pretrained` or `train.py` wrote; a released OD-VAE's folder or
            training `.ckpt`; a diffusers SD-VAE's folder; a file of SD-VAE weights in either
            layout, or a whole Stable Diffusion checkpoint; or the hub id of such a folder.
          revision: of the hub's repository: a branch, tag or commit.
          subfolder: folder in the repository, or in the local folder, such as "vae".
          **overrides: config fields to change that change no parameter's shape, such as
            `dtype="bfloat16"`.

        Raises:
          FileNotFoundError: if the source or one of its files is missing.
          ValueError: if the files do not hold such a model, saying which names differ and how.
        """
        model = registry.load(source, revision=revision, subfolder=subfolder, **overrides)
        if not isinstance(model, cls):
            raise ValueError(
                f"{source} holds a {type(model).__name__}, not an ODVAE: odvae_jax.from_pretrained "
                "loads whatever model there is."
            )
        return model


def _generator(rngs: nnx.Rngs | int | None) -> Generator:
    """Where initial kernels come from: NumPy, but JAX under a trace."""
    if rngs is None or isinstance(rngs, int):
        return None if rngs is None else np.random.default_rng(rngs)
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs is a {type(rngs).__name__}; expected nnx.Rngs, a seed or None.")
    key = jax.random.key_data(rngs.params())
    if isinstance(key, jax.core.Tracer):
        return rngs.params
    return np.random.default_rng(np.asarray(key))


@jax.jit
def encode_clip(vae: ODVAE, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v y c2"]:
    """The moments of whole clips, compiled; see `ODVAE.moments`."""
    shape = vae.config.latent_shape(video.shape)
    return with_automatic_axes(ODVAE.to_moments, (vae, video), shape)(vae, video)


@jax.jit
def decode_clip(vae: ODVAE, latents: Float[Array, "b t h w c"]) -> Float[Array, "b u v y 3"]:
    """The video of whole clips' latents, compiled; see `ODVAE.decode`."""
    shape = vae.config.video_shape(latents.shape)
    return with_automatic_axes(ODVAE.to_video, (vae, latents), shape)(vae, latents)


@jax.jit
def _encode_chunk(vae: ODVAE, video, state):
    carry = Carry(state)
    return vae.to_moments(video, carry), carry.state


@functools.partial(jax.jit, static_argnames="final")
def _decode_chunk(vae: ODVAE, latents, state, *, final):
    carry = Carry(state, final)
    return vae.to_video(latents, carry), carry.state
