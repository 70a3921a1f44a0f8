"""TFDS datasets: `tfds:NAME[:SPLIT]`, with a Video feature and in array_record format.

They are read without TensorFlow. UCF101 has the same labels as from its official folder.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odvae_jax.data.finding import open_regular
from odvae_jax.data.sources.base import Extent, Header, as_json, cut
from odvae_jax.data.sources.images import IMAGE_ERRORS, decode_image, image_size
from odvae_jax.data.sources.records import Records
from odvae_jax.data.sources.ucf101_classes import class_columns
from odvae_jax.data.video import PartError, ReadBlocks, VideoError
from odvae_jax.files import counted, one_line, printable

_KINDS = {"string": "bytes", "int": "int64", "uint": "int64", "float": "float", "bool": "bool"}


class TFDS(Records):
    """The videos of one split of a TFDS dataset, read without TensorFlow.

    Args:
      folder: the folder of one prepared version, such as
        `~/tensorflow_datasets/ucf101/ucf101_1/2.0.0`.
      split: the name of the split, such as "train".
      feature: the name of the Video feature; an empty name takes the only one.
      fps: the frames per second, which TFDS does not store.

    Raises:
      FileNotFoundError: if the folder is not a prepared dataset, or shards are missing.
      ValueError: if the dataset has another format, no such split, or not one such feature, or if
        it is UCF101 squashed to squares.
    """

    def __init__(
        self, folder: str | os.PathLike, split: str = "train", feature: str = "", fps: float = 25.0
    ):
        self._folder, self._split, self._fps = Path(folder), split, fps
        info, shown = _read_json(self._folder / "dataset_info.json"), printable(folder)
        kind = info.get("fileFormat", "tfrecord")
        if kind != "array_record":
            raise ValueError(
                f"{shown} is in {kind} format; expected array_record. Prepare it again with "
                f"`tfds build {info.get('name', 'NAME')} --file_format=array_record`."
            )
        self._is_ucf101 = info.get("name") == "ucf101"
        if self._is_ucf101 and (config := info.get("configName", "")).endswith("_256"):
            raise ValueError(
                f"{shown} holds videos of 320×240 that were squashed to 256×256; expected their "
                f"own shape. Prepare it with `tfds build ucf101/{config.removesuffix('_256')} "
                "--file_format=array_record`."
            )
        splits = {s["name"]: s for s in info.get("splits", [])}
        if split not in splits:
            raise ValueError(f"{shown} has no split {split!r}; there are {sorted(splits)}.")
        features = _read_json(self._folder / "features.json")["featuresDict"]["features"]
        videos = {n: f for n, f in features.items() if "video" in f}
        if feature not in videos and (feature or len(videos) != 1):
            raise ValueError(
                f"{shown}: {f'no Video feature {feature!r}' if feature else 'expected one Video'}"
                f"; its features are { {n: _kind(f) for n, f in features.items()} }."
            )
        self._feature = feature or next(iter(videos))
        self._columns = dict(_columns(self._folder, features))
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
                f"{shown}: {len(missing)} of {counted(len(paths), 'file is', 'files are')} "
                f"missing, {missing[0]} first; prepare it again with `tfds build {info['name']} "
                "--file_format=array_record`."
            )
        super().__init__([str(self._folder / p) for p in paths], counts)

    def name(self, index):
        return f"{printable(self._folder)}:{self._split}, example {index}"

    def rate(self, index):
        return self._fps

    def columns(self, index):
        features = self._features(index)
        found = {}
        for name, column in self._columns.items():
            found |= column.read(name, features[name])
        if self._is_ucf101 and "label_name" in found:
            name = found.pop("label_name")
            try:
                found |= class_columns(name or "")
            except KeyError:
                raise VideoError(
                    f"{self.name(index)} has the label {name!r}, which is no class of UCF101."
                ) from None
        return found

    def header(self, index):
        images = self._images(index)
        try:
            size = image_size(io.BytesIO(images[0]))
        except IndexError:
            raise VideoError(f"{self.name(index)} has no frames.") from None
        except IMAGE_ERRORS as error:
            raise self._broken(index, error) from error
        return Header(len(images), *size, self._fps)

    def blocks(self, index, length, *, short_side=None, size=None, threads=2):
        def begin():
            images = self._images(index)
            if not images:
                raise VideoError(f"{self.name(index)} has no frames.")
            return self._fps, (functools.partial(decode, image) for image in images)

        def decode(image):
            try:
                return [decode_image(io.BytesIO(image), short_side)]
            except IMAGE_ERRORS as error:
                raise self._broken(index, error) from error

        return ReadBlocks(self.name(index), length, begin, size=size, threads=threads)

    def _features(self, index):
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            return tf_example_pb2.Example.FromString(self.record(index)).features.feature
        except DecodeError as error:
            raise VideoError(f"{self.name(index)} is damaged: {one_line(error)}.") from error

    def _images(self, index) -> list[bytes]:
        return list(self._features(index)[self._feature].bytes_list.value)

    def _broken(self, index, error):
        return PartError(f"{self.name(index)} holds a broken image: {one_line(error)}.")

    def frames(self, index, sampling, stride, where):
        images = self._images(index)
        extent = Extent(self.name(index), 0.0, len(images) / self._fps, self._fps)
        times = [(i / self._fps, image) for i, image in enumerate(images)]
        chosen = cut(lambda _: times, extent, sampling, stride, where)
        try:
            scale = sampling.short_side, sampling.cover
            return [decode_image(io.BytesIO(image), *scale) for image in chosen]
        except IMAGE_ERRORS as error:
            raise self._broken(index, error) from error


@dataclasses.dataclass(frozen=True)
class _Column:
    """How a feature that JSON can hold is stored: text, numbers, truths, or lists of them."""

    kind: str  # "bytes", "int64", "float", as the lists of an example are called, or "bool"
    is_list: bool
    labels: tuple[str, ...] = ()

    def read(self, name: str, feature) -> dict[str, Any]:
        """Returns the value by the name, and beside a label's number its name."""
        stored = "int64" if self.kind == "bool" else self.kind
        values = list(getattr(feature, f"{stored}_list").value)
        if self.kind == "bytes":
            values = [value.decode("utf-8", "backslashreplace") for value in values]
        elif self.kind == "bool":
            values = [bool(value) for value in values]
        found = {name: values}
        if self.labels:
            known = range(len(self.labels))
            found[f"{name}_name"] = [self.labels[v] if v in known else None for v in values]
        if not self.is_list:
            found = {name: next(iter(values), None) for name, values in found.items()}
        return as_json(found)


def _columns(folder: Path, features: dict, above: str = "") -> Iterator[tuple[str, _Column]]:
    """Yields the features that JSON can hold, those inside other features as "outer/inner"."""
    for name, feature in features.items():
        name, is_list = above + name, False
        if inner := feature.get("sequence"):
            feature, is_list = inner["feature"], True
        if "featuresDict" in feature and not is_list:
            yield from _columns(folder, feature["featuresDict"]["features"], f"{name}/")
        elif "text" in feature:
            yield name, _Column("bytes", is_list)
        elif "classLabel" in feature:
            file = folder / f"{name.replace('/', '-')}.labels.txt"
            yield name, _Column("int64", is_list, _labels(file))
        elif tensor := feature.get("tensor"):
            sides = len(tensor.get("shape", {}).get("dimensions", ()))
            kind = _KINDS.get(re.sub(r"\d+$", "", tensor["dtype"]))
            if kind and sides + is_list < 2 and tensor.get("encoding", "none") == "none":
                yield name, _Column(kind, is_list or sides == 1)


def _labels(file: Path) -> tuple[str, ...]:
    """Returns the names of a label's values; none if the dataset does not give them."""
    if not file.exists():
        return ()
    with open_regular(file) as opened:
        return tuple(opened.read().decode("utf-8", "backslashreplace").splitlines())


def open_tfds(text: str, *, in_memory: bool = False) -> TFDS:
    """Opens one split of a TFDS dataset below TFDS_DATA_DIR (`~/tensorflow_datasets` if not set).

    Args:
      text: NAME or NAME:SPLIT, where NAME is the dataset's name, perhaps with its configuration and
        version, or a path. The split is "train" if it is not given.
      in_memory: without effect; videos are read anew every time.

    Raises:
      FileNotFoundError: if the dataset was not prepared.
      ValueError: if the name fits not just one prepared dataset, or the dataset cannot be used.
    """
    name, _, split = text.partition(":")
    root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folder = Path(name) if os.sep in name and Path(name).exists() else root / name
    shown = printable(folder)
    if not folder.exists():
        raise FileNotFoundError(
            f"{shown} does not exist; prepare it with `tfds build {name.split('/')[0]} "
            "--file_format=array_record`, or set TFDS_DATA_DIR to where it is."
        )
    versions = sorted(p.parent for p in folder.rglob("dataset_info.json"))
    if len(versions) != 1:
        found = [str(p.relative_to(folder)) for p in versions] or sorted(os.listdir(folder))
        raise ValueError(
            f"{shown} holds {len(versions)} prepared datasets ({found}); expected one: name its "
            "configuration and version, as in tfds:ucf101/ucf101_1/2.0.0:train."
        )
    return TFDS(versions[0], split or "train")


def _read_json(path: Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(
            f"{printable(path)} does not exist; expected a prepared TFDS dataset."
        )
    try:
        with open_regular(path) as file:
            return dict(json.load(file))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is damaged: {one_line(error)}.") from error


def _kind(feature: dict) -> str:
    return feature.get("pythonClassName", "?").split(".")[-1]
