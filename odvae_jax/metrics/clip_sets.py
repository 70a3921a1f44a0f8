"""Sets of clips, made into the vectors by which generated clips are compared with real ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Num
from tqdm import tqdm

from odvae_jax.files import printable
from odvae_jax.metrics.c3d import FRAMES, VideoClassifier, load_classifier
from odvae_jax.metrics.feature_cache import FeatureCache, content_key
from odvae_jax.metrics.i3d import LEAST_FRAMES, TorchI3D, VideoFeatures, load_i3d
from odvae_jax.pixels import to_uint8, to_unit_range
from odvae_jax.sharding import clip_sharding, make_mesh

COUNT = 2048
"""The number of clips of either kind that published numbers are of."""
FIRST = "first"
"""What the features of the first 16 frames of a clip are called."""
EVERY = "all"
"""What the features of all frames of a clip are called."""
PROBABILITIES = "classes"
"""What the probabilities of a clip's classes are called."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """The trained networks that the metrics need.

    Attributes:
      features: the network whose features FVD and KVD compare; None if it is missing.
      classifier: the network whose classes the Inception score takes; None if it is missing.
      missing: the reason why a network is missing, by the field's name.
    """

    features: VideoFeatures | None = None
    classifier: VideoClassifier | None = None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


def load_networks(
    *,
    i3d: str | os.PathLike | None = None,
    c3d: str | os.PathLike | None = None,
    mean: str | os.PathLike | None = None,
    trust_torchscript: bool = False,
) -> Networks:
    """Loads I3D and C3D. What was not given and is not installed is noted as missing.

    Args:
      i3d: the path of an `i3d_torchscript.pt` to use instead of this package's I3D.
      c3d: the path of C3D's weights, `.npz` or TorchScript.
      mean: the path of the mean clip of an `.npz`; None takes `mean2.npz` beside the weights.
      trust_torchscript: whether TorchScript files may run: they are programs.

    Raises:
      FileNotFoundError: if a file was given and cannot be found.
      ValueError: if a file is damaged, holds something else, or is a program that is not trusted.
    """
    features, classifier, missing = None, None, {}
    try:
        if i3d is not None:
            features = TorchI3D(i3d, trust_torchscript=trust_torchscript)
        else:
            features = load_i3d()
    except FileNotFoundError as error:
        if i3d is not None:
            raise
        missing["features"] = str(error).rstrip(".")
    try:
        classifier = load_classifier(c3d, mean=mean, trust_torchscript=trust_torchscript)
    except FileNotFoundError as error:
        if c3d is not None:
            raise
        missing["classifier"] = str(error).rstrip(".")
    return Networks(features, classifier, missing)


@dataclasses.dataclass(frozen=True)
class ClipSet:
    """What the networks made of a set of clips.

    Attributes:
      what: what the clips are, "real" or "generated", for messages.
      asked: the number of clips that were asked for.
      names: the names of the clips that are finite, in their order. Several clips of one video have
        one name.
      not_finite: the names of clips with values that are not finite, before or after a network.
        They are in no metric.
      shape: the frames, rows and columns of a clip.
      vectors: one row per clip of `names`, by what they are: the features of the "first" 16 frames,
        the features of "all" frames, and the probabilities of the "classes".
      networks: what tells the networks of the vectors from others, by what the vectors are.
      missing: the reason why vectors are missing, by what they are.
    """

    what: str
    asked: int
    names: tuple[str, ...]
    not_finite: tuple[str, ...]
    shape: tuple[int, int, int]
    vectors: dict[str, Float[np.ndarray, "n _"]]
    networks: dict[str, str]
    missing: dict[str, str]


def set_of_clips(
    clips: Iterable[tuple[str, Num[np.ndarray, "_ _ _ 3"]]],
    networks: Networks,
    *,
    what: str,
    classes: bool = True,
    count: int = COUNT,
    cache: FeatureCache | None = None,
    batch: int = 1,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> ClipSet:
    """Reads clips and makes them into the vectors that the metrics compare.

    Args:
      clips: the name and the frames of each clip, [T, H, W, 3], all of one shape: uint8, or
        floating point in [-1, 1], which is rounded to 8 bits. They are read one after another.
      networks: the networks.
      what: what the clips are, "real" or "generated", for messages.
      classes: whether the probabilities of classes are computed, which only generated clips need.
      count: the number of clips that are read at most.
      cache: where vectors are kept between calls; None computes all.
      batch: the number of clips per device and call. The vectors do not depend on it.
      devices: the devices to use; None uses all devices of this process.
      progress: whether a progress bar is shown.

    Raises:
      ValueError: if there is no clip, or a clip has another shape or dtype than it should; the
        message names the clip.
    """
    total = min(count, len(clips)) if hasattr(clips, "__len__") else count
    devices = list(jax.local_devices() if devices is None else devices)
    devices = devices[: max(1, min(len(devices), -(-total // batch)))]
    runner: _Runner | None = None
    names: list[str] = []
    keys: list[dict[str, str] | None] = []  # None for a clip that is not finite
    shape: tuple[int, ...] = ()
    with tqdm(total=total, unit="clip", desc=what, dynamic_ncols=True, disable=not progress) as bar:
        for name, frames in _first(clips, count):
            _check_clip(what, name, frames, shape)
            if runner is None:
                shape = frames.shape
                parts, missing = _parts(networks, shape[0], classes)
                runner = _Runner(parts, cache or FeatureCache(), batch, devices)
            names.append(name)
            keys.append(runner.add(_eight_bits(frames)) if np.isfinite(frames).all() else None)
            bar.update()
        if runner is None:
            raise ValueError(f"there are no {what} clips; expected {count}.")
        runner.finish()
    return _set(what, count, names, keys, shape[:3], runner, missing)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One kind of vectors: which frames go through which network."""

    network: Any
    classes: bool
    frames: slice

    @property
    def digest(self) -> str:
        """What tells these vectors from those of other networks."""
        return f"{'classes' if self.classes else 'features'}-{self.network.digest}"

    def vectors(self, clips: jax.Array) -> np.ndarray:
        """The vectors of uint8 clips."""
        if self.classes:
            return np.asarray(self.network.probabilities(clips))
        return np.asarray(self.network.features(to_unit_range(clips)))


def _parts(
    networks: Networks, frames: int, classes: bool
) -> tuple[dict[str, _Part], dict[str, str]]:
    """The kinds of vectors that clips of so many frames can have, and why others are missing."""
    first, every = slice(FRAMES), slice(None)
    wanted = {
        FIRST: ("features", FRAMES, first),
        EVERY: ("features", LEAST_FRAMES, every),
    }
    if classes:
        wanted[PROBABILITIES] = ("classifier", FRAMES, first)
    parts, missing = {}, {}
    for name, (field, least, which) in wanted.items():
        network = getattr(networks, field)
        if network is None:
            missing[name] = networks.missing.get(field, "no network was given")
        elif frames < least:
            missing[name] = f"needs clips of {least} frames; these have {frames}"
        else:
            parts[name] = _Part(network, field == "classifier", which)
    return parts, missing


class _Runner:
    """Collects clips that have no vector yet, and runs them in batches of one size."""

    def __init__(
        self,
        parts: dict[str, _Part],
        cache: FeatureCache,
        batch: int,
        devices: Sequence[jax.Device],
    ):
        self.parts, self._cache = parts, cache
        self._sharding = clip_sharding(make_mesh(devices=devices))
        self._size = batch * len(devices)
        self._waiting: dict[str, dict[str, np.ndarray]] = {name: {} for name in parts}
        self._found: dict[tuple[str, str], np.ndarray] = {}  # by digest and key

    def add(self, frames: np.ndarray) -> dict[str, str]:
        """Takes a uint8 clip; returns its key for each kind of vectors."""
        keys = {}
        for name, part in self.parts.items():
            clip = frames[part.frames]
            keys[name] = key = content_key(clip)
            if (part.digest, key) in self._found or self._waits(part.digest, key):
                continue
            known = self._cache.get(part.digest, key)
            if known is not None:
                self._found[part.digest, key] = known
                continue
            self._waiting[name][key] = clip
            if len(self._waiting[name]) == self._size:
                self._run(name)
        return keys

    def finish(self) -> None:
        """Runs what is left."""
        for name in self.parts:
            if self._waiting[name]:
                self._run(name)

    def vector(self, name: str, key: str) -> np.ndarray:
        """The vector of a clip that was added."""
        return self._found[self.parts[name].digest, key]

    def _waits(self, digest: str, key: str) -> bool:
        """Whether a clip waits for a network, for any kind: 16 frames are the first and all."""
        same = (name for name, part in self.parts.items() if part.digest == digest)
        return any(key in self._waiting[name] for name in same)

    def _run(self, name: str) -> None:
        part, waiting = self.parts[name], self._waiting[name]
        clips = np.stack(list(waiting.values()))
        more = [(0, self._size - len(clips))] + [(0, 0)] * 4  # all calls have one shape
        clips = jax.device_put(np.pad(clips, more, mode="edge"), self._sharding)
        made = dict(zip(waiting, part.vectors(clips), strict=False))
        self._found |= {(part.digest, key): vector for key, vector in made.items()}
        self._cache.add(part.digest, {k: v for k, v in made.items() if np.isfinite(v).all()})
        waiting.clear()


def _first(clips: Iterable, count: int) -> Iterator:
    """The first clips, without reading one too many."""
    if count < 1:
        return
    for i, clip in enumerate(clips, 1):
        yield clip
        if i == count:
            return


def _check_clip(what: str, name: str, frames: Any, shape: tuple[int, ...]) -> None:
    kind = f"the {what} clip {printable(name)}"
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[-1] != 3:
        found = f"shape {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"{kind} has {found}; expected a NumPy array [T, H, W, 3].")
    if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(
            f"{kind} has dtype {frames.dtype}; expected uint8, or floating point in [-1, 1]."
        )
    if shape and frames.shape != shape:
        raise ValueError(
            f"{kind} has shape {frames.shape} and the first one {shape}: all clips of a set must "
            "have one shape."
        )


def _eight_bits(frames: np.ndarray) -> np.ndarray:
    return frames if frames.dtype == np.uint8 else jax.device_get(to_uint8(frames))


def _set(what, asked, names, keys, shape, runner, missing) -> ClipSet:
    """The set of the clips whose vectors are all finite."""
    rows = {
        i: {part: runner.vector(part, key) for part, key in own.items()}
        for i, own in enumerate(keys)
        if own is not None
    }
    good = [i for i, row in rows.items() if all(np.isfinite(v).all() for v in row.values())]
    bad = sorted(set(range(len(names))) - set(good))
    vectors = {
        part: np.stack([rows[i][part] for i in good]) if good else np.zeros((0, 1), np.float32)
        for part in runner.parts
    }
    at = [tuple(names[i] for i in which) for which in (good, bad)]
    networks = {name: part.digest for name, part in runner.parts.items()}
    return ClipSet(what, asked, *at, tuple(shape), vectors, networks, missing)
