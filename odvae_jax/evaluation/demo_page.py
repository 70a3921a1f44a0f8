"""The page of `odvae demo`: what its commands left in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from odvae_jax.evaluation import page
from odvae_jax.files import counted, write_whole

_LARGER = 3  # how many times larger the small frames of the tuned clip are shown
_SEEN = (
    "The other frames of the video are much like these, and were in the small model's training, "
    "but not as small as here. Of other videos these numbers say nothing."
)
_PART = {
    "encoder": "The encoder stayed as it was; the decoder alone was tuned.",
    "": "Encoder and decoder were tuned.",
}


def write_demo_page(output: Path, *, tuned: bool) -> str:
    """Writes `demo.html`, which shows what the commands of `odvae demo` left in a folder.

    Args:
      output: the folder.
      tuned: whether the model was tuned, into the folder `tuned`, and measured before and after,
        into the folder `gain`. If not, the page leaves this out.

    Returns:
      The model beside the mean of blocks, what tuning brought, and where the page is, a line each.
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
    if tuned:
        gain, shown = _tuning(output)
        said += f"\n{gain}"
        parts += shown
    write_whole(output / "demo.html", page.whole("What the small model does", parts))
    return f"{said}\n{output / 'demo.html'} shows it."


def _tuning(output: Path) -> tuple[str, list[str]]:
    """Returns what tuning brought, in a sentence and as parts of the page."""
    config = json.loads((output / "tuned" / "config.json").read_text(encoding="utf-8"))
    settings = json.loads((output / "gain" / "results.json").read_text(encoding="utf-8"))[
        "settings"
    ]
    scores = _scores(output / "gain")
    before, after = scores["before"], scores["after"]
    frames, size, name = settings["frames"], settings["size"], Path(config["data"]["path"]).name
    steps, clips = counted(config["steps"], "step"), counted(config["batch_size"], "clip")
    said = (
        f"Tuned on {name} for {steps} of {clips}: "
        f"{before:.2f} dB before, {after:.2f} dB after, {after - before:+.2f} dB on the last "
        f"{frames} frames of {size}×{size}, which it was not tuned on."
    )
    clip = output / "gain" / "clips" / "only"
    caption = "Frames that were not tuned on: original, before, after; below, the differences."
    with Image.open(clip.with_suffix(".png")) as picture:
        large = picture.resize((_LARGER * picture.width, _LARGER * picture.height))
    large.save(output / "gain.png")
    return said, [
        "<h2>Tuned on one video</h2>",
        f'<p class="note">{said} {_PART[config["freeze"]]} {_SEEN}</p>',
        page.figure(clip.with_suffix(".mp4"), caption),
        page.figure(
            output / "gain.png", f"The first, the middle and the last, {_LARGER} times as large."
        ),
    ]


def _scores(folder: Path) -> dict[str, float]:
    """Returns the PSNR in dB of each model of an evaluation, by the model's label."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {row["model"]: row["scores"]["psnr"]["mean"] for row in results["models"]}
