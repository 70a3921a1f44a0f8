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
from odvae_jax.layers.causal_conv import CausalConv, Generator, generator
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.layers.resample import Downsample, Upsample
from odvae_jax.layers.residual_block import ResidualBlock
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.scale import Scale
from odvae_jax.sharding import check_rows, sharding_of, with_automatic_axes
from odvae_jax.types import AnyArray


class Level(nnx.Module):
    """Residual blocks at one resolution, followed by a change of resolution.

    The change leads to the next level of the encoder, or of the decoder.

    Args:
      widths: the channels of the input, and the channels after each block.
      kind: the kind of the blocks' convolutions, "2d", "3d" or "mixed".
      downsample: the change of resolution in the encoder; None at its lowest level.
      upsample: the change of resolution in the decoder; None at its level 0.
      config: the config of the model.
      rng: draws the initial kernels.
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
        """Returns the clip, or its next chunk, after the blocks and the change of resolution."""
        for block in self.block:
            x = run(block, x, carry, self.remat)
        resample = self.downsample or self.upsample
        return x if resample is None else run(resample, x, carry, self.remat)


class Middle(nnx.Module):
    """A residual block, attention and a residual block, at the lowest resolution.

    Args:
      width: the number of channels.
      config: the config of the model.
      rng: draws the initial kernels.
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
        """Returns the clip, or its next chunk, after the three layers."""
        for layer in (self.block_1, self.attn_1, self.block_2):
            x = run(layer, x, carry, self.remat)
        return x


class Encoder(nnx.Module):
    """Maps a video to moments, up to the quant convolution; widths and levels are those of Fig. 2.

    Args:
      config: the config of the model.
      rng: draws the initial kernels.
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
        """Returns moments of a video in [-1, 1], in float32.

        A chunk has 4k + 1 frames at the beginning of a clip, and 4k frames later.
        """
        x = self.conv_in(video, carry)
        for level in self.down:
            x = level(x, carry)
        x = self.mid(x, carry)
        return self.conv_out(self.norm_out(x), carry)


class Decoder(nnx.Module):
    """Maps latents, after the post-quant convolution, to a video.

    `up[i]` is level i; level 0, at full resolution, comes last.

    Args:
      config: the config of the model.
      rng: draws the initial kernels.
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
        """Returns the video, about [-1, 1], in float32.

        For a chunk it returns the frames that no later chunk can change.
        """
        return self.conv_out(self.hidden(z, carry), carry)

    def hidden(
        self, z: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y d"]:
        """Returns what the last convolution is applied to.

        Training weighs gradients at this place.
        """
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


class ODVAE(nnx.Module, registry.Saved):
    """The omni-dimensional video autoencoder (section 3): 4× in time, 8×8 in space, causal.

    It is a Flax NNX module and a pytree: pass it to `jax.jit`, `jax.grad` and other transformations
    as an argument. A function that closes over it instead bakes its parameters into the program as
    constants.

    Args:
      config: the config of the model; see `ODVAEConfig.variant` and `ODVAEConfig.image`.
      rngs: decides the initial parameters. An int is a seed; None makes all kernels zero. Inside
        `jit` and `nnx.eval_shape`, JAX draws the values instead of NumPy: they have the same
        distribution but are not the same values.

    Attributes:
      config: the config of the model.

    Raises:
      ValueError: if `config` is no `ODVAEConfig`, or `rngs` is none of the types that it may have.
    """

    def __init__(self, config: ODVAEConfig, *, rngs: nnx.Rngs | int | None = 0):
        if not isinstance(config, ODVAEConfig):
            raise ValueError(
                f"config is a {type(config).__name__}, not an ODVAEConfig: "
                "use ODVAEConfig.variant(4)."
            )
        rng = generator(rngs)
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config, rng=rng)
        # In float32, so that the posterior is more than its last bfloat16 rounding.
        precise = dataclasses.replace(config, dtype="float32")
        make = CausalConv if config.parts.quant else _no_convolution
        self.quant_conv = make(2 * z, 2 * z, (1, 1), config=precise, rng=rng)
        self.post_quant_conv = make(z, z, (1, 1), config=config, rng=rng)
        self.decoder = Decoder(config, rng=rng)

    def moments(self, video: Float[AnyArray, "b t h w 3"]) -> Float[Array, "b u v x c2"]:
        """Returns the mean and the unclamped log-variance of a video's latents, in float32.

        They are [B, k + 1, H / 8, W / 8, 2 C], with the mean in the first C channels.

        Args:
          video: floating point in [-1, 1], [B, T, H, W, 3]. T is 4k + 1 (any number for the image
            model); H and W are multiples of 8.

        Raises:
          ValueError: if the shape or the dtype is another, with the nearest shape that would do; or
            if the rows are spread over too many devices.
        """
        checks.check_video(video, self.config)
        check_rows("video", video.shape, sharding_of(video), self.config.space_compression)
        return encode_clip(self, video)

    def encode(self, video: Float[AnyArray, "b t h w 3"]) -> DiagonalGaussian:
        """Returns the posterior over the latents of a video (Eq. 1), [B, k + 1, H / 8, W / 8, C].

        The latents are unscaled: a diffusion model takes what `normalise` makes of them.

        Args:
          video: floating point in [-1, 1], [B, T, H, W, 3]. T is 4k + 1 (any number for the image
            model); H and W are multiples of 8.

        Raises:
          ValueError: if the shape or the dtype is another, with the nearest shape that would do; or
            if the rows are spread over too many devices.
        """
        return DiagonalGaussian.from_moments(self.moments(video))

    def reconstruct(self, video: Float[AnyArray, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
        """Returns the video that the decoder makes of the posterior's mean, in float32.

        Its values are about [-1, 1]; they are not clipped.

        Args:
          video: floating point in [-1, 1], [B, T, H, W, 3]. T is 4k + 1 (any number for the image
            model); H and W are multiples of 8.

        Raises:
          ValueError: if the shape or the dtype is another, with the nearest shape that would do; or
            if the rows are spread over too many devices.
        """
        return self.decode(self.encode(video).mode())

    def to_moments(
        self, video: Float[Array, "b t h w 3"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y c2"]:
        """Returns what `moments` returns, as a plain function that neither checks nor compiles.

        Args:
          video: a clip in [-1, 1], or the next chunk of a clip.
          carry: takes and keeps frames from chunk to chunk.
        """
        return self.quant_conv(self.encoder(video, carry))

    def to_video(
        self, latents: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b u v y 3"]:
        """Returns what `decode` returns, as a plain function that neither checks nor compiles.

        Args:
          latents: unscaled latents of a clip, or of the next chunk of a clip.
          carry: takes and keeps frames from chunk to chunk.
        """
        return self.decoder(self.post_quant_conv(latents), carry)

    def decode(self, latents: Float[AnyArray, "b t h w c"]) -> Float[Array, "b u v x 3"]:
        """Returns the video of unscaled latents (Eq. 2).

        It is float32 [B, 4(t - 1) + 1, 8h, 8w, 3], about [-1, 1].

        Args:
          latents: floating point, [B, t, h, w, C].

        Raises:
          ValueError: if `latents` is not a floating-point array [B, t, h, w, C] with the model's C,
            or if the rows are spread over too many devices.
        """
        checks.check_latents(latents, self.config)
        check_rows("latents", latents.shape, sharding_of(latents), 1)
        return decode_clip(self, latents)

    def normalise(self, z: Float[AnyArray, "*positions c"]) -> Float[AnyArray, "*positions c"]:
        """Returns what a diffusion model is given of latents, with deviation 1 per channel.

        These are (z - mean) / std with the mean and deviation of sampled latents per channel that
        `odvae calibrate` or the end of a training run measured. A model without them, such as a
        released one, multiplies by `config.scaling_factor`, and a channel may then have another
        mean and deviation.

        Args:
          z: latents as `encode` gives them, [..., C]; a JAX or a NumPy array.

        Returns:
          An array of the same kind and shape. It is float32, or float64 if `z` is.

        Raises:
          ValueError: if the last axis of `z` has not one entry per channel.
        """
        self._check_channels(z)
        scale = self.config.scale
        return scale.normalise(z) if isinstance(z, np.ndarray) else _normalised(z, scale)

    def denormalise(self, z: Float[AnyArray, "*positions c"]) -> Float[AnyArray, "*positions c"]:
        """Returns the latents that `decode` takes; the inverse of `normalise`.

        Args:
          z: what a diffusion model gives, [..., C]; a JAX or a NumPy array.

        Returns:
          An array of the same kind and shape. It is float32, or float64 if `z` is.

        Raises:
          ValueError: if the last axis of `z` has not one entry per channel.
        """
        self._check_channels(z)
        scale = self.config.scale
        return scale.denormalise(z) if isinstance(z, np.ndarray) else _denormalised(z, scale)

    def _check_channels(self, z) -> None:
        channels = self.config.latent_channels
        if z.shape[-1:] != (channels,):
            raise ValueError(f"latents have the shape {z.shape}; expected [..., {channels}].")

    def encode_chunk(
        self, video: Float[AnyArray, "b t h w 3"], state: State
    ) -> tuple[DiagonalGaussian, State]:
        """Encodes the next chunk of a clip; the chunks together give exactly what `encode` gives.

        Args:
          video: in [-1, 1], [B, T, H, W, 3]. T is 4k + 1 at the beginning of a clip, and 4k later.
          state: START (odvae_jax/layers/carry.py) at the beginning of a clip; later what the last
            call returned. It is a pytree of arrays whose size does not depend on the clip's length.

        Returns:
          The posterior of the chunk, and the state for the next chunk.

        Raises:
          ValueError: if the model's norms take their statistics over time, or if the shape of the
            chunk is not as described.
        """
        checks.check_streams(self.config)
        checks.check_video_chunk(video, self.config, first=state == START)
        moments, state = _encode_chunk(self, video, state)
        return DiagonalGaussian.from_moments(moments), state

    def decode_chunk(
        self, latents: Float[AnyArray, "b t h w c"], state: State, *, final: bool
    ) -> tuple[Float[Array, "b u v x 3"], State]:
        """Decodes the next chunk of a clip; the chunks together give exactly what `decode` gives.

        With linear upsampling in time some frames wait for the next chunk. At the beginning n + 1
        latent frames (n at least 1) give 4n - 2 frames; later n of them give 4n. The final chunk
        also gives the 3 frames that still wait. With nearest upsampling no frame waits.

        Args:
          latents: unscaled latents, [B, t, h, w, C].
          state: START (odvae_jax/layers/carry.py) at the beginning of a clip; later what the last
            call returned.
          final: whether this is the last chunk of the clip.

        Returns:
          The frames, float32 and about [-1, 1], and the state for the next chunk.

        Raises:
          ValueError: if the model's norms take their statistics over time, or if `latents` is not a
            floating-point array [B, t, h, w, C] with the model's C.
        """
        checks.check_streams(self.config)
        checks.check_latents(latents, self.config)
        return _decode_chunk(self, latents, state, final=final)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        verify: bool = True,
        **overrides: Any,
    ) -> ODVAE:
        """Loads an OD-VAE of this package, a released one, or an SD-VAE as a per-frame image model.

        Args:
          source: a folder that `save_pretrained` or a training run wrote; the folder or the
            training `.ckpt` of a released OD-VAE; the folder of a diffusers SD-VAE; a file of
            SD-VAE weights in either layout, or a whole Stable Diffusion checkpoint; the name of a
            model that comes with the package; or the hub id of such a folder.
          revision: the branch, tag or commit of the hub's repository.
          subfolder: the folder inside the repository, or inside the local folder, such as "vae".
          verify: whether the files are compared with the digests that this package writes with a
            model (docs/weights.md). Files without digests pass.
          **overrides: config fields to change that change no parameter's shape, such as
            `dtype="bfloat16"`.

        Raises:
          FileNotFoundError: if the source or one of its files is missing.
          ValueError: if the files hold no such model, are damaged, or hold values that are not
            finite. The message says which names differ and how.
        """
        return registry.load_as(
            cls, source, revision=revision, subfolder=subfolder, verify=verify, **overrides
        )


def _no_convolution(*sizes, config, rng):
    """Returns what stands for the quant convolutions of a model that has none."""
    return _unchanged


def _unchanged(x):
    return x


@jax.jit
def encode_clip(vae: ODVAE, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v y c2"]:
    """Returns the moments of whole clips in [-1, 1]; it is compiled and checks nothing."""
    shape = vae.config.latent_shape(video.shape)
    return with_automatic_axes(ODVAE.to_moments, (vae, video), shape)(vae, video)


@jax.jit
def decode_clip(vae: ODVAE, latents: Float[Array, "b t h w c"]) -> Float[Array, "b u v y 3"]:
    """Returns the video of unscaled latents of whole clips; it is compiled and checks nothing."""
    shape = vae.config.video_shape(latents.shape)
    return with_automatic_axes(ODVAE.to_video, (vae, latents), shape)(vae, latents)


# Compiled, so that no constant is sent to the device by every call.
@functools.partial(jax.jit, static_argnames="scale", inline=True)
def _normalised(z, scale: Scale):
    return scale.normalise(z)


@functools.partial(jax.jit, static_argnames="scale", inline=True)
def _denormalised(z, scale: Scale):
    return scale.denormalise(z)


@jax.jit
def _encode_chunk(vae: ODVAE, video, state):
    carry = Carry(state)
    return vae.to_moments(video, carry), carry.state


@functools.partial(jax.jit, static_argnames="final")
def _decode_chunk(vae: ODVAE, latents, state, *, final):
    carry = Carry(state, final)
    return vae.to_video(latents, carry), carry.state
