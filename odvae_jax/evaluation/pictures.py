"""Figures of metrics by frame, and clips next to their reconstructions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from odvae_jax.data.video import write_video
from odvae_jax.evaluation.results import TITLES, Results, first_of_group

MAGNIFIED = 5
"""How many times differences are magnified."""
_LABEL = 60  # characters of a label in a figure
_COLUMNS, _GAP = 8, 4  # clips in a row of a wall, and the pixels between them
_HEADER = 24  # pixels above each picture, for its name
_FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def plot_by_frame(results: Results, output: Path) -> None:
    """Draws each metric by frame into a PNG file.

    A dot marks the first frame of every group of temporal tiling.
    """
    metrics = [m for m in TITLES if any(m in row.by_frame for row in results.rows)]
    figure = Figure(figsize=(5 * len(metrics) + 2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    colours = matplotlib.colormaps["tab10" if len(results.rows) <= 10 else "tab20"].colors
    lines = {}
    starts = first_of_group(results.settings["frames"], results.settings["tiling"])
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for row, colour in zip(results.rows, itertools.cycle(colours)):
            values = row.by_frame.get(metric)
            if values is not None:
                first = np.flatnonzero(starts[: len(values)])
                label = _drawn(row.contender.label)
                (lines[label],) = axes.plot(values, label=label, linewidth=1.2, color=colour)
                axes.plot(first, values[first], "o", color=colour)
        axes.set(xlabel="frame (dots: the first of a group)", ylabel=TITLES[metric])
        axes.grid(alpha=0.3)
    named = {"fontsize": "small", "loc": "outside right upper"}  # beside: it hides no line
    for text in figure.legend(lines.values(), lines.keys(), **named).get_texts():
        text.set_parse_math(False)
    figure.savefig(output, dpi=120)


def side_by_side(
    original: UInt8[np.ndarray, "t h w 3"],
    reconstructions: dict[str, UInt8[np.ndarray, "t h w 3"]],
) -> UInt8[np.ndarray, "t y x 3"]:
    """Returns the original and each reconstruction in a row, above their magnified differences.

    Args:
      original: the original clip, from 0 to 255.
      reconstructions: the reconstructed clips by the model's name. Where one is smaller than the
        original, the rest is white.
    """
    t, h, w, _ = original.shape
    top = [_named("original", original)]
    bottom = [np.full((t, h + _HEADER, w, 3), 255, np.uint8)]
    for name, made in reconstructions.items():
        part = tuple(slice(0, n) for n in made.shape)
        difference = np.abs(made.astype(np.int16) - original[part])
        shown = np.full((2, *original.shape), 255, np.uint8)
        shown[0][part], shown[1][part] = made, np.minimum(difference * MAGNIFIED, 255)
        top.append(_named(name, shown[0]))
        bottom.append(_named(f"difference ×{MAGNIFIED}", shown[1], f"diff. ×{MAGNIFIED}"))
    return np.concatenate([np.concatenate(row, axis=2) for row in (top, bottom)], axis=1)


def write_side_by_side(
    folder: Path, stem: str, frames: UInt8[np.ndarray, "t h w 3"], fps: float
) -> tuple[Path, Path]:
    """Writes frames as an mp4 file, and the first, middle and last of them as a PNG file.

    Args:
      folder: the folder of the files.
      stem: the name of the files, without the extension.
      frames: what `side_by_side` returned, uint8 [T, H, W, 3].
      fps: the frames per second of the mp4 file.

    Returns:
      The paths of the mp4 and of the PNG file.
    """
    video, picture = folder / f"{stem}.mp4", folder / f"{stem}.png"
    _write_padded(video, frames, fps)
    shown = sorted({0, len(frames) // 2, len(frames) - 1})
    Image.fromarray(np.concatenate(frames[shown])).save(picture)
    return video, picture


def write_wall(path: Path, clips: Sequence[UInt8[np.ndarray, "t h w 3"]], fps: float) -> None:
    """Writes clips as one mp4 file in which all of them play, eight in a row.

    Args:
      path: the path of the file.
      clips: the clips, at least one, all of one shape, from 0 to 255.
      fps: the frames per second.
    """
    columns = min(_COLUMNS, len(clips))
    t, h, w, c = clips[0].shape
    places = -(-len(clips) // columns) * columns
    white = [np.full((t, h, w, c), 255, np.uint8)] * (places - len(clips))
    tiles = np.pad(
        np.stack([*clips, *white]),
        ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)),
        constant_values=255,
    )
    wall = rearrange(tiles, "(rows columns) t h w c -> t (rows h) (columns w) c", columns=columns)
    _write_padded(path, wall[:, :-_GAP, :-_GAP], fps)


def overview(
    pairs: Sequence[tuple[UInt8[np.ndarray, "t h w 3"], UInt8[np.ndarray, "t h w 3"]]], output: Path
) -> None:
    """Draws four frames of each clip, above the same frames of its reconstruction, into a PNG file.

    Args:
      pairs: one pair of original and reconstruction per clip, uint8 [T, H, W, 3] each.
      output: the path of the PNG file.
    """
    rows = []
    for original, made in pairs:
        shown = np.linspace(0, len(original) - 1, num=min(4, len(original)), dtype=int)
        pair = np.stack([original[shown], made[shown]])
        row = rearrange(pair, "pair n h w c -> (pair h) (n w) c")
        rows.append(np.pad(row, ((0, 8), (0, 0), (0, 0)), constant_values=255))
    Image.fromarray(np.concatenate(rows)).save(output)


def _write_padded(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes frames as mp4 with the last row or column twice where a side is odd."""
    _, h, w, _ = frames.shape
    write_video(path, np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge"), fps)


def _drawn(label: str) -> str:
    """A label as a figure's legend shows it: short, and not left out for a leading underscore."""
    label = label if len(label) <= _LABEL else f"…{label[1 - _LABEL :]}"
    return f"\u200b{label}" if label.startswith("_") else label


def _named(name: str, frames: np.ndarray, short: str = "") -> np.ndarray:
    """Frames with their name above them, or with a shorter one where they are narrow."""
    width = frames.shape[2]
    header = Image.new("RGB", (width, _HEADER), "white")
    font = ImageFont.truetype(_FONT, 13)
    if short and font.getlength(name) > width - 6:
        name = short
    while len(name) > 1 and font.getlength(name) > width - 6:
        name = "…" + name.lstrip("…")[1:]
    ImageDraw.Draw(header).text((4, 4), name, fill="black", font=font)
    strip = np.broadcast_to(np.asarray(header), (len(frames), _HEADER, width, 3))
    return np.concatenate([strip, frames], axis=1)
