"""Which files are videos."""

from __future__ import annotations

import os

from odvae_jax.data.finding import find_files

_NAMES = "mp4 m4v mov avi mkv webm mpg mpeg wmv flv ts gif 3gp ogv asf f4v m2ts m2v mts mxf vob"
EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split())
"""The extensions of video files, in lower case."""


def find_videos(path: str | os.PathLike, *, problems: dict[str, str] | None = None) -> list[str]:
    """Returns the video files anywhere below a folder, sorted; or the one file that `path` is.

    Args:
      path: a folder, or one file.
      problems: is filled with what is wrong with folders and links below the path, by their paths
        (see `find_files`). None says it in the log.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is no video below the folder.
    """
    return find_files(path, EXTENSIONS, "video", problems=problems)
