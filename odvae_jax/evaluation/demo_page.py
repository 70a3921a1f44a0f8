"""The page of `odvae demo`: what its commands left in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from odvae_jax.evaluation import page
from odvae_jax.files import write_whole


def write_demo_page(output: Path) -> str:
    """Writes `demo.html`, which shows what the commands of `odvae demo` left in a folder.

    Args:
      output: the folder.

    Returns:
      The model beside the mean of blocks, and where the page is, in two lines.
    """
    scores = _scores(output / "eval")
    floor = next(value for label, value in scores.items() if label.startswith("mean of "))
    said = (
        f"Three videos, 17 frames of 128×128 each: {scores['small']:.2f} dB; the mean of each "
        f"block of 4×8×8 pixels: {floor:.2f} dB."
    )
    clips = output / "eval" / "clips"
    parts = [
        f'<p class="note">{said} The latents of a video have 1/256 of its positions, with four '
        "values each. Differences are magnified five times.</p>",
        "<h2>Reconstructions</h2>",
        page.figure(output / "eval" / "frames.png", "Originals above, reconstructions below."),
        page.figure(clips / "best.mp4", "The best of the three."),
        page.figure(clips / "worst.mp4", "The worst of the three."),
        "<h2>A stream</h2>",
        page.figure(
            output / "streamed.mp4",
            "A whole video in chunks of 16 frames, the original beside it. The result is that of "
            "the whole video at once; the memory does not grow with its length.",
        ),
    ]
    write_whole(output / "demo.html", page.whole("What the small model does", parts))
    return f"{said}\n{output / 'demo.html'} shows it."


def _scores(folder: Path) -> dict[str, float]:
    """Returns the PSNR in dB of each model of an evaluation, by the model's label."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {row["model"]: row["scores"]["psnr"]["mean"] for row in results["models"]}
