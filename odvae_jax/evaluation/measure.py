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
from odvae_jax.metrics.i3d import LEAST_FRAMES, VideoFeatures
from odvae_jax.metrics.lpips import LPIPS, SMALLEST
from odvae_jax.metrics.psnr import psnr
from odvae_jax.metrics.ssim import WINDOW, ssim
from odvae_jax.pixels import to_uint8, to_unit_range
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
        lpips, features = self.lpips, self.features
        absent = {"lpips": lpips is None, "rfvd": features is None}
        missing = {name: "no network was given" for name, is_absent in absent.items() if is_absent}
        missing |= self.missing
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
      frames: digests of the clips' frames, by number.
      originals: feature vectors of the clips, by number.
      values: a model's digest to clip numbers to its record: "psnr", "ssim" and "lpips" by frame,
        and "features"; or "finite", False, where the reconstruction was not.
      missing: metrics that could not be had, and why.
    """

    settings: dict[str, Any]
    names: dict[int, str]
    skipped: dict[str, str]
    frames: dict[int, str]
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
        """A file's records by clip, those of one clip as one; torn lines are left out."""
        if name not in self._memory:
            records: dict[int, dict] = {}
            paths = sorted(self._folder.glob(f"{name}*.jsonl")) if self._folder else []
            for line in (line for path in paths for line in path.read_text().splitlines()):
                try:
                    record = json.loads(line)
                    records.setdefault(record["clip"], {}).update(_from_json(record))
                except (json.JSONDecodeError, KeyError, ValueError):
                    continue
            self._memory[name] = records
        return self._memory[name]

    def add(self, name: str, index: int, record: dict) -> None:
        """Writes a record at the end of its file; its fields join those that are known already."""
        known = self.read(name).setdefault(index, {})
        new = {field: value for field, value in record.items() if field not in known}
        if record.get("skipped") not in (None, known.get("skipped")):
            new["skipped"] = record["skipped"]
        known.update(new)
        if self._folder is None or not new:
            return
        with (self._folder / f"{name}{self._suffix}.jsonl").open("a+b") as file:
            file.seek(0, 2)
            if file.tell():  # a line that was torn is ended first
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps({"clip": index, **_to_json(new)}).encode() + b"\n")


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
) -> Measurements | None:
    """Measures every model on every clip; what `folder` holds already is not measured again.

    Args:
      contenders: the models.
      clips: what they reconstruct.
      meters: the networks that measure.
      tiling: of encoder and decoder in time.
      folder: where records go after every batch; None keeps them in memory.
      batch: clips a device at once. Results do not depend on it, nor on the devices.
      devices: this process's, unless told.
      shard: measure only the i-th of n parts of the clips, and return None; the last call, without
        it, reads all.
      progress: show a bar.

    Raises:
      ValueError: if no clip can be used, with the reasons; if a video is another than when it was
        measured; or as `Store` does.
    """
    meters = meters.for_clips(clips.sampling.frames, clips.size)
    settings = clips.settings() | {"tiling": tiling.group if tiling else None}
    store = Store(folder, settings, shard)
    mine = range(shard[0], len(clips), shard[1])
    wanted = _Wanted(meters)
    pending = [
        i
        for i in mine
        if not wanted.has_clip(store.read(_CLIPS).get(i, {}))
        or any(not wanted.has_model(store.read(c.digest).get(i, {})) for c in contenders)
    ]
    devices = list(jax.local_devices() if devices is None else devices)
    devices = devices[: max(1, min(len(devices), -(-len(pending) // batch)))]
    runner = _Runner(wanted, store, tiling, batch, devices)
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
                runner.measure(usable, contenders)
            for clip in group:
                if clip.frames is None:
                    store.add(_CLIPS, clip.index, {"skipped": clip.reason})
            bar.update(len(group))
    return None if shard[1] > 1 else _gathered(store, clips, contenders, settings, wanted)


class _Wanted:
    """Which fields records must have, for what can be measured now."""

    def __init__(self, meters: Meters):
        self.meters = meters
        features = meters.features
        self.features = None if features is None else f"features {features.digest}"
        self._model = {"psnr"} | {"ssim", "lpips"} - meters.missing.keys()
        if self.features:
            self._model.add(self.features)

    def has_clip(self, record: dict) -> bool:
        """Whether a clip's own record is complete; videos that were skipped are tried again."""
        return "frames" in record and (self.features is None or self.features in record)

    def has_model(self, record: dict) -> bool:
        """Whether a model's record is."""
        return record.get("finite") is False or self._model <= record.keys()


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


def _gathered(store, clips, contenders, settings, wanted) -> Measurements:
    known = {i: record for i, record in sorted(store.read(_CLIPS).items()) if i < len(clips)}
    usable = [i for i, record in known.items() if "frames" in record]
    skipped = {clips.name(i): r["skipped"] for i, r in known.items() if "frames" not in r}
    if not usable:
        reasons = "\n".join(f"  {name}: {why}" for name, why in skipped.items())
        raise ValueError(f"none of the {len(known)} videos of {clips.source} is usable:\n{reasons}")

    def named(record):
        renamed = {"features" if n == wanted.features else n: v for n, v in record.items()}
        return {n: v for n, v in renamed.items() if not n.startswith("features ")}

    return Measurements(
        settings,
        names={i: clips.name(i) for i in usable},
        skipped=skipped,
        frames={i: known[i]["frames"] for i in usable},
        originals={i: known[i][wanted.features] for i in usable} if wanted.features else {},
        values={c.digest: {i: named(store.read(c.digest)[i]) for i in usable} for c in contenders},
        missing=wanted.meters.missing,
    )


def check_unchanged(clip: Clip, digest: str) -> None:
    """Raises ValueError if a clip's frames are not those with the digest, which were measured."""
    if clip.digest != digest:
        raise ValueError(
            f"{clip.name} holds other frames than when it was measured: choose another --output."
        )


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

    def __init__(
        self, wanted: _Wanted, store: Store, tiling, batch: int, devices: Sequence[jax.Device]
    ):
        self._wanted, self._store, self._tiling = wanted, store, tiling
        self._mesh = make_mesh(devices=devices)
        self._size = batch * len(devices)
        self._lpips = self._on_all(wanted.meters.lpips)
        self._placed: dict[str, Any] = {}

    def measure(self, clips: list[Clip], contenders: Sequence[Contender]) -> None:
        """Adds the records that are not complete, the clips' own last."""
        own = self._store.read(_CLIPS)
        for clip in clips:
            check_unchanged(clip, own.get(clip.index, {}).get("frames", clip.digest))
        video = np.stack([clip.frames for clip in clips])
        padding = [(0, self._size - len(clips))] + [(0, 0)] * 4
        video = jax.device_put(np.pad(video, padding, mode="edge"), clip_sharding(self._mesh))
        for c in contenders:
            records = [self._store.read(c.digest).get(clip.index, {}) for clip in clips]
            if not all(map(self._wanted.has_model, records)):
                self._measure_model(c, clips, video)
        features = None
        if not all(self._wanted.has_clip(own.get(clip.index, {})) for clip in clips):
            features = self._features(to_unit_range(video))
        for row, clip in enumerate(clips):
            record = {"frames": clip.digest}
            if features is not None:
                record[self._wanted.features] = np.array(features[row])
            self._store.add(_CLIPS, clip.index, record)

    def _measure_model(self, c: Contender, clips: list[Clip], video: jax.Array) -> None:
        made, quality, finite = _measured(self._model(c), video, self._lpips, tiling=self._tiling)
        quality, finite = jax.device_get((quality, finite))
        features = self._features(made)
        for row, clip in enumerate(clips):
            record = {name: np.array(value[row]) for name, value in quality.items()}
            if features is not None:
                record[self._wanted.features] = np.array(features[row])
            self._store.add(c.digest, clip.index, record if finite[row] else {"finite": False})

    def _features(self, video):
        features = self._wanted.meters.features
        return None if features is None else np.asarray(features.features(video))

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
    decoded = reconstruct(model, video, tiling)
    reconstruction = jnp.clip(decoded, -1.0, 1.0)
    pair = (video + 1.0) / 2.0, (reconstruction + 1.0) / 2.0
    quality = {"psnr": psnr(*pair)}
    if min(clips.shape[2:4]) >= WINDOW:
        quality["ssim"] = ssim(*pair)
    if lpips is not None:
        quality["lpips"] = lpips(video, reconstruction)
    finite = jnp.all(jnp.isfinite(decoded), axis=(1, 2, 3, 4))
    return reconstruction, quality, finite


@functools.partial(jax.jit, static_argnames="tiling")
def _shown(model, clips, *, tiling):
    return to_uint8(reconstruct(model, to_unit_range(clips), tiling))
