"""TFDS datasets: `tfds:NAME[:SPLIT]`, with a Video feature and in array_record format.

They are read without TensorFlow.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from odvae_jax.data.sources.base import Extent, cut
from odvae_jax.data.sources.images import IMAGE_ERRORS, decode_image
from odvae_jax.data.sources.records import Records
from odvae_jax.data.video import PartError, VideoError
from odvae_jax.files import one_line, printable


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
      ValueError: if the dataset has another format, no such split, or not one such feature.
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
        return f"{printable(self._folder)}:{self._split}, example {index}"

    def rate(self, index):
        return self._fps

    def frames(self, index, sampling, stride, where):
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            example = tf_example_pb2.Example.FromString(self.record(index))
        except DecodeError as error:
            raise VideoError(f"{self.name(index)} is damaged: {one_line(error)}.") from error
        images = example.features.feature[self._feature].bytes_list.value
        extent = Extent(self.name(index), 0.0, len(images) / self._fps, self._fps)
        times = [(i / self._fps, image) for i, image in enumerate(images)]
        chosen = cut(lambda _: times, extent, sampling, stride, where)
        try:
            return [decode_image(io.BytesIO(b), sampling.short_side) for b in chosen]
        except IMAGE_ERRORS as error:
            raise PartError(f"{extent.name} holds a broken image: {one_line(error)}.") from error


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


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a prepared TFDS dataset.")
    return json.loads(path.read_text())


def _kind(feature: dict) -> str:
    return feature.get("pythonClassName", "?").split(".")[-1]
