"""Loss, PSNR and the discriminator's logits of one or more runs as a picture (`odvae curves`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"
DAMAGED_FILE = "metrics-damaged.jsonl"
"""The file beside it for lines that are no records."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the records of a metrics file, one per line; lines that are none are left out."""
    return split_metrics(path)[0]


def split_metrics(path: Path) -> tuple[list[dict[str, float]], list[bytes]]:
    """Returns the records of a metrics file, and the lines that are none.

    A record is a JSON object of numbers, whose "step" is a finite one. A line that a run left torn
    at the end of the file, since it died while it wrote, is in neither list.
    """
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records, damaged = [], []
    for line in lines:
        record = _record(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            damaged.append(line)
    last = _record(torn)
    return records + ([] if last is None else [last]), damaged


def _record(line: bytes) -> dict[str, float] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(map(_is_number, record.values())):
        return None
    return record if math.isfinite(record.get("step", math.nan)) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float)


def plot_curves(workdirs: list[Path], output: Path) -> None:
    """Draws the reconstruction loss and the held-out PSNR of each run by step, into a PNG file.

    The loss is drawn as the sum over a frame, and as the mean per value if the runs have it. If a
    discriminator is trained, its mean logits on real and reconstructed clips are drawn too.

    Args:
      workdirs: the folders of the runs.
      output: the path of the PNG file.
    """
    runs = {Path(workdir).name: read_metrics(Path(workdir) / METRICS_FILE) for workdir in workdirs}
    reported = {name for records in runs.values() for record in records for name in record}
    panels = [("reconstruction loss, sum per frame", "reconstruction")]
    if "reconstruction_per_value" in reported:
        panels.append(("reconstruction loss, mean per value", "reconstruction_per_value"))
    panels.append(("PSNR of fixed clips, EMA weights [dB]", "psnr"))
    if "logits_real" in reported:
        panels.append(("discriminator's mean logits", "logits_real", "logits_fake"))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, *names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for run, records in runs.items():
            for name in names:
                points = [(r["step"], r[name]) for r in records if name in r]
                label = run if len(names) == 1 else f"{run}, {name.removeprefix('logits_')}"
                if points:
                    marker = "o" if len(points) < 30 else None
                    axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
        axes.set(xlabel="step", ylabel=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        if names[0].startswith("reconstruction"):
            axes.set_yscale("log")
    figure.savefig(output, dpi=120)
