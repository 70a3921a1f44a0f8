"""Checks of what public functions accept, with messages that say what is expected instead.

Every public function calls its check once, before it computes anything. Code below it does not
check again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from odvae_jax.config import IMAGE_CHANNELS, ODVAEConfig
from odvae_jax.files import counted
from odvae_jax.pixels import VideoSize
from odvae_jax.types import AnyArray


def check_streams(config: ODVAEConfig) -> None:
    """Checks that a model can take clips in chunks.

    Raises:
      ValueError: if the model's norms take their statistics over the frames of a clip.
    """
    if not config.streams:
        raise ValueError(
            f"norm={config.norm!r}: the model's norms take their statistics over all frames of a "
            'clip, so that no part of it can be had without the rest. Models with norm="frame" can '
            "be streamed; use TemporalTiling for this one."
        )


def check_array(name: str, value: Any) -> None:
    """Checks that a value is a JAX or NumPy array of numbers that JAX can take.

    Args:
      name: the name of the argument, for the message.
      value: the value.

    Raises:
      ValueError: if the value is something else, a masked array, or an array of objects, of text or
        of numbers in the byte order or of a size that JAX does not have.
    """
    if not isinstance(value, AnyArray):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        hint = {"torch.Tensor": f" Use {name}.cpu().numpy().", "builtins.list": " Use np.stack."}
        raise ValueError(f"{name} is a {kind}; expected a JAX or NumPy array.{hint.get(kind, '')}")
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array; expected a plain one: {name}.filled(0).")
    if isinstance(value, np.ndarray):
        dtype = value.dtype
        numbers = jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"
        if not numbers or not dtype.isnative or dtype.itemsize > {"c": 16}.get(dtype.kind, 8):
            raise ValueError(
                f"{name} has dtype {dtype.str}, which JAX cannot take; expected plain numbers in "
                f"this machine's byte order: {name}.astype(np.float32)."
            )


def check_video(video: Any, config: Any, *, uint8: bool = False, pad: bool = False) -> None:
    """Checks that a video can be encoded.

    Args:
      video: the video, [B, T, H, W, 3].
      config: the config of the model, an OD-VAE or a baseline.
      uint8: whether the video must be uint8, from 0 to 255, instead of floating point in [-1, 1].
      pad: whether the video is padded before it is encoded, so that any length and sides will do.

    Raises:
      ValueError: if the video is no array, or has another dtype or shape. The message has the
        nearest shape that can be encoded.
    """
    check_array("video", video)
    _check_axes(video)
    shape, dtype = tuple(jnp.shape(video)), jnp.result_type(video)
    if uint8 and dtype != jnp.uint8:
        raise ValueError(
            f"video has dtype {dtype}; encode_uint8 takes uint8. "
            "For floats in [-1, 1] there is encode."
        )
    if not uint8:
        _check_dtype(video)
    if pad and 0 not in shape:
        shape = (shape[0], *config.clip_size(*shape[1:4]), shape[4])
    check_video_shape(shape, config)


def check_floats(video: Any) -> tuple[int, ...]:
    """Checks that a video is a floating-point array with five axes, and returns its shape.

    Raises:
      ValueError: if the video is no array, or has other axes or another dtype.
    """
    check_array("video", video)
    _check_axes(video)
    _check_dtype(video)
    return tuple(jnp.shape(video))


def _check_axes(video):
    shape = tuple(jnp.shape(video))
    if len(shape) != 5:
        raise ValueError(f"video has shape {shape}; expected five axes, [B, T, H, W, 3].")


def _check_dtype(video):
    dtype = jnp.result_type(video)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"video has dtype {dtype}; expected floating point in [-1, 1]. "
            "For uint8 in 0 to 255 there is odvae_jax.encode_uint8."
        )


def check_video_shape(shape: tuple[int, ...], config: Any) -> None:
    """Checks that a video of a shape [B, T, H, W, C] can be encoded.

    Raises:
      ValueError: if it cannot. The message has the nearest shape that can.
    """
    check_clip_shape(shape, config.frame_step, config.first_frames, config.space_compression)


def check_clip_shape(shape: tuple[int, ...], step: int, first: int, side: int) -> None:
    """Checks that a clip [B, T, H, W, C] has a shape that a model takes.

    Args:
      shape: the shape of the clip.
      step: the numbers of frames that the model takes are multiples of it, plus `first`.
      first: the frames that a clip has beside a multiple of `step`: 1 or 0.
      side: rows and columns must be multiples of it.

    Raises:
      ValueError: if the model does not take it. The message has the nearest shape that it takes.
    """
    b, t, h, w, c = shape
    nearest = (
        max(b, 1),
        step * max(round((t - first) / step), 1 - first) + first,
        *(side * max(round(s / side), 1) for s in (h, w)),
        IMAGE_CHANNELS,
    )
    if shape == nearest:
        return
    wrong = []
    if b != nearest[0]:
        wrong.append("B must be at least 1")
    if t != nearest[1] and step == 1:
        wrong.append("T must be at least 1")
    elif t != nearest[1]:
        wrong.append(f"T must be {step}k + 1" if first else f"T must be a multiple of {step}")
    wrong += [
        f"{n} must be a multiple of {side}"
        for n, s, m in zip("HW", (h, w), nearest[2:4], strict=True)
        if s != m
    ]
    if c != IMAGE_CHANNELS:
        wrong.append("the last axis must hold 3 channels")
        if IMAGE_CHANNELS in (t, h):
            wrong[-1] += " (axes swapped? channels come last here)"
    raise ValueError(
        f"video has shape {shape}, [B, T, H, W, C]: {', '.join(wrong)}. The nearest is {nearest}."
    )


def check_latents(latents: Any, config: Any) -> None:
    """Checks that latents can be decoded.

    Args:
      latents: the latents, [B, t, h, w, C].
      config: the config of the model.

    Raises:
      ValueError: if the latents are no array, or have another dtype or shape.
    """
    check_channels(latents, config.latent_channels)


def check_channels(latents: Any, channels: int) -> None:
    """Checks that latents are floating point and have five axes, the last of a known length.

    Args:
      latents: the latents, [B, t, h, w, C].
      channels: the number of channels C that they must have.

    Raises:
      ValueError: if the latents are no array, or have another dtype or shape.
    """
    check_array("latents", latents)
    shape = tuple(jnp.shape(latents))
    expected = f"[B, t, h, w, {channels}]"
    if len(shape) != 5 or shape[-1] != channels or 0 in shape:
        near = (*(max(s, 1) for s in shape[:-1]), channels) if len(shape) == 5 else None
        raise ValueError(
            f"latents have shape {shape}; this model decodes {expected}"
            + (f": the nearest is {near}." if near else ".")
        )
    if not jnp.issubdtype(jnp.result_type(latents), jnp.floating):
        raise ValueError(f"latents have dtype {jnp.result_type(latents)}; expected floating point.")


def check_video_chunk(video: Any, config: ODVAEConfig, *, first: bool) -> None:
    """Checks that a chunk of a clip can be encoded after the chunks before it.

    Args:
      video: the chunk, in [-1, 1], [B, T, H, W, 3].
      config: the config of the model.
      first: whether the chunk begins a clip, and so has one frame more.

    Raises:
      ValueError: if the chunk is no array or has another shape.
    """
    b, t, *rest = check_floats(video)
    if first:
        check_video_shape((b, t, *rest), config)
    elif t == 0 or t % config.time_compression:
        raise ValueError(
            f"a chunk of {counted(t, 'frame')} is not {config.time_compression}k, which all but a "
            "clip's first are."
        )
    else:
        check_video_shape((b, t + 1, *rest), config)  # with a frame before it, it is a clip


def check_continuous(config: Any) -> None:
    """Checks that a model has continuous latents.

    Args:
      config: the config of an autoencoder.

    Raises:
      ValueError: if it encodes to codes.
    """
    if config.codes is not None:
        raise ValueError(
            f"{config.name} encodes clips to codes, each one of {config.codes} numbers, not to "
            "continuous latents, which are needed here: take another model."
        )


def check_untiled(config: Any, tiling: Any) -> None:
    """Checks that a model that takes clips whole is given no tiling.

    Args:
      config: the config of a baseline.
      tiling: what was given as the tiling.

    Raises:
      ValueError: if it is a tiling.
    """
    if tiling:
        raise ValueError(
            f"{config.name} takes clips whole, and cuts them inside as its config says, so that it "
            "cannot be tiled: leave out the tiling (--tiling, --streaming, --tile), and encode "
            "shorter or smaller clips if memory does not suffice."
        )


def check_size(size: VideoSize | None, shape: tuple[int, ...], video: tuple[int, ...]) -> None:
    """Checks that latents hold at least a video of some size.

    Args:
      size: the frames, rows and columns of the video; None checks nothing.
      shape: the shape of the latents, [B, t, h, w, C].
      video: the shape of the video that they are decoded to, [B, T, H, W, 3].

    Raises:
      ValueError: if `size` is no `VideoSize`, or the video of the latents is smaller.
    """
    if size is None:
        return
    if not isinstance(size, VideoSize):
        raise ValueError(f"size is {size!r:.100}; expected a VideoSize(frames, height, width).")
    most = video[1:4]
    if any(n > m for n, m in zip(dataclasses.astuple(size), most, strict=True)):
        raise ValueError(
            f"latents of shape {tuple(shape)} are those of {most} frames, rows and columns, fewer "
            f"than {size}: they are another video's."
        )
