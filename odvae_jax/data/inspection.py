"""What training would see of a source: counts, and a picture."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image
from tqdm import tqdm

from odvae_jax.data.clips import RandomClips
from odvae_jax.data.processes import in_processes
from odvae_jax.data.sources import Sampling, Source, open_sources, problem_of, workers_for
from odvae_jax.data.sources.base import Extent
from odvae_jax.data.video import READ_TIMEOUT, within

_LISTED = 20


@dataclasses.dataclass
class Report:
    """What was found in a source; its text is a table.

    Attributes:
      videos: the number of videos.
      hours: the length of all usable videos together, in hours, without those of endless sources.
      sizes: the number of videos by resolution.
      rates: the number of videos by frames per second.
      columns: the number of videos that have a value in a column of the source, by its name.
      unusable: the reason why a video cannot be used, by the video's name.
      problems: what else is wrong, such as folders that cannot be read.
    """

    videos: int = 0
    hours: float = 0.0
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rates: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    columns: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unusable: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def usable(self) -> int:
        """The number of videos that can be used."""
        return self.videos - len(self.unusable)

    def __str__(self):
        def most(counter):
            shown = [f"{value} ({count})" for value, count in counter.most_common(8)]
            return ", ".join(shown) + (", ..." if len(counter) > 8 else "") or "none"

        lines = [
            f"videos       {self.videos}",
            f"hours        {self.hours:.3g}",
            f"resolutions  {most(self.sizes)}",
            f"frames/s     {most(self.rates)}",
        ]
        if self.columns:
            lines.append(f"columns      {most(self.columns)}")
        lines.append(f"unusable     {len(self.unusable)}")
        lines += [f"  {reason}" for reason in list(self.unusable.values())[:_LISTED]]
        if len(self.unusable) > _LISTED:
            lines.append(f"  and {len(self.unusable) - _LISTED} more")
        lines += self.problems
        return "\n".join(lines)


def survey(
    text: str,
    *,
    frames: int = 1,
    holdout: int = 0,
    stride: int = 1,
    fps: float | None = None,
    workers: int = 1,
    timeout: float | None = READ_TIMEOUT,
) -> Report:
    """Reads the header and one frame of every video of some sources, and reports what is there.

    Args:
      text: names the sources (see `odvae_jax.data.sources`).
      frames: the number of frames in a clip. A video is usable if it has one clip beside `holdout`.
      holdout: the number of frames at the end of every video that no clip takes.
      stride: the distance between the frames of a clip, in frames of the video.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      workers: the number of processes that read. A video that a process dies of is unusable.
      timeout: the seconds that one read may take; None for no limit.

    Raises:
      FileNotFoundError: if there is no such source.
      ValueError: if nothing usable is there.
    """
    report = Report()
    sources = [source for _, source in open_sources(text, timeout=timeout)]
    report.problems = [problem for source in sources for problem in source.problems]
    jobs = [(which, i) for which, source in enumerate(sources) for i in range(len(source))]

    def lost(job, reason):
        which, index = job
        return f"{sources[which].name(index)} cannot be used: {reason}."

    sampling = Sampling(frames, stride=(stride, stride), fps=fps, holdout=holdout)
    found_of_all = in_processes(
        _look, (sources, sampling), jobs, workers_for(sources, workers, 1), lost
    )
    bar = tqdm(total=len(jobs), unit="video", dynamic_ncols=True)
    with bar, contextlib.closing(found_of_all):
        for (which, index), found in zip(jobs, found_of_all, strict=True):
            source = sources[which]
            report.videos += 1
            if isinstance(found, str):
                report.unusable[source.name(index)] = found
            else:
                seconds, rate, size, columns = found
                report.columns.update(columns)
                report.hours += seconds / 3600
                report.rates[f"{rate:.5g}"] += 1
                report.sizes["{}×{}".format(*size)] += 1
            bar.update()
    return report


def _look(shared: tuple[list[Source], Sampling], job: tuple[int, int]):
    """Returns a video's seconds, frames per second, size and columns; or why it is unusable."""
    (sources, sampling), (which, index) = shared, job
    source = sources[which]
    name = source.name(index)
    try:
        return within(source.timeout, name, _facts, source, index, sampling)
    except Exception as error:
        return problem_of(name, error)


def _facts(source, index, sampling):
    """Reads the first frame of a video, and its columns; a video that holds no clip is an error."""
    places = []
    frame = source.read(index, Sampling(frames=1), 1, lambda n: places.append(n) or 0)[0]
    rate = source.rate(index)
    seconds = (places[0] if places else 1) / rate  # a picture has no places to choose from
    Extent(source.name(index), 0.0, seconds, rate).places(sampling, sampling.stride[0])
    columns = [name for name, value in source.columns(index).items() if value not in (None, "")]
    return 0.0 if source.endless else seconds, rate, frame.shape[1::-1], columns


def contact_sheet(
    text: str,
    output: str | Path,
    *,
    frames: int = 25,
    size: int = 256,
    clips: int = 8,
    holdout: int = 0,
    stride: int = 1,
    fps: float | None = None,
    timeout: float | None = READ_TIMEOUT,
) -> Path:
    """Writes a picture of random clips as training would see them: a row of four frames per clip.

    Args:
      text: names the sources (see `odvae_jax.data.sources`).
      output: the path of the picture, a PNG file.
      frames: the number of frames in a clip.
      size: the side of a clip in pixels.
      clips: the number of clips.
      holdout: the number of frames at the end of every video that no clip takes.
      stride: the distance between the frames of a clip, in frames of the video.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      timeout: the seconds that one read may take; None for no limit.

    Returns:
      The path of the picture.

    Raises:
      VideoError: if no video holds a clip beside the frames that are held out.
    """
    how = {"frames": frames, "stride": (stride, stride), "fps": fps, "holdout": holdout}
    source = RandomClips(text, size=size, timeout=timeout, **how)
    shown = np.linspace(0, frames - 1, num=min(4, frames), dtype=int)
    rows = [rearrange(source[i][shown], "n h w c -> h (n w) c") for i in range(clips)]
    output = Path(output)
    Image.fromarray(np.concatenate(rows)).save(output)
    return output
