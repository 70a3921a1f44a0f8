"""Loss, PSNR and the discriminator's logits of one or more runs as a picture (`odvae curves`)."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the records of a metrics file, one per line.

    Torn lines, which a run leaves that dies while it writes, are left out.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def plot_curves(workdirs: list[Path], output: Path) -> None:
    """Draws the reconstruction loss and the held-out PSNR of each run by step, into a PNG file.

    If a discriminator is trained, its mean logits on real and reconstructed clips are drawn too.

    Args:
      workdirs: the folders of the runs.
      output: the path of the PNG file.
    """
    runs = {Path(workdir).name: read_metrics(Path(workdir) / METRICS_FILE) for workdir in workdirs}
    panels = [("reconstruction loss a frame", "reconstruction")]
    panels.append(("PSNR of fixed clips, EMA weights [dB]", "psnr"))
    if any("logits_real" in record for records in runs.values() for record in records):
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
        if names == ["reconstruction"]:
            axes.set_yscale("log")
    figure.savefig(output, dpi=120)
