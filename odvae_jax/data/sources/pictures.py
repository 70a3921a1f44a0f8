"""Pictures: `images:PATH`, image files anywhere below a folder, as videos of one frame."""

from __future__ import annotations

import io
import os

from odvae_jax.data.finding import look_below, open_regular
from odvae_jax.data.sources.base import Header, Source
from odvae_jax.data.sources.images import (
    IMAGE_ERRORS,
    IMAGE_EXTENSIONS,
    decode_image,
    image_size,
)
from odvae_jax.data.urls import is_here_only, is_url, read_url, size_of_url
from odvae_jax.data.video import VideoError, within
from odvae_jax.files import one_line, printable


class Pictures(Source):
    """Image files, as videos of one frame.

    Args:
      paths: the paths or URLs of the files.
    """

    def __init__(self, paths: list[str]):
        self._paths = paths
        self.here_only = any(map(is_here_only, paths))

    def __len__(self):
        return len(self._paths)

    def name(self, index):
        return printable(self._paths[index])

    def rate(self, index):
        return 1.0

    def bytes_behind(self, index):
        path = self._paths[index]
        if is_url(path):
            return size_of_url(path)
        return os.path.getsize(path) if os.path.exists(path) else 0

    def header(self, index):
        return Header(1, *self._read(index, image_size), 1.0)

    def places(self, index, sampling, stride):
        if sampling.frames != 1:
            raise VideoError(
                f"{self.name(index)} is an image; clips need {sampling.frames} frames."
            )
        return 1

    def frames(self, index, sampling, stride, where):
        self.places(index, sampling, stride)
        return [self._read(index, decode_image, sampling.short_side, sampling.cover)]

    def _read(self, index, function, *arguments):
        """Returns what a function makes of a picture's file."""
        name = self.name(index)
        try:
            content = within(self.timeout, name, self._content, index)
            return function(io.BytesIO(content), *arguments)
        except VideoError:
            raise
        except IMAGE_ERRORS as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise VideoError(f"{name} cannot be read as an image: {reason}.") from error

    def _content(self, index) -> bytes:
        if is_url(self._paths[index]):
            return read_url(self._paths[index])
        with open_regular(self._paths[index]) as file:
            return file.read()


def open_pictures(text: str, *, in_memory: bool = False) -> Pictures:
    """Opens the image files anywhere below a folder, or one image file.

    Args:
      text: the path or URL.
      in_memory: without effect; pictures are read anew every time.

    Raises:
      FileNotFoundError: if there is no such path.
      ValueError: if there is no image below the folder.
    """
    found = look_below(text, IMAGE_EXTENSIONS, "image")
    found.log()
    pictures = Pictures(found.files)
    pictures.problems = found.sentences()
    return pictures
