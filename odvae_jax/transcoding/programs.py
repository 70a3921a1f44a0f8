"""Programs for whole videos, compiled side by side before the first video is read."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from odvae_jax.config import IMAGE_CHANNELS
from odvae_jax.data.sources import Files
from odvae_jax.data.video import scaled_size, within
from odvae_jax.files import printable
from odvae_jax.transcoding.computation import Computation, ModelOnDevices, WholeComputation
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.settings import Settings

logger = logging.getLogger(__name__)
AT_ONCE = 2
"""Programs that are compiled at the same time. More disturb each other's autotuning on a GPU: five
took 38 s one by one, 28 s by twos, and 70 s all at once on an H100."""
_FEW = 4  # frame sizes, each of up to five programs
_LOOKED_AT = 256  # videos; the sizes of others are compiled when they come
_READERS = 8  # files whose headers are read at the same time


def sizes_of(jobs: Sequence[Job], settings: Settings) -> set[tuple[int, int, int]]:
    """Returns the frames, rows and columns that the headers of videos promise, after scaling.

    Only the first few hundred videos are looked at, so that the first one need not wait long.
    Videos whose header cannot be read are left out; what is wrong is said when their turn comes.

    Args:
      jobs: the videos.
      settings: how they are scaled and cut.
    """

    def size(job):
        try:
            files = Files([(str(job.source), None, None)])
            files.timeout = settings.read_timeout
            name = printable(job.source)
            header = within(settings.read_timeout, name, files.header, 0)
        except Exception:
            return None
        width, height = scaled_size(header.width, header.height, settings.short_side)
        if settings.size is not None:
            height = width = settings.size
        return header.frames, height, width

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return set(filter(None, pool.map(size, jobs[:_LOOKED_AT])))


def compile_ahead(
    computation: Computation | WholeComputation,
    models: ModelOnDevices,
    devices: Sequence[jax.Device | None],
    sizes: Iterable[tuple[int, int, int]],
) -> None:
    """Compiles the encoder's programs for videos of some sizes, for all devices.

    Where there are more than a few sizes, the first video would wait too long: then each program is
    compiled when a video needs it, and so are those of a baseline, one for each length. What cannot
    be compiled is left; the reason is said then, too.

    Args:
      computation: how videos are cut.
      models: the model on each device.
      devices: the devices.
      sizes: frames, rows and columns of the videos.
    """
    if isinstance(computation, WholeComputation):
        return
    wanted = {(lengths, h, w) for t, h, w in sizes for lengths in [_lengths(computation, t)]}
    # What needs no more than another does is compiled with it.
    wanted = {
        one
        for one in wanted
        if not any(one[1:] == other[1:] and _begins(one[0], other[0]) for other in wanted)
    }

    if len({(height, width) for _, height, width in wanted}) > _FEW:
        return

    def run(pair):
        (lengths, height, width), device = pair
        blocks = (np.zeros((1, n, height, width, IMAGE_CHANNELS), np.uint8) for n in lengths)
        try:
            with jax.default_device(device):
                ours = dataclasses.replace(computation, vae=models.on(device))
                jax.block_until_ready([moments for moments, _ in ours.encode(blocks)])
        except Exception as error:
            logger.debug("%s frames of %d×%d: %s", lengths, height, width, error)

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for some in (devices[:1], devices[1:]):  # the others take them from JAX's cache
            list(pool.map(run, [(size, device) for size in sorted(wanted) for device in some]))


def _lengths(computation: Computation, frames: int) -> tuple[int, ...]:
    """The lengths of blocks that programs differ in, of a video with so many frames."""
    return tuple(dict.fromkeys(_every_length(computation, frames)))


def _every_length(computation, frames) -> Iterator[int]:
    step = computation.frames_per_block
    first = min(frames, step + 1)
    yield computation.padded_length(first, first=True)
    whole, rest = divmod(frames - first, step)
    if whole:
        yield step
    if rest:
        yield computation.padded_length(rest, first=False)


def _begins(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) < len(other) and other[: len(one)] == one
