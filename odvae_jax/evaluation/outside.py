"""Reconstructions that come from outside: videos in a folder, or any function of clips."""

from __future__ import annotations

import abc
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from odvae_jax.data.video import EXTENSIONS, VideoInfo, find_videos, inspect_video, read_frames
from odvae_jax.evaluation.clips import Clip, FixedClips
from odvae_jax.files import counted, one_line, printable
from odvae_jax.training.importing import import_named

logger = logging.getLogger(__name__)
_LISTED = 3  # names in an error


class Outside(abc.ABC):
    """Whatever gives reconstructions in 8 bits, and is no model of this package.

    Attributes:
      digest: hexadecimal digits that tell it from others.
    """

    digest: str

    def check(self, clips: FixedClips) -> None:  # noqa: B027 (most have nothing to check)
        """Checks what can be checked before anything is measured.

        Raises:
          ValueError: if it cannot reconstruct such clips.
        """

    @abc.abstractmethod
    def __call__(self, clips: Sequence[Clip]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Returns the reconstructions of clips, all of one shape, uint8 from 0 to 255.

        Raises:
          ValueError: if there is none, or it has another shape or dtype than the clip.
        """


class Reconstructions(Outside):
    """Videos in a folder, matched with those of a source by the names of their files.

    The ends of the names, such as .mp4, need not be the same. Where a name comes more than once,
    the name of the folder that holds the file must match, too.

    Args:
      folder: the folder. Each video in it holds the frames of one clip.

    Attributes:
      digest: hexadecimal digits of the files' names, sizes and times of modification.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if no video is in it.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._files: dict[str, list[str]] = {}
        seen = []
        for file in find_videos(folder):
            self._files.setdefault(_key(file), []).append(file)
            status = Path(file).stat()
            name = Path(file).relative_to(folder) if Path(folder).is_dir() else file
            seen.append([printable(name), status.st_size, status.st_mtime_ns])
        self.digest = hashlib.blake2b(json.dumps(seen).encode()).hexdigest()[:16]

    def check(self, clips: FixedClips) -> None:
        """Compares the headers of all files with the clips; no file is decoded.

        Raises:
          ValueError: if no file has the name of a video, or one has another length or size. The
            message names the file.
        """
        names = [clips.name(i) for i in range(len(clips))]
        files: dict[str, str] = {}
        for name in names:
            if (file := self._file(name)) is not None and files.setdefault(file, name) != name:
                raise ValueError(
                    f"{printable(file)} may be the reconstruction of {printable(files[file])} or "
                    f"of {printable(name)}: put each into a folder called as that of its video."
                )
        if names and not files:
            held = [printable(Path(f).name) for found in self._files.values() for f in found]
            raise ValueError(
                f"no video in {printable(self._folder)} has the name of a video of "
                f"{printable(clips.source)}: found {', '.join(held[:_LISTED])}, expected "
                f"{', '.join(map(_key, names[:_LISTED]))}, with any ending of a video."
            )
        if without := [name for name in names if self._file(name) is None]:
            logger.warning(
                "%d of %s have no reconstruction in %s, and the work ends at the first of them "
                "that can be read: %s",
                len(without),
                counted(len(names), "video"),
                printable(self._folder),
                ", ".join(map(printable, without[:_LISTED])),
            )
        for file in files:
            info = inspect_video(file)
            found = (info.frames, info.height, info.width)
            _check_size(file, found, clips.shape)

    def __call__(self, clips: Sequence[Clip]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Reads the files of clips.

        Raises:
          ValueError: if a file is missing, or has another length or size than its clip. The message
            names the file.
        """
        return np.stack([self._read(clip) for clip in clips])

    def _read(self, clip: Clip) -> UInt8[np.ndarray, "t h w 3"]:
        file = self._file(clip.name)
        if file is None:
            raise ValueError(
                f"{printable(self._folder)} holds no video called {_key(clip.name)}, with any "
                f"ending, which is to be the reconstruction of {printable(clip.name)}: add it, or "
                "leave that video out of --data."
            )
        info: VideoInfo = inspect_video(file)
        frames = read_frames(info, 0, info.frames)
        _check_size(file, frames.shape[:3], clip.frames.shape[:3])
        return frames

    def _file(self, name: str) -> str | None:
        files = self._files.get(_key(name), [])
        beside = [f for f in files if Path(f).parent.name == Path(name).parent.name]
        chosen = files if len(files) == 1 else beside or files
        if len(chosen) > 1:
            raise ValueError(
                f"{printable(chosen[0])} and {printable(chosen[1])} may both be the reconstruction "
                f"of {printable(name)}: keep one."
            )
        return chosen[0] if chosen else None


class Function(Outside):
    """A function of one's own that maps clips to their reconstructions.

    Args:
      name: the module and the function, "package.module:function". The module is looked for where
        Python looks, and then in the current folder. The function takes uint8 clips
        [B, T, H, W, 3] from 0 to 255, a NumPy array, and returns as many of the same shape and
        dtype.

    Attributes:
      digest: hexadecimal digits of the name and of the module's file.

    Raises:
      ValueError: if there is no such module or no such function in it.
    """

    def __init__(self, name: str):
        self.name = name
        if not all(part.strip() for part in name.partition(":")):
            raise ValueError(
                f"--callable={name} names no function: expected package.module:function."
            )
        self._function: Any = import_named(name, "--callable")
        if not callable(self._function):
            raise ValueError(
                f"--callable={name} is a {type(self._function).__name__}; expected a function."
            )
        found = hashlib.blake2b(name.encode())
        file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
        found.update(Path(file).read_bytes() if file else b"")
        self.digest = found.hexdigest()[:16]

    def __call__(self, clips: Sequence[Clip]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Calls the function with the clips.

        Raises:
          ValueError: if the function fails, or returns another shape or dtype.
        """
        video = np.stack([clip.frames for clip in clips])
        shape = video.shape
        try:
            made = np.asarray(self._function(video))
        except Exception as error:
            logger.info("%s", self.name, exc_info=error)
            names = ", ".join(printable(clip.name) for clip in clips[:_LISTED])
            raise ValueError(
                f"{self.name} failed on clips of shape {shape} ({names}): "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        if made.shape != shape or made.dtype != np.uint8:
            raise ValueError(
                f"{self.name} returned {made.dtype} of shape {made.shape}; expected uint8 of shape "
                f"{shape}, as the clips are."
            )
        return made


def _key(name: str) -> str:
    """Returns the name of a video without its folder and the ending of a video."""
    path = Path(name)
    return printable(path.stem if path.suffix.lower() in EXTENSIONS else path.name)


def _check_size(file: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(found) != tuple(expected):
        shown = [f"{counted(t, 'frame')} of {h}×{w}" for t, h, w in (found, expected)]
        raise ValueError(
            f"{printable(file)} has {shown[0]}, expected {shown[1]}, the size of its clip: write "
            "it anew, or choose other --frames and --size."
        )
