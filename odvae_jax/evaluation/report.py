"""The files of an evaluation: numbers, figures, clips, and a page that shows them."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from odvae_jax.evaluation import page, pictures
from odvae_jax.evaluation.clips import Clip, FixedClips
from odvae_jax.evaluation.measure import Reconstructor, check_unchanged
from odvae_jax.evaluation.models import BlockMean, Contender
from odvae_jax.evaluation.results import (
    Results,
    as_json,
    as_markdown,
    by_clip,
    escaped,
    first_and_rest,
    notes,
    table,
)
from odvae_jax.files import printable, write_whole

logger = logging.getLogger(__name__)
_OVERVIEW = 4  # clips in the picture of frames
_LISTED = 100  # clips that the Markdown lists; the page and the JSON have all


def write_report(
    results: Results,
    contenders: Sequence[Contender],
    clips: FixedClips,
    frames_digests: dict[int, str],
    reconstructor: Reconstructor,
    output: Path,
) -> list[Path]:
    """Writes numbers, figures, clips and a page into a folder.

    The files are `results.json`, `results.md`, `by_frame.png`, `frames.png`, `clips/best.*` and
    `clips/worst.*` (by the mean of the models' PSNR), and `results.html`, which holds everything in
    one file.

    Args:
      results: the numbers of the evaluation.
      contenders: the models whose reconstructions are shown.
      clips: the clips that were measured.
      frames_digests: the digests of the clips' frames, by the clip's number.
      reconstructor: makes the reconstructions.
      output: the folder.

    Returns:
      The paths of the files.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "results.json", json.dumps(as_json(results), indent=1) + "\n")
    write_whole(output / "results.md", markdown(results))
    written = [output / "results.json", output / "results.md"]
    if any(row.by_frame for row in results.rows):
        pictures.plot_by_frame(results, output / "by_frame.png")
        written.append(output / "by_frame.png")
    elif (output / "by_frame.png").exists():
        (output / "by_frame.png").unlink()  # it is from an earlier call
    shown = _chosen(results, clips)
    captions = {}
    folder = output / "clips"
    folder.mkdir(exist_ok=True)
    for stem, index in shown.items():
        clip = _read(clips, index, frames_digests)
        if clip is None:
            continue
        made = {c.label: reconstructor(clip, c) for c in contenders}
        frames = pictures.side_by_side(clip.frames, made)
        written += pictures.write_side_by_side(folder, stem, frames, clip.fps)
        scores = [
            f"{row.contender.label} {row.by_clip[clip.name]['psnr']:.2f} dB"
            for row in results.rows
            if clip.name in row.by_clip
        ]
        captions[stem] = f"{printable(Path(clip.name).name)}: {', '.join(scores)}"
    if shown:
        few = list(frames_digests)[:_OVERVIEW]
        read = filter(None, [_read(clips, index, frames_digests) for index in few])
        pairs = []
        for clip in read:
            made = reconstructor(clip, contenders[0])
            t, h, w, _ = made.shape
            pairs.append((clip.frames[:t, :h, :w], made))
        if pairs:
            pictures.overview(pairs, output / "frames.png")
            written.append(output / "frames.png")
    write_whole(output / "results.html", _page(results, output, captions))
    return [*written, output / "results.html"]


def markdown(results: Results) -> str:
    """Returns the tables and the notes of an evaluation as Markdown."""
    parts = [as_markdown(*table(results)), "\n".join(_as_list(notes(results)))]
    parts += ["First frames of groups against the others:", as_markdown(*first_and_rest(results))]
    titles, rows = by_clip(results)
    if 1 < len(rows) <= _LISTED:
        parts += ["Clip by clip:", as_markdown(titles, rows)]
    return "\n\n".join(parts) + "\n"


def _as_list(lines: list[str]) -> list[str]:
    return [
        f"  - {escaped(line.strip())}" if line.startswith("  ") else f"- {escaped(line)}"
        for line in lines
    ]


def _chosen(results: Results, clips: FixedClips) -> dict[str, int]:
    """Returns the numbers of the best and the worst clip by the models' mean PSNR, by file stem."""
    rows = [r for r in results.rows if r.clips and not isinstance(r.contender.model, BlockMean)]
    if not rows:
        return {}
    # The means of all models are over the same clips.
    psnr = {name: np.mean([r.by_clip[name]["psnr"] for r in rows]) for name in rows[0].by_clip}
    ordered = sorted(psnr, key=lambda name: (psnr[name], name))
    index = {clips.name(i): i for i in range(len(clips))}
    if len(ordered) == 1:
        return {"only": index[ordered[0]]}
    return {"best": index[ordered[-1]], "worst": index[ordered[0]]}


def _read(clips: FixedClips, index: int, digests: dict[int, str]) -> Clip | None:
    """Returns a clip that was measured; None if it cannot be read any more, which the log says.

    Raises:
      ValueError: if it holds other frames than were measured.
    """
    clip = clips.read(index)
    if clip.frames is None:
        logger.warning(
            "%s was measured, and cannot be shown: %s", printable(clip.name), clip.reason
        )
        return None
    check_unchanged(clip, digests[index])
    return clip


def _page(results: Results, output: Path, captions: dict[str, str]) -> str:
    """Returns a page that holds all pictures and videos, so that it needs no network."""
    parts = [
        page.table(*table(results)),
        *(f'<p class="note">{html.escape(line)}</p>' for line in notes(results)),
    ]
    if (output / "by_frame.png").exists():
        parts += ["<h2>By frame</h2>", page.figure(output / "by_frame.png", "")]
        parts.append(page.table(*first_and_rest(results)))
    for stem, caption in captions.items():
        title = {"best": "Best clip", "worst": "Worst clip"}.get(stem, "The clip")
        parts.append(f"<h2>{title}</h2>")
        parts.append(page.figure(output / "clips" / f"{stem}.mp4", caption))
    if captions:
        parts.append("<h2>Frames</h2>")
        label = results.rows[0].contender.label
        if (output / "frames.png").exists():
            parts.append(page.figure(output / "frames.png", f"Originals above, {label} below."))
    titles, rows = by_clip(results)
    if rows:
        parts += ["<h2>Clips</h2>", page.table(titles, rows)]
    return page.whole("Reconstruction quality", parts)
