"""The largest way to cut a clip that a device's memory takes: `tiling="auto"`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from odvae_jax.autoencoder import ODVAE
from odvae_jax.compilation import is_too_large, room_on
from odvae_jax.config import ODVAEConfig
from odvae_jax.sharding import clip_sharding, replicate
from odvae_jax.tiling import needs
from odvae_jax.tiling.needs import SHORT, UNKNOWABLE, Needs, Parts, Work, bytes_of, program_key
from odvae_jax.tiling.spatial import SpatialTiling
from odvae_jax.tiling.streaming import Streaming
from odvae_jax.tiling.temporal import TemporalTiling
from odvae_jax.types import whole_numbers

logger = logging.getLogger(__name__)
T = TypeVar("T")
KEPT_FREE = 0.1
"""The share of the memory that no choice plans for."""
_TILES = (64, 32, 16, 8)  # sides, in positions of the latents
_MOST_COMPILED = 2  # candidates per choice; those after them are judged by prediction
_TOO_HIGH = 0.05  # so far above the truth may a prediction be: what is compiled is known better
_FAILED: dict[Any, float] = {}  # the room that did not suffice for a way all the same
_SAID: set[Any] = set()

_QUARTER = 4  # neighbouring tiles share a quarter of their side


@dataclasses.dataclass(frozen=True)
class AutoTiling:
    """Chooses the tiling by what compiled programs need and what the device has.

    In this order: the whole clip, the longest groups or chunks of frames (chunks if the model can
    be streamed), and then tiles of frames. A tenth of the memory is kept free.

    Args:
      memory: the bytes that the model, the clip and the program may take together on a device. None
        takes what the device has, less what other arrays take there; a CPU does not say it.

    Raises:
      ValueError: if `memory` is neither None nor a whole number of at least 1.
    """

    memory: int | None = None

    def __post_init__(self):
        if self.memory is not None:
            whole_numbers(self, "bytes", "memory", least=1)

    @classmethod
    def of(cls, tiling: Any) -> AutoTiling | None:
        """Returns what `tiling` asks for, "auto" included; None if it names tilings, or none."""
        if isinstance(tiling, str) and tiling == "auto":
            return cls()
        return tiling if isinstance(tiling, cls) else None


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way to cut clips, and why it was chosen.

    Attributes:
      tilings: the tilings in time and in space; empty for the whole clip.
      needed: the bytes that it needs per device.
      room: the bytes that there are, without the tenth that is kept free.
      loss: why the numbers are not those of the whole clip; empty if they are.
      work: what is computed.
    """

    tilings: Parts
    needed: float
    room: float
    loss: str
    work: Work

    @property
    def way(self) -> str:
        """The tilings in words."""
        return " and ".join(map(repr, self.tilings)) or "whole"

    def __str__(self):
        what = "×".join(map(str, self.work.shape[:4]))
        fits = "" if self.needed <= self.room else ", the least there is"
        figures = f"needs {_gigabytes(self.needed)} of {_gigabytes(self.room)} GB{fits}"
        loss = self.loss and f"; the numbers are not those of whole clips: {self.loss}"
        verb = "encode" if self.work.encodes else "decode latents"
        return f'tiling="auto": {verb} {what}: {self.way}, {figures}{loss}'


def choose(
    vae: ODVAE,
    shape: tuple[int, ...],
    *,
    encodes: bool,
    memory: int | None = None,
    uint8: bool = True,
    mesh: Mesh | None = None,
) -> Parts:
    """Returns the largest way to cut clips that come from the host which the device takes.

    It is said in the log. What was compiled to find out is kept and used when clips of this shape
    are computed with the tilings that are returned.

    Args:
      vae: the model.
      shape: the shape of the video, [B, T, H, W, 3], of any size, or of the latents,
        [B, t, h, w, C].
      encodes: whether it is the shape of a video, which is to be encoded.
      memory: the bytes that there are; see `AutoTiling`.
      uint8: whether the video is uint8, or becomes uint8; otherwise it is float32.
      mesh: the devices that share clips and rows; None for one device.

    Returns:
      One tiling in time, one in space, both, or none for the whole clip.

    Raises:
      ValueError: if `memory` is None and the device does not say how much it has.
    """
    config = vae.config
    if encodes:
        shape = (shape[0], *config.clip_size(*shape[1:4]), shape[4])
    dtype = "uint8" if encodes and uint8 else "float32"
    sharding = None
    if mesh is not None:
        vae, sharding = replicate(vae, mesh), clip_sharding(mesh)
    work = Work(tuple(shape), dtype, encodes, uint8=uint8, sharding=sharding)
    choice = next(choices(vae, work, AutoTiling(memory)))
    _say(choice, vae)
    return choice.tilings


def run_largest(
    run: Callable[[Parts], T],
    vae: ODVAE,
    work: Work,
    auto: AutoTiling,
    *,
    most: int | None = None,
) -> T:
    """Returns what a function returns for the first choice for which the memory suffices.

    Choices that run out of memory all the same are said in the log, and are not tried again with no
    more memory than there was.

    Args:
      run: computes with tilings, and waits for the device.
      vae: the model.
      work: what is computed.
      auto: what memory there is.
      most: the most frames of a part that is tried, but for one; None for no limit.

    Raises:
      JaxRuntimeError: if the memory does not suffice for the smallest choice, or if `run` raises it
        for another reason.
      ValueError: if it is not known what memory there is.
    """
    failure = None
    for choice in choices(vae, work, auto, most=most):
        _say(choice, vae)
        try:
            return run(choice.tilings)
        except jax.errors.JaxRuntimeError as error:
            if not is_too_large(error):
                raise
            failure = error.with_traceback(None)  # whose frames would keep arrays alive
        _FAILED[_way(vae, work, choice.tilings)] = choice.room
        logger.warning(
            'tiling="auto": %s ran out of memory all the same, with %s GB where %s were needed: '
            "the next smaller way is taken",
            choice.way,
            _gigabytes(choice.room),
            _gigabytes(choice.needed),
        )
    failure.add_note('tiling="auto" has no smaller way: take smaller frames, or fewer clips.')
    raise failure


def choices(
    vae: ODVAE, work: Work, auto: AutoTiling, *, most: int | None = None
) -> Iterator[Choice]:
    """Yields the largest way that fits, and then smaller ones, for the case that it does not.

    At most two of them are compiled; the figures of others are predictions. If none fits, the
    smallest one is yielded.

    Args:
      vae: the model.
      work: what is computed.
      auto: what memory there is.
      most: the most frames of a part that is tried, but for one; None for no limit.

    Raises:
      ValueError: if it is not known what memory there is.
    """
    room = _room(vae, work, auto)
    figures = Needs(vae, work)
    every = _candidates(vae.config, work, most)
    compiled, low = 0, 1.0  # by how much predictions were too low
    for tilings in every:
        if room <= _FAILED.get(_way(vae, work, tilings), 0) and tilings != every[-1]:
            continue
        needed = figures.known(tilings)
        if needed is None:
            needed = predicted = figures.predicted(tilings) * low
            can_fit = predicted <= room * (1 + _TOO_HIGH) or tilings == every[-1]
            if can_fit and compiled < _MOST_COMPILED:
                needed, compiled = figures.compiled(tilings), compiled + 1
                if 0 < predicted < needed < UNKNOWABLE:
                    low *= needed / predicted
        if needed <= room or tilings == every[-1]:
            yield Choice(tilings, needed, room, _loss(vae.config, tilings), work)


def whole_clip(config: ODVAEConfig, frames: int) -> TemporalTiling:
    """Returns groups of which one holds a clip of so many frames."""
    step = config.time_compression
    return TemporalTiling(max(config.clip_size(frames, 1, 1)[0], step + 1))


def forget() -> None:
    """Forgets what was compiled, what did not fit and what was said."""
    _FAILED.clear()
    _SAID.clear()
    needs.forget()


def _way(vae: ODVAE, work: Work, tilings: Parts) -> Any:
    return program_key(vae, work), work.shape[1], tilings


def _candidates(config: ODVAEConfig, work: Work, most: int | None) -> list[Parts]:
    """Every way to cut clips that is tried, the largest first."""
    frames, sides, unit = work.frames(config), work.sides(config), config.space_compression
    made = Streaming if config.streams else lambda step: TemporalTiling(step + 1)
    steps, step = [], max(SHORT, config.time_compression)
    while step + 1 < frames:
        steps, step = [step, *steps], 2 * step
    shortest = (made(steps[-1]),) if steps else ()
    spread = work.sharding is not None
    if spread and work.sharding.shard_shape(work.shape)[2] < work.shape[2]:
        tiles = []  # rows that lie on several devices are not tiled
    else:
        tiles = [tile * unit for tile in _TILES if tile * unit < max(sides)]
    in_space = [(*shortest, SpatialTiling(tile, tile // _QUARTER)) for tile in tiles]
    in_time = [(), *((made(step),) for step in steps if most is None or step <= most)]
    whole_is_tried = most is None or frames <= most + 1 or len(in_time) == 1
    return [*in_time[0 if whole_is_tried else 1 :], *in_space]


def _loss(config: ODVAEConfig, tilings: Parts) -> str:
    """Why tilings change the numbers; empty if they do not."""
    if all(isinstance(tiling, Streaming) for tiling in tilings):
        return ""
    if not config.streams:
        return "norms over the clip see a part of it, and parts do not see their neighbours"
    return "tiles do not see their neighbours"


def _room(vae: ODVAE, work: Work, auto: AutoTiling) -> float:
    """The bytes per device for model, clip and program; a tenth of what there is stays free."""
    if auto.memory is not None:
        return (1 - KEPT_FREE) * auto.memory
    if work.sharding is not None:
        devices = work.sharding.addressable_devices
    else:
        leaf = jax.tree.leaves(vae)[0]
        devices = leaf.devices() if isinstance(leaf, jax.Array) else jax.local_devices()[:1]
    own = sum(bytes_of(leaf) for leaf in jax.tree.leaves(vae) if isinstance(leaf, jax.Array))
    own += work.bytes_in(work.shape[1]) if work.on_device else 0
    room = room_on(devices, own, share=1 - KEPT_FREE)
    if room is None:
        raise ValueError(
            f'tiling="auto": the device {next(iter(devices)).device_kind} does not say how much '
            "memory it has. Say it with AutoTiling(memory=BYTES), or name a tiling, such as "
            "TemporalTiling(33)."
        )
    return room


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g}"


def _say(choice: Choice, vae: ODVAE) -> None:
    """Says a choice, once; louder if it changes the numbers."""
    what = _way(vae, choice.work, choice.tilings)
    if what not in _SAID:
        _SAID.add(what)
        logger.log(logging.WARNING if choice.loss else logging.INFO, "%s", choice)
