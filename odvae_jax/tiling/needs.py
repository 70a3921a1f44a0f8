"""What a device needs to compute a batch of clips whole or in parts, by XLA's own figures.

XLA says of a compiled program how much memory it needs. This is nearly linear in the number of
frames, so two short clips per frame size say what longer ones will need.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Shaped

from odvae_jax.autoencoder import ODVAE
from odvae_jax.compilation import is_too_large
from odvae_jax.config import ODVAEConfig
from odvae_jax.layers.carry import START
from odvae_jax.sharding import clip_sharding
from odvae_jax.tiling.from_host import lower_part
from odvae_jax.tiling.spatial import SpatialTiling
from odvae_jax.tiling.streaming import Streaming
from odvae_jax.tiling.temporal import TemporalTiling
from odvae_jax.types import AnyArray

logger = logging.getLogger(__name__)
Parts = tuple[TemporalTiling | Streaming | SpatialTiling, ...]
"""One tiling in time, one in space, both, or none for the whole clip."""
UNKNOWABLE = math.inf
"""What a program needs that cannot even be compiled for lack of memory."""
SHORT = 16
"""The frames of the first short clip, but for one; the second one has twice as many."""
_TILE = 16  # the side, in latents, of the tile that is compiled where no whole frame can be


@dataclasses.dataclass(frozen=True)
class Work:
    """What is computed of one batch of clips.

    Attributes:
      shape: the shape of the video [B, T, H, W, 3], with sides that the model takes, or of the
        latents [B, t, h, w, C].
      dtype: the dtype of the video or the latents on the device.
      encodes: whether they are encoded; otherwise they are decoded.
      uint8: whether frames are decoded to uint8 instead of float32.
      on_device: whether the whole clip, and later the whole result, is on the device; otherwise
        parts come from the host and go there.
      sharding: how the clips are spread; None if they are on one device.
    """

    shape: tuple[int, ...]
    dtype: str
    encodes: bool
    uint8: bool = True
    on_device: bool = False
    sharding: Sharding | None = None

    @classmethod
    def of(
        cls,
        x: Shaped[AnyArray, "b t h w c"],
        config: ODVAEConfig,
        mesh: Mesh | None,
        *,
        encodes: bool,
        uint8: bool,
    ) -> Work:
        """Returns what is computed of an array.

        Args:
          x: the video, of any size, or the latents.
          config: the config of the model.
          mesh: the devices that share clips and rows; None leaves the array where it lies.
          encodes: whether `x` is a video.
          uint8: whether frames are decoded to uint8.
        """
        shape, on_device = tuple(x.shape), isinstance(x, jax.Array)
        if encodes:
            shape = (shape[0], *config.clip_size(*shape[1:4]), shape[4])
        sharding = x.sharding if on_device and x.committed else None
        sharding = sharding if mesh is None else clip_sharding(mesh)
        dtype = jax.dtypes.canonicalize_dtype(x.dtype).name
        return cls(shape, dtype, encodes, uint8, on_device, sharding)

    def frames(self, config: ODVAEConfig) -> int:
        """Returns the number of frames of the video."""
        return self.shape[1] if self.encodes else config.video_shape(self.shape)[1]

    def sides(self, config: ODVAEConfig) -> tuple[int, int]:
        """Returns the numbers of rows and columns of the video."""
        return self.shape[2:4] if self.encodes else config.video_shape(self.shape)[2:4]

    def cut(self, length: int) -> jax.ShapeDtypeStruct:
        """Returns a part of so many frames of the video, or latent frames."""
        shape = (self.shape[0], length, *self.shape[2:])
        return jax.ShapeDtypeStruct(shape, self.dtype, sharding=self.sharding)

    def bytes_in(self, length: int) -> int:
        """Returns the bytes per device of a part of what goes in."""
        return bytes_of(self.cut(length))

    def bytes_out(self, length: int, config: ODVAEConfig) -> int:
        """Returns the bytes per device of what comes out for a part of what goes in."""
        part = self.cut(length).shape
        if self.encodes:
            shape, size = config.latent_shape(part), 8  # mean and log-variance, float32
        else:
            shape, size = config.video_shape(part), 1 if self.uint8 else 4
        return math.prod(shape) * size // self.devices

    @property
    def devices(self) -> int:
        """The number of parts that a batch of clips is spread in."""
        if self.sharding is None:
            return 1
        return max(math.prod(self.shape) // math.prod(self.sharding.shard_shape(self.shape)), 1)


_LINES: dict[Any, tuple[float, float]] = {}
_COMPILED: dict[Any, float] = {}


class Needs:
    """What the ways to compute one batch of clips need of a device, in bytes.

    Args:
      vae: the model.
      work: what is computed.
    """

    def __init__(self, vae: ODVAE, work: Work):
        self._vae, self._work, self._config = vae, work, vae.config
        self._model = sum(map(bytes_of, jax.tree.leaves(vae)))

    def known(self, tilings: Parts) -> float | None:
        """Returns the figure of a way that was compiled; None if it was not."""
        temporary = _COMPILED.get(self._program(tilings))
        return None if temporary is None else self._held(tilings) + temporary

    def compiled(self, tilings: Parts) -> float:
        """Compiles a way and returns its figure."""
        time, space = _split(tilings)
        try:
            temporary = self._temporary(*self._heaviest(time, space), space)
        except jax.errors.JaxRuntimeError as error:
            if not is_too_large(error):
                raise
            logger.info("%s cannot be compiled for lack of memory", tilings or "the whole clip")
            temporary = UNKNOWABLE
        _COMPILED[self._program(tilings)] = temporary
        return self._held(tilings) + temporary

    def predicted(self, tilings: Parts) -> float:
        """Returns the figure that two short clips promise; 0 for a clip that is short itself."""
        time, space = _split(tilings)
        length, total = self._lengths(time)[0], self._work.shape[1]
        if not tilings and total <= self._length(2 * SHORT):
            return 0.0
        whole = _COMPILED.get(self._program(()))
        if total <= self._length(2 * SHORT) and whole is not None:
            constant, slope = (0.0, whole / total) if whole < UNKNOWABLE else (UNKNOWABLE, 0.0)
        else:
            constant, slope = self._line(self._work)
        held = self._held(tilings)
        if space is None:
            return held + constant + slope * length
        sides = self._work.sides(self._config)
        if constant == UNKNOWABLE:  # not even a short clip can be compiled: one tile of it
            sides = [min(side, _TILE * self._config.space_compression) for side in sides]
            constant, slope = self._line(self._of_size(*sides))
        share = math.prod(min(space.tile, side) / side for side in sides)
        return held + constant + slope * length * share

    def _of_size(self, height: int, width: int) -> Work:
        """The work on smaller frames."""
        unit = 1 if self._work.encodes else self._config.space_compression
        b, t, _, _, c = self._work.shape
        return dataclasses.replace(self._work, shape=(b, t, height // unit, width // unit, c))

    def _held(self, tilings: Parts) -> float:
        """The bytes of the model, and of what is on the device before and after a part."""
        time, _ = _split(tilings)
        length, work, config = self._lengths(time)[0], self._work, self._config
        part_in, part_out = work.bytes_in(length), work.bytes_out(length, config)
        all_in, all_out = work.bytes_in(work.shape[1]), work.bytes_out(work.shape[1], config)
        if time is None:
            return self._model + all_in + all_out
        if work.on_device:  # the parts of the result, and then the result
            return self._model + all_in + 2 * part_in + 2 * all_out
        return self._model + 2 * part_in + 3 * part_out  # one computed, one on its way

    def _lengths(self, time) -> tuple[int, int]:
        """The lengths of the longest part that is computed, and of the part after the first."""
        total = self._work.shape[1]
        if time is None:
            return total, 0
        step = time.step if self._work.encodes else time.step // self._config.time_compression
        return min(step + 1, total), min(step, total - step - 1)

    def _length(self, step: int) -> int:
        """The length of a first part, in frames of the video or of the latents."""
        step = max(step, self._config.time_compression)
        return (step if self._work.encodes else step // self._config.time_compression) + 1

    def _line(self, work: Work) -> tuple[float, float]:
        """What a program needs for no frame, and for each, besides what goes in and comes out."""
        key = program_key(self._vae, work)
        if key not in _LINES:
            short, long = (self._length(n * SHORT) for n in (1, 2))
            figures = Needs(self._vae, work)
            try:
                less, more = (figures._temporary(n, None, True, None) for n in (short, long))
                slope = max(more - less, 0) / (long - short)
                _LINES[key] = (max(less - slope * short, 0.0), slope)
            except jax.errors.JaxRuntimeError as error:
                if not is_too_large(error):
                    raise
                _LINES[key] = (UNKNOWABLE, 0.0)
        return _LINES[key]

    def _heaviest(self, time, space) -> tuple[int, Any, bool]:
        """The length of the part that needs most, the state before it, and whether it is last."""
        first, second = self._lengths(time)
        if not isinstance(time, Streaming):
            return first, None, True
        compiled = self._lower(first, START, False, space).compile()
        state = compiled.out_info[1]
        if self._work.sharding is not None:
            state = jax.tree.map(
                lambda leaf, lies: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies),
                state,
                compiled.output_shardings[1],
            )
        return second, state, first + second == self._work.shape[1]

    def _temporary(self, length: int, state: Any, final: bool, space) -> float:
        """The bytes of a compiled program besides its arguments and the array that comes out."""
        memory = self._lower(length, state, final, space).compile().memory_analysis()
        needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
        before = sum(map(bytes_of, jax.tree.leaves(state)))
        return needed + before - self._work.bytes_out(length, self._config)

    def _lower(self, length: int, state: Any, final: bool, space) -> jax.stages.Lowered:
        work = self._work
        how = {"encodes": work.encodes, "uint8": work.uint8}
        return lower_part(self._vae, work.cut(length), state, final, space, **how)

    def _program(self, tilings: Parts) -> Any:
        """What tells the program of the heaviest part from others."""
        time, space = _split(tilings)
        first, second = self._lengths(time)
        part = (first,)
        if isinstance(time, Streaming):
            part = (first, second, first + second == self._work.shape[1])
        return program_key(self._vae, self._work), part, space


def forget() -> None:
    """Forgets all figures, for when programs become others, as under `without_kernels`."""
    _LINES.clear()
    _COMPILED.clear()


def _split(tilings: Parts) -> tuple[TemporalTiling | Streaming | None, SpatialTiling | None]:
    time = [tiling for tiling in tilings if not isinstance(tiling, SpatialTiling)]
    space = [tiling for tiling in tilings if isinstance(tiling, SpatialTiling)]
    return (*time, None)[0], (*space, None)[0]


def program_key(vae: ODVAE, work: Work) -> Any:
    """Returns what decides the memory of a program, but for the number of frames and the tiling."""
    b, _, h, w, c = work.shape
    uint8 = work.uint8 or work.encodes  # of what is decoded alone
    kind = dataclasses.replace(work, shape=(b, 0, h, w, c), on_device=False, uint8=uint8)
    return vae.config, getattr(jax.tree.leaves(vae)[0], "sharding", None), kind


def bytes_of(leaf: Any) -> int:
    """Returns the bytes of an array, or of a shape, per device."""
    shape, sharding = tuple(np.shape(leaf)), getattr(leaf, "sharding", None)
    shape = shape if sharding is None else sharding.shard_shape(shape)
    return math.prod(shape) * jnp.dtype(leaf.dtype).itemsize
