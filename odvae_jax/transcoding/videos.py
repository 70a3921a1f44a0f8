"""Videos as encoding and reconstructing read them, and videos that are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from odvae_jax.data.video import FrameBlocks, ThreadedVideoWriter, VideoError, VideoReader
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.settings import AlreadyThereError, Outcome, Settings


def read_video(job: Job, length: int, settings: Settings) -> FrameBlocks:
    """Returns the frames of a job's video in blocks, the first of `length` + 1 frames."""
    return FrameBlocks(
        job.source,
        length,
        short_side=settings.short_side,
        size=settings.size,
        threads=settings.threads,
        timeout=settings.read_timeout,
    )


def count_video_frames(job: Job, settings: Settings) -> int | None:
    """Returns the number of frames that the header of a job's video promises, None if none."""
    try:
        with VideoReader(str(job.source), timeout=settings.read_timeout) as video:
            return max(round((video.end - video.start) * video.fps), 1)
    except VideoError:
        return None


def without_written(jobs: Sequence[Job], overwrite: bool, outcome: Outcome) -> list[Job]:
    """Returns the jobs whose video is not there yet, or all; counts the others in `outcome`."""
    todo = [job for job in jobs if overwrite or not is_whole_video(job.target)]
    outcome.skipped = len(jobs) - len(todo)
    return todo


def open_video(job: Job, fps: float, settings: Settings, overwrite: bool) -> ThreadedVideoWriter:
    """Opens the video that a job writes.

    Raises:
      AlreadyThereError: if another process has written it by now, and `overwrite` is not set.
      BusyError: if another process is writing it.
      OSError: if it cannot be written.
    """
    writer = ThreadedVideoWriter(job.target, fps, settings.crf)
    # From here on no other process writes the file, so that each is written once.
    if not overwrite and is_whole_video(job.target):
        writer.close()
        raise AlreadyThereError
    return writer


def is_whole_video(path: Path) -> bool:
    """Whether a path is that of a video of which no part is missing.

    The boxes that an mp4 file is made of must fill it, and the one that says where the frames are
    must be among them. A video of another kind, which was not written here, must have a header.
    """
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            if file.read(8)[4:] == b"ftyp":
                return {b"moov", b"mdat"} <= _boxes(file.read, file.seek, path.stat().st_size)
        return path.stat().st_size > 0 and _has_header(path)
    except (OSError, ValueError):
        return False


def _has_header(path: Path) -> bool:
    try:
        with VideoReader(str(path)):
            return True
    except VideoError:
        return False


def _boxes(read: Callable, seek: Callable, size: int) -> set[bytes]:
    """Returns the kinds of the boxes of an mp4 file.

    Raises:
      ValueError: if they do not fill the file.
    """
    kinds, place = set(), 0
    while place < size:
        seek(place)
        header = read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        least = 8
        if length == 1:
            length, least = int.from_bytes(header[8:], "big"), 16
        if len(header) < least or length < least:
            raise ValueError
        kinds.add(kind)
        place += length
    if place > size:
        raise ValueError
    return kinds
