"""Pictures and clips that a program draws: flat grounds, shapes, text, charts, line drawings."""

from __future__ import annotations

import colorsys

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from odvae_jax.data.motion import FRAMES, scene

_TEXT = (
    "the of and to in is that for it with as was on be by this from or have an at not are but "
    "which one all their there been if more when will would who so no out up into them can only "
    "time new some could these two may then do first any my now such like our over even most me "
    "after also made did many before must through years where much way down should because each "
    "video frame light colour water river city mountain garden window table paper machine music "
)
_WORDS = _TEXT.split()


def drawing(
    rng: np.random.Generator, width: int, height: int, kind: str | None = None
) -> Image.Image:
    """Draws a picture.

    Args:
      rng: where chance comes from.
      width, height: the sides of the picture in pixels.
      kind: a key of `KINDS`; None draws one.

    Returns:
      The picture, RGB, drawn at three times its size and scaled down.
    """
    kind = kind or str(rng.choice(list(KINDS)))
    large = KINDS[kind](rng, 3 * width, 3 * height)
    return large.reduce(3)


def clip_of_drawings(
    rng: np.random.Generator, *, size: int, frames: int = FRAMES
) -> UInt8[np.ndarray, "t h w 3"]:
    """Makes a clip of drawings: a ground, with shapes and words that move over it.

    The camera stands still in half of the clips.

    Args:
      rng: where chance comes from.
      size: the side of a frame in pixels.
      frames: the number of frames.

    Returns:
      The frames in RGB, uint8 [T, H, W, 3].
    """
    ground = drawing(rng, 3 * size, 3 * size)
    things = [_thing(rng, size) for _ in range(rng.integers(0, 5))]
    return scene(rng, ground, things, frames=frames, size=size, moving=0.5)


def _colour(rng) -> tuple[int, int, int]:
    if rng.uniform() < 0.3:  # grey, black and white
        return (int(rng.choice([0, 16, 64, 128, 200, 235, 255])),) * 3
    hue, saturation = rng.uniform(), rng.uniform(0.15, 1) ** 0.7
    rgb = colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.15, 1) ** 0.6)
    return tuple(round(255 * v) for v in rgb)


def _flat(rng, width, height):
    return Image.new("RGB", (width, height), _colour(rng))


def _gradient(rng, width, height):
    corners = np.array([_colour(rng) for _ in range(4)], np.float32).reshape(2, 2, 3)
    if rng.uniform() < 0.5:
        corners[:, 1] = corners[:, 0]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    return Image.fromarray(np.round(top * (1 - y) + bottom * y).astype(np.uint8))


def _shapes(rng, width, height):
    image = (_flat if rng.uniform() < 0.7 else _gradient)(rng, width, height)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 25)):
        _shape(rng, draw, width, height)
    return image


def _shape(rng, draw, width, height):
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    a, b = rng.uniform(0.02, 0.25, 2) * min(width, height)
    line = int(rng.choice([0, 0, 0, 6, 12]))
    options = {"fill": _colour(rng), "outline": _colour(rng) if line else None, "width": line or 1}
    which = rng.integers(0, 4)
    if which == 0:
        draw.ellipse((x - a, y - b, x + a, y + b), **options)
    elif which == 1:
        draw.rectangle((x - a, y - b, x + a, y + b), **options)
    elif which == 2:
        draw.rounded_rectangle((x - a, y - b, x + a, y + b), radius=min(a, b) / 3, **options)
    else:
        corners = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        points = [(x + a * np.cos(t), y + a * np.sin(t)) for t in corners]
        draw.polygon(points, fill=options["fill"], outline=options["outline"])


def _words(rng, count):
    return " ".join(str(word) for word in rng.choice(_WORDS, count))


def _page(rng, width, height):
    paper = (255, 255, 255) if rng.uniform() < 0.5 else _colour(rng)
    dark = sum(paper) < 384
    ink = (240, 240, 240) if dark else (10, 10, 20)
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    y = 0.0
    while y < height:
        points = int(rng.choice([33, 42, 54, 72, 120], p=[0.3, 0.3, 0.2, 0.15, 0.05]))
        font = ImageFont.load_default(points)
        colour = _colour(rng) if rng.uniform() < 0.15 else ink
        for _ in range(rng.integers(1, 7)):
            draw.text((0.02 * width, y), _words(rng, 60), fill=colour, font=font)
            y += 1.35 * points
        y += points
    return image


def _chart(rng, width, height):
    image = Image.new("RGB", (width, height), (255, 255, 255) if rng.uniform() < 0.6 else (20,) * 3)
    draw = ImageDraw.Draw(image)
    grid, rows = (150,) * 3, int(rng.integers(4, 12))
    for i in range(rows):
        draw.line((0, height * i / rows, width, height * i / rows), fill=grid, width=3)
        draw.line((width * i / rows, 0, width * i / rows, height), fill=grid, width=3)
    font = ImageFont.load_default(45)
    for _ in range(rng.integers(1, 5)):
        values = np.cumsum(rng.normal(size=40)) * height / 20 + rng.uniform(0.2, 0.8) * height
        points = list(zip(np.linspace(0, width, 40), values, strict=True))
        draw.line(points, fill=_colour(rng), width=int(rng.integers(6, 15)), joint="curve")
    bars = int(rng.integers(0, 20))
    for i in range(bars):
        x, top = width * (i + 0.2) / bars, rng.uniform(0.3, 1) * height
        draw.rectangle((x, top, x + 0.6 * width / bars, height), fill=_colour(rng))
    for _ in range(12):
        place = rng.uniform(0, width), rng.uniform(0, height)
        draw.text(place, f"{rng.uniform(0, 1000):.1f}", fill=_colour(rng), font=font)
    return image


def _lines(rng, width, height):
    image = Image.new("RGB", (width, height), (250, 248, 240) if rng.uniform() < 0.7 else 0)
    draw = ImageDraw.Draw(image)
    ink = (20, 20, 30) if image.getpixel((0, 0))[0] else (230, 230, 230)
    for _ in range(rng.integers(10, 50)):
        t = np.linspace(0, 1, 60)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        for wave in range(1, 4):
            x = x + rng.normal() * width / 6 / wave * np.sin(wave * 3 * t + rng.uniform(0, 6))
            y = y + rng.normal() * height / 6 / wave * np.sin(wave * 3 * t + rng.uniform(0, 6))
        colour = _colour(rng) if rng.uniform() < 0.2 else ink
        points = list(zip(x, y, strict=True))
        draw.line(points, fill=colour, width=int(rng.integers(3, 14)), joint="curve")
    return image


def _pattern(rng, width, height):
    """Stripes, squares or dots, from coarse to fine."""
    first, second = _colour(rng), _colour(rng)
    period = float(np.exp(rng.uniform(np.log(18), np.log(200))))
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    u, v = np.sin(2 * np.pi * u / period), np.sin(2 * np.pi * v / period)
    mask = {0: u > 0, 1: (u > 0) ^ (v > 0), 2: u + v > 0.8}[int(rng.integers(0, 3))]
    return Image.fromarray(np.where(mask[..., None], first, second).astype(np.uint8))


KINDS = {
    "flat": _flat,
    "gradient": _gradient,
    "shapes": _shapes,
    "page": _page,
    "chart": _chart,
    "lines": _lines,
    "pattern": _pattern,
}
"""The kinds of drawings. A function takes chance and the sides in pixels, and returns RGB."""


def _thing(rng, size):
    """Draws a shape or some words on a clear ground, RGBA at twice the size that is shown."""
    if rng.uniform() < 0.35:
        font = ImageFont.load_default(int(rng.integers(20, 80)) * 2)
        text = _words(rng, int(rng.integers(1, 5)))
        left, top, right, bottom = font.getbbox(text)
        image = Image.new("RGBA", (int(right - left) + 16, int(bottom - top) + 16))
        ImageDraw.Draw(image).text((8 - left, 8 - top), text, fill=_colour(rng), font=font)
        return image
    side = int(size * rng.uniform(0.15, 0.7))
    image = Image.new("RGBA", (6 * side, 6 * side))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        _shape(rng, draw, 6 * side, 6 * side)
    return image.reduce(3)
