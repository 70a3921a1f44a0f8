"""Clips made from pictures: a camera that moves over them, things that pass before them, cuts.

Everything moves smoothly and by parts of a pixel. A frame is rendered at twice its size from a
picture with about as many pixels, and then halved, so nothing is aliased.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter

FRAMES = 33
"""The number of frames of a clip."""
FPS = 24
"""The frames per second of a clip."""
_OVER = 2  # a frame is rendered so many times as large


@dataclasses.dataclass(frozen=True)
class Path:
    """The way of a camera over a picture, or of a thing over the frame.

    Attributes:
      x, y: the place of the middle, for every frame, in pixels.
      zoom: how many times as large the picture is shown, for every frame.
      angle: by how much it is turned, for every frame, in radians.
    """

    x: np.ndarray
    y: np.ndarray
    zoom: np.ndarray
    angle: np.ndarray


def smooth_path(rng: np.random.Generator, frames: int, *, speed: float, still: bool) -> Path:
    """Draws a smooth way: a steady course, a slow swing, and sometimes the shake of a hand.

    Args:
      rng: where chance comes from.
      frames: the number of frames.
      speed: the greatest speed in pixels per frame.
      still: whether nothing moves.

    Returns:
      The way, whose middle frame is at x = y = 0 with the zoom 1.
    """
    t = np.arange(frames) - (frames - 1) / 2
    zero = np.zeros(frames)
    if still:
        return Path(zero, zero, zero + 1, zero)
    fast = speed * rng.uniform(0, 1) ** 1.5
    course = rng.uniform(0, 2 * np.pi)
    x, y = fast * np.cos(course) * t, fast * np.sin(course) * t
    swing = rng.uniform(0, 6) * np.sin(2 * np.pi * (t / rng.uniform(30, 90) + rng.uniform()))
    x, y = x - swing * np.sin(course), y + swing * np.cos(course)
    if rng.uniform() < 0.3:  # a hand
        for rate, size in ((0.9, 1.2), (2.3, 0.5), (4.1, 0.2)):
            x = x + size * np.sin(2 * np.pi * (rate * t / FPS + rng.uniform()))
            y = y + size * np.sin(2 * np.pi * (rate * t / FPS + rng.uniform()))
    zooming = rng.uniform(-0.012, 0.012) if rng.uniform() < 0.5 else 0.0
    turning = rng.uniform(-0.012, 0.012) if rng.uniform() < 0.4 else 0.0
    return Path(x, y, np.exp(zooming * t), turning * t)


def render(image: Image.Image, path: Path, frame: int, size: int, reach: float) -> Image.Image:
    """Renders what the camera sees of a picture.

    Args:
      image: the picture, of any mode; beyond its edges is nothing (black, and transparent).
      path: the way of the camera, in pixels of the frame.
      frame: the number of the frame.
      size: the side of a frame.
      reach: how many pixels of the picture lie along a side of the frame at the zoom 1. More than
        twice `size` would be aliased.
    """
    side = size * _OVER
    step = reach / (side * path.zoom[frame])
    cos, sin = step * np.cos(path.angle[frame]), step * np.sin(path.angle[frame])
    middle = np.array(image.size) / 2 + np.array([path.x[frame], path.y[frame]]) * reach / size
    a, b, d, e = cos, -sin, sin, cos
    c = middle[0] - (a + b) * side / 2
    f = middle[1] - (d + e) * side / 2
    large = image.transform(
        (side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC
    )
    return large.reduce(_OVER)


def covering(
    image: Image.Image, path: Path, size: int, share: float
) -> tuple[Image.Image, Path, float]:
    """Scales a picture and shortens a way so that the camera never looks beyond the edges.

    Args:
      image: the picture.
      path: the way of the camera.
      size: the side of a frame in pixels.
      share: the share of the picture's shorter side that is seen along a side of the frame, at
        most. Less is seen if the way needs more room, but no less than a pixel of the picture per
        pixel of the frame: the way is shortened first.

    Returns:
      The picture, the way, and the number of the picture's pixels along a side of the frame at the
      zoom 1.
    """
    short = min(image.size)
    turned = np.abs(np.cos(path.angle)) + np.abs(np.sin(path.angle))
    half = size / 2 * turned / path.zoom + 2  # two pixels are spared for interpolation
    least = min(0.9 * short, size)
    for axis, side in zip(("x", "y"), image.size, strict=True):
        way = getattr(path, axis)
        room = side * size / least / 2 - half.max()
        if (longest := np.abs(way).max()) > max(room, 0):
            path = dataclasses.replace(path, **{axis: way * max(room, 0) / longest})
    needed = [2 * np.max(np.abs(way) + half) for way in (path.x, path.y)]  # in the frame's pixels
    reach = min(size * side / need for side, need in zip(image.size, needed, strict=True))
    reach = min(reach, max(share * short, least))
    dense = _OVER * size * path.zoom.min()  # more pixels than this would be aliased
    if reach > dense:
        small = tuple(max(round(side * dense / reach), 1) for side in image.size)
        return image.resize(small, Image.Resampling.LANCZOS), path, dense
    return image, path, reach


def cut_out(rng: np.random.Generator, image: Image.Image, size: int) -> Image.Image:
    """Cuts a smooth shape out of a picture, as RGBA with twice the pixels that it is shown with."""
    side = int(size * rng.uniform(0.3, 0.8)) * _OVER
    image = image.resize(
        tuple(max(round(side * 1.05 * s / min(image.size)), side) for s in image.size),
        Image.Resampling.LANCZOS,
    )
    left, top = (int(rng.integers(0, s - side + 1)) for s in image.size)
    piece = image.crop((left, top, left + side, top + side))
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = np.ones_like(turn)
    for wave in range(1, 6):
        radius += rng.uniform(-0.35, 0.35) / wave * np.sin(wave * turn + rng.uniform(0, 6.3))
    radius *= 0.46 / radius.max()
    outline = side * (0.5 + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], -1))
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in outline], fill=255)
    piece.putalpha(mask.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.8, 2.5)))))
    return piece


def over(below: Image.Image, thing: Image.Image, path: Path, frame: int) -> Image.Image:
    """Lays a thing over a frame, at its place on its way.

    Args:
      below: the frame.
      thing: RGBA with twice the pixels that it is shown with at the zoom 1.
      path: the way of its middle, in pixels from the middle of the frame.
      frame: the number of the frame.
    """
    size = below.size[0]
    # The camera goes the other way over a thing that moves, in the thing's own turned axes.
    zoom, angle = path.zoom[frame], path.angle[frame]
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = -path.x[frame] / zoom, -path.y[frame] / zoom
    seen = Path(
        np.array([cos * x - sin * y]),
        np.array([sin * x + cos * y]),
        np.array([zoom]),
        np.array([angle]),
    )
    premultiplied = render(thing.convert("RGBa"), seen, 0, size, float(_OVER * size))
    layer = premultiplied.convert("RGBA")
    return Image.alpha_composite(below.convert("RGBA"), layer).convert("RGB")


def scene(
    rng: np.random.Generator,
    ground: Image.Image,
    things: list[Image.Image],
    *,
    frames: int,
    size: int,
    moving: float = 0.9,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Makes one shot: a camera over a picture, and things that pass before it.

    Args:
      rng: where chance comes from.
      ground: the picture.
      things: RGBA images with twice the pixels that they are shown with.
      frames: the number of frames.
      size: the side of a frame in pixels.
      moving: how often the camera moves.

    Returns:
      The frames in RGB, uint8 [T, H, W, 3].
    """
    path = smooth_path(rng, frames, speed=5.0, still=rng.uniform() > moving)
    ground, path, reach = covering(ground, path, size, rng.uniform(0.45, 0.95))
    ways = []
    for _ in things:
        way = smooth_path(rng, frames, speed=6.0, still=False)
        x, y = rng.uniform(-0.35, 0.35, 2) * size
        ways.append(dataclasses.replace(way, x=way.x + x, y=way.y + y))
    gains = _exposure(rng, frames)
    shot = []
    for frame in range(frames):
        image = render(ground, path, frame, size, reach)
        for thing, way in zip(things, ways, strict=True):
            image = over(image, thing, way, frame)
        if gains is not None:
            image = image.point([min(round(v * gains[frame]), 255) for v in range(256)] * 3)
        shot.append(np.asarray(image))
    return np.stack(shot)


def _exposure(rng: np.random.Generator, frames: int) -> np.ndarray | None:
    """Draws a gain per frame for one shot in six: light that slowly changes, or a fade."""
    if rng.uniform() > 1 / 6:
        return None
    t = np.linspace(0, 1, frames)
    if rng.uniform() < 0.25:  # from black, or to black
        return np.clip(1.3 * (t if rng.uniform() < 0.5 else 1 - t), 0, 1)
    return np.exp(
        rng.uniform(-0.5, 0.5) * np.sin(np.pi * (rng.uniform(0.5, 2) * t + rng.uniform()))
    )


def clip_of_pictures(
    rng: np.random.Generator, pictures: list[Image.Image], *, size: int, frames: int = FRAMES
) -> UInt8[np.ndarray, "t h w 3"]:
    """Makes a clip by camera motion out of photographs.

    One clip in eight has a cut, one in three has things cut out of another picture that pass before
    the first.

    Args:
      rng: where chance comes from.
      pictures: two pictures, RGB.
      size: the side of a frame in pixels.
      frames: the number of frames.

    Returns:
      The frames in RGB, uint8 [T, H, W, 3].
    """
    first, second = pictures
    things = []
    if rng.uniform() < 1 / 3:
        things = [cut_out(rng, second, size) for _ in range(rng.integers(1, 3))]
    if rng.uniform() > 1 / 8 or frames < 4:  # too few for two shots
        return scene(rng, first, things, frames=frames, size=size)
    cut = int(rng.integers(int(0.25 * frames), int(0.75 * frames) + 1))
    shots = [
        scene(rng, first, things, frames=cut, size=size),
        scene(rng, second, [], frames=frames - cut, size=size),
    ]
    return np.concatenate(shots)
