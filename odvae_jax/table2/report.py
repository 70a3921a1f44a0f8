"""The tables, the figure and the page of a Table 2."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odvae_jax.evaluation import page
from odvae_jax.evaluation.generated import CLIPS_FOLDER
from odvae_jax.evaluation.models import parameter_count
from odvae_jax.evaluation.paper import TABLE_2, TABLE_4, Generation
from odvae_jax.evaluation.results import as_markdown, as_text, escaped
from odvae_jax.evaluation.table1 import Listed
from odvae_jax.files import counted, printable, write_whole
from odvae_jax.metrics.generated import DIGITS, TITLES
from odvae_jax.table2.plan import (
    ENCODE,
    MEASURE,
    SAMPLE,
    TRAIN,
    as_json,
    folder_name,
    milestones,
)
from odvae_jax.table2.stages import MEASURED, Failure, is_done, note_of

_METRICS = ("fvd", "fvd16", "kvd", "is", "is10")
_DRAWN = ("fvd", "kvd")
_OF_PAPER = {"fvd": "FVD ↓", "kvd": "KVD ↓", "is": "Inception score ↑"}
_UNLISTED = "it is not in the list of arms"
_PANEL = 4  # inches, the height of a panel of the figure


@dataclasses.dataclass(frozen=True)
class Point:
    """What was measured of an arm after some steps of its training.

    Attributes:
      steps: the number of steps.
      seconds: the seconds of training until then, without compiling, measuring and saving.
      scores: the numbers by metric, each of as many clips as there are.
      deviations: their standard deviations, of metrics that have one.
      clips: the number of generated clips, and of real ones.
    """

    steps: int
    seconds: float
    scores: dict[str, float]
    deviations: dict[str, float]
    clips: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """What came of an arm.

    Attributes:
      label: its name.
      failure: why it could not be finished; None if it could.
      encoded: what the first stage noted; None before it.
      denoiser_parameters: the number of parameters of the denoiser; None before the training.
      points: what was measured, by the number of steps.
      notes: what a reader has to know.
      complaints: what went wrong with videos and clips.
    """

    label: str
    failure: Failure | None = None
    encoded: dict[str, Any] | None = None
    denoiser_parameters: int | None = None
    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()


def report(
    config: ml_collections.ConfigDict,
    workdir: Path,
    arms: Sequence[Listed],
    failures: Mapping[str, Failure],
    networks: dict[str, Any],
) -> list[str]:
    """Prints the table, and writes it with its figure and page into the table's folder.

    Args:
      config: the config of the table.
      workdir: the folder of the table.
      arms: the arms.
      failures: why arms could not be finished, by their names.
      networks: what names the networks of the metrics, as values that JSON can hold.

    Returns:
      What went wrong with videos and clips, in one line each.
    """
    results = [
        _result(config, workdir / folder_name(a.label), a, failures.get(a.label), networks)
        for a in arms
    ]
    titles, rows = _table(config, results)
    along = _along(results) if len(milestones(config)) > 1 else None
    lines = _notes(config, results)
    print(as_text(titles, rows))
    if along is not None:
        print("\n" + as_text(*along))
    print("\n" + "\n".join(lines))
    files = {name: workdir / f"table2.{name}" for name in ("md", "json", "html", "png")}
    if not _plot(results, files["png"]):
        files.pop("png").unlink(missing_ok=True)
    markdown = ["# Table 2", as_markdown(titles, rows)]
    markdown += [as_markdown(*along)] if along is not None else []
    markdown.append("\n".join(f"- {escaped(line)}" for line in lines))
    write_whole(files["md"], "\n\n".join(markdown) + "\n")
    write_whole(files["json"], json.dumps(_numbers(config, results), indent=1) + "\n")
    write_whole(files["html"], _page(workdir, results, (titles, rows), along, lines, files))
    for file in files.values():
        print(printable(file))
    return [f"{printable(r.label)}: {line}" for r in results for line in r.complaints]


def _result(config, folder: Path, arm: Listed, failure, networks) -> ArmResult:
    """Reads what the stages of an arm noted."""
    encoded = note_of(folder, ENCODE)
    trained = {n: note_of(folder, f"{TRAIN}{n}") for n in milestones(config)}
    counts = [note["denoiser_parameters"] for note in trained.values() if note]
    complaints = []
    for what, note in [
        ("videos", encoded),
        *(("samples", note_of(folder, f"{SAMPLE}{n}")) for n in trained),
    ]:
        if problems := (note or {}).get("problems"):
            complaints.append(f"{len(problems)} {what} came to nothing: {problems[0]}")
    points: list[Point] = []
    measured = None
    # What an arm has from before a stage failed may be another autoencoder's.
    stands = failure is None or not failure.stage
    if stands and is_done(config, folder, arm, MEASURE, networks):
        measured = note_of(folder, MEASURE)
        complaints += measured["complaints"]
        points = [_point(n, note, measured["sets"][str(n)]) for n, note in trained.items() if note]
    return ArmResult(
        arm.label,
        failure,
        encoded,
        counts[-1] if counts else None,
        tuple(points),
        tuple(measured["notes"] if measured else ()),
        tuple(complaints),
    )


def _point(steps: int, trained: dict[str, Any], measured: dict[str, Any]) -> Point:
    scores, deviations = {}, {}
    for one in measured["scores"]:  # the last of a metric is of all clips
        scores[one["metric"]] = one["value"]
        if one["deviation"] is not None:
            deviations[one["metric"]] = one["deviation"]
    clips = (measured["generated"]["clips"], measured["real"]["clips"])
    return Point(steps, trained["seconds"], scores, deviations, clips)


def _table(config, results: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: one per arm, and with figures of the paper one per autoencoder of it."""
    dataset = config.table2.dataset
    published = {row.name: row for row in TABLE_2} if dataset else {}
    titles = ["autoencoder", "latents", "denoiser", "steps", "seconds"]
    titles += [TITLES[metric] for metric in _METRICS]
    if dataset:
        titles += [f"paper: {title}" for title in _OF_PAPER.values()]
    by_label = {result.label: result for result in results}
    labels = [*published, *(label for label in by_label if label not in published)]
    rows = []
    for label in labels:
        result = by_label.get(label)
        cells = ["missing"] * (len(_METRICS) + 4) if result is None else _cells(result)
        paper = _paper_cells(published.get(label), dataset) if dataset else []
        rows.append([printable(label), *cells, *paper])
    return titles, rows


def _cells(result: ArmResult) -> list[str]:
    encoded = result.encoded
    cells = ["–" if encoded is None else "×".join(map(str, encoded["latent_shape"]))]
    count = result.denoiser_parameters
    cells.append("–" if count is None else parameter_count(count))
    if result.points:
        last = result.points[-1]
        return [*cells, str(last.steps), _seconds(last), *_scores(last)]
    word = "missing" if result.failure is None or result.failure.missing else "failed"
    return [*cells, *[word] * (len(_METRICS) + 2)]


def _seconds(point: Point) -> str:
    return f"{point.seconds:.{0 if point.seconds >= 100 else 2}f}"


def _scores(point: Point) -> list[str]:
    cells = []
    for metric in _METRICS:
        value = point.scores.get(metric)
        text = "missing" if value is None else f"{value:.{DIGITS}f}"
        if metric in point.deviations:
            text += f" ± {point.deviations[metric]:.{DIGITS}f}"
        cells.append(text)
    return cells


def _paper_cells(row: Generation | None, dataset: str) -> list[str]:
    scores = {} if row is None else row.scores[dataset]
    return [f"{scores[m]:.{DIGITS}f}" if m in scores else "–" for m in _OF_PAPER]


def _along(results: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: one per arm and number of steps."""
    titles = ["autoencoder", "steps", "seconds", *(TITLES[metric] for metric in _METRICS)]
    rows = [
        [printable(result.label), str(p.steps), _seconds(p), *_scores(p)]
        for result in results
        for p in result.points
    ]
    return titles, rows


def _apart(data) -> str:
    """How far apart the frames of a clip are."""
    if data.spread:
        return f"evenly spread over up to {data.frames * data.stride} frames"
    return f"{counted(data.stride, 'frame')} apart"


def _notes(config, results: Sequence[ArmResult]) -> list[str]:
    """What a reader of the table has to know; what several arms say alike, once."""
    table, data = config.table2, config.data
    sampled = (
        f"{counted(table.sampling_steps, 'step')}, guidance {table.guidance:g}, seed {config.seed}"
    )
    lines = [
        f"Clips of {counted(data.frames, 'frame')} of {data.size}×{data.size}, "
        f"{_apart(data)}; latents are encoded once, "
        f"{counted(table.clips_per_video, 'clip')} per video. Samples: {sampled}.",
        "Seconds are those of training alone, without encoding, compiling, measuring and saving.",
    ]
    if table.tiling:
        lines.append(f"Temporal tiling in groups of {table.tiling} frames.")
    if table.tiling and table.dataset == "UCF101":
        fvd, score = TABLE_4[True]
        lines.append(f"With tiling, the paper has FVD {fvd} and Inception score {score} (Table 4).")
    if table.dataset:
        lines.append("The paper's figures are of 2,048 samples after 200,000 steps (Table 2).")
        labels = [result.label for result in results]
        absent = [row.name for row in TABLE_2 if row.name not in labels]
        lines += [f"{name} is missing: {_UNLISTED}." for name in absent]
    for result in results:
        name, failure = printable(result.label), result.failure
        if failure is not None:
            state = "is missing" if failure.missing else f"failed in {failure.stage or 'no stage'}"
            lines.append(f"{name} {state}: {failure.reason.rstrip('.')}.")
        lines += [f"{name}: {remark}" for remark in (result.encoded or {}).get("remarks", [])]
        left_out = (result.encoded or {}).get("left_out") or {}
        if left_out:
            listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            lines.append(f"{name}: videos that were not encoded: {listed}.")
    said = {printable(result.label): result.notes for result in results if result.points}
    every = [line for of_arm in said.values() for line in of_arm]
    shared = [line for line in dict.fromkeys(every) if all(line in own for own in said.values())]
    lines += shared
    lines += [
        f"{name}: {line.strip()}"
        for name, own in said.items()
        for line in own
        if line not in shared
    ]
    lines += [f"{printable(r.label)}: {line}" for r in results for line in r.complaints]
    return lines


def _numbers(config, results: Sequence[ArmResult]) -> dict[str, Any]:
    """All numbers as values that JSON can hold."""
    dataset = config.table2.dataset
    paper = [dataclasses.asdict(row) for row in TABLE_2] if dataset else []
    return {
        "config": as_json(config),
        "paper": paper,
        "arms": [dataclasses.asdict(result) for result in results],
    }


def _plot(results: Sequence[ArmResult], output: Path) -> bool:
    """Draws FVD and KVD by steps and by seconds of training; False if there is nothing to draw."""
    drawn = [m for m in _DRAWN if any(m in p.scores for r in results for p in r.points)]
    if not drawn:
        return False
    figure = Figure(figsize=(11, _PANEL * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, metric in zip(figure.subplots(len(drawn), 2, squeeze=False), drawn, strict=True):
        for axes, against in zip(row, ("steps", "seconds"), strict=True):
            for result in results:
                points = [p for p in result.points if metric in p.scores]
                x = [getattr(p, against) for p in points]
                y = [p.scores[metric] for p in points]
                if points:
                    axes.plot(x, y, label=printable(result.label), marker="o", markersize=3)
            label = "steps of training" if against == "steps" else "seconds of training"
            axes.set(xlabel=label, ylabel=TITLES[metric].rstrip(" ↓"))
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    figure.savefig(output, dpi=120)
    return True


def _page(workdir: Path, results: Sequence[ArmResult], table, along, lines, files) -> str:
    parts = [page.table(*table)]
    if along is not None:
        parts.append(page.table(*along))
    parts += [f'<p class="note">{html.escape(line)}</p>' for line in lines]
    if "png" in files:
        parts.append(page.figure(files["png"], "FVD and KVD along the training"))
    measured = [result for result in results if result.points]
    for i, result in enumerate(measured):
        clips = workdir / folder_name(result.label) / MEASURED / CLIPS_FOLDER
        if i == 0 and (clips / "real.mp4").exists():
            parts += ["<h2>Real clips</h2>", page.figure(clips / "real.mp4", "", plays=True)]
        video = clips / f"generated-{len(result.points) - 1}.mp4"
        if video.exists():
            caption = f"Samples after {counted(result.points[-1].steps, 'step')}"
            parts.append(f"<h2>{html.escape(printable(result.label))}</h2>")
            parts.append(page.figure(video, caption, plays=True))
    return page.whole("Table 2", parts)
