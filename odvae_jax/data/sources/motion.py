"""A camera over photographs: `motion:FOLDER`, clips made of pictures when they are asked for.

No two clips are the same, so a few hundred photographs train longer than a folder of clips that
were made of them once.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from odvae_jax.data.motion import FPS, clip_of_pictures
from odvae_jax.data.sources.base import Sampling, Source
from odvae_jax.data.sources.images import scale_image
from odvae_jax.data.sources.pictures import Pictures, open_pictures
from odvae_jax.data.video import VideoError
from odvae_jax.data.video.selection import spread_over

_SIZE = 256
_PLACES = 2**31 - 1


class Motion(Source):
    """Clips that a moving camera takes of pictures; see `odvae_jax.data.motion`.

    The clip of a picture depends on the place at which it is said to begin, of which there are
    2**31 - 1. It is square, with sides of `Sampling.short_side`, or 256 pixels.

    Args:
      pictures: the pictures.
    """

    endless = True

    def __init__(self, pictures: Pictures):
        self._pictures = pictures
        self.here_only, self.problems = pictures.here_only, pictures.problems

    def __len__(self):
        return len(self._pictures)

    def name(self, index):
        return f"a camera over {self._pictures.name(index)}"

    def rate(self, index):
        return float(FPS)

    def bytes_behind(self, index):
        return self._pictures.bytes_behind(index)

    def header(self, index):
        raise VideoError(
            f"{self.name(index)} has no length: give the number of frames per clip, or write clips "
            "to files with odvae data collect."
        )

    def frames(self, index, sampling, stride, where):
        rng = np.random.default_rng([where(_PLACES), index])
        other = int(rng.integers(len(self)))
        both = [self._picture(index), self._picture(other)]
        size = max(sampling.cover or (sampling.short_side or _SIZE,))
        step = stride if sampling.fps is None else FPS / sampling.fps
        wanted = [round(i * step) for i in range(sampling.frames)]
        if sampling.spread:
            wanted = spread_over(sampling.frames, sampling.frames * stride)
        clip = clip_of_pictures(rng, both, size=size, frames=wanted[-1] + 1)
        return [scale_image(clip[number], None, sampling.cover) for number in wanted]

    def _picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._pictures.frames(index, Sampling(1), 1, lambda _: 0)[0])


def open_motion(text: str, *, in_memory: bool = False) -> Motion:
    """Opens the image files anywhere below a folder as a source of moving clips.

    Args:
      text: the path or URL.
      in_memory: without effect; clips are made anew every time.

    Raises:
      FileNotFoundError: if there is no such path.
      ValueError: if there is no image below the folder.
    """
    return Motion(open_pictures(text))
