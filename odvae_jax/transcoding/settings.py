"""What is told to a run over files, and what came of it."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os

import jax

from odvae_jax.compilation import is_out_of_memory
from odvae_jax.data.video import READ_TIMEOUT
from odvae_jax.files import BusyError, counted, line_about, printable
from odvae_jax.latents import Statistics
from odvae_jax.tiling import AutoTiling, Tiling

logger = logging.getLogger(__name__)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_IN_A_ROW = 3  # so many files that find the disk full end the run


class AlreadyThereError(Exception):
    """The file that would be written is there by now, whole.

    A message says what was wrong with the video behind the file that would be read.
    """


class NotFiniteError(ValueError):
    """What a model computed is not finite. The message says how many values are not."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How files are read, computed and written.

    Attributes:
      tiling: how clips are cut in time, and perhaps frames in space. `AutoTiling` chooses once for
        all files of a run (see `choose_tiling`). None takes what the latents
        were made with when they are decoded. For videos, None takes `Streaming(32)` for models that
        can be streamed and `TemporalTiling(33)` for others.
      short_side: the length in pixels to which the shorter side of videos is scaled; None keeps the
        size.
      size: the number of rows and columns that are cut from the centre of videos; None keeps the
        whole frame.
      content: what files of latents hold: "mean", "moments" or "sample" of the posterior.
      store: the dtype of latents in files: "float32", "float16" or "bfloat16".
      seed: the seed of samples.
      crf: the quality of H.264 in written videos, from 0 to 51; lower is better and larger.
      alone: whether reconstructions are written alone, not beside the originals.
      readers: the number of files that are read at the same time.
      threads: the number of threads that scale the frames of one file.
      read_timeout: the limit for one read of a file in seconds; None for no limit.
      verify: whether files of latents are compared with their digests.
    """

    tiling: tuple[Tiling, ...] | AutoTiling | None = None
    short_side: int | None = None
    size: int | None = None
    content: str = "mean"
    store: str = "float32"
    seed: int = 0
    crf: int = 16
    alone: bool = False
    readers: int = 4
    threads: int = 2
    read_timeout: float | None = READ_TIMEOUT
    verify: bool = True


@dataclasses.dataclass
class Outcome:
    """What came of a run over files.

    Attributes:
      done: the number of files written.
      skipped: the number of files that were there already.
      busy: the number of files that another process was writing; they were left to it.
      frames: the number of frames of the videos that were read or written.
      seconds: the time that the run took.
      problems: what is wrong with a file, in one line that names it, by the path of the file that
        was read.
      ended: why the run ended before all files were tried; empty if it did not.
      statistics: the statistics of the latents, of files that were there already too.
      psnr: the PSNR of each reconstruction in dB, a mean over its frames, by the path of the video.
    """

    done: int = 0
    skipped: int = 0
    busy: int = 0
    frames: int = 0
    seconds: float = 0.0
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    psnr: dict[str, float] = dataclasses.field(default_factory=dict)
    ended: str = ""
    _full: int = 0

    def note(self, source: os.PathLike, error: BaseException) -> None:
        """Notes why a file came to nothing.

        A file that is there already, or that another process is writing, is no problem. If the disk
        was full for three files in a row, `ended` says so.

        Args:
          source: the path of the file that was read.
          error: what was raised.
        """
        if isinstance(error, AlreadyThereError):
            self.skipped += 1
            if str(error):
                self.problems[str(source)] = line_about(source, error)
            return
        if isinstance(error, BusyError):
            self.busy += 1
            return
        logger.debug("%s", printable(source), exc_info=error)
        self.problems[str(source)] = line_about(source, advised(error))
        if _is_full(error):
            self._full += 1
            if self._full == _FULL_IN_A_ROW:
                self.ended = (
                    f"ended, since the disk was full for {self._full} files in a row; "
                    f"{counted(self.done, 'file was', 'files were')} written. The same command "
                    "goes on when there is room."
                )

    def note_done(self, source: os.PathLike, frames: int, problem: str) -> None:
        """Notes that a file was written.

        Args:
          source: the path of the file that was read.
          frames: the number of frames of the video.
          problem: what is wrong with the file that was read; empty if nothing is.
        """
        self.done += 1
        self.frames += frames
        self._full = 0
        if problem:
            self.problems[str(source)] = line_about(source, ValueError(problem))


def advised(error: BaseException) -> BaseException:
    """Returns an error, or what to do about it where the device's memory does not suffice."""
    if not is_out_of_memory(error):
        return error
    return RuntimeError(
        "the device's memory does not suffice: try --tiling=auto, smaller groups (--tiling) or "
        "chunks (--streaming), tiles (--tile=256), or --dtype=bfloat16; a baseline, which cannot "
        "be tiled, needs shorter or smaller clips"
    )


def is_device_fault(error: BaseException) -> bool:
    """Whether a device failed, for another reason than lack of memory; no file is to blame."""
    return isinstance(error, jax.errors.JaxRuntimeError) and advised(error) is error


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota that is used up, is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
