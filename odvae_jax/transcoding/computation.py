"""What the device computes on the blocks of one file, and how clips are cut for it."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Shaped, UInt8

from odvae_jax.autoencoder import ODVAE
from odvae_jax.baselines.base import Baseline
from odvae_jax.checks import check_continuous, check_untiled
from odvae_jax.inference import decode, encode_uint8
from odvae_jax.parameters import Autoencoder
from odvae_jax.pixels import VideoSize, to_uint8
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.tiling import SpatialTiling, Streaming, TemporalTiling, Tiling, in_time_and_space
from odvae_jax.tiling.from_host import decode_blocks, encode_blocks
from odvae_jax.transcoding.settings import NotFiniteError
from odvae_jax.types import AnyArray

DEFAULT_CHUNK = 32
"""The frames per chunk for models that can be streamed, if nothing else is said."""
_DEFAULT_GROUP = 33
_TILINGS = {t.__name__: t for t in (TemporalTiling, Streaming, SpatialTiling)}


def computation_of(
    vae: Autoencoder, tiling: tuple[Tiling, ...] | None, mesh: Mesh | None = None
) -> Computation | WholeComputation:
    """Returns how a model computes on the files of a run.

    Args:
      vae: the model.
      tiling: how clips are cut for it. What it does not say is chosen: for an OD-VAE that can be
        streamed `Streaming(32)`, for others `TemporalTiling(33)`. A baseline takes clips whole.
      mesh: the devices that the rows of frames are spread over; None for one device.

    Raises:
      ValueError: if the model cannot be tiled so, or has no continuous latents.
    """
    check_continuous(vae.config)
    if not isinstance(vae, Baseline):
        return Computation.of(vae, tiling, mesh)
    check_untiled(vae.config, tiling)
    return WholeComputation(vae, mesh)


@dataclasses.dataclass(frozen=True)
class Computation:
    """An OD-VAE, how clips are cut for it, and the devices it runs on.

    Attributes:
      vae: the model.
      time: how clips are cut in time.
      space: how frames are cut in space; None if they are not.
      mesh: the devices that the rows of frames are spread over; None for one device.
    """

    vae: ODVAE
    time: TemporalTiling | Streaming
    space: SpatialTiling | None
    mesh: Mesh | None

    @classmethod
    def of(
        cls, vae: ODVAE, tiling: tuple[Tiling, ...] | None, mesh: Mesh | None = None
    ) -> Computation:
        """Chooses how clips are cut where `tiling` does not say it.

        The choice is `Streaming(32)` for models that can be streamed and `TemporalTiling(33)` for
        others.

        Raises:
          ValueError: if the model cannot be tiled so.
        """
        time, space = in_time_and_space(tiling)
        if time is None:
            time = (
                Streaming(DEFAULT_CHUNK) if vae.config.streams else TemporalTiling(_DEFAULT_GROUP)
            )
        for one in filter(None, (time, space)):
            one.check(vae.config)
        return cls(vae, time, space, mesh)

    @property
    def programs_fit_all(self) -> bool:
        """Whether videos of all lengths share their programs."""
        return self.vae.config.streams

    @property
    def frames_per_block(self) -> int:
        """The number of frames per block of video, from the second block on."""
        return self.time.step

    @property
    def latent_frames_per_block(self) -> int:
        """The number of latent frames per block of latents, from the second block on."""
        return self.time.step // self.vae.config.time_compression

    def encode(
        self, blocks: Iterable[UInt8[np.ndarray, "1 n h w 3"]]
    ) -> Iterator[tuple[Float32[Array, "1 t y x c2"], int]]:
        """Encodes blocks of frames, uint8 [1, n, H, W, 3], to moments, float32 [1, t, h, w, 2 C].

        Results are yielded before the device has computed them. With each comes the number of its
        latent frames that count. The last block of a video is padded (see `padded_length`), so that
        videos of all lengths share their programs.
        """
        counts: collections.deque[int] = collections.deque()
        padded = self._padded(blocks, counts)
        for moments in encode_blocks(self.vae, padded, self.time, self.space, mesh=self.mesh):
            yield moments, counts.popleft()

    def _padded(self, blocks, counts):
        compression = self.vae.config.time_compression
        for number, block in enumerate(blocks):
            first, length = int(number == 0), block.shape[1]
            counts.append(-(-(length - first) // compression) + first)
            if more := self.padded_length(length, first=number == 0) - length:
                block = np.pad(block, ((0, 0), (0, more), *[(0, 0)] * 3), mode="edge")
            yield block

    def padded_length(self, length: int, *, first: bool) -> int:
        """Returns the number of frames that a block is padded to before it is encoded.

        It is that of a whole or of half a block, if nothing before the padding changes by it.
        Pictures stay as they are. Norms over the clip would see what is padded.

        Args:
          length: the number of frames of the block.
          first: whether it is the first of its video.
        """
        if not self.vae.config.streams or (first and length == 1):
            return length
        half = self.time.step // 2
        if half % self.vae.config.time_compression == 0 and length <= half + first:
            return half + first
        return self.time.step + first

    def decode(
        self,
        blocks: Iterable[Float32[AnyArray, "1 t y x c"]],
        count_frames: Callable[[], int],
    ) -> Iterator[tuple[UInt8[Array, "1 n h w 3"], Int[Array, ""]]]:
        """Decodes blocks of latents, float32 [1, t, h, w, C], to frames, uint8 [1, n, H, W, 3].

        Results are yielded before the device has computed them. With each block comes the number of
        its values that were not finite, which bytes cannot show any more.

        Args:
          blocks: the latents.
          count_frames: returns the number of frames of the video; it is not asked here.
        """
        decoded = decode_blocks(self.vae, blocks, self.time, self.space, mesh=self.mesh)
        return map(_to_bytes, decoded)

    def describe(self) -> dict[str, dict[str, int]]:
        """Returns the fields of each tiling by the tiling's name, as files of latents store it."""
        tilings = (self.time,) if self.space is None else (self.time, self.space)
        return {type(tiling).__name__: dataclasses.asdict(tiling) for tiling in tilings}


@dataclasses.dataclass(frozen=True)
class WholeComputation:
    """A baseline, which takes each clip whole, and the devices it runs on.

    It has what `Computation` has. Blocks are only read and stored; the model gets all of them
    together, and each length of a video has a program of its own.

    Attributes:
      vae: the model.
      mesh: the devices that the rows of frames are spread over; None for one device.
    """

    vae: Baseline
    mesh: Mesh | None

    programs_fit_all: ClassVar[bool] = False
    """Whether videos of all lengths share their programs."""
    frames_per_block: ClassVar[int] = DEFAULT_CHUNK
    """The number of frames per block of video, from the second block on."""
    latent_frames_per_block: ClassVar[int] = DEFAULT_CHUNK
    """The number of latent frames per block of latents, from the second block on."""

    def encode(
        self, blocks: Iterable[UInt8[np.ndarray, "1 n h w 3"]]
    ) -> Iterator[tuple[Float32[Array, "1 t y x c2"], int]]:
        """Encodes the blocks of a video together, uint8 [1, n, H, W, 3].

        Yields the moments, float32 [1, t, h, w, 2 C], and the number of their latent frames, once.
        A video of a length or of sides that the model does not take is padded: its last frame, row
        and column are repeated.
        """
        if (video := _joined(blocks)) is None:
            return
        posterior = encode_uint8(self.vae, video, pad=True, mesh=self.mesh)
        moments = jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)
        yield moments, moments.shape[1]

    def decode(
        self,
        blocks: Iterable[Float32[AnyArray, "1 t y x c"]],
        count_frames: Callable[[], int],
    ) -> Iterator[tuple[UInt8[Array, "1 n h w 3"], Int[Array, ""]]]:
        """Decodes blocks of latents together, float32 [1, t, h, w, C], to uint8 [1, T, H, W, 3].

        Yields the frames, with those that were padded, and the number of their values that were not
        finite, once.

        Args:
          blocks: the latents.
          count_frames: returns the number of frames of the video; it is asked after the last block.
        """
        if (latents := _joined(blocks)) is None:
            return
        config = self.vae.config
        frames = config.clip_size(count_frames(), 1, 1)[0]
        size = VideoSize(*config.video_shape(latents.shape, frames)[1:4])
        yield _to_bytes(decode(self.vae, latents, size=size, mesh=self.mesh))

    def describe(self) -> dict[str, dict[str, int]]:
        """Returns no tilings, as files of latents store it."""
        return {}


def _joined(blocks):
    """Returns blocks joined in time, on the host or on the device; None if there are none."""
    parts = list(blocks)
    if len(parts) < 2:
        return parts[0] if parts else None
    concatenate = np.concatenate if isinstance(parts[0], np.ndarray) else jnp.concatenate
    return concatenate(parts, axis=1)


class ModelOnDevices:
    """A model that is copied to each device that asks for it, once.

    Args:
      vae: the model.
    """

    def __init__(self, vae: Autoencoder):
        self._vae, self._copies, self._lock = vae, {}, threading.Lock()

    def on(self, device: jax.Device | None) -> Autoencoder:
        """Returns the model on a device; for None as it is."""
        if device is None:
            return self._vae
        with self._lock:
            if device not in self._copies:
                self._copies[device] = jax.device_put(self._vae, device)
            return self._copies[device]


@jax.jit
def _to_bytes(frames):
    """Frames in uint8, and how many values of them were not finite."""
    return to_uint8(frames), jnp.sum(~jnp.isfinite(frames))


def check_finite(bad: int, count: int, what: str) -> None:
    """Checks that everything that a model computed is finite.

    Args:
      bad: the number of values that are not finite.
      count: the number of values.
      what: what the message calls the values.

    Raises:
      NotFiniteError: if there are values that are not finite.
    """
    if bad:
        raise NotFiniteError(
            f"{bad} of {count} values of {what} are not finite; the model or its --dtype may not "
            "be fit for it."
        )


def content_of(
    posterior: DiagonalGaussian, content: str, rng: np.random.Generator
) -> Float32[np.ndarray, "*positions c"]:
    """Returns what is stored of a posterior, [..., C]; for moments, [..., 2 C].

    Args:
      posterior: the posterior, NumPy arrays.
      content: "mean", "moments" (mean and log-variance, side by side) or "sample".
      rng: what the noise of a sample is drawn from.
    """
    if content == "moments":
        return np.concatenate([posterior.mean, posterior.logvar], axis=-1)
    if content == "sample":
        noise = rng.standard_normal(posterior.mean.shape, np.float32)
        return posterior.mean + np.exp(0.5 * posterior.logvar) * noise
    return posterior.mean


def as_clips(
    blocks: Iterable[Shaped[np.ndarray, "n ..."]],
) -> Iterator[Shaped[np.ndarray, "1 n ..."]]:
    """Yields blocks of one video [n, ...] as batches of one clip [1, n, ...]."""
    return (block[None] for block in blocks)


def override_tiling(
    described: dict[str, dict[str, int]], tiling: tuple[Tiling, ...] | None
) -> tuple[Tiling, ...]:
    """Returns the tilings that a file of latents describes, replaced where others are given.

    Args:
      described: what `Computation.describe` returned.
      tiling: tilings that replace those in time or in space.

    Raises:
      ValueError: if `tiling` is not one tiling in time and one in space at most.
    """
    made = in_time_and_space(tuple(_TILINGS[name](**fields) for name, fields in described.items()))
    given = in_time_and_space(tiling)
    return tuple(filter(None, (g or m for g, m in zip(given, made, strict=True))))
