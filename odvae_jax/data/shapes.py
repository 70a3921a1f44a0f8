"""Shapes cut out of photographs, which move over other photographs in one of eight ways.

A clip depends on its number alone: all arithmetic on pixels is of whole numbers, so every machine
and every version of NumPy and Pillow makes the same bytes. Lengths are in parts of the frame's
side, which is `ONE`; angles are in parts of a whole turn, which is `TURN`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

MOTIONS = (
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "counter-clockwise",
    "growing",
    "shrinking",
)
"""The names of the motions; a motion's place here is its number."""
PHOTOGRAPHS = {
    "train": (
        "astronaut",
        "brick",
        "camera",
        "chelsea",
        "coins",
        "grass",
        "ihc",
        "motorcycle_left",
    ),
    "test": ("coffee", "gravel", "moon", "page"),
}
"""The photographs of each part, by the names of their files in the package scikit-image.

They are PNG files, which every decoder reads alike, and are in every wheel of the package."""
ONE = 1 << 16
"""The side of a frame."""
TURN = 1 << 12
"""A whole turn."""
_UNIT = 1 << 14  # what stands for 1 in the table of sines
_SINES = np.array([round(_UNIT * math.sin(2 * math.pi * i / TURN)) for i in range(TURN)])
_COURSES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TURNS = {"clockwise": 1, "counter-clockwise": -1}  # rows go down, so this is as it is seen
_GROWTHS = {"growing": 1, "shrinking": -1}
_RIMS = (
    (255, 255, 255),
    (240, 110, 230),
    (250, 210, 40),
    (40, 200, 250),
    (240, 70, 60),
    (90, 220, 90),
)
_MASK = 256  # the side of the largest mask of a shape
# The corners of shapes in percent of the radius; none looks the same after a small turn.
_SHAPES = (
    ((0, -98), (85, 49), (-85, 49)),  # a triangle
    ((-66, -66), (66, -66), (66, 66), (-66, 66)),  # a square
    ((-40, -88), (10, -88), (10, 30), (62, 30), (62, 80), (-40, 80)),  # an L
    ((0, -96), (78, -12), (32, -12), (32, 88), (-32, 88), (-32, -12), (-78, -12)),  # an arrow
    ((-30, -92), (30, -92), (30, -30), (92, -30), (92, 30), (30, 30), (30, 92), (-30, 92),
     (-30, 30), (-92, 30), (-92, -30), (-30, -30)),  # a cross
    ((0, -98), (26, -36), (93, -30), (42, 14), (58, 79), (0, 44), (-58, 79), (-42, 14), (-93, -30),
     (-26, -36)),  # a star
    ((-92, 32), (-80, -22), (-46, -60), (0, -74), (46, -60), (80, -22), (92, 32)),  # half a disc
    ((-88, -42), (60, -42), (88, 42), (-60, 42)),  # a slanted bar
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape of a clip.

    Attributes:
      kind: the number of its outline.
      photograph: the number, within the part, of the photograph that it is cut out of.
      window: where in the photograph, see `window`.
      rim: the colour of its rim, RGB.
      tint: what each colour of a grey photograph is multiplied by, in parts of 256.
      x, y: its middle in the middle of the clip.
      radius: its radius in the middle of the clip.
      angle: by how much it is turned at the beginning.
    """

    kind: int
    photograph: int
    window: tuple[int, int, int]
    rim: tuple[int, int, int]
    tint: tuple[int, int, int]
    x: int
    y: int
    radius: int
    angle: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is drawn of a clip by chance.

    Attributes:
      motion: the name of the motion.
      amount: how far, or by how much, the shapes move within the clip.
      ground: the number, within the part, of the photograph below the shapes.
      window: where in that photograph, see `window`.
      tint: what each of its colours is multiplied by, in parts of 256.
      mirrored: whether left and right of the ground are exchanged.
      shapes: the shapes.
    """

    motion: str
    amount: int
    ground: int
    window: tuple[int, int, int]
    tint: tuple[int, int, int]
    mirrored: bool
    shapes: tuple[Shape, ...]


def draw_scene(part: str, number: int) -> Scene:
    """Draws the scene of a clip.

    Args:
      part: "train" or "test".
      number: the number of the clip, from 0 on. Its motion is the number modulo 8.
    """
    # Python promises that `random` gives the same numbers in every version; NumPy does not.
    rng = random.Random(number * len(PHOTOGRAPHS) + list(PHOTOGRAPHS).index(part))
    photographs = len(PHOTOGRAPHS[part])
    motion = MOTIONS[number % len(MOTIONS)]
    ground = _between(rng, 0, photographs - 1)
    # Another photograph than the ground's.
    other = (ground + _between(rng, 1, photographs - 1)) % photographs
    amounts = {name: (ONE // 2, ONE * 4 // 5) for name in _COURSES}
    amounts |= {name: (TURN * 5 // 12, TURN * 3 // 4) for name in _TURNS}
    amounts |= {name: (ONE * 55 // 100, ONE * 65 // 100) for name in _GROWTHS}
    brightness = _between(rng, 130, 210)
    return Scene(
        motion,
        _between(rng, *amounts[motion]),
        ground,
        _window(rng, 50, 100),
        tuple(brightness * _between(rng, 170, 256) // 256 for _ in range(3)),
        _between(rng, 0, 1) == 1,
        _draw_shapes(rng, other),
    )


def _draw_shapes(rng: random.Random, photograph: int) -> tuple[Shape, ...]:
    """Draws one large shape near the middle, or two smaller ones on both sides of it."""
    count = _between(rng, 1, 2)
    x, y = (ONE // 2 + _between(rng, -ONE // 16, ONE // 16) for _ in range(2))
    away = _between(rng, ONE * 20 // 100, ONE * 24 // 100) if count == 2 else 0
    course = _between(rng, 0, TURN - 1)
    shapes = []
    for side in (1, -1)[:count]:
        sizes = (19, 26) if count == 1 else (14, 18)
        shapes.append(
            Shape(
                kind=_between(rng, 0, len(_SHAPES) - 1),
                photograph=photograph,
                window=_window(rng, 30, 70),
                rim=_RIMS[_between(rng, 0, len(_RIMS) - 1)],
                tint=tuple(_between(rng, 150, 256) for _ in range(3)),
                x=x + side * away * int(_cosine(course)) // _UNIT,
                y=y + side * away * int(_sine(course)) // _UNIT,
                radius=_between(rng, *(ONE * size // 100 for size in sizes)),
                angle=_between(rng, 0, TURN - 1),
            )
        )
    return tuple(shapes)


def render_scene(
    scene: Scene, part: str, times: Sequence[int], length: int, size: int
) -> list[UInt8[np.ndarray, "s s 3"]]:
    """Renders frames of a clip.

    Args:
      scene: the scene.
      part: "train" or "test".
      times: the numbers of the frames, from 0 on.
      length: the number of frames within which the whole motion is made.
      size: the side of a frame in pixels.

    Returns:
      The frames in RGB, uint8 [size, size, 3].
    """
    photographs = PHOTOGRAPHS[part]
    ground = _halved(_seen(photographs[scene.ground], scene.window, 2 * size))
    ground = ground[:, :: -1 if scene.mirrored else 1] * np.array(scene.tint) >> 8
    sprites = [_sprite(shape, photographs[shape.photograph], size) for shape in scene.shapes]
    frames = []
    for time in times:
        frame = ground.copy()
        for shape, sprite in zip(scene.shapes, sprites, strict=True):
            _lay_over(frame, sprite, *_place(scene, shape, time, length))
        frames.append(frame.astype(np.uint8))
    return frames


def _place(scene: Scene, shape: Shape, time: int, length: int) -> tuple[int, int, int, int]:
    """Returns where a shape's middle is, its radius and its angle."""
    x, y, radius, angle = shape.x, shape.y, shape.radius, shape.angle
    # From -1 at the first frame to 1 at the last, in parts of `span`.
    span = max(length - 1, 1)
    done = 2 * time - span if length > 1 else 0
    if scene.motion in _COURSES:
        across, down = _COURSES[scene.motion]
        way = scene.amount * done // (2 * span)
        return x + across * way, y + down * way, radius, angle
    if scene.motion in _TURNS:
        turned = scene.amount * time // span
        return x, y, radius, (angle + _TURNS[scene.motion] * turned) % TURN
    more = _GROWTHS[scene.motion] * scene.amount * done // span
    return x, y, radius * (ONE + more) // ONE, angle


def _sprite(shape: Shape, photograph: str, size: int) -> list[Integer[np.ndarray, "n n 4"]]:
    """Returns a shape with its rim, premultiplied RGBA, at several sizes, each half the last."""
    side = _MASK
    while side > 32 and side // 2 * ONE >= 8 * shape.radius * size:  # it may grow to about twice
        side //= 2
    texture = _seen(photograph, shape.window, side) * np.array(shape.tint) >> 8
    whole, inner = (mask[..., None] for mask in _masks(shape.kind, side))
    colours = (texture * inner + np.array(shape.rim) * (whole - inner) + 127) // 255
    sprites = [np.concatenate([colours, whole], axis=-1)]
    while sprites[-1].shape[0] > 8:
        sprites.append(_halved(sprites[-1]))
    return sprites


def _lay_over(frame, sprites, x: int, y: int, radius: int, angle: int) -> None:
    """Lays a shape over a frame, in place; it is sampled at twice the frame's resolution."""
    size = frame.shape[0]
    low = [max((v - radius) * size // ONE, 0) for v in (x, y)]
    high = [min((v + radius) * size // ONE + 1, size) for v in (x, y)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return
    wanted = 4 * radius * size  # texels, in parts of ONE: one per sample
    sprite = min((s for s in sprites if len(s) * ONE >= wanted), key=len, default=sprites[0])
    across, down = (
        (2 * np.arange(2 * a, 2 * b) + 1) * ONE // (4 * size) - middle
        for a, b, middle in zip(low, high, (x, y), strict=True)
    )
    cos, sin = _cosine(angle), _sine(angle)
    u = cos * across[None, :] + sin * down[:, None]
    v = cos * down[:, None] - sin * across[None, :]
    # In parts of 256 of a texel, from the middle of the first one.
    places = ((w * 128 // _UNIT + 128 * radius) * len(sprite) // radius - 128 for w in (u, v))
    layer = _halved(_sampled(sprite, *places))
    part = frame[low[1] : high[1], low[0] : high[0]]
    part[:] = np.minimum(layer[..., :3] + (part * (255 - layer[..., 3:]) + 127) // 255, 255)


def _sampled(
    texture: Integer[np.ndarray, "h w c"],
    x: Integer[np.ndarray, "..."],
    y: Integer[np.ndarray, "..."],
) -> Integer[np.ndarray, "... c"]:
    """Returns a texture between its texels; places are in parts of 256 of a texel."""
    height, width, channels = texture.shape
    x, y = np.clip(x, 0, (width - 1) * 256 - 1), np.clip(y, 0, (height - 1) * 256 - 1)
    first = (y >> 8) * width + (x >> 8)
    right, below = (x & 255).astype(np.int32)[..., None], (y & 255).astype(np.int32)[..., None]
    flat = texture.reshape(-1, channels)
    above = flat[first] * (256 - right) + flat[first + 1] * right
    under = flat[first + width] * (256 - right) + flat[first + width + 1] * right
    return (above * (256 - below) + under * below + (1 << 15)) >> 16


def _halved(image: Integer[np.ndarray, "h w c"]) -> Integer[np.ndarray, "y x c"]:
    """Returns the mean of every two by two pixels; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in image.shape[:2])
    image = image[:height, :width].astype(np.int32)
    rows = image[::2] + image[1::2]
    return (rows[:, ::2] + rows[:, 1::2] + 2) >> 2


def _seen(photograph: str, window: tuple[int, int, int], samples: int) -> np.ndarray:
    """Returns so many samples along each side of a square window of a photograph, int32 RGB."""
    levels = _photograph(photograph)
    height, width = levels[0].shape[:2]
    share, left, top = window
    # In parts of 256 of the photograph's pixels.
    side = min(height, width) * share * 256 // ONE
    corner = (width * 256 - side) * left // ONE, (height * 256 - side) * top // ONE
    level = 0
    while level + 1 < len(levels) and side >> (level + 1) >= samples * 256:
        level += 1
    steps = (2 * np.arange(samples) + 1) * side // (2 * samples)
    across, down = ((at + steps >> level) - 128 for at in corner)
    rows = _between_rows(levels[level], down)
    columns = _between_rows(rows.swapaxes(0, 1), across)
    return (columns.swapaxes(0, 1) + (1 << 15)) >> 16


def _between_rows(image: np.ndarray, places: Integer[np.ndarray, " n"]) -> np.ndarray:
    """Returns 256 times what is at places along the first axis, given in parts of 256 of a row."""
    places = np.clip(places, 0, (len(image) - 1) * 256 - 1)
    first, share = places >> 8, (places & 255).astype(np.int32)[:, None, None]
    return image[first] * (256 - share) + image[first + 1] * share


@functools.cache
def _photograph(name: str) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Returns a photograph of scikit-image at several sizes, each half the last."""
    with Image.open(photographs_folder() / f"{name}.png") as image:
        levels = [np.asarray(image.convert("RGB"))]
    while min(levels[-1].shape[:2]) >= 32:
        levels.append(_halved(levels[-1]).astype(np.uint8))
    return levels


def photographs_folder() -> Path:
    """Returns the folder of the photographs that the package scikit-image carries.

    The package is not imported.

    Raises:
      FileNotFoundError: if scikit-image is not installed, or photographs are missing.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the photographs of moving-shapes come with the package scikit-image: pip install "
            "scikit-image."
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    names = [f"{name}.png" for part in PHOTOGRAPHS.values() for name in part]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"the package scikit-image lacks {', '.join(missing)}, which moving-shapes is made of; "
            "install it anew: pip install --force-reinstall scikit-image."
        )
    return folder


@functools.cache
def _masks(kind: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much of each texel a shape covers, and how much its inside, from 0 to 255."""
    if side < _MASK:
        whole, inner = (_halved(mask[..., None])[..., 0] for mask in _masks(kind, 2 * side))
        return whole, inner
    # Two samples per texel along each side; places in parts of 100 * 2 * side of the radius.
    at = (2 * np.arange(2 * side) + 1 - 2 * side) * 100
    corners = np.array(_SHAPES[kind]) * 2 * side
    inside = np.zeros((2 * side, 2 * side), bool)
    distant = np.ones((2 * side, 2 * side), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        between = (at >= min(y0, y1)) & (at < max(y0, y1))
        product = (at[None, :] - x0) * (y1 - y0) - (at[:, None] - y0) * (x1 - x0)
        inside ^= between[:, None] & ((product < 0) == (y1 > y0)) & (product != 0)
        distant &= _is_far(at, (x0, y0), (x1, y1), 18 * side)
    masks = (mask[..., None] * np.int32(255) for mask in (inside, inside & distant))
    return tuple(_halved(mask)[..., 0] for mask in masks)


def _is_far(at: np.ndarray, start, end, far: int) -> np.ndarray:
    """Returns for every place whether it is farther than `far` from the line between two."""
    x, y = at[None, :] - start[0], at[:, None] - start[1]
    dx, dy = int(end[0] - start[0]), int(end[1] - start[1])
    square = dx * dx + dy * dy
    along = np.clip(x * dx + y * dy, 0, square) // 1024  # so that products stay below 2**63
    square //= 1024
    away_x, away_y = x - along * dx // square, y - along * dy // square
    return away_x * away_x + away_y * away_y > far * far


def _sine(angle: int) -> np.int64:
    return _SINES[angle % TURN]


def _cosine(angle: int) -> np.int64:
    return _SINES[(angle + TURN // 4) % TURN]


def _between(rng: random.Random, low: int, high: int) -> int:
    """Draws a whole number from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def _window(rng: random.Random, least: int, most: int) -> tuple[int, int, int]:
    """Draws a square window of a photograph, all in parts of `ONE`.

    Its side is `least` to `most` percent of the photograph's shorter side. The other two numbers
    say how far it is moved to the right and down, of what is free.
    """
    side = _between(rng, ONE * least // 100, ONE * most // 100)
    return side, _between(rng, 0, ONE), _between(rng, 0, ONE)
