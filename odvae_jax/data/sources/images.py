"""Encoded images, such as PNG and JPEG, as arrays."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from odvae_jax.data.video import scaled_size

# What Pillow raises for broken images of one kind or another.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error)
IMAGE_ERRORS += (Image.DecompressionBombError,)
"""The errors that mean that an image cannot be decoded."""


def decode_image(
    file: str | os.PathLike | io.IOBase, short_side: int | None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image to RGB, uint8 [H, W, 3], turned as its file says.

    Args:
      file: a path, or an open file.
      short_side: the length in pixels to which the shorter side is scaled. None keeps the size.

    Raises:
      One of `IMAGE_ERRORS`, if the image is broken.
    """
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I"):  # 16 bits per pixel, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return scale_image(np.asarray(image.convert("RGB")), short_side)


def scale_image(
    image: UInt8[np.ndarray, "h w 3"], short_side: int | None
) -> UInt8[np.ndarray, "y x 3"]:
    """Scales an image, uint8 [H, W, 3], so that its shorter side has `short_side` pixels.

    None keeps the size.
    """
    size = scaled_size(image.shape[1], image.shape[0], short_side)
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
