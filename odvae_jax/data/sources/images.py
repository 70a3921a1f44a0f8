"""Encoded images, such as PNG and JPEG, as arrays."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from odvae_jax.data.video import centre_crop, scaled_size

IMAGE_EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
"""The extensions of image files, in lower case."""
# What Pillow raises for broken images of one kind or another.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error)
IMAGE_ERRORS += (Image.DecompressionBombError,)
"""The errors that mean that an image cannot be decoded."""
_ORIENTATION = 0x0112  # the number of this field in EXIF
_SIDEWAYS = (5, 6, 7, 8)  # its values for images that are turned by a quarter


def decode_image(
    file: str | os.PathLike | io.IOBase,
    short_side: int | None,
    cover: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image to RGB, uint8 [H, W, 3], turned as its file says.

    Args:
      file: a path, or an open file.
      short_side: the length in pixels to which the shorter side is scaled. None keeps the size.
      cover: the height and width in pixels of what is cut from the centre, after the image was
        scaled to the least size that covers it; None cuts nothing.

    Raises:
      One of `IMAGE_ERRORS`, if the image is broken.
    """
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I"):  # 16 bits per pixel, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return scale_image(np.asarray(image.convert("RGB")), short_side, cover)


def image_size(file: str | os.PathLike | io.IOBase) -> tuple[int, int]:
    """Returns the height and width of an image in pixels, turned as its file says.

    The pixels are not decoded.

    Args:
      file: a path, or an open file.

    Raises:
      One of `IMAGE_ERRORS`, if there is no image.
    """
    image = Image.open(file)
    width, height = image.size
    return (width, height) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (height, width)


def scale_image(
    image: UInt8[np.ndarray, "h w 3"],
    short_side: int | None,
    cover: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "y x 3"]:
    """Scales an image, uint8 [H, W, 3], with antialiasing.

    Args:
      image: the image.
      short_side: the length in pixels to which the shorter side is scaled. None keeps the size.
      cover: the height and width in pixels of what is cut from the centre, after the image was
        scaled to the least size that covers it; None cuts nothing.
    """
    size = scaled_size(image.shape[1], image.shape[0], short_side, cover)
    if size != (image.shape[1], image.shape[0]):
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return image if cover is None else centre_crop(image, *cover)
