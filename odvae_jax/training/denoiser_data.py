"""What a denoiser is trained on: a dataset of latents, or videos that are encoded in the step."""

from __future__ import annotations

import abc
import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from odvae_jax import registry
from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.sources import Source
from odvae_jax.data.video import VideoError
from odvae_jax.diffusion import LatteConfig, TrainedOn
from odvae_jax.files import counted, printable
from odvae_jax.latents import LatentDataset, LatentsError, Scale
from odvae_jax.latents.chosen import is_dataset
from odvae_jax.latents.description import Bucket, Description, read_description
from odvae_jax.latents.schema import compression, in_time
from odvae_jax.latents.storage import open_folder
from odvae_jax.sharding import clip_sharding, clip_shards, local_rows
from odvae_jax.training.denoising import Batch, denoiser_config, denoiser_model_config
from odvae_jax.training.tasks.task import Feeds
from odvae_jax.transcoding import encoder_digest

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
"""A batch on the host: "latents" or "clips", and "labels" with classes."""
_NAMED = 5  # videos that a warning lists
_OF_VIDEOS = ("validation_path", "frames", "size", "short_side", "stride", "stride_max", "crop")
_OF_VIDEOS += ("spread", "flip", "max_unusable", "read_timeout")
_OF_LATENTS = ("holdout", "window_stride")
_VALIDATION_SEED = 2**30  # of the videos that a run measures itself on


def open_data(config: ml_collections.ConfigDict, mesh: Mesh) -> Data:
    """Opens the data of a run, and checks that it is what the denoiser is made for.

    Args:
      config: the run's config.
      mesh: the devices.

    Raises:
      FileNotFoundError: if data or autoencoder are missing.
      ValueError: if the latents are of another shape, scale or autoencoder, or a label is missing
        or no class of the denoiser's.
    """
    vae = _autoencoder(config)
    if not _is_quiet():
        _say_unused(config)
    if is_dataset(config.data.path):
        return StoredLatents(config, mesh, vae)
    if vae is None:
        raise ValueError(
            f"config.data.path={printable(config.data.path)} is no dataset of latents: make one "
            "with `odvae encode SOURCE FOLDER --to=shards`, or name the autoencoder that is to "
            "encode its videos in every step, --config.vae."
        )
    return EncodedVideos(config, mesh, vae)


def _say_unused(config) -> None:
    """Says which fields that differ from their defaults are of the other kind of data."""
    stored, usual = is_dataset(config.data.path), denoiser_config().data
    fields = _OF_VIDEOS if stored else _OF_LATENTS
    if unused := [name for name in fields if config.data[name] != usual[name]]:
        why = (
            "clips of a dataset of latents are as they were encoded"
            if stored
            else "only a dataset of latents has it"
        )
        logger.info("%s: without effect, for %s", ", ".join(f"data.{n}" for n in unused), why)


def _autoencoder(config) -> Any:
    """The autoencoder that the config names; None for none."""
    if not config.vae:
        return None
    vae = registry.load_autoencoder(config.vae, dtype=config.vae_dtype)
    if vae.config.latent_channels is None:
        raise ValueError(
            f"config.vae={printable(config.vae)} is {vae.config.name}, whose latents are codes; a "
            "denoiser needs numbers."
        )
    return vae


class Data(abc.ABC):
    """The data of a run.

    Args:
      config: the run's config.
      mesh: the devices.
      vae: the autoencoder, or None.

    Attributes:
      model: the config of the denoiser.
      vae: the autoencoder, or None.
      encodes: whether the autoencoder is part of every step.
      scale: how latents are normalised.
      record: what the denoiser is trained on, as its model says later.
    """

    encodes: bool
    scale: Scale
    record: TrainedOn

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh, vae: Any):
        self._config, self._mesh, self.vae = config, mesh, vae
        self.model: LatteConfig = denoiser_model_config(config)

    @abc.abstractmethod
    def feeds(self, position: Mapping[str, Any]) -> DenoiserFeeds:
        """Batches from a position in the data on."""

    @abc.abstractmethod
    def fixed(self) -> list[Batch]:
        """Batches for validation, whole ones that are always the same, on the devices."""

    @property
    def _wanted(self) -> int:
        """The number of clips for validation, a multiple of the batch."""
        size = self._config.batch_size
        return -(-self._config.validation_clips // size) * size


class StoredLatents(Data):
    """Windows of the records of a dataset of latents.

    Args:
      config: the run's config.
      mesh: the devices.
      vae: the autoencoder that made the latents, or None.

    Raises:
      ValueError: if the latents are of another shape or autoencoder, or labels do not fit.
    """

    encodes = False

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh, vae: Any):
        super().__init__(config, mesh, vae)
        data, model, path = config.data, self.model, printable(config.data.path)
        description = read_description(open_folder(data.path))
        if description is None:
            raise FileNotFoundError(f"{path} holds no dataset of latents.")
        shared = description.shared
        _check_channels(shared["config"]["latent_channels"], model, path)
        if vae is not None and (found := encoder_digest(vae)) != shared["encoder"]:
            raise ValueError(
                f"config.vae={printable(config.vae)} has the encoder {found}, and the latents in "
                f"{path} are of the encoder {shared['encoder']}, of {shared['model']}: name that."
            )
        factor = Scale(None, None, shared["scaling_factor"])
        buckets, whole = _fitting(description, model, path)
        self.dataset = LatentDataset(
            data.path,
            view="sample" if data.sampled and shared["content"] != "mean" else "mean",
            normalised=True,
            window=None if whole else model.frames,
            stride=None if whole else data.window_stride or None,
            buckets=buckets,
            scale=factor if data.scale == "factor" else None,
            holdout=data.holdout,
        )
        if data.sampled and shared["content"] == "mean":
            raise ValueError(
                f"{path} holds means alone: give --noconfig.data.sampled, or encode again with "
                "--content=moments."
            )
        if not len(self.dataset):
            raise ValueError(
                f"no record of {path} has config.model.frames={model.frames} latent frames."
            )
        if not any(len(self.dataset.drawn_of(name)) for name in self.dataset.buckets):
            raise ValueError(
                f"config.data.holdout={data.holdout} leaves none of the {len(self.dataset)} "
                "records to train on: hold out fewer."
            )
        self.scale = self.dataset.scale
        self._numbers = self._fixed_numbers()
        classes = self._classes()
        first = self.dataset[0]
        self.record = TrainedOn(
            vae=config.vae or shared["model"],
            encoder=shared["encoder"],
            scale=self.scale,
            frames=int(first["frames"][-1, 1]) + 1,
            fps=float(first["fps"]),
            classes=classes,
        )

    def _classes(self) -> tuple[str, ...]:
        if not self.model.classes:
            return ()
        bar = tqdm(
            self.dataset.each_columns(),
            desc="labels",
            unit="record",
            disable=_is_quiet(),
            leave=False,
        )
        return class_names(iter(bar), self._config.data, self.model.classes)

    def _fixed_numbers(self) -> list[int]:
        numbers = [n for bucket in self.dataset.buckets for n in self.dataset.held_out(bucket)]
        if self._config.validate_every and not numbers:
            logger.warning(
                "config.data.holdout=0: the loss that validation measures is of latents that are "
                "trained on"
            )
        return numbers or list(range(len(self.dataset)))

    def feeds(self, position: Mapping[str, Any]) -> DenoiserFeeds:
        """Batches from number `position["next"]` on."""
        config, sharding = self._config, clip_sharding(self._mesh)
        first = position.get("next", 0)
        shape = (config.batch_size, *self.model.latent_shape)
        # The order is made when a step asks for it, so that all processes begin together.
        read = self.dataset.batches(
            config.batch_size,
            seed=config.seed,
            first=first,
            rows=local_rows(sharding, shape),
            workers=config.data.workers,
            threads=config.data.threads,
        )
        arrays = map(self._arrays, read)
        return DenoiserFeeds(self, arrays, read.close, len(self.dataset), position, 1)

    def _arrays(self, batch: Mapping[str, Any]) -> Arrays:
        made = {"latents": batch["latents"]}
        if self.model.classes:
            named = zip(batch["source"], batch["columns"], strict=True)
            column, count = self._config.data.label, self.model.classes
            labels = [label_of(columns, column, count, name) for name, columns in named]
            made["labels"] = np.array(labels, np.int32)
        return made

    def fixed(self) -> list[Batch]:
        """Whole batches of records that are held out, in their order."""
        size, found = self._config.batch_size, []
        numbers = itertools.islice(itertools.cycle(self._numbers), self._wanted)
        for part in _parts(list(numbers), size):
            items = [self.dataset[number] for number in part]
            batch: dict[str, Any] = {"latents": np.stack([item["latents"] for item in items])}
            batch |= {name: [item[name] for item in items] for name in ("source", "columns")}
            found.append(on_devices(self._arrays(batch), self._mesh))
        return found


class EncodedVideos(Data):
    """Clips of videos, which an autoencoder encodes in every step, as the paper did.

    Args:
      config: the run's config.
      mesh: the devices.
      vae: the autoencoder.

    Raises:
      ValueError: if its latents are of another shape than the denoiser's, it has no scale as asked
        for, or labels do not fit.
    """

    encodes = True

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh, vae: Any):
        super().__init__(config, mesh, vae)
        model, data, name = self.model, config.data, f"config.vae={printable(config.vae)}"
        _check_channels(vae.config.latent_channels, model, name)
        self._frames = data.frames
        _check_clips(vae, data, model, name)
        scale = vae.config.scale
        if data.scale == "channels" and not scale.measured:
            raise ValueError(
                f"{name} has no mean and deviation per channel: `odvae calibrate` measures them, "
                'or take config.data.scale="factor".'
            )
        self.scale = scale if data.scale == "channels" else Scale(None, None, scale.factor)
        self.clips = self._open(data.path, config.seed, data.flip)
        rate = _rate(self.clips)
        self.record = TrainedOn(
            vae=config.vae,
            encoder=encoder_digest(vae),
            scale=self.scale,
            frames=self._frames,
            fps=float(rate / data.stride),
            classes=self._classes(),
        )

    def _open(self, path: str, seed: int, flip: bool) -> RandomClips:
        data = self._config.data
        with_labels = {"label": data.label} if data.label else {}
        return RandomClips(
            path,
            frames=self._frames,
            size=data.size,
            short_side=data.short_side,
            seed=seed,
            stride=(data.stride, max(data.stride, data.stride_max)),
            spread=data.spread,
            crop=data.crop,
            flip=flip,
            max_unusable=data.max_unusable,
            timeout=data.read_timeout or None,
            **with_labels,
        )

    def _classes(self) -> tuple[str, ...]:
        if not self.model.classes:
            return ()
        every = [(source, i) for source in self.clips.sources for i in range(len(source))]
        bar = tqdm(every, desc="labels", unit="video", disable=_is_quiet(), leave=False)
        return class_names(self._labelled(bar), self._config.data, self.model.classes)

    def _labelled(self, videos: Iterable[tuple[Source, int]]) -> Iterator[tuple[str, Any]]:
        """The names and the columns of the videos whose label is not empty; says how many are."""
        column, empty, there = self._config.data.label, [], False
        for source, number in videos:
            columns, name = source.columns(number), source.name(number)
            if columns.get(column, name) in ("", None):  # they are passed over when they are drawn
                empty.append(name)
            else:
                there = True
                yield name, columns
        if empty and not there:
            raise ValueError(
                f"no video has a label: the column {column!r} (config.data.label) is empty."
            )
        if empty and not _is_quiet():
            listed = ", ".join(map(printable, empty[:_NAMED])) + (
                "" if len(empty) <= _NAMED else ", …"
            )
            logger.warning(
                "%s left out, without a label in the column %r: %s",
                counted(len(empty), "video is", "videos are"),
                column,
                listed,
            )

    def feeds(self, position: Mapping[str, Any]) -> DenoiserFeeds:
        """Batches from clip number `position["next"]` on."""
        config = self._config
        shape = (config.batch_size, self._frames, config.data.size, config.data.size, 3)
        read = batches(
            self.clips,
            config.batch_size,
            first=position.get("next", 0),
            rows=local_rows(clip_sharding(self._mesh), shape),
            threads=config.data.threads,
            workers=config.data.workers,
        )
        arrays = map(self._arrays, read)
        size = config.batch_size
        return DenoiserFeeds(self, arrays, read.close, len(self.clips), position, size)

    def _arrays(self, batch: Any) -> Arrays:
        if not self.model.classes:
            return {"clips": batch}
        clips, labels = batch
        if (labels >= self.model.classes).any():
            raise ValueError(_no_class(int(labels.max()), self.model.classes, "a clip"))
        return {"clips": clips, "labels": labels.astype(np.int32)}

    def fixed(self) -> list[Batch]:
        """Whole batches of clips of the videos of validation, not mirrored."""
        config = self._config
        if not config.data.validation_path:
            logger.warning(
                "config.data.validation_path is empty: the loss that validation measures is of "
                "videos that are trained on"
            )
        path = config.data.validation_path or config.data.path
        clips = self._open(path, _VALIDATION_SEED, flip=False)
        with contextlib.closing(batches(clips, config.batch_size, threads=1)) as read:
            taken = itertools.islice(read, self._wanted // config.batch_size)
            return [on_devices(self._arrays(batch), self._mesh) for batch in taken]


class DenoiserFeeds(Feeds):
    """Batches on the devices, in an order that the position alone decides.

    Args:
      data: the data.
      arrays: this process's rows of each batch.
      end: ends the threads and processes that read.
      count: the number of items or videos that there are.
      position: where the first batch begins, as the attribute `position` was saved.
      per_batch: how far a batch moves the position.
    """

    def __init__(
        self,
        data: Data,
        arrays: Iterator[Arrays],
        end: Any,
        count: int,
        position: Mapping[str, Any],
        per_batch: int,
    ):
        before = position.get("items", count)
        if before != count:
            logger.warning(
                "the run reads %s, where %d were read before: their order is another from here on",
                counted(count, "item"),
                before,
            )
        self.position = {"next": position.get("next", 0), "items": count}
        self._data, self._arrays, self._end, self._per_batch = data, arrays, end, per_batch

    def __call__(self, step: int) -> Batch:
        """The batch of the step before which `step` were done."""
        arrays = next(self._arrays)
        self.position["next"] += self._per_batch
        return on_devices(arrays, self._data._mesh, self._data._config.batch_size)

    def stand_in(self, step: int) -> Batch:
        """Zeros where a batch would be."""
        data = self._data
        size = data._config.batch_size
        shapes: dict[str, tuple] = {"latents": ((size, *data.model.latent_shape), np.float32)}
        if isinstance(data, EncodedVideos):
            side = data._config.data.size
            shapes = {"clips": ((size, data._frames, side, side, 3), np.uint8)}
        if data.model.classes:
            shapes["labels"] = ((size,), np.int32)
        found = {}
        for name, (shape, dtype) in shapes.items():
            sharding = _sharding(data._mesh, len(shape))
            held = len(local_rows(sharding, shape))
            found[name] = np.zeros((held, *shape[1:]), dtype)
        return on_devices(found, data._mesh, size)

    def close(self) -> None:
        """Ends the threads and processes that read."""
        self._end()


def on_devices(arrays: Arrays, mesh: Mesh, size: int | None = None) -> Batch:
    """Returns a batch spread over the devices.

    Args:
      arrays: the rows of the batch that this process's devices hold, or all of them.
      mesh: the devices.
      size: the number of clips of the whole batch; None if `arrays` have all of them.
    """

    def placed(array):
        shape = (size or len(array), *array.shape[1:])
        sharding = _sharding(mesh, len(shape))
        rows = local_rows(sharding, shape) if size else range(len(array))
        place = {row: i for i, row in enumerate(rows)}

        def part(index):
            start, stop, _ = index[0].indices(shape[0])
            return array[place[start] : place[stop - 1] + 1]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: placed(array) for name, array in arrays.items()}


def _sharding(mesh: Mesh, axes: int) -> NamedSharding:
    over = tuple(name for name in ("data", "fsdp") if name in mesh.shape)
    return NamedSharding(mesh, PartitionSpec(over, *[None] * (axes - 1)))


def class_names(
    columns: Iterable[tuple[str, Mapping[str, Any]]], data: ml_collections.ConfigDict, classes: int
) -> tuple[str, ...]:
    """Returns the name of each class, after the label of every clip was checked.

    Args:
      columns: the name of each clip, and what its source says of it.
      data: says which columns hold the number and the name.
      classes: the number of classes. One that no clip has is named by its number.

    Raises:
      ValueError: if a label is missing or no class, or one class has two names.
    """
    names: dict[int, str] = {}
    for clip, found in columns:
        label = label_of(found, data.label, classes, clip)
        if not data.names:
            continue
        if data.names not in found:
            raise ValueError(
                f"{printable(clip)} has no column {data.names!r} (config.data.names); its columns "
                f"are {sorted(found)[:20]}."
            )
        name = str(found[data.names])
        if names.setdefault(label, name) != name:
            raise ValueError(
                f"the class {label} is called {names[label]!r:.80} and {name!r:.80}: one of "
                f"config.data.label={data.label} and config.data.names={data.names} is another "
                "column."
            )
    return tuple(names.get(label, str(label)) for label in range(classes))


def label_of(columns: Mapping[str, Any], column: str, classes: int, clip: str) -> int:
    """Returns the number of a clip's class.

    Args:
      columns: what the source says of the clip.
      column: the name of the column with the number; text of digits counts as a number.
      classes: the number of classes.
      clip: what messages call the clip.

    Raises:
      ValueError: if the column is missing, or holds no class.
    """
    if column not in columns:
        raise ValueError(
            f"{printable(clip)} has no column {column!r} (config.data.label); its columns are "
            f"{sorted(columns)[:20]}."
        )
    value = columns[column]
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < classes:
        raise ValueError(_no_class(value, classes, printable(clip)))
    return value


def _no_class(value: Any, classes: int, clip: str) -> str:
    return (
        f"{clip} has the label {value!r:.80}; expected a whole number from 0 to {classes - 1}, "
        f"for config.model.classes={classes}."
    )


def _check_channels(found: int, model: LatteConfig, where: str) -> None:
    if found != model.channels:
        raise ValueError(
            f"config.model.channels={model.channels}, and the latents of {where} have {found}: "
            f"give --config.model.channels={found}."
        )


def _check_clips(vae: Any, data, model: LatteConfig, name: str) -> None:
    """Whether clips can be encoded, and become latents of the denoiser's shape."""
    size = (data.frames, data.size, data.size)
    if (taken := vae.config.clip_size(*size)) != size:
        raise ValueError(
            f"config.data.frames={data.frames} and size={data.size} are no clip that {name} "
            f"encodes; the next that is has {taken[0]} frames of {taken[1]}×{taken[2]}."
        )
    found = vae.config.latent_shape((1, *size, 3))[1:]
    if found != model.latent_shape:
        raise ValueError(
            f"config.data.frames={data.frames} and size={data.size} are latents of {found} with "
            f"{name}, and config.model has frames, rows, columns and channels "
            f"{model.latent_shape}: make them equal."
        )


def _fitting(description: Description, model: LatteConfig, path: str) -> tuple[list[str], bool]:
    """The names of the buckets whose latents are of the denoiser's rows and columns.

    With them comes whether their records are as long as the denoiser's clips, so that no windows
    are needed.

    Raises:
      LatentsError: if there are none.
    """
    config = description.shared["config"]
    (_, space), time = compression(config), in_time(config)

    def shape_of(bucket: Bucket) -> tuple[int | None, int, int]:
        frames = None if bucket.frames is None else time.latent_frames(bucket.frames)
        return frames, -(-bucket.height // space), -(-bucket.width // space)

    shapes = {bucket.name: shape_of(bucket) for bucket in description.buckets}
    wanted = (model.rows, model.columns)
    fitting = [
        name
        for name, (frames, *sides) in shapes.items()
        if tuple(sides) == wanted and (frames is None or frames >= model.frames)
    ]
    if not fitting:
        listed = ", ".join(
            f"{name}: {'any number of' if frames is None else frames} latent frames of {h}×{w}"
            for name, (frames, h, w) in list(shapes.items())[:8]
        )
        raise LatentsError(
            f"{path} has no latents of config.model.frames={model.frames}, rows={model.rows} and "
            f"columns={model.columns}; it has {listed}."
        )
    return fitting, all(shapes[name][0] == model.frames for name in fitting)


def _parts(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _is_quiet() -> bool:
    return jax.process_index() > 0


def shards_of(mesh: Mesh, count: int) -> int:
    """Returns the least number of clips, at least `count`, that divides over the devices."""
    shards = clip_shards(mesh)
    return -(-count // shards) * shards


def _rate(clips: RandomClips) -> float:
    """The frames per second of the first video that can be read; 0 if none can."""
    for source in clips.sources:
        for i in range(len(source)):
            with contextlib.suppress(VideoError):
                return source.rate(i)
    return 0.0
