"""A small dataset with classes that is always there: `moving-shapes[:OPTIONS]`.

Shapes cut out of photographs move over other photographs; the class is the motion. The photographs
are those that the package scikit-image carries.
"""

from __future__ import annotations

from odvae_jax.data.shapes import (
    MOTIONS,
    PHOTOGRAPHS,
    draw_scene,
    photographs_folder,
    render_scene,
)
from odvae_jax.data.sources.base import Extent, Header, Source, cut
from odvae_jax.data.sources.options import read_options
from odvae_jax.data.video import VideoError, centre_crop

MOVING_SHAPES = "moving-shapes"
"""The string that names this source."""
CLIPS = {"train": 4096, "test": 512}
"""The number of clips of each part, if no other is given."""
_FPS = 24.0
_DEFAULTS = {"clips": 0, "frames": 33, "size": 256}


class MovingShapes(Source):
    """Shapes that move over photographs in one of eight ways; see `odvae_jax.data.shapes`.

    Clip i depends on the part and on i alone, whatever the number of clips, and shows motion i
    modulo 8. It is rendered at the size that is asked for, so nothing is lost by scaling.

    Args:
      part: "train" or "test"; no photograph is in both.
      clips: the number of clips.
      frames: the number of frames of a clip. The whole motion is made within them.
      size: the side of a frame in pixels, where no other size is asked for.

    Raises:
      FileNotFoundError: if scikit-image is not installed, or lacks a photograph.
    """

    def __init__(self, part: str = "train", clips: int = 4096, frames: int = 33, size: int = 256):
        photographs_folder()
        self._part, self._clips, self._frames, self._size = part, clips, frames, size

    def __len__(self):
        return self._clips

    def name(self, index):
        return f"{MOVING_SHAPES}:{self._part}, clip {index}"

    def rate(self, index):
        return _FPS

    def columns(self, index):
        label = index % len(MOTIONS)
        return {"label": label, "motion": MOTIONS[label]}

    def header(self, index):
        return Header(self._frames, self._size, self._size, _FPS)

    def frames(self, index, sampling, stride, where):
        extent = Extent(self.name(index), 0.0, self._frames / _FPS, _FPS)
        numbers = [(i / _FPS, i) for i in range(self._frames)]
        try:
            chosen = cut(lambda _: numbers, extent, sampling, stride, where)
        except VideoError as error:
            raise VideoError(
                f"{error} Or make the videos longer, as in {MOVING_SHAPES}:{self._part},frames=N."
            ) from error
        size = max(sampling.cover or (sampling.short_side or self._size,))
        scene = draw_scene(self._part, index)
        frames = render_scene(scene, self._part, chosen, self._frames, size)
        if sampling.cover is None:
            return frames
        return [centre_crop(frame, *sampling.cover) for frame in frames]


def open_moving_shapes(text: str = "", *, in_memory: bool = False) -> MovingShapes:
    """Opens the dataset of moving shapes.

    Args:
      text: options: "train" (the default) or "test", and `clips=N`, `frames=N` and `size=N`, with
        commas between them.
      in_memory: without effect; clips are made anew every time.

    Raises:
      FileNotFoundError: if scikit-image is not installed, or lacks a photograph.
      ValueError: if there is no such option.
    """
    example = f"{MOVING_SHAPES}:test,clips=100,frames=81"
    part, numbers = read_options(text, MOVING_SHAPES, tuple(PHOTOGRAPHS), _DEFAULTS, example)
    part = part or "train"
    return MovingShapes(part, **numbers | {"clips": numbers["clips"] or CLIPS[part]})
