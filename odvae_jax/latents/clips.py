"""Clips read for a dataset, in workers; nothing here needs JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import UInt8

from odvae_jax.data.processes import doing
from odvae_jax.data.sources import Source, problem_of
from odvae_jax.data.video import centre_crop, within
from odvae_jax.latents.buckets import Size
from odvae_jax.latents.entries import Cut


@dataclasses.dataclass
class ReadClip:
    """A clip as a worker returns it, or why it cannot be used.

    Attributes:
      clip: RGB, uint8 [T, H, W, 3]; None if there is none.
      name: the name of the video.
      fps: the frames per second of the clip.
      columns: what else the source says of the video.
      problem: why the clip cannot be used; empty if it can.
    """

    clip: UInt8[np.ndarray, "t h w 3"] | None = None
    name: str = ""
    fps: float = 1.0
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    problem: str = ""


def read_clip(shared: tuple[Source, Cut], job: tuple[int, int, bool, Size]) -> ReadClip:
    """Reads one clip. Whatever is wrong with it is said in what is returned.

    Args:
      shared: the source, and how clips are cut out of its videos.
      job: the number of the video, the frame that the clip begins with, whether left and right are
        exchanged, and the size of the clip.
    """
    (source, cut), (video, start, mirrored, size) = shared, job
    read = ReadClip(name=source.name(video))
    try:
        doing(read.name)
        given = (source, cut, video, start, size)
        clip, rate, read.columns = within(source.timeout, read.name, _cut_out, *given)
        read.fps = cut.fps or rate / cut.stride
        read.clip = np.ascontiguousarray(clip[:, :, ::-1] if mirrored else clip)
    except Exception as error:  # whatever is wrong with one video is not the others' problem
        read.problem = problem_of(read.name, error)
    return read


def _cut_out(source, cut, video, start, size):
    # A header may promise more frames than there are: the last place is then taken.
    frames = source.frames(video, cut.sampling(size), cut.stride, lambda n: min(start, n - 1))
    if cut.size is not None:
        frames = [centre_crop(frame, cut.size, cut.size) for frame in frames]
    return np.stack(frames), source.rate(video), source.columns(video)
