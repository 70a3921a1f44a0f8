"""Sets of generated videos beside real ones: the numbers, and a page where samples play."""

from __future__ import annotations

import dataclasses
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from odvae_jax.evaluation import page, pictures
from odvae_jax.evaluation.clips import Clip
from odvae_jax.evaluation.drawn import DrawnClips, GeneratedClips
from odvae_jax.evaluation.models import check_labels
from odvae_jax.evaluation.results import as_markdown, escaped
from odvae_jax.files import counted, printable, write_whole
from odvae_jax.metrics import generated as metrics
from odvae_jax.metrics.clip_sets import COUNT, Networks, set_of_clips
from odvae_jax.metrics.feature_cache import FeatureCache
from odvae_jax.metrics.generated import SIZES, TITLES, Comparison, compare

SHOWN = 16
"""The number of clips of each set that the page shows."""
FEATURES_FOLDER = "features"
"""The folder in the output that keeps what the networks made of clips."""
CLIPS_FOLDER = "clips"
"""The folder in the output that holds the videos of the page."""
_REAL = "real clips"
_NAMED = 10  # videos that a note lists by name


@dataclasses.dataclass(frozen=True)
class Shown:
    """A video in which some clips of a set play side by side.

    Attributes:
      title: what the clips are.
      video: the mp4 file.
      names: the names of the clips, row by row from the left.
    """

    title: str
    video: Path
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class GeneratedResults:
    """All numbers of sets of generated videos beside one set of real clips.

    Attributes:
      settings: which real clips there are, as values that JSON can hold.
      folders: the folder of each set of generated videos, by the set's label.
      comparisons: the numbers of each set, by its label.
      found: how many videos each folder holds, by the set's label.
      skipped: the reasons why videos could not be read, by what they are of: the label of a set, or
        "real clips".
      too_short: how many of the real videos that were drawn have too few frames.
      problems: what is wrong with something else than a video, each with its path.
    """

    settings: dict[str, Any]
    folders: dict[str, str]
    comparisons: dict[str, Comparison]
    found: dict[str, int]
    skipped: dict[str, tuple[str, ...]]
    too_short: int
    problems: tuple[str, ...]

    @property
    def complaints(self) -> tuple[str, ...]:
        """What went wrong with clips and folders, in one line each; nothing if all is well."""
        skipped = {name: len(reasons) for name, reasons in self.skipped.items() if reasons}
        said = [f"{counted(n, 'video')} of {name} cannot be used" for name, n in skipped.items()]
        sets = {label: c.generated for label, c in self.comparisons.items()}
        sets[_REAL] = next(iter(self.comparisons.values())).reals
        said += [
            f"{counted(len(s.not_finite), f'clip of {name} is', f'clips of {name} are')} not finite"
            for name, s in sets.items()
            if s.not_finite
        ]
        return (*said, *self.problems)


def evaluate_generated(
    sets: Mapping[str, GeneratedClips],
    reals: DrawnClips,
    networks: Networks,
    *,
    count: int = COUNT,
    sizes: Sequence[int] = SIZES,
    output: str | os.PathLike | None = None,
    cache: FeatureCache | None = None,
    batch: int = 1,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> tuple[GeneratedResults, list[Path]]:
    """Compares sets of generated videos with real clips, and writes a report.

    Args:
      sets: the generated videos, by the label of the set.
      reals: the real clips.
      networks: the networks that the metrics need.
      count: the number of clips of each set, and of real ones, that are taken at most.
      sizes: the numbers of clips that FVD is computed for, beside all.
      output: the folder of the report and of what the networks made of clips so far. The same call
        goes on where it was interrupted. None keeps everything in memory and writes nothing.
      cache: where the vectors are kept that the networks made, for several calls with the same real
        clips; None keeps them in the output's folder.
      batch: the number of clips per device and call.
      devices: the devices to use; None uses all devices of this process.
      progress: whether progress bars are shown.

    Returns:
      The numbers, and the paths of the files written.

    Raises:
      ValueError: if a set has no clip that can be read, clips have different shapes, or the labels
        of two sets are shown alike.
    """
    check_labels([*(printable(label) for label in sets), _REAL], "sets")
    for clips in sets.values():
        clips.check(count)
    folder = None if output is None else Path(output)
    if cache is None:
        cache = FeatureCache(None if folder is None else folder / FEATURES_FOLDER)
    options = {"count": count, "cache": cache, "batch": batch, "devices": devices}
    options["progress"] = progress
    if folder is not None:
        _clear(folder / CLIPS_FOLDER)
    made, shown = {}, []
    for number, (label, clips) in enumerate(sets.items()):
        passing = _Passing(clips, label, folder, f"generated-{number}", min(count, len(clips)))
        made[label] = set_of_clips(passing, networks, what="generated", **options)
        shown.append(passing.shown)
    passing = _Passing(reals, _REAL, folder, "real", count)
    real = set_of_clips(passing, networks, what="real", classes=False, **options)
    results = GeneratedResults(
        settings=reals.settings(),
        folders={label: clips.folder for label, clips in sets.items()},
        comparisons={label: compare(real, s, sizes=sizes) for label, s in made.items()},
        found={label: len(clips) for label, clips in sets.items()},
        skipped={
            name: tuple(clips.skipped.values()) for name, clips in (*sets.items(), (_REAL, reals))
        },
        too_short=len(reals.too_short),
        problems=tuple(p for clips in (*sets.values(), reals) for p in clips.problems),
    )
    if folder is None:
        return results, []
    return results, _write(results, [s for s in (passing.shown, *shown) if s], folder)


def table(results: GeneratedResults) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of a table with one row per number and set of generated videos.

    The sets stand below one another for each metric and number of clips.
    """
    rows = []
    for label, comparison in results.comparisons.items():
        titles, own = metrics.table(comparison)
        rows += [[printable(label), *row] for row in own]
    metric = {title: i for i, title in enumerate(TITLES.values())}

    def place(row):
        return metric[row[1]], int(row[3]) if row[3].isdigit() else 0

    return ["videos", *titles], sorted(rows, key=place)


def notes(results: GeneratedResults) -> list[str]:
    """Returns the lines that a reader of the table has to know, such as the numbers of clips."""
    sets = {label: metrics.notes(c) for label, c in results.comparisons.items()}
    said: list[str] = []
    of_all: list[str] = []
    for label, lines in sets.items():
        for line in lines:
            if len(sets) == 1:
                said.append(line)
            elif "generated" in line or any(line not in others for others in sets.values()):
                said.append(f"{printable(label)}: {line}")
            elif line not in of_all:
                of_all.append(line)
    said += of_all
    for label, c in results.comparisons.items():
        if results.found[label] > c.generated.asked:
            said.append(
                f"{printable(label)} has {results.found[label]} videos, of which "
                f"{counted(c.generated.asked, 'is', 'are')} measured, drawn at random."
            )
    reals = next(iter(results.comparisons.values())).reals
    videos = len(set(reals.names))
    if videos < len(reals.names):
        said.append(
            f"{len(reals.names)} real clips are of {counted(videos, 'video')}: there are several "
            "of one, at other places."
        )
    if results.too_short:
        short = counted(results.too_short, "real video is", "real videos are")
        said.append(f"{short} too short for a clip, and left out.")
    for name, reasons in results.skipped.items():
        if reasons:
            said.append(f"{counted(len(reasons), 'video')} of {printable(name)} cannot be used:")
            said += [f"  {reason}" for reason in reasons[:_NAMED]]
            more = len(reasons) - _NAMED
            said += [f"  and {more} more, which results.json names"] if more > 0 else []
    return said


def as_json(results: GeneratedResults) -> dict[str, Any]:
    """Returns all numbers of an evaluation as values that JSON can hold."""
    return {
        "real": results.settings,
        "sets": [
            {
                "label": label,
                "folder": printable(results.folders[label]),
                "videos": results.found[label],
                **metrics.as_json(comparison),
                "skipped": list(results.skipped[label]),
            }
            for label, comparison in results.comparisons.items()
        ],
        "real_skipped": list(results.skipped[_REAL]),
        "real_too_short": results.too_short,
        "problems": list(results.problems),
    }


class _Passing:
    """The clips of a set on their way to the networks, of which the first are shown."""

    def __init__(
        self,
        clips: DrawnClips | GeneratedClips,
        title: str,
        folder: Path | None,
        stem: str,
        count: int,
    ):
        self._clips, self._title, self._count = clips, title, count
        self._file = None if folder is None else folder / CLIPS_FOLDER / f"{stem}.mp4"
        self.shown: Shown | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, UInt8[np.ndarray, "t h w 3"]]]:
        wanted = min(SHOWN, self._count)
        first: list[Clip] = []
        number = 0
        for number, clip in enumerate(self._clips, 1):
            if number <= wanted:
                first.append(clip)
            if number == wanted:
                self._show(first)
            yield printable(clip.name), clip.frames
        if not number:
            reasons = list(self._clips.skipped.values())
            why = f": {reasons[0]}" if reasons else ": all are too short for a clip."
            raise ValueError(f"no video of {printable(self._title)} can be used{why}")
        if number < wanted:
            self._show(first)

    def _show(self, clips: list[Clip]) -> None:
        """Writes the first clips as one video."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            pictures.write_wall(self._file, [c.frames for c in clips], clips[0].fps)
            names = tuple(printable(Path(c.name).name) for c in clips)
            self.shown = Shown(printable(self._title), self._file, names)
        clips.clear()


def _clear(folder: Path) -> None:
    """Removes what an earlier call showed, of which there may have been more sets."""
    for file in folder.glob("generated-*.mp4"):
        file.unlink()


def _write(results: GeneratedResults, shown: Sequence[Shown], output: Path) -> list[Path]:
    """Writes `results.json`, `results.md` and `results.html`, which holds all in one file."""
    output.mkdir(parents=True, exist_ok=True)
    titles, rows = table(results)
    listed = [
        f"  - {escaped(line.strip())}" if line.startswith("  ") else f"- {escaped(line)}"
        for line in notes(results)
    ]
    markdown = f"{as_markdown(titles, rows)}\n\n" + "\n".join(listed) + "\n"
    parts = [
        page.table(titles, rows),
        *(f'<p class="note">{html.escape(line)}</p>' for line in notes(results)),
    ]
    for some in shown:
        caption = f"The first {len(some.names)}, row by row: {', '.join(some.names)}"
        title = some.title[0].upper() + some.title[1:] if some.title == _REAL else some.title
        parts.append(f"<h2>{html.escape(title)}</h2>")
        parts.append(page.figure(some.video, caption, plays=True))
    texts = {
        "results.json": json.dumps(as_json(results), indent=1) + "\n",
        "results.md": markdown,
        "results.html": page.whole("Generated videos", parts),
    }
    for name, text in texts.items():
        write_whole(output / name, text)
    return [*(output / name for name in texts), *(some.video for some in shown)]
