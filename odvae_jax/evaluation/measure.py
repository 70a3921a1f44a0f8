"""Measuring reconstructions clip by clip, so that a run can be interrupted and continued."""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from odvae_jax.evaluation.clips import Clip, FixedClips
from odvae_jax.evaluation.models import Contender, reconstruct
from odvae_jax.evaluation.outside import Outside
from odvae_jax.files import counted, line_about, one_line, printable, write_whole
from odvae_jax.metrics.i3d import LEAST_FRAMES, VideoFeatures
from odvae_jax.metrics.lpips import LPIPS, SMALLEST
from odvae_jax.metrics.psnr import psnr
from odvae_jax.metrics.ssim import WINDOW, ssim
from odvae_jax.pixels import to_uint8, to_unit_range
from odvae_jax.sharding import clip_sharding, make_mesh, replicated
from odvae_jax.tiling import TemporalTiling

logger = logging.getLogger(__name__)
METRICS = ("psnr", "ssim", "lpips")
_CLIPS = "clips"  # the name of the file with the records of the clips themselves
_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Meters:
    """The trained networks that some of the metrics need.

    Attributes:
      lpips: LPIPS with AlexNet; None if it is missing.
      features: the network whose features the Fréchet distance compares; None if it is missing.
      missing: the reason why a metric cannot be computed, by the metric's name.
      left_out: the names of metrics that nobody asked for, whose networks are None; no table has
        a column for them.
    """

    lpips: LPIPS | None = None
    features: VideoFeatures | None = None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    def for_clips(self, frames: int, size: int) -> Meters:
        """Returns the meters that can measure clips of this size; the others are noted as missing.

        Args:
          frames: the number of frames in a clip.
          size: the side of a clip in pixels.
        """
        lpips, features = self.lpips, self.features
        absent = {name for name, one in (("lpips", lpips), ("rfvd", features)) if one is None}
        missing = dict.fromkeys(sorted(absent - self.left_out), "no network was given")
        missing |= self.missing
        if size < WINDOW:
            missing["ssim"] = f"needs frames of {WINDOW}×{WINDOW}"
        if lpips is not None and size < SMALLEST["alex"]:
            lpips, side = None, SMALLEST["alex"]
            missing["lpips"] = f"needs frames of {side}×{side}"
        if features is not None and frames < LEAST_FRAMES:
            features = None
            missing["rfvd"] = f"needs clips of {LEAST_FRAMES} frames"
        return Meters(lpips, features, missing, self.left_out)


@dataclasses.dataclass
class Measurements:
    """Everything that was measured, with the clips in the order of their source.

    Attributes:
      settings: what decides which frames of which data were measured.
      names: the names of the clips that could be used, by the clip's number.
      skipped: the reason why a video could not be used, by the video's name.
      frames: the digests of the clips' frames, by the clip's number.
      originals: the feature vectors of the original clips, [d], by the clip's number.
      values: the record of each clip, by the model's digest and then by the clip's number. A record
        holds "psnr", "ssim" and "lpips", [T] each with one value per frame, and "features", [d]; if
        the model takes only a part of the clip, also "originals", the features of that part of the
        original, [d]. If the reconstruction is not finite, its record holds only "finite", which is
        False.
      missing: the reason why a metric could not be computed, by the metric's name.
      missing_for: more such reasons, for models that take too small a part of the clips, by the
        model's digest.
      left_out: the names of metrics that nobody asked for.
    """

    settings: dict[str, Any]
    names: dict[int, str]
    skipped: dict[str, str]
    frames: dict[int, str]
    originals: dict[int, Float[np.ndarray, " d"]]
    values: dict[str, dict[int, dict[str, np.ndarray]]]
    missing: dict[str, str]
    missing_for: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    left_out: frozenset[str] = frozenset()


class Store:
    """The records of what was measured, in one file of JSON lines per model.

    Args:
      folder: the folder of the files; None keeps the records in memory only.
      settings: what decides which frames of which data are measured. It is written into the folder,
        or compared with what the folder holds.
      shard: (i, n) for the process that writes part i, counted from 0, of n parts. Several
        processes can write into one folder at once, each its own part.
      frames: the number of frames that models measure of a clip, by the model's digest, where it
        is not all.

    Raises:
      ValueError: if the folder holds measurements of other clips.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: dict[str, Any],
        shard: tuple[int, int],
        frames: Mapping[str, int],
    ):
        self._all_frames, self._frames = settings["frames"], frames
        self._folder = folder
        self._suffix = "" if shard[1] == 1 else f"-{shard[0]}of{shard[1]}"
        self._memory: dict[str, dict[int, dict]] = {}
        if folder is None:
            return
        before = _settings_of(folder)
        path = folder / _SETTINGS
        if before is not None:
            if differing := [
                f"{name} was {before.get(name)!r}, is {value!r}"
                for name, value in settings.items()
                if before.get(name) != value
            ]:
                raise ValueError(
                    f"{printable(folder.parent)} holds an evaluation on other clips "
                    f"({'; '.join(differing)}): choose another --output, or remove it."
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(settings, indent=1) + "\n")

    def read(self, name: str) -> dict[int, dict]:
        """Returns the records of one file, by the clip's number.

        Lines about the same clip are merged. Torn lines are left out, and so are values that cannot
        have been measured, such as those that are not finite.

        Args:
          name: the name of the file: a model's digest, or "clips".
        """
        if name not in self._memory:
            records: dict[int, dict] = {}
            paths = sorted(self._folder.glob(f"{name}*.jsonl")) if self._folder else []
            frames = self._frames.get(name, self._all_frames)
            for line in (line for path in paths for line in path.read_bytes().splitlines()):
                try:
                    record = json.loads(line)
                    values = _possible(_from_json(record), frames)
                    if isinstance(record["clip"], int):
                        records.setdefault(record["clip"], {}).update(values)
                except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
                    continue  # torn or damaged: it is measured again
            self._memory[name] = records
        return self._memory[name]

    def add(self, name: str, index: int, record: dict) -> None:
        """Appends a record to its file, and merges it with what is known about the clip.

        Args:
          name: the name of the file: a model's digest, or "clips".
          index: the number of the clip.
          record: values by name. A name that is known already keeps its value.
        """
        known = self.read(name).setdefault(index, {})
        new = {field: value for field, value in record.items() if field not in known}
        if record.get("skipped") not in (None, known.get("skipped")):
            new["skipped"] = record["skipped"]
        known.update(new)
        if self._folder is None or not new:
            return
        with (self._folder / f"{name}{self._suffix}.jsonl").open("a+b") as file:
            file.seek(0, 2)
            if file.tell():  # end a torn line first, so that the new one is whole
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps({"clip": index, **_to_json(new)}).encode() + b"\n")


def _to_json(record):
    """A record for JSON; arrays become their bytes, so that they come back bit by bit."""
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


def _possible(record: dict[str, Any], frames: int) -> dict[str, Any]:
    """Returns what of a record can have been measured, of clips of so many frames."""
    kinds = {"frames": str, "skipped": str, "finite": bool}

    def can_be(name, value):
        if name in kinds:
            return isinstance(value, kinds[name])
        is_array = isinstance(value, np.ndarray) and value.size > 0 and np.isfinite(value).all()
        return is_array and (name not in METRICS or len(value) == frames)

    return {name: value for name, value in record.items() if can_be(name, value)}


def _settings_of(folder: Path) -> dict[str, Any] | None:
    """Returns the settings of the measurements in a folder; None if there are none.

    If the file of the settings is damaged, nobody knows which clips were measured. The folder is
    then moved aside.
    """
    path = folder / _SETTINGS
    try:
        before = json.loads(path.read_bytes())
        if not isinstance(before, dict):
            raise ValueError(f"it holds {type(before).__name__}")
        return before
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        taken = (folder.with_name(f"damaged-{folder.name}-{i}") for i in itertools.count(1))
        aside = next(place for place in taken if not place.exists())
        folder.rename(aside)
        logger.warning(
            "%s is damaged (%s): what was measured is moved to %s, and is measured again",
            printable(path),
            one_line(error),
            printable(aside),
        )
        return None


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
    """Measures every model on every clip, except what `folder` holds already.

    Args:
      contenders: the models.
      clips: the clips that the models reconstruct.
      meters: the trained networks that some metrics need.
      tiling: how clips are cut in time for encoder and decoder; None takes them whole.
      folder: the folder where records are written after every batch; None keeps them in memory.
      batch: the number of clips per device and call. The results depend neither on it nor on the
        devices.
      devices: the devices to use; None uses all devices of this process.
      shard: (i, n) measures only part i, counted from 0, of n parts of the clips, and returns None.
        A last call without it reads the records of all parts.
      progress: whether a progress bar is shown.

    Returns:
      All measurements, or None for one of several parts.

    Raises:
      ValueError: if no clip can be used, with the reasons; if a video has changed since it was
        measured; or if the folder holds measurements of other clips.
    """
    settings = clips.settings() | {"tiling": tiling.group if tiling else None}
    wanted = _Wanted(meters, clips.shape, contenders)
    sizes = wanted.sizes
    store = Store(folder, settings, shard, {name: size[0] for name, size in sizes.items()})
    mine = range(shard[0], len(clips), shard[1])
    pending = [
        i
        for i in mine
        if not wanted.has_clip(store.read(_CLIPS).get(i, {}))
        or any(not wanted.has_model(c, store.read(c.digest).get(i, {})) for c in contenders)
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
    """Which fields a record must have, given what can be measured now.

    A model that takes only a part of the clips is compared with that part of the original.
    """

    def __init__(
        self, meters: Meters, shape: tuple[int, int, int], contenders: Sequence[Contender]
    ):
        self.shape = shape
        self.sizes = {c.digest: c.taken(*shape) for c in contenders}
        self.meters = meters.for_clips(shape[0], min(shape[1:]))
        self._of_model = {
            name: self.meters.for_clips(size[0], min(size[1:])) for name, size in self.sizes.items()
        }
        features = self.meters.features
        self.features = None if features is None else f"features {features.digest}"

    def of(self, c: Contender) -> Meters:
        """The meters for what a model takes of the clips."""
        return self._of_model[c.digest]

    def is_cut(self, c: Contender) -> bool:
        """Whether a model takes only a part of the clips."""
        return self.sizes[c.digest] != self.shape

    def has_clip(self, record: dict) -> bool:
        """Whether a clip's own record is complete; videos that were skipped are tried again."""
        return "frames" in record and (self.features is None or self.features in record)

    def has_model(self, c: Contender, record: dict) -> bool:
        """Whether a model's record of a clip is complete; one that is not finite always is."""
        meters = self.of(c)
        fields = {"psnr"} | {"ssim", "lpips"} - meters.missing.keys() - meters.left_out
        if meters.features is not None:
            fields |= {self.features, f"original {self.features}"}
            if not self.is_cut(c):
                fields.remove(f"original {self.features}")
        return record.get("finite") is False or fields <= record.keys()

    def missing_for(self) -> dict[str, dict[str, str]]:
        """The reasons why metrics are missing for single models, by the model's digest."""
        return {
            name: {n: why for n, why in meters.missing.items() if n not in self.meters.missing}
            for name, meters in self._of_model.items()
        }


def _batches(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    """Yields groups of `size` usable clips, with the unusable ones between them.

    The last group may be smaller.
    """
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
        reasons = "\n".join(
            f"  {line_about(name, ValueError(why))}" for name, why in skipped.items()
        )
        videos = counted(len(known), "video")
        raise ValueError(f"none of {videos} of {clips.source} is usable:\n{reasons}")

    names = {wanted.features: "features", f"original {wanted.features}": "originals"}

    def named(record):
        renamed = {names.get(n, n): v for n, v in record.items()}
        return {n: v for n, v in renamed.items() if not n.startswith(("features ", "original "))}

    return Measurements(
        settings,
        names={i: clips.name(i) for i in usable},
        skipped=skipped,
        frames={i: known[i]["frames"] for i in usable},
        originals={i: known[i][wanted.features] for i in usable} if wanted.features else {},
        values={c.digest: {i: named(store.read(c.digest)[i]) for i in usable} for c in contenders},
        missing=wanted.meters.missing,
        missing_for=wanted.missing_for(),
        left_out=wanted.meters.left_out,
    )


def check_unchanged(clip: Clip, digest: str) -> None:
    """Checks that a clip holds the same frames as when it was measured.

    Args:
      clip: the clip, with frames.
      digest: the digest of the frames that were measured.

    Raises:
      ValueError: if the clip's frames have another digest.
    """
    if clip.digest != digest:
        raise ValueError(
            f"{printable(clip.name)} holds other frames than when it was measured: "
            "choose another --output."
        )


class Reconstructor:
    """Makes reconstructions for people to look at.

    Args:
      tiling: how clips are cut in time for encoder and decoder; None takes them whole.
    """

    def __init__(self, tiling: TemporalTiling | None = None):
        self._tiling = tiling

    def __call__(self, clip: Clip, c: Contender) -> UInt8[np.ndarray, "u v x 3"]:
        """Returns what the model `c` takes of a clip as it reconstructs it, uint8 from 0 to 255."""
        if isinstance(c.model, Outside):
            return c.model([clip])[0]
        size = c.taken(*clip.frames.shape[:3])
        made, _ = _rounded(c.model, clip.frames[None], tiling=self._tiling, size=size)
        return jax.device_get(made)[0]


class _Runner:
    """Runs batches through the models, spread over the devices; the last one is padded."""

    def __init__(
        self, wanted: _Wanted, store: Store, tiling, batch: int, devices: Sequence[jax.Device]
    ):
        self._wanted, self._store, self._tiling = wanted, store, tiling
        self._mesh = make_mesh(devices=devices)
        self._size = batch * len(devices)
        self._lpips = self._on_all(wanted.meters.lpips)
        self._placed: dict[str, Any] = {}

    def measure(self, clips: list[Clip], contenders: Sequence[Contender]) -> None:
        """Completes the records of some clips; the clips' own records come last."""
        own = self._store.read(_CLIPS)
        for clip in clips:
            check_unchanged(clip, own.get(clip.index, {}).get("frames", clip.digest))
        video = self._spread(np.stack([clip.frames for clip in clips]))
        for c in contenders:
            records = [self._store.read(c.digest).get(clip.index, {}) for clip in clips]
            if not all(self._wanted.has_model(c, record) for record in records):
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
        meters, size = self._wanted.of(c), self._wanted.sizes[c.digest]
        lpips = None if meters.lpips is None else self._lpips
        made, quality, finite = self._compared(c, clips, video, lpips, size)
        quality, finite = jax.device_get((quality, finite))
        features = {}
        if meters.features is not None:
            features[self._wanted.features] = self._features(made)
            if self._wanted.is_cut(c):
                original = self._features(to_unit_range(_part(video, size=size)))
                features[f"original {self._wanted.features}"] = original
        for row, clip in enumerate(clips):
            values = (quality | features).items()
            record = {name: np.array(value[row]) for name, value in values}
            if not finite[row] or not all(np.isfinite(value).all() for value in record.values()):
                record = {"finite": False}  # no mean is to be NaN
            self._store.add(c.digest, clip.index, record)

    def _compared(self, c: Contender, clips: list[Clip], video: jax.Array, lpips, size):
        """Reconstructions in [-1, 1], their metrics, and which of them are finite."""
        if isinstance(c.model, Outside):
            rounded, finite = self._spread(c.model(clips)), np.ones(len(clips), bool)
        elif c.eight_bit:
            how = {"tiling": self._tiling, "size": size}
            rounded, finite = _rounded(self._model(c), video, **how)
        else:
            how = {"tiling": self._tiling, "size": size}
            return _measured(self._model(c), video, lpips, **how)
        return *_measured_rounded(rounded, video, lpips, size=size), finite

    def _spread(self, clips: np.ndarray) -> jax.Array:
        """Clips on the devices, the last one repeated until each device has as many."""
        padding = [(0, self._size - len(clips))] + [(0, 0)] * 4
        return jax.device_put(np.pad(clips, padding, mode="edge"), clip_sharding(self._mesh))

    def _features(self, video):
        features = self._wanted.meters.features
        return None if features is None else np.asarray(features.features(video))

    def _model(self, c: Contender):
        if c.digest not in self._placed:
            self._placed[c.digest] = self._on_all(c.model)
        return self._placed[c.digest]

    def _on_all(self, tree):
        return jax.device_put(tree, replicated(self._mesh))


@functools.partial(jax.jit, static_argnames=("tiling", "size"))
def _measured(model, clips, lpips, *, tiling, size):
    """Returns reconstructions [B, T, H, W, 3], metrics [B, T] each, and what is finite, [B]."""
    video = to_unit_range(_part(clips, size=size))
    decoded = reconstruct(model, video, tiling)
    reconstruction = jnp.clip(decoded, -1.0, 1.0)
    return reconstruction, _quality(video, reconstruction, lpips), _finite(decoded)


@functools.partial(jax.jit, static_argnames="size")
def _measured_rounded(made, clips, lpips, *, size):
    """Returns uint8 reconstructions [B, T, H, W, 3] in [-1, 1], and metrics [B, T] each."""
    video, reconstruction = to_unit_range(_part(clips, size=size)), to_unit_range(made)
    return reconstruction, _quality(video, reconstruction, lpips)


@functools.partial(jax.jit, static_argnames=("tiling", "size"))
def _rounded(model, clips, *, tiling, size):
    """Returns reconstructions as uint8 [B, T, H, W, 3], and what is finite, [B]."""
    decoded = reconstruct(model, to_unit_range(_part(clips, size=size)), tiling)
    return to_uint8(decoded), _finite(decoded)


@functools.partial(jax.jit, static_argnames="size")
def _part(clips, *, size):
    t, h, w = size
    return clips[:, :t, :h, :w]


def _quality(video, reconstruction, lpips):
    pair = (video + 1.0) / 2.0, (reconstruction + 1.0) / 2.0
    quality = {"psnr": psnr(*pair)}
    if min(video.shape[2:4]) >= WINDOW:
        quality["ssim"] = ssim(*pair)
    if lpips is not None:
        quality["lpips"] = lpips(video, reconstruction)
    return quality


def _finite(decoded):
    return jnp.all(jnp.isfinite(decoded), axis=(1, 2, 3, 4))
