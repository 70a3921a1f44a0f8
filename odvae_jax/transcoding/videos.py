"""Videos as encoding and reconstructing read them, and jobs that are done already."""

from __future__ import annotations

from collections.abc import Sequence

from odvae_jax.data.video import FrameBlocks, VideoError, VideoReader
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.settings import Outcome, Settings


def read_video(job: Job, length: int, settings: Settings) -> FrameBlocks:
    """Returns the frames of a job's video in blocks, the first of `length` + 1 frames."""
    return FrameBlocks(
        job.source,
        length,
        short_side=settings.short_side,
        size=settings.size,
        threads=settings.threads,
    )


def count_video_frames(job: Job) -> int | None:
    """Returns the number of frames that the header of a job's video promises, None if none."""
    try:
        with VideoReader(str(job.source)) as video:
            return max(round((video.end - video.start) * video.fps), 1)
    except VideoError:
        return None


def without_written(jobs: Sequence[Job], overwrite: bool, outcome: Outcome) -> list[Job]:
    """Returns the jobs whose target is not there yet, or all; counts the others in `outcome`."""
    todo = [job for job in jobs if overwrite or not job.target.exists()]
    outcome.skipped = len(jobs) - len(todo)
    return todo
