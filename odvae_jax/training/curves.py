"""Loss and PSNR of one or more runs as a picture.

`python -m odvae_jax.training.curves RUN... OUT.png`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics file; lines that are torn, as where a run died, are left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def plot_curves(workdirs: list[Path], output: Path) -> None:
    """Draws each run's reconstruction loss and held-out PSNR against its steps.

    They stand side by side, in a PNG.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for workdir in map(Path, workdirs):
        records = read_metrics(workdir / METRICS_FILE)
        for axes, name in ((left, "reconstruction"), (right, "psnr")):
            points = [(r["step"], r[name]) for r in records if name in r]
            if points:
                marker = "o" if len(points) < 30 else None
                axes.plot(
                    *zip(*points, strict=True), label=workdir.name, marker=marker, markersize=3
                )
    left.set(xlabel="step", ylabel="reconstruction loss a frame", yscale="log")
    right.set(xlabel="step", ylabel="PSNR of fixed clips, EMA weights [dB]")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    *runs, target = sys.argv[1:]
    plot_curves([Path(run) for run in runs], Path(target))
