"""The numbers of a table (Table 1) from measurements, as data, Markdown and text."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from odvae_jax.evaluation.measure import METRICS, Measurements
from odvae_jax.evaluation.models import Contender, parameter_count
from odvae_jax.files import counted, line_about, printable
from odvae_jax.metrics.frechet import FeatureStatistics, frechet_distance

FEW_CLIPS = 400
"""Below this number of clips a Fréchet distance says little."""
_RESAMPLES = 10_000
TITLES = {"psnr": "PSNR [dB] ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓", "rfvd": "rFVD ↓"}
DESCRIBED = ("VCPR", "by values", "parameters", "autoencoder")
"""The columns of a table that describe a model: compression, and numbers of parameters."""
DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "rfvd": 1}
"""Digits after the point with which a table shows a metric."""


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean over clips, with a 95% bootstrap interval if there are several clips.

    Attributes:
      mean: the mean.
      low: the lower end of the interval; None for a single clip.
      high: the upper end of the interval; None for a single clip.
    """

    mean: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """The numbers of one model.

    Attributes:
      contender: the model.
      clips: the number of clips that the means are taken over, the same for all models; 0 if no
        reconstruction of the model is finite.
      scores: the mean and interval over all clips, by the metric's name. A metric that could not be
        computed is left out.
      first, rest: the mean over the first frame of every group, and over the other frames, by the
        metric's name.
      by_frame: the mean of each frame over all clips, [T], by the metric's name.
      by_clip: the mean of each metric over the frames of a clip, by the clip's name.
      not_finite: the names of clips whose reconstruction is not finite; they are in no mean.
      missing: the reason why a metric could not be computed for this model alone, by its name.
      size: the part (T, H, W) of each clip that was measured; None for all of it.
    """

    contender: Contender
    clips: int
    scores: dict[str, Score]
    first: dict[str, float]
    rest: dict[str, float]
    by_frame: dict[str, Float[np.ndarray, " t"]]
    by_clip: dict[str, dict[str, float]]
    not_finite: tuple[str, ...]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    size: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """All numbers of an evaluation.

    Attributes:
      settings: what decides which frames of which data were measured, and the tiling.
      rows: one row per model, in the order in which the models were given.
      skipped: the reason why a video could not be used, by the video's name.
      missing: the reason why a metric could not be computed, by the metric's name.
      absent: the reason why a model was not there, by its label.
      left_out: the names of metrics that nobody asked for; no table has a column for them.
    """

    settings: dict[str, Any]
    rows: tuple[Row, ...]
    skipped: dict[str, str]
    missing: dict[str, str]
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that were asked for, in the order of a table's columns."""
        return [name for name in TITLES if name not in self.left_out]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of frames, rows and columns of a clip, (T, H, W)."""
        return self.settings["frames"], self.settings["size"], self.settings["size"]


def summarise(measurements: Measurements, contenders: Sequence[Contender]) -> Results:
    """Returns the means, intervals and Fréchet distances of what was measured.

    The means are taken over the clips of which every model's reconstruction is finite. A model
    without any such clip does not count here, and gets no numbers.
    """
    finite = {
        c.digest: {i for i, r in measurements.values[c.digest].items() if r.get("finite", True)}
        for c in contenders
    }
    some = [clips for clips in finite.values() if clips]
    common = sorted(set.intersection(*some)) if some else []
    rows = [_row(c, measurements, common if finite[c.digest] else []) for c in contenders]
    missing, left_out = dict(measurements.missing), measurements.left_out
    if len(common) < 2 and "rfvd" not in left_out:
        missing.setdefault("rfvd", "needs two clips at least")
    return Results(
        measurements.settings, tuple(rows), measurements.skipped, missing, left_out=left_out
    )


def first_of_group(frames: int, tiling: int | None) -> Bool[np.ndarray, " t"]:
    """Returns which frames are the first ones shown of a group of temporal tiling, bool [T].

    They are the first frame of the clip, and the first frame after every seam. A group begins with
    the last frame of the group before it, which is shown as part of that group.

    Args:
      frames: the number T of frames.
      tiling: the number of frames in a group; None if the clip is one group.
    """
    starts = np.zeros(frames, bool)
    starts[0] = True
    if tiling:
        starts[tiling :: tiling - 1] = True
    return starts


def _row(c: Contender, measurements: Measurements, clips: list[int]) -> Row:
    records, names = measurements.values[c.digest], measurements.names
    settings = measurements.settings
    shape = (settings["frames"], settings["size"], settings["size"])
    size = c.taken(*shape)
    starts = first_of_group(size[0], settings["tiling"])
    missing = measurements.missing_for.get(c.digest, {})
    absent = measurements.missing.keys() | missing.keys() | measurements.left_out
    scores, first, rest, by_frame = {}, {}, {}, {}
    by_clip: dict[str, dict[str, float]] = {names[i]: {} for i in clips}
    for metric in METRICS:
        if metric in absent or not clips:
            continue
        values = np.stack([records[i][metric] for i in clips]).astype(np.float64)
        by_frame[metric] = values.mean(axis=0)
        first[metric] = values[:, starts].mean()
        rest[metric] = values[:, ~starts].mean() if not starts.all() else np.nan
        means = values.mean(axis=1)
        scores[metric] = _interval(means)
        for i, mean in zip(clips, means, strict=True):
            by_clip[names[i]][metric] = float(mean)
    if "rfvd" not in absent and len(clips) > 1:
        originals = np.stack(
            [records[i].get("originals", measurements.originals[i]) for i in clips]
        )
        made = np.stack([records[i]["features"] for i in clips])
        distance = frechet_distance(FeatureStatistics.of(originals), FeatureStatistics.of(made))
        if np.isfinite(distance):
            scores["rfvd"] = Score(distance)
    not_finite = tuple(names[i] for i, r in sorted(records.items()) if not r.get("finite", True))
    cut = None if size == shape else size
    return Row(c, len(clips), scores, first, rest, by_frame, by_clip, not_finite, missing, cut)


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
    """Returns titles and rows of a table like Table 1.

    A metric that could not be computed is marked "missing", and so is a model that is not there. A
    metric that nobody asked for has no column.
    """
    titles = ["model", *DESCRIBED, *(TITLES[metric] for metric in results.metrics)]
    rows = [
        [row.contender.title, *described(row, results.shape), *scored(row, results.metrics)]
        for row in results.rows
    ]
    rows += [[label] + ["missing"] * (len(titles) - 1) for label in results.absent]
    return titles, rows


def described(row: Row, shape: tuple[int, int, int]) -> list[str]:
    """Returns the cells of a table that describe a model, in the order of `DESCRIBED`.

    Args:
      row: the numbers of the model.
      shape: the number of frames, rows and columns of the clips.
    """
    c = row.contender
    values = c.by_values(*(row.size or shape))
    return [
        "–" if c.vcpr is None else str(c.vcpr),
        "–" if values is None else f"{values:.1f}{' (bits)' if c.codes else ''}",
        parameter_count(c.parameters.reference),
        parameter_count(c.parameters.autoencoder),
    ]


def scored(row: Row, metrics: Iterable[str]) -> list[str]:
    """Returns the cells of a table with the metrics of a model, each with its interval."""
    broken = "missing" if row.clips else "not finite"
    return [score_cell(metric, row.scores.get(metric), broken) for metric in metrics]


def first_and_rest(results: Results) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of a table of means over first frames of groups and over others."""
    metrics = [m for m in METRICS if m not in results.left_out]
    titles = ["model", *(f"{TITLES[m]}, {part}" for m in metrics for part in ("first", "rest"))]
    rows = []
    for row in results.rows:
        cells = [
            "–" if m not in part or np.isnan(part[m]) else f"{part[m]:.{DIGITS[m]}f}"
            for m in metrics
            for part in (row.first, row.rest)
        ]
        rows.append([row.contender.title, *cells])
    return titles, rows


def by_clip(results: Results) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of a table of the PSNR and the LPIPS of every clip."""
    absent = results.missing.keys() | results.left_out
    metrics = [m for m in ("psnr", "lpips") if m not in absent]
    rows = [row for row in results.rows if row.by_clip]
    titles = ["clip", *(f"{r.contender.label}, {TITLES[m]}" for m in metrics for r in rows)]
    names = list(rows[0].by_clip) if rows else []
    files = [Path(name).name for name in names]
    parts = 1 if len(set(files)) == len(files) else 2  # with the folder if a name comes twice

    def cell(row, name, metric):
        value = row.by_clip.get(name, {}).get(metric)
        return "–" if value is None else f"{value:.{DIGITS[metric]}f}"

    return titles, [
        [printable("/".join(Path(name).parts[-parts:]))]
        + [cell(r, name, m) for m in metrics for r in rows]
        for name in names
    ]


def score_cell(metric: str, score: Score | None, without: str) -> str:
    """Returns the cell of a table with one score and its interval.

    Args:
      metric: the name of the metric.
      score: the score; None if there is none.
      without: what the cell says then.
    """
    if score is None:
        return without
    digits = DIGITS[metric]
    text = f"{score.mean:.{digits}f}"
    if score.low is not None:
        text += f" ({score.low:.{digits}f}–{score.high:.{digits}f})"
    return text


def notes(results: Results) -> list[str]:
    """Returns the lines that a reader of the table has to know, such as what was measured."""
    settings, said = results.settings, []
    clips = [row.clips for row in results.rows]
    tiling = f", temporal tiling {settings['tiling']}" if settings["tiling"] else ""
    step = f" every {settings['stride']}" if settings["stride"] > 1 else ""
    step = f" at {settings['fps']:g} per second" if settings["fps"] else step
    size = f"{settings['size']}×{settings['size']}"
    start = settings["start"]
    place = "the last frames" if start is None else f"from frame {start}"
    said.append(
        f"{counted(max(clips), 'clip')} of {counted(settings['frames'], 'frame')}{step}, {size}, "
        f"{place} of {printable(settings['data'])}{tiling}. Means over frames and clips, in "
        "parentheses 95% bootstrap intervals over clips."
    )
    said += _about_columns(results)
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
        said.append(f"rFVD of {counted(max(clips), 'clip')}{few}.")
    said += [f"{TITLES[name][:-2]} is missing: {why}." for name, why in results.missing.items()]
    said += [f"{label} is missing: {why.rstrip('.')}." for label, why in results.absent.items()]
    for row in results.rows:
        label = row.contender.label
        said += [f"{label}: {remark}" for remark in row.contender.remarks]
        if row.size:
            said.append(cut_of(label, row.size, results.shape))
        said += [
            f"{label}: {TITLES[name][:-2]} is missing: {why}." for name, why in row.missing.items()
        ]
        if row.not_finite:
            said.append(
                f"{row.contender.label}: the reconstruction of "
                f"{counted(len(row.not_finite), 'clip')} is not finite, and in no model's mean: "
                f"{', '.join(map(printable, row.not_finite))}."
            )
    if results.skipped:
        said.append(f"{counted(len(results.skipped), 'video was', 'videos were')} skipped:")
        said += [f"  {line_about(n, ValueError(why))}" for n, why in results.skipped.items()]
    return said


def _about_columns(results: Results) -> list[str]:
    """Returns what the columns that describe a model mean, as far as there is something in them."""
    contenders = [row.contender for row in results.rows]
    said = []
    if any(c.vcpr for c in contenders):
        codes = (
            " (for codes: bits of the 8-bit video per bit of the codes; a code has log2 of their "
            "number)"
            if any(c.codes for c in contenders)
            else ""
        )
        said.append(
            "VCPR: how many positions of the video (T×H×W) stand for one position of the latents; "
            "the first frame is not counted. By values: how many numbers of these clips stand for "
            f"one number of their latents{codes}."
        )
    if any(c.parameters.reference != c.parameters.autoencoder for c in contenders):
        said.append(
            "Parameters: as the model's reference and the paper count them, with what only "
            "training needs; beside it those of the autoencoder alone."
        )
    if eight := [c.label for c in contenders if c.eight_bit]:
        said.append(
            f"8 bit: reconstructions were rounded to 8 bits before they were measured, of "
            f"{', '.join(eight)}."
        )
    return said


def cut_of(label: str, size: tuple[int, int, int], shape: tuple[int, int, int]) -> str:
    """Returns a sentence that says how much of each clip is measured.

    Args:
      label: the model's name.
      size: the number of frames, rows and columns of the part.
      shape: the number of frames, rows and columns of a whole clip.
    """
    part, whole = ("×".join(map(str, sides)) for sides in (size, shape))
    return (
        f"{label} takes {part} of clips of {whole}, and is measured on that part, against the same "
        "part of the original."
    )


def as_text(titles: list[str], rows: list[list[str]]) -> str:
    """Returns a table as text for the terminal, with aligned columns."""
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
    """Returns a table as Markdown, with cells in which no character means more than itself."""
    cells = [[escaped(cell) for cell in line] for line in (titles, *rows)]
    lines = [cells[0], ["---"] * len(titles), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Returns a text for Markdown in which no character means anything but itself."""
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(text, quote=False))


def as_json(results: Results) -> dict[str, Any]:
    """Returns all numbers of an evaluation as values that JSON can hold."""

    def row(r: Row) -> dict[str, Any]:
        c = r.contender
        return {
            "model": c.label,
            "source": c.source,
            "digest": c.digest,
            "vcpr": c.vcpr,
            "by_values": c.by_values(*(r.size or results.shape)),
            "codes": c.codes,
            "parameters": c.parameters.reference,
            "autoencoder_parameters": c.parameters.autoencoder,
            "dtype": c.dtype,
            "eight_bit": c.eight_bit,
            "measured": r.size or results.shape,
            "clips": r.clips,
            "scores": {name: dataclasses.asdict(score) for name, score in r.scores.items()},
            "first_frames": r.first,
            "other_frames": {n: v for n, v in r.rest.items() if not np.isnan(v)},
            "by_frame": {name: values.tolist() for name, values in r.by_frame.items()},
            "by_clip": r.by_clip,
            "not_finite": list(r.not_finite),
            "missing": r.missing,
            "remarks": list(c.remarks),
        }

    return {
        "settings": results.settings,
        "models": [row(r) for r in results.rows],
        "skipped": results.skipped,
        "missing": results.missing,
        "absent": results.absent,
    }
