"""What training would see of a source: counts, and a picture."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image
from tqdm import tqdm

from odvae_jax.data.clips import RandomClips
from odvae_jax.data.processes import in_processes
from odvae_jax.data.sources import Sampling, Source, open_sources
from odvae_jax.data.video import VideoError

_LISTED = 20


@dataclasses.dataclass
class Report:
    """What was found; as text, a table."""

    videos: int = 0
    hours: float = 0.0
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rates: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unusable: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def usable(self) -> int:
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
            f"unusable     {len(self.unusable)}",
        ]
        lines += [f"  {reason}" for reason in list(self.unusable.values())[:_LISTED]]
        if len(self.unusable) > _LISTED:
            lines.append(f"  and {len(self.unusable) - _LISTED} more")
        return "\n".join(lines)


def survey(text: str, *, frames: int = 1, workers: int = 1) -> Report:
    """Reads the header and one frame of every video that a string names (`data.sources`).

    Args:
      text: as above.
      frames: that a video must have to be usable.
      workers: processes.

    Raises:
      FileNotFoundError, ValueError: if there is no such source.
    """
    report = Report()
    sources = [source for _, source in open_sources(text)]
    jobs = [(which, i) for which, source in enumerate(sources) for i in range(len(source))]
    found_of_all = in_processes(_look, (sources, frames), jobs, workers)
    with tqdm(total=len(jobs), unit="video", dynamic_ncols=True) as bar:
        for (which, index), found in zip(jobs, found_of_all, strict=True):
            source = sources[which]
            report.videos += 1
            if isinstance(found, str):
                report.unusable[source.name(index)] = found
            else:
                seconds, rate, size = found
                report.hours += seconds / 3600
                report.rates[f"{rate:.5g}"] += 1
                report.sizes["{}×{}".format(*size)] += 1
            bar.update()
    return report


def _look(shared: tuple[list[Source], int], job: tuple[int, int]):
    """Seconds, frames a second and (width, height); or why the video cannot be used."""
    (sources, frames), (which, index) = shared, job
    source, places = sources[which], []
    try:
        # The first frame; and how many places there are for one.
        frame = source.read(index, Sampling(frames=1), 1, lambda n: places.append(n) or 0)[0]
        rate = source.rate(index)
    except VideoError as error:
        return str(error)
    if places[0] < frames:
        return f"{source.name(index)} has {places[0]} frames; clips need {frames}."
    return places[0] / rate, rate, frame.shape[1::-1]


def contact_sheet(
    text: str, output: str | Path, *, frames: int = 25, size: int = 256, clips: int = 8
) -> Path:
    """Writes a PNG with four frames of some random clips, a row each, as training would see them.

    Raises:
      VideoError: if no video has that many frames.
    """
    source = RandomClips(text, frames=frames, size=size)
    shown = np.linspace(0, frames - 1, num=min(4, frames), dtype=int)
    rows = [rearrange(source[i][shown], "n h w c -> h (n w) c") for i in range(clips)]
    output = Path(output)
    Image.fromarray(np.concatenate(rows)).save(output)
    return output
