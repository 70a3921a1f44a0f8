"""The tables, figures and verdicts of an ablation."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odvae_jax.ablate.plan import Arm, Run
from odvae_jax.ablate.verdicts import SIGNS, Spread, Verdict, verdicts
from odvae_jax.evaluation.models import parameter_count
from odvae_jax.evaluation.results import (
    DIGITS,
    TITLES,
    Results,
    Row,
    as_markdown,
    as_text,
    notes,
    table,
)
from odvae_jax.files import write_whole
from odvae_jax.training.curves import METRICS_FILE, read_metrics

PARTS = ("whole", "tiled")
"""How the clips are cut that models are measured on."""
_DIFFERENCE = "whole minus tiled"
_LABELS = {"psnr": "PSNR [dB]", "ssim": "SSIM", "lpips": "LPIPS"}
_LOSS = "reconstruction_per_value"
_CURVES = {
    "psnr": "PSNR [dB]",
    "lpips": "LPIPS",
    _LOSS: "training loss, mean per value",
}

Values = dict[tuple[str, str], dict[str, dict[int, float]]]
"""By configuration and part, by metric, by seed."""


def report(
    config: ml_collections.ConfigDict,
    planned: Sequence[Run],
    whole: Results,
    tiled: Results,
    workdir: Path,
) -> None:
    """Prints the comparison of trainings, and writes it with figures into the ablation's folder.

    Args:
      config: the ablation's config.
      planned: the trainings.
      whole: the results on whole clips; its first rows are the trainings, in the same order.
      tiled: the results on tiled clips, with the same rows.
      workdir: the folder of the ablation.
    """
    seeds = len({run.seed for run in planned})
    records = {run.name: read_metrics(workdir / run.name / METRICS_FILE) for run in planned}
    values = _values(planned, whole, tiled)
    said = verdicts(config, values)
    titles, rows = _joined(whole, tiled) if seeds == 1 else _table(planned, whole, tiled, values)
    lines = _notes(whole, tiled, records, seeds)
    files = ["ablation.md", "ablation.json", "ablation.png"]
    _plot(planned, records, workdir / "ablation.png")
    if seeds > 1:
        _plot_seeds(planned, values, workdir / "seeds.png")
        files.append("seeds.png")
    tables, shown = [as_markdown(titles, rows)], [as_text(titles, rows), "", *lines]
    tables.append("\n".join(f"- {line}" for line in lines))
    if said:
        found, about = _verdict_table(said), _about_verdicts(seeds)
        tables += [as_markdown(*found), f"- {about}"]
        shown += ["", as_text(*found), "", about]
    write_whole(workdir / "ablation.md", "\n\n".join(tables) + "\n")
    numbers = _numbers(planned, records, values, said)
    write_whole(workdir / "ablation.json", json.dumps(numbers, indent=1) + "\n")
    print("\n".join(shown))
    for name in files:
        print(workdir / name)


def _values(planned: Sequence[Run], whole: Results, tiled: Results) -> Values:
    values: Values = {}
    for part, results in zip(PARTS, (whole, tiled), strict=True):
        for run, row in zip(planned, results.rows, strict=False):  # the last row is the floor
            of_arm = values.setdefault((run.arm.name, part), {})
            for metric, score in row.scores.items():
                of_arm.setdefault(metric, {})[run.seed] = score.mean
    return values


def _arms(planned: Sequence[Run]) -> list[Arm]:
    return list(dict.fromkeys(run.arm for run in planned))


def _differences(values: Values, arm: Arm, metric: str) -> list[float]:
    """Whole minus tiled, for each seed that has both."""
    whole, tiled = (values[arm.name, part].get(metric, {}) for part in PARTS)
    return [whole[seed] - tiled[seed] for seed in sorted(whole.keys() & tiled.keys())]


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def _joined(whole: Results, tiled: Results) -> tuple[list[str], list[list[str]]]:
    """Returns the table on whole clips, with PSNR and LPIPS on tiled clips next to it."""
    titles, rows = table(whole)
    _, tiled_rows = table(tiled)
    columns = [i for i, title in enumerate(titles) if title.startswith(("PSNR", "LPIPS"))]
    return (
        [*titles, *(f"tiled: {titles[i]}" for i in columns)],
        [[*a, *(b[i] for i in columns)] for a, b in zip(rows, tiled_rows, strict=True)],
    )


def _table(planned, whole: Results, tiled: Results, values: Values):
    """Returns a table with one row per configuration: mean ± deviation (95% t-interval)."""
    titles = ["model", "VCPR", "parameters", "seeds", *(TITLES[metric] for metric in whole.metrics)]
    titles += [f"tiled: {TITLES[metric]}" for metric in SIGNS]
    titles += [f"{_DIFFERENCE}: {_LABELS[metric]}" for metric in SIGNS]
    rows = []
    for arm in _arms(planned):
        places = [i for i, run in enumerate(planned) if run.arm == arm]
        spreads = [
            (metric, _spread([*values[arm.name, part].get(metric, {}).values()]), 0)
            for part, metrics in zip(PARTS, (whole.metrics, SIGNS), strict=True)
            for metric in metrics
        ]
        spreads += [(metric, _spread(_differences(values, arm, metric)), 1) for metric in SIGNS]
        cells = [_cell(spread, DIGITS[metric] + more) for metric, spread, more in spreads]
        rows.append([arm.name, *_described(whole.rows[places[0]]), str(len(places)), *cells])
    for row, other in zip(whole.rows[len(planned) :], tiled.rows[len(planned) :], strict=True):
        cells = [
            _cell(Spread.of([scores[metric].mean]) if metric in scores else None, DIGITS[metric])
            for scores, metrics in ((row.scores, whole.metrics), (other.scores, SIGNS))
            for metric in metrics
        ]
        rows.append([row.contender.label, *_described(row), "–", *cells, *("–" for _ in SIGNS)])
    return titles, rows


def _described(row: Row) -> list[str]:
    return [str(row.contender.vcpr), parameter_count(row.contender.parameters.reference)]


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "missing"
    text = f"{spread.mean:.{digits}f}"
    if spread.low is None:
        return text
    interval = f"{spread.low:.{digits}f} to {spread.high:.{digits}f}"
    return f"{text} ± {spread.deviation:.{digits}f} ({interval})"


def _notes(whole: Results, tiled: Results, records, seeds: int) -> list[str]:
    steps = max(r["step"] for of_run in records.values() for r in of_run)
    about_whole, about_tiled = notes(whole), notes(tiled)
    said = [f"{steps} steps each."]
    if seeds > 1:
        said.append(
            f"{seeds} seeds: mean over seeds ± standard deviation over seeds, in parentheses the "
            f"95% t-interval of the mean. A seed decides the order and crops of the clips, the "
            "noise of the latents, and what is drawn at the start. The 2D model that all start "
            "from is the same, so what its training leaves to chance is in no interval."
        )
        about_whole[0] = (
            about_whole[0].partition(" Means over")[0] + " Means over frames and clips."
        )
    said += about_whole
    said.append(f"Tiled: temporal tiling in groups of {tiled.settings['tiling']} frames.")
    said += [f"Tiled: {line}" for line in about_tiled if line not in said and "finite" in line]
    return said


def _verdict_table(said: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    titles = ["claim of the paper", "metric", "gain (95% t-interval)", "verdict"]
    rows = []
    for found in said:
        gain, digits = found.gain, DIGITS[found.metric] + 1
        text = f"{gain.mean:+.{digits}f}"
        if gain.low is not None:
            text += f" ({gain.low:+.{digits}f} to {gain.high:+.{digits}f})"
        rows.append([found.claim.text, _LABELS[found.metric], text, found.word])
    return titles, rows


def _about_verdicts(seeds: int) -> str:
    if seeds == 1:
        return (
            "Gain: how much better the first is than the second; with one seed it decides nothing."
        )
    return (
        "Gain: how much better the first is than the second, as differences paired by seed. "
        "Each interval holds by itself: of twenty claims without any difference, one is expected "
        "to be called confirmed or contradicted."
    )


def _numbers(planned, records, values: Values, said: Sequence[Verdict]) -> dict[str, Any]:
    """Returns all numbers as values that JSON can hold."""
    of_runs = {
        run.name: {
            "configuration": run.arm.name,
            "seed": run.seed,
            **{
                part: {
                    metric: of_seeds[run.seed]
                    for metric, of_seeds in values[run.arm.name, part].items()
                    if run.seed in of_seeds
                }
                for part in PARTS
            },
        }
        for run in planned
    }

    def spreads(of_metrics):
        found = {metric: _spread(list(v)) for metric, v in of_metrics.items()}
        return {metric: dataclasses.asdict(s) for metric, s in found.items() if s is not None}

    of_arms = {}
    for arm in _arms(planned):
        parts = {p: {m: v.values() for m, v in values[arm.name, p].items()} for p in PARTS}
        parts[_DIFFERENCE] = {m: _differences(values, arm, m) for m in SIGNS}
        of_arms[arm.name] = {part: spreads(of_metrics) for part, of_metrics in parts.items()}
    return {
        "curves": {run.name: _measured_by_step(records[run.name]) for run in planned},
        "runs": of_runs,
        "configurations": of_arms,
        "verdicts": [
            {
                "claim": v.claim.text,
                "metric": v.metric,
                "gain": dataclasses.asdict(v.gain),
                "verdict": v.word,
            }
            for v in said
        ],
    }


def _measured_by_step(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Returns what a training measured on its fixed clips with the EMA weights."""
    keep = ("step", "psnr", "ssim", "lpips")
    return [{n: r[n] for n in keep if n in r} for r in records if "psnr" in r]


def _plot(planned: Sequence[Run], records, output: Path) -> None:
    """Plots measurements and loss by step: the variants above, the initialisations below.

    A line is the mean over seeds, in a band from the least to the greatest.
    """
    metrics = [m for m in _CURVES if any(m in r for of_run in records.values() for r in of_run)]
    chosen = _arms(planned)
    structures = {arm.structure: arm for arm in chosen if arm.method == "tail"}
    several = {a.structure for a in chosen if a.method != "tail"} or {chosen[-1].structure}
    groups = [
        ("variants, tail initialisation", list(structures.values())),
        ("initialisations", [a for a in chosen if a.structure in several]),
    ]
    figure = Figure(figsize=(6 * len(metrics), 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(metrics), squeeze=False)
    for row, (title, group) in zip(panels, groups, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            for arm in group:
                of_seeds = [records[run.name] for run in planned if run.arm == arm]
                _draw(axes, arm.name, _by_step(of_seeds, metric))
            axes.set(xlabel="step", ylabel=_CURVES[metric], title=title)
            if metric == _LOSS:
                axes.set_yscale("log")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    figure.savefig(output, dpi=120)


def _by_step(of_seeds: list[list[dict[str, float]]], metric: str) -> dict[int, list[float]]:
    """Returns the value of every seed at each step at which all of them have one."""
    each = [{int(r["step"]): r[metric] for r in records if metric in r} for records in of_seeds]
    common = sorted(set.intersection(*(set(steps) for steps in each)))
    return {step: [steps[step] for steps in each] for step in common}


def _draw(axes, label: str, by_step: dict[int, list[float]]) -> None:
    steps, each = list(by_step), list(by_step.values())
    means = [statistics.fmean(v) for v in each]
    (line,) = axes.plot(steps, means, label=label, marker="o", markersize=3)
    if each and len(each[0]) > 1:
        low, high = [min(v) for v in each], [max(v) for v in each]
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _plot_seeds(planned: Sequence[Run], values: Values, output: Path) -> None:
    """Plots a dot per seed and configuration, for whole clips and tiled ones, and the means."""
    metrics = [m for m in SIGNS if any(m in of_metrics for of_metrics in values.values())]
    chosen = _arms(planned)
    figure = Figure(figsize=(5 * len(metrics), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for part, shift, fill in zip(PARTS, (-0.15, 0.15), ("C0", "none"), strict=True):
            for place, arm in enumerate(chosen):
                dots = list(values[arm.name, part].get(metric, {}).values())
                x = [place + shift] * len(dots)
                label = part if place == 0 else None
                axes.scatter(x, dots, facecolors=fill, edgecolors="C0", s=24, label=label)
                if dots:
                    axes.plot([x[0] - 0.12, x[0] + 0.12], [statistics.fmean(dots)] * 2, color="C1")
        axes.set_xticks(range(len(chosen)), [arm.name for arm in chosen], rotation=30, ha="right")
        axes.set_title(f"{TITLES[metric]}, a dot per seed, and the mean", fontsize="medium")
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small")
    figure.savefig(output, dpi=120)
