"""Measuring reconstructions clip by clip, so that it can be interrupted and continued."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from odvae_jax.evaluation.clips import Clip, FixedClips
from odvae_jax.evaluation.models import Contender, reconstruct
from odvae_jax.files import write_whole
from odvae_jax.inference import to_uint8, to_unit_range
from odvae_jax.metrics.i3d import LEAST_FRAMES, VideoFeatures
from odvae_jax.metrics.lpips import LPIPS, SMALLEST
from odvae_jax.metrics.psnr import psnr
from odvae_jax.metrics.ssim import WINDOW, ssim
from odvae_jax.sharding import clip_sharding, make_mesh, replicated
from odvae_jax.tiling import TemporalTiling

METRICS = ("psnr", "ssim", "lpips")
_CLIPS = "clips"  # the file of what was found out about the clips themselves
_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Meters:
    """The trained networks that measure, each None if it is missing, and why.

    Attributes:
      lpips: with AlexNet.
      features: for the Fréchet distance.
      missing: metric to what is said of it.
    """

    lpips: LPIPS | None = None
    features: VideoFeatures | None = None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    def for_clips(self, frames: int, size: int) -> Meters:
        """Without what these clips are too small or too short for."""
        missing = dict(self.missing)
        lpips, features = self.lpips, self.features
        if size < WINDOW:
            missing["ssim"] = f"needs frames of {WINDOW}×{WINDOW}"
        if lpips is not None and size < SMALLEST["alex"]:
            lpips, side = None, SMALLEST["alex"]
            missing["lpips"] = f"needs frames of {side}×{side}"
        if features is not None and frames < LEAST_FRAMES:
            features = None
            missing["rfvd"] = f"needs clips of {LEAST_FRAMES} frames"
        return Meters(lpips, features, missing)


@dataclasses.dataclass
class Measurements:
    """What was measured, clips in the source's order.

    Attributes:
      settings: which frames of which data.
      names: of the clips that could be used, by their number.
      skipped: names of those that could not, to the reason.
      originals: feature vectors of the clips, by number.
      values: a model's digest to clip numbers to its record: "psnr", "ssim" and "lpips" by frame,
        "features"; an empty one where the reconstruction was not finite.
      missing: metrics that could not be had, and why.
    """

    settings: dict[str, Any]
    names: dict[int, str]
    skipped: dict[str, str]
    originals: dict[int, np.ndarray]
    values: dict[str, dict[int, dict[str, np.ndarray]]]
    missing: dict[str, str]


class Store:
    """Records of what is measured, a file of lines a model; in memory only if `folder` is None.

    Args:
      folder: where the files lie; several processes may write, each its `shard`.
      shard: which part of how many this process writes.

    Raises:
      ValueError: if the folder holds measurements of other clips.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], shard: tuple[int, int]):
        self._folder = folder
        self._suffix = "" if shard[1] == 1 else f"-{shard[0]}of{shard[1]}"
        self._memory: dict[str, dict[int, dict]] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _SETTINGS
        if path.exists():
            before = json.loads(path.read_text())
            if differing := [
                f"{name} was {before.get(name)!r}, is {value!r}"
                for name, value in settings.items()
                if before.get(name) != value
            ]:
                raise ValueError(
                    f"{folder.parent} holds an evaluation on other clips ({'; '.join(differing)}): "
                    "choose another --output, or remove it."
                )
        else:
            write_whole(path, json.dumps(settings, indent=1) + "\n")

    def read(self, name: str) -> dict[int, dict]:
        """A file's records by clip; lines torn by a sudden end are left out."""
        if name not in self._memory:
            records = {}
            paths = sorted(self._folder.glob(f"{name}*.jsonl")) if self._folder else []
            for line in (line for path in paths for line in path.read_text().splitlines()):
                try:
                    record = json.loads(line)
                    records[record["clip"]] = _from_json(record)
                except (json.JSONDecodeError, KeyError, ValueError):
                    continue
            self._memory[name] = records
        return self._memory[name]

    def add(self, name: str, index: int, record: dict) -> None:
        """Writes a record at the end of its file."""
        self.read(name)[index] = record
        if self._folder is None:
            return
        with (self._folder / f"{name}{self._suffix}.jsonl").open("a+b") as file:
            file.seek(0, 2)
            if file.tell():  # a line that was torn is ended first
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps({"clip": index, **_to_json(record)}).encode() + b"\n")


def _to_json(record):
    """Arrays as their bytes, so that they come back bit by bit."""
    return {
        name: {"float32": base64.b64encode(np.asarray(value, "<f4").tobytes()).decode()}
        if isinstance(value, np.ndarray)
        else value
        for name, value in record.items()
    }


def _from_json(record):
    return {
        name: np.frombuffer(base64.b64decode(value["float32"]), "<f4")
        if isinstance(value, dict)
        else value
        for name, value in record.items()
        if name != "clip"
    }


def measure(
    contenders: Sequence[Contender],
    clips: FixedClips,
    meters: Meters,
    *,
    tiling: TemporalTiling | None = None,
    folder: Path | None = None,
    batch: int = 1,
    devices: Sequence[jax.Device] | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Measurements:
    """Measures every model on every clip; what `folder` holds already is not measured again.

    Args:
      contenders: the models.
      clips: what they reconstruct.
      meters: the networks that measure.
      tiling: of encoder and decoder in time.
      folder: where records go after every batch; None keeps them in memory.
      batch: clips a device at once. Results do not depend on it, nor on the devices.
      devices: this process's, unless told.
      shard: measure only the i-th of n parts of the clips; the last call, without it, reads all.
      progress: show a bar.

    Raises:
      ValueError: if no clip can be used, with the reasons; or as `Store` does.
    """
    meters = meters.for_clips(clips.sampling.frames, clips.size)
    settings = clips.settings() | {"tiling": tiling.group if tiling else None}
    store = Store(folder, settings, shard)
    mine = range(shard[0], len(clips), shard[1])
    pending = [i for i in mine if _pending(store, i, contenders, meters)]
    devices = list(jax.local_devices() if devices is None else devices)
    devices = devices[: max(1, min(len(devices), -(-len(pending) // batch)))]
    runner = _Runner(meters, tiling, batch, devices)
    with tqdm(
        total=len(mine),
        initial=len(mine) - len(pending),
        unit="clip",
        dynamic_ncols=True,
        disable=not progress,
    ) as bar:
        for group in _batches(clips.read_all(pending), batch * len(devices)):
            usable = [clip for clip in group if clip.frames is not None]
            if usable:
                runner.measure(usable, contenders, store)
            for clip in group:
                if clip.frames is None:
                    store.add(_CLIPS, clip.index, {"skipped": clip.reason})
            bar.update(len(group))
    return _gathered(store, clips, contenders, settings, meters)


def _pending(store: Store, index: int, contenders, meters: Meters) -> bool:
    known = store.read(_CLIPS).get(index)
    if known is None:
        return True
    if "skipped" in known:
        return False
    if meters.features is not None and "features" not in known:
        return True
    return any(not _complete(store.read(c.digest).get(index), meters) for c in contenders)


def _complete(record: dict | None, meters: Meters) -> bool:
    """Whether a record holds all that can be measured now."""
    if record is None or not record:
        return record is not None
    wanted = {"lpips": meters.lpips, "features": meters.features}
    return all(name in record for name, meter in wanted.items() if meter is not None)


def _batches(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    """Groups of `size` that can be used, with those that cannot; the last may be smaller."""
    group: list[Clip] = []
    for clip in clips:
        group.append(clip)
        if sum(c.frames is not None for c in group) == size:
            yield group
            group = []
    if group:
        yield group


def _gathered(store, clips, contenders, settings, meters) -> Measurements:
    known = store.read(_CLIPS)
    usable = sorted(i for i, record in known.items() if "skipped" not in record)
    skipped = {clips.name(i): known[i]["skipped"] for i in sorted(known) if "skipped" in known[i]}
    if known and not usable:
        reasons = "\n".join(f"  {name}: {why}" for name, why in skipped.items())
        raise ValueError(f"none of the {len(known)} videos of {clips.source} is usable:\n{reasons}")
    values = {
        c.digest: {i: store.read(c.digest)[i] for i in usable if i in store.read(c.digest)}
        for c in contenders
    }
    originals = {i: known[i]["features"] for i in usable if "features" in known[i]}
    names = {i: clips.name(i) for i in usable}
    return Measurements(settings, names, skipped, originals, values, meters.missing)


class Reconstructor:
    """Reconstructions to look at.

    Args:
      tiling: of encoder and decoder in time.
    """

    def __init__(self, tiling: TemporalTiling | None = None):
        self._tiling = tiling

    def __call__(self, clip: Clip, c: Contender) -> UInt8[np.ndarray, "t h w 3"]:
        """A clip through a model."""
        return jax.device_get(_shown(c.model, clip.frames[None], tiling=self._tiling))[0]


class _Runner:
    """Batches through the models, spread over the devices, the last padded."""

    def __init__(self, meters: Meters, tiling, batch: int, devices: Sequence[jax.Device]):
        self._meters, self._tiling = meters, tiling
        self._mesh = make_mesh(devices=devices)
        self._size = batch * len(devices)
        self._lpips = self._on_all(meters.lpips)
        self._placed: dict[str, Any] = {}

    def measure(self, clips: list[Clip], contenders: Sequence[Contender], store: Store) -> None:
        video = np.stack([clip.frames for clip in clips])
        padding = [(0, self._size - len(clips))] + [(0, 0)] * 4
        video = jax.device_put(np.pad(video, padding, mode="edge"), clip_sharding(self._mesh))
        for c in contenders:
            shown, quality, finite = _measured(
                self._model(c), video, self._lpips, tiling=self._tiling
            )
            quality, finite = jax.device_get((quality, finite))
            features = self._features(shown)
            for row, clip in enumerate(clips):
                record = {name: np.array(value[row]) for name, value in quality.items()}
                if features is not None:
                    record["features"] = np.array(features[row])
                store.add(c.digest, clip.index, record if finite[row] else {})
        features = self._features(to_unit_range(video))
        for row, clip in enumerate(clips):
            record = {} if features is None else {"features": np.array(features[row])}
            store.add(_CLIPS, clip.index, record)

    def _features(self, video):
        if self._meters.features is None:
            return None
        return np.asarray(self._meters.features.features(video))

    def _model(self, c: Contender):
        if c.digest not in self._placed:
            self._placed[c.digest] = self._on_all(c.model)
        return self._placed[c.digest]

    def _on_all(self, tree):
        return jax.device_put(tree, replicated(self._mesh))


@functools.partial(jax.jit, static_argnames="tiling")
def _measured(model, clips, lpips, *, tiling):
    """Reconstructions [B, T, H, W, 3], metrics [B, T] each, and whether all is finite, [B]."""
    video = to_unit_range(clips)
    reconstruction = reconstruct(model, video, tiling)
    pair = (video + 1.0) / 2.0, (reconstruction + 1.0) / 2.0
    quality = {"psnr": psnr(*pair)}
    if min(clips.shape[2:4]) >= WINDOW:
        quality["ssim"] = ssim(*pair)
    if lpips is not None:
        quality["lpips"] = lpips(video, reconstruction)
    finite = jnp.all(jnp.isfinite(reconstruction), axis=(1, 2, 3, 4))
    return reconstruction, quality, finite


@functools.partial(jax.jit, static_argnames="tiling")
def _shown(model, clips, *, tiling):
    return to_uint8(reconstruct(model, to_unit_range(clips), tiling))
