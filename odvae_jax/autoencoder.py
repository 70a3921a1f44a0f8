"""The causal video autoencoder (Fig. 1): an encoder, a decoder, and the model that holds both."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.config import (
    DECODER_BLOCKS,
    ENCODER_BLOCKS,
    IMAGE_CHANNELS,
    SPACE_COMPRESSION,
    WIDTH_MULTIPLIERS,
    Kind,
    ODVAEConfig,
)
from odvae_jax.layers.attention import Attention
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.layers.remat import Remat, rematerialised
from odvae_jax.layers.resample import Downsample, Upsample
from odvae_jax.layers.residual_block import ResidualBlock
from odvae_jax.layers.state import START, State, split
from odvae_jax.pixels import VideoSize, padded_size
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.sharding import check_rows, sharding_of, under_explicit_axes
from odvae_jax.types import AnyArray


class Level(nnx.Module):
    """Residual blocks at one resolution, then a change of it.

    The change is the encoder's `downsample` or the decoder's `upsample`.
    """

    def __init__(
        self,
        widths: list[int],
        kind: Kind,
        *,
        config: ODVAEConfig,
        rng: Generator,
        **resample: nnx.Module,
    ):
        self.block = nnx.List(
            ResidualBlock(a, b, kind, config=config, rng=rng) for a, b in itertools.pairwise(widths)
        )
        self.downsample = resample.get("downsample")
        self.upsample = resample.get("upsample")
        self.remat = config.remat

    def chunk(
        self, x: Float[Array, "b t h w c"], state: State, final: bool
    ) -> tuple[Float[Array, "b u v x d"], State]:
        """One chunk of a clip, or a whole one (odvae_jax/layers/state.py)."""
        layers = [*self.block, self.downsample or self.upsample]
        return run_in_turn(list(filter(None, layers)), x, state, final, self.remat)


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, width: int, *, config: ODVAEConfig, rng: Generator):
        kind = config.parts.middle
        self.block_1 = ResidualBlock(width, width, kind, config=config, rng=rng)
        self.attn_1 = Attention(width, kind, config=config, rng=rng)
        self.block_2 = ResidualBlock(width, width, kind, config=config, rng=rng)
        self.remat = config.remat

    def chunk(
        self, x: Float[Array, "b t h w c"], state: State, final: bool
    ) -> tuple[Float[Array, "b t h w c"], State]:
        """One chunk of a clip, or a whole one."""
        return run_in_turn([self.block_1, self.attn_1, self.block_2], x, state, final, self.remat)


def run_in_turn(
    layers: Sequence[nnx.Module],
    x: Float[Array, "b t h w c"],
    state: State,
    final: bool,
    remat: Remat = "none",
) -> tuple[Float[Array, "b u v x d"], State]:
    """A chunk through layers, one after another, and the states of them all."""
    states = []
    for layer, of_layer in zip(layers, split(state, len(layers)), strict=True):
        run = rematerialised(functools.partial(layer.chunk, final=final), remat)
        x, after = run(x, of_layer)
        states.append(after)
    return x, None if state is None else tuple(states)


class Encoder(nnx.Module):
    """Video to moments (before the quant convolution); widths and levels as in Fig. 2."""

    def __init__(self, config: ODVAEConfig, *, rng: Generator):
        parts = config.parts
        widths = [config.width * m for m in WIDTH_MULTIPLIERS]
        top = len(widths) - 1
        self.conv_in = CausalConv(
            IMAGE_CHANNELS, widths[0], (_length(parts.encoder_in), 3), config=config, rng=rng
        )
        self.down = nnx.List()
        for i, width in enumerate(widths):
            resample = {}
            if i < top:
                resample["downsample"] = Downsample(
                    width, parts.downsample[i], parts.time_strides[i], config=config, rng=rng
                )
            blocks = [widths[max(i - 1, 0)]] + [width] * ENCODER_BLOCKS
            self.down.append(
                Level(blocks, parts.encoder_levels[i], config=config, rng=rng, **resample)
            )
        self.mid = Middle(widths[-1], config=config, rng=rng)
        self.norm_out = GroupNorm(
            widths[-1], over_time=parts.ends != "2d", activation=True, config=config
        )
        self.conv_out = CausalConv(
            widths[-1], 2 * config.latent_channels, (_length(parts.ends), 3), config=config, rng=rng
        )

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v x c2"]:
        return self.chunk(video, None)[0]

    def chunk(
        self, video: Float[Array, "b t h w 3"], state: State
    ) -> tuple[Float[Array, "b u v x c2"], State]:
        """Of one chunk of a clip: 4k + 1 frames at its beginning, then 4k."""
        first, middle, last = split(state, 3)
        x, first = self.conv_in.chunk(video, first)
        x, middle = run_in_turn([*self.down, self.mid], x, middle, True)
        x, last = self.conv_out.chunk(self.norm_out(x), last, out_dtype="float32")
        return x, None if state is None else (first, middle, last)


class Decoder(nnx.Module):
    """Latents (after the post-quant convolution) to video; `up[i]` is level i, run from 3 to 0."""

    def __init__(self, config: ODVAEConfig, *, rng: Generator):
        parts = config.parts
        widths = [config.width * m for m in WIDTH_MULTIPLIERS]
        top = len(widths) - 1
        ends = _length(parts.ends)
        self.conv_in = CausalConv(
            config.latent_channels, widths[-1], (ends, 3), config=config, rng=rng
        )
        self.mid = Middle(widths[-1], config=config, rng=rng)
        self.up = nnx.List()
        for i, width in enumerate(widths):
            resample = {}
            if i > 0:
                resample["upsample"] = Upsample(
                    width,
                    parts.upsample[i - 1],
                    space=config.upsample if i > 1 and parts.time_strides[i - 1] > 1 else "nearest",
                    time=config.time_upsample if parts.time_strides[i - 1] > 1 else None,
                    config=config,
                    rng=rng,
                )
            blocks = [widths[min(i + 1, top)]] + [width] * DECODER_BLOCKS
            self.up.append(
                Level(blocks, parts.decoder_levels[i], config=config, rng=rng, **resample)
            )
        self.norm_out = GroupNorm(
            widths[0], over_time=parts.ends != "2d", activation=True, config=config
        )
        self.conv_out = CausalConv(widths[0], IMAGE_CHANNELS, (ends, 3), config=config, rng=rng)
        self.remat = config.remat

    def __call__(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b u v x 3"]:
        return self.last(self.hidden(z))

    def chunk(
        self, z: Float[Array, "b t h w c"], state: State, final: bool
    ) -> tuple[Float[Array, "b u v x 3"], State]:
        """Of one chunk of a clip's latents; `final` is the last.

        With linear upsampling in time the others owe some frames, which come with the next.
        """
        hidden, last = split(state, 2)
        x, hidden = self._hidden(z, hidden, final)
        x, last = self.conv_out.chunk(x, last, out_dtype="float32")
        return x, None if state is None else (hidden, last)

    def hidden(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b u v x d"]:
        """All but the last convolution; training weighs gradients where the two meet."""
        return self._hidden(z, None, True)[0]

    def _hidden(self, z, state, final):
        first, middle = split(state, 2)
        x, first = self.conv_in.chunk(z, first)
        x, middle = run_in_turn([self.mid, *reversed(self.up)], x, middle, final)
        x = rematerialised(self.norm_out, self.remat)(x)
        return x, None if state is None else (first, middle)

    def last(self, hidden: Float[Array, "b t h w d"]) -> Float[Array, "b t h w 3"]:
        """The last convolution: to the video, in float32."""
        return self.conv_out(hidden, out_dtype="float32")


def _length(kind: Kind) -> int:
    return 1 if kind == "2d" else 3


class ODVAE(nnx.Module):
    """The omni-dimensional video autoencoder (section 3): 4× in time, 8×8 in space, causal.

    A Flax NNX module, and a pytree: pass it to `jax.jit`, `jax.grad` and the like as an argument. A
    function that closes over it instead bakes its parameters into the program as constants.

    Args:
      config: what model; see `ODVAEConfig.variant` and `ODVAEConfig.image`.
      rng: for the initial parameters; an int is a seed.
    """

    def __init__(self, config: ODVAEConfig, *, rngs: nnx.Rngs | int | None = 0):
        if not isinstance(config, ODVAEConfig):
            raise ValueError(
                f"config is a {type(config).__name__}, not an ODVAEConfig: "
                "use ODVAEConfig.variant(4)."
            )
        if isinstance(rngs, nnx.Rngs):
            try:
                rng = np.random.default_rng(np.asarray(jax.random.key_data(rngs.params())))
            except jax.errors.TracerArrayConversionError as error:
                raise ValueError(
                    "rngs are traced: make the model outside jit and eval_shape, or give rngs=None "
                    "where only its shapes matter."
                ) from error
        else:
            if not (rngs is None or isinstance(rngs, int)):
                raise ValueError(
                    f"rngs is a {type(rngs).__name__}; expected nnx.Rngs, a seed or None."
                )
            rng = None if rngs is None else np.random.default_rng(rngs)
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
        check_video(video, self.config)
        check_rows("video", video.shape, sharding_of(video), SPACE_COMPRESSION)
        return _moments(self, video)

    def encode(self, video: Float[AnyArray, "b t h w 3"]) -> DiagonalGaussian:
        """The posterior over latents [B, k + 1, H / 8, W / 8, C] of a video (Eq. 1).

        Arguments and errors are those of `moments`. Latents come unscaled: diffusion models take
        them times `config.scaling_factor`.
        """
        return DiagonalGaussian.from_moments(self.moments(video))

    def decode(self, latents: Float[AnyArray, "b t h w c"]) -> Float[Array, "b u v x 3"]:
        """The video of unscaled latents (Eq. 2).

        It is float32 [B, 4(t - 1) + 1, 8h, 8w, 3], about [-1, 1].

        Raises:
          ValueError: if `latents` is not a floating-point array [B, t, h, w, C] with the model's C.
        """
        check_latents(latents, self.config)
        check_rows("latents", latents.shape, sharding_of(latents), 1)
        return _decode(self, latents)

    def encode_chunk(
        self, video: Float[AnyArray, "b t h w 3"], state: State
    ) -> tuple[DiagonalGaussian, State]:
        """`encode` of a clip that comes in chunks: one's posterior, and the state for the next.

        Args:
          video: 4k + 1 frames at the clip's beginning, then 4k.
          state: START (odvae_jax/layers/state.py) at the beginning, then what the last call gave; a
            pytree of arrays whose size does not depend on the clip's length.

        Raises:
          ValueError: if the model's norms are taken over time, or the chunk's shape will not do.
        """
        check_streams(self.config)
        check_array("video", video)
        b, t, *rest = jnp.shape(video)
        if state == START:
            check_video_shape((b, t, *rest), self.config)
        elif t == 0 or t % self.config.time_compression:
            raise ValueError(f"a chunk of {t} frames is not 4k, which all but a clip's first are.")
        else:
            check_video_shape((b, t + 1, *rest), self.config)  # with a frame before it
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
        check_streams(self.config)
        check_latents(latents, self.config)
        return _decode_chunk(self, latents, state, final=final)

    def save_pretrained(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes `config.json` and `model.safetensors` into the folder `path`.

        Raises:
          FileExistsError: if `path` holds something already and `overwrite` is not set.
        """
        from odvae_jax.checkpoints import native

        native.save(self, path, overwrite=overwrite)

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
        from odvae_jax.checkpoints.pretrained import load_pretrained

        return load_pretrained(source, revision=revision, subfolder=subfolder, **overrides).vae


def check_streams(config: ODVAEConfig) -> None:
    """Raises ValueError unless a model's clips can come in chunks."""
    if not config.streams:
        raise ValueError(
            f"norm={config.norm!r}: the model's norms take their statistics over all frames of a "
            'clip, so that no part of it can be had without the rest. Models with norm="frame" can '
            "be streamed; use TemporalTiling for this one."
        )


def check_array(name: str, value: Any) -> None:
    """Raises ValueError for what is no JAX or NumPy array."""
    if not isinstance(value, AnyArray):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(f"{name} is a {kind}; expected a JAX or NumPy array.")


def check_video(video: Any, config: ODVAEConfig, *, uint8: bool = False, pad: bool = False) -> None:
    """Raises ValueError unless `video` is one that can be encoded.

    Args:
      video: in [-1, 1], or in 0 to 255 if `uint8`.
      config: of the model.
      uint8: as above.
      pad: whether it is padded first.
    """
    check_array("video", video)
    shape, dtype = tuple(jnp.shape(video)), jnp.result_type(video)
    if len(shape) != 5:
        raise ValueError(f"video has shape {shape}; expected five axes, [B, T, H, W, 3].")
    if uint8 and dtype != jnp.uint8:
        raise ValueError(
            f"video has dtype {dtype}; encode_uint8 takes uint8. "
            "For floats in [-1, 1] there is encode."
        )
    if not uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"video has dtype {dtype}; expected floating point in [-1, 1]. "
            "For uint8 in 0 to 255 there is odvae_jax.encode_uint8."
        )
    if pad and 0 not in shape:
        size = padded_size(VideoSize(*shape[1:4]), config.time_compression)
        shape = (shape[0], size.frames, size.height, size.width, shape[4])
    check_video_shape(shape, config)


def check_video_shape(shape: tuple[int, ...], config: ODVAEConfig) -> None:
    """Raises ValueError unless [B, T, H, W, C] can be encoded.

    The error names the nearest shape that can.
    """
    b, t, h, w, c = shape
    step = config.time_compression
    nearest = (
        max(b, 1),
        step * max(round((t - 1) / step), 0) + 1,
        *(SPACE_COMPRESSION * max(round(s / SPACE_COMPRESSION), 1) for s in (h, w)),
        IMAGE_CHANNELS,
    )
    if shape == nearest:
        return
    wrong = []
    if b != nearest[0]:
        wrong.append("B must be at least 1")
    if t != nearest[1]:
        wrong.append(f"T must be {step}k + 1" if step > 1 else "T must be at least 1")
    wrong += [
        f"{n} must be a multiple of 8"
        for n, s, m in zip("HW", (h, w), nearest[2:4], strict=True)
        if s != m
    ]
    if c != IMAGE_CHANNELS:
        wrong.append("the last axis must hold 3 channels")
    raise ValueError(
        f"video has shape {shape}, [B, T, H, W, C]: {', '.join(wrong)}. The nearest is {nearest}."
    )


def check_latents(latents: Any, config: ODVAEConfig) -> None:
    """Raises ValueError unless `latents` are some that `ODVAE.decode` takes."""
    check_array("latents", latents)
    shape = tuple(jnp.shape(latents))
    expected = f"[B, t, h, w, {config.latent_channels}]"
    if len(shape) != 5 or shape[-1] != config.latent_channels or 0 in shape:
        near = (
            (*(max(s, 1) for s in shape[:-1]), config.latent_channels) if len(shape) == 5 else None
        )
        raise ValueError(
            f"latents have shape {shape}; this model decodes {expected}"
            + (f": the nearest is {near}." if near else ".")
        )
    if not jnp.issubdtype(jnp.result_type(latents), jnp.floating):
        raise ValueError(f"latents have dtype {jnp.result_type(latents)}; expected floating point.")


@jax.jit
def _moments(vae: ODVAE, video):
    def run(vae, video):
        return vae.quant_conv(vae.encoder(video))

    return under_explicit_axes(run, vae.config.latent_shape(video.shape))(vae, video)


@jax.jit
def _encode_chunk(vae: ODVAE, video, state):
    x, state = vae.encoder.chunk(video, state)
    return vae.quant_conv(x), state


@functools.partial(jax.jit, static_argnames="final")
def _decode_chunk(vae: ODVAE, latents, state, *, final):
    return vae.decoder.chunk(vae.post_quant_conv(latents), state, final)


@jax.jit
def _decode(vae: ODVAE, latents):
    def run(vae, latents):
        return vae.decoder(vae.post_quant_conv(latents))

    return under_explicit_axes(run, vae.config.video_shape(latents.shape))(vae, latents)
