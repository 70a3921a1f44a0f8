"""From measurements to the numbers of a table (Table 1), as data, Markdown and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from odvae_jax.evaluation.measure import METRICS, Measurements
from odvae_jax.evaluation.models import Contender, parameter_count
from odvae_jax.metrics.frechet import FeatureStatistics, frechet_distance

FEW_CLIPS = 400
"""Under so many clips a Fréchet distance says little."""
_RESAMPLES = 10_000
TITLES = {"psnr": "PSNR [dB] ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓", "rfvd": "rFVD ↓"}
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "rfvd": 1}


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean over clips with a 95% bootstrap interval; without one for a single clip."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out for one model.

    Attributes:
      contender: the model.
      clips: that the numbers are means of, the same for all models; 0 if it has no finite
        reconstruction at all.
      scores: metric to mean and interval; a metric that could not be had is left out.
      first, rest: metric to mean over the first frame of every group, and over the other frames.
      by_frame: metric to means by frame, [T].
      by_clip: clip's name to metric to its mean.
      not_finite: names of clips whose reconstruction was not; they are in no mean.
    """

    contender: Contender
    clips: int
    scores: dict[str, Score]
    first: dict[str, float]
    rest: dict[str, float]
    by_frame: dict[str, np.ndarray]
    by_clip: dict[str, dict[str, float]]
    not_finite: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """All of an evaluation's numbers.

    Attributes:
      settings: which frames of which data, and the tiling.
      rows: a model each, in the order given.
      skipped: videos that could not be used, and why.
      missing: metrics that could not be had, and why.
    """

    settings: dict[str, Any]
    rows: tuple[Row, ...]
    skipped: dict[str, str]
    missing: dict[str, str]


def summarise(measurements: Measurements, contenders: Sequence[Contender]) -> Results:
    """Means, intervals and Fréchet distances of what was measured."""
    finite = {
        c.digest: {i for i, r in measurements.values[c.digest].items() if r.get("finite", True)}
        for c in contenders
    }
    some = [clips for clips in finite.values() if clips]
    common = sorted(set.intersection(*some)) if some else []
    rows = [_row(c, measurements, common if finite[c.digest] else []) for c in contenders]
    missing = dict(measurements.missing)
    if len(common) < 2:
        missing.setdefault("rfvd", "needs two clips at least")
    return Results(measurements.settings, tuple(rows), measurements.skipped, missing)


def first_of_group(frames: int, tiling: int | None) -> np.ndarray:
    """Which frames are the first shown of a group: of the clip, and after every seam of tiling.

    A group's very first frame is the one before's last, and is shown there.
    """
    starts = np.zeros(frames, bool)
    starts[0] = True
    if tiling:
        starts[tiling :: tiling - 1] = True
    return starts


def _row(c: Contender, measurements: Measurements, clips: list[int]) -> Row:
    records, names = measurements.values[c.digest], measurements.names
    starts = first_of_group(measurements.settings["frames"], measurements.settings["tiling"])
    scores, first, rest, by_frame = {}, {}, {}, {}
    by_clip: dict[str, dict[str, float]] = {names[i]: {} for i in clips}
    for metric in METRICS:
        if metric in measurements.missing or not clips:
            continue
        values = np.stack([records[i][metric] for i in clips]).astype(np.float64)
        by_frame[metric] = values.mean(axis=0)
        first[metric] = values[:, starts].mean()
        rest[metric] = values[:, ~starts].mean() if not starts.all() else np.nan
        means = values.mean(axis=1)
        scores[metric] = _interval(means)
        for i, mean in zip(clips, means, strict=True):
            by_clip[names[i]][metric] = float(mean)
    if "rfvd" not in measurements.missing and len(clips) > 1:
        originals = np.stack([measurements.originals[i] for i in clips])
        made = np.stack([records[i]["features"] for i in clips])
        distance = frechet_distance(FeatureStatistics.of(originals), FeatureStatistics.of(made))
        scores["rfvd"] = Score(distance)
    not_finite = tuple(names[i] for i, r in sorted(records.items()) if not r.get("finite", True))
    return Row(c, len(clips), scores, first, rest, by_frame, by_clip, not_finite)


def _interval(means) -> Score:
    if len(means) < 2:
        return Score(float(means.mean()))
    low, high = scipy.stats.bootstrap(
        (means,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Score(float(means.mean()), float(low), float(high))


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Titles and rows as in Table 1; a metric that could not be had is marked "missing"."""
    titles = ["model", "VCPR", "parameters", *TITLES.values()]
    rows = []
    for row in results.rows:
        c = row.contender
        cells = [c.label, str(c.vcpr), parameter_count(c.parameters)]
        broken = "missing" if row.clips else "not finite"
        rows.append(cells + [_cell(metric, row.scores.get(metric), broken) for metric in TITLES])
    return titles, rows


def first_and_rest(results: Results) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the means over first frames of groups, and over the others."""
    titles = ["model", *(f"{TITLES[m]}, {part}" for m in METRICS for part in ("first", "rest"))]
    rows = []
    for row in results.rows:
        cells = [
            "–" if m not in part or np.isnan(part[m]) else f"{part[m]:.{_DIGITS[m]}f}"
            for m in METRICS
            for part in (row.first, row.rest)
        ]
        rows.append([row.contender.label, *cells])
    return titles, rows


def _cell(metric: str, score: Score | None, without: str) -> str:
    if score is None:
        return without
    digits = _DIGITS[metric]
    text = f"{score.mean:.{digits}f}"
    if score.low is not None:
        text += f" ({score.low:.{digits}f}–{score.high:.{digits}f})"
    return text


def notes(results: Results) -> list[str]:
    """What a reader of the table has to know."""
    settings, said = results.settings, []
    clips = [row.clips for row in results.rows]
    tiling = f", temporal tiling {settings['tiling']}" if settings["tiling"] else ""
    step = f" every {settings['stride']}" if settings["stride"] > 1 else ""
    step = f" at {settings['fps']:g} a second" if settings["fps"] else step
    size = f"{settings['size']}×{settings['size']}"
    start = settings["start"]
    place = "the last frames" if start is None else f"from frame {start}"
    said.append(
        f"{max(clips)} clips of {settings['frames']} frames{step}, {size}, {place} of "
        f"{settings['data']}{tiling}. Means over frames and clips, in "
        "parentheses 95% bootstrap intervals over clips."
    )
    rounded = [row.contender for row in results.rows if row.contender.dtype != "float32"]
    if rounded:
        listed = ", ".join(sorted(f"{c.label}: {c.dtype}" for c in rounded))
        said.append(f"Not computed in float32: {listed}.")
    if any("rfvd" in row.scores for row in results.rows):
        few = (
            f"; under {FEW_CLIPS} it says little, and nothing against other sets"
            if max(clips) < FEW_CLIPS
            else ""
        )
        said.append(f"rFVD of {max(clips)} clips{few}.")
    said += [f"{TITLES[name][:-2]} is missing: {why}." for name, why in results.missing.items()]
    for row in results.rows:
        if row.not_finite:
            said.append(
                f"{row.contender.label}: the reconstruction of {len(row.not_finite)} clips is not "
                f"finite, and they are in no model's mean: {', '.join(row.not_finite)}."
            )
    if results.skipped:
        said.append(f"{len(results.skipped)} videos were skipped:")
        said += [f"  {name}: {why}" for name, why in results.skipped.items()]
    return said


def as_text(titles: list[str], rows: list[list[str]]) -> str:
    """A table for the terminal."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (titles, *rows)
    ]
    return "\n".join(lines)


def as_markdown(titles: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def as_json(results: Results) -> dict[str, Any]:
    """All numbers, as JSON can hold them."""

    def row(r: Row) -> dict[str, Any]:
        c = r.contender
        return {
            "model": c.label,
            "source": c.source,
            "digest": c.digest,
            "vcpr": c.vcpr,
            "parameters": c.parameters,
            "dtype": c.dtype,
            "clips": r.clips,
            "scores": {name: dataclasses.asdict(score) for name, score in r.scores.items()},
            "first_frames": r.first,
            "other_frames": {n: v for n, v in r.rest.items() if not np.isnan(v)},
            "by_frame": {name: values.tolist() for name, values in r.by_frame.items()},
            "by_clip": r.by_clip,
            "not_finite": list(r.not_finite),
        }

    return {
        "settings": results.settings,
        "models": [row(r) for r in results.rows],
        "skipped": results.skipped,
        "missing": results.missing,
    }
