"""Datasets of latents as training programs read them."""

from __future__ import annotations

import bisect
import collections
import functools
import logging
import operator
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from odvae_jax.files import counted
from odvae_jax.latents.catalogue import Catalogue, Opened, open_dataset
from odvae_jax.latents.description import Description
from odvae_jax.latents.scale import Scale
from odvae_jax.latents.schema import LatentsError, in_time
from odvae_jax.latents.shards import total_statistics
from odvae_jax.latents.storage import open_folder
from odvae_jax.latents.views import View, frames_of

if TYPE_CHECKING:
    from odvae_jax.latents.batches import LatentBatches

logger = logging.getLogger(__name__)
_ATTEMPTS = 64


class Read(NamedTuple):
    """One item, and what was passed over for it.

    Attributes:
      item: the item.
      passed_over: why a record cannot be used, by the record's name.
    """

    item: dict[str, Any]
    passed_over: dict[str, str]


class LatentDataset:
    """A dataset of latents that `odvae encode` wrote, with random access to its items.

    It is a source of data as grain wants it: `grain.MapDataset.source(dataset)`. It can be pickled
    and read by several threads. Items are ordered by bucket, then by the number of their entry, so
    that the order does not depend on who wrote which shard.

    An item is a dict:

    - "latents": [n, h, w, C], or [n, h, w, 2 C] for moments; it may not be written to.
    - "frames": the first and the last frame of the clip that each latent frame stands for, [n, 2]
      (see `odvae_jax.latents.views.frames_of`).
    - "first": the number of the first of these latent frames in the record.
    - "entry": the number of the record's entry in the dataset's plan.
    - "bucket": the name of the bucket.
    - "source": the name of the video.
    - "fps": the frames per second of the clip.
    - "place": where in the source the clip is from, see `LatentsInfo`; None for whole videos.
    - "columns": what else the source says of the video, such as a caption, by the column's name.

    A decoder takes the first latent frame that it is given for the first frame of a clip. So a
    window of n latent frames decodes to c (n - 1) + 1 frames, where c is the compression in time:
    its first latent frame decodes to one frame instead of c, and what the decoder would have seen
    of the latent frames before is missing. docs/latents.md says how far that reaches. Windows of
    OPS-VAE are of whole micro clips, and decode to their frames.

    A dataset that is still being written can be read; the log says so. Its items are those of the
    shards that were whole when it was opened, and its scale is that of these.

    Args:
      place: the path or the URL of the dataset. Shards of far datasets are copied to a temporary
        folder of this machine when they are first read.
      view: "stored" for values as they are stored, "mean", "moments" for mean and log-variance side
        by side in the channels, or "sample" for one drawn from mean and log-variance. Of a dataset
        of samples, "sample" gives what is stored.
      normalised: whether latents are normalised with the dataset's scale. Samples that are drawn
        from normalised moments are normalised.
      dtype: "float32", "float16" or "bfloat16"; None is float32, or of "stored" what is stored.
      seed: decides the samples, with an item's number.
      window: the number of latent frames per item; None takes records whole. Records that are
        shorter are left out.
      stride: the number of latent frames between the beginnings of two windows of a record; None
        takes `window`, so that windows do not overlap.
      buckets: the names of the buckets, or one name; None for all.
      scale: a scale to normalise with instead of the dataset's, such as a model's.
      damaged: "pass" names a damaged record or shard in the log and in `problems`, and gives
        another record of the bucket, which the seed and the item's number decide, in its place.
        "raise" raises.
      holdout: the number of items of each bucket, spread evenly over it, that batches never have
        and that do not take the place of damaged ones; `held_out` returns their numbers.

    Attributes:
      description: what the dataset says about itself.
      buckets: the names of the buckets that have items.
      problems: what is wrong with a shard or a record, by its name.
      too_short: the number of records that are shorter than a window.
      finished: whether the dataset was written to its end.

    Raises:
      LatentsError: if there is no dataset, or it is damaged, or does not hold what is asked for.
      ValueError: if the arguments exclude each other, or no driver for the URL is installed.
    """

    def __init__(
        self,
        place: str | os.PathLike,
        *,
        view: str = "stored",
        normalised: bool = False,
        dtype: str | None = None,
        seed: int = 0,
        window: int | None = None,
        stride: int | None = None,
        buckets: Sequence[str] | str | None = None,
        scale: Scale | None = None,
        damaged: str = "pass",
        holdout: int = 0,
    ):
        if damaged not in ("pass", "raise"):
            raise ValueError(f"damaged={damaged!r} is not known; there are 'pass' and 'raise'.")
        for name, value in (("window", window), ("stride", stride)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; expected a number of latent frames, from 1.")
        if holdout < 0:
            raise ValueError(f"holdout={holdout}; expected a number of items, from 0.")
        if stride is not None and window is None:
            raise ValueError("stride is that of windows: give window too.")
        folder = open_folder(place)
        opened = open_dataset(folder, strict=damaged == "raise")
        self.description: Description = opened.description
        self.finished = opened.description.records is not None
        self.problems: dict[str, str] = {}
        self.in_one_process: bool = folder.in_one_process
        self._damaged, self._seed = damaged, seed
        self._window, self._stride = window, stride or window
        self._in_time = in_time(self.description.shared["config"])
        self._check_micro_clips()
        self._holdout = holdout
        self._lock = threading.Lock()
        self._given_scale = scale or _scale_of(opened)
        self._catalogue = Catalogue(opened, _numbers(opened.description, buckets))
        self._count_items()
        self._say(opened)
        content = self.description.shared["content"]
        self._view = View(content, view, self.scale if normalised else None, dtype)

    def _check_micro_clips(self) -> None:
        """Checks that windows are of whole micro clips, where a model has them.

        Raises:
          LatentsError: if they are not: nothing decodes a part of a micro clip.
        """
        if self._window is None or self._in_time.micro_clip is None:
            return
        name = self.description.shared["config"]["model"]
        if not (micro := self.description.shared["config"]["micro_frames"]):
            raise LatentsError(
                f"window={self._window}: {name} has encoded each clip as one micro clip, of which "
                "no part can be decoded: leave out window, and encode shorter clips."
            )
        count = self._in_time.latents_per_micro_clip
        if self._window % count or self._stride % count:
            raise LatentsError(
                f"window={self._window} and stride={self._stride}: {name} has micro clips of "
                f"{counted(micro, 'frame')}, of which no part can be decoded: take multiples of "
                f"{count} latent frames, or leave out window."
            )

    def _count_items(self) -> None:
        lengths = self._catalogue.latent_frames
        if self._window is None:
            counts = np.ones(len(lengths), np.int64)
        else:
            counts = np.maximum((lengths - self._window) // self._stride + 1, 0)
        self.too_short = int((counts == 0).sum())
        self._ends = np.cumsum(counts)
        self._count = int(counts.sum())
        names = [bucket.name for bucket in self.description.buckets]
        per_bucket = np.bincount(self._catalogue.bucket, counts, len(names)).astype(int).tolist()
        ends = np.cumsum(per_bucket).tolist()
        # By the name of a bucket: the number of its first item, and how many it has.
        self._items = {
            name: (end - count, count)
            for name, end, count in zip(names, ends, per_bucket, strict=True)
            if count
        }
        self.buckets = tuple(self._items)

    def _say(self, opened: Opened) -> None:
        name, found = opened.folder.name, len(self._catalogue)
        self.note(opened.problems)
        if not self.finished:
            records = counted(found, "record is", "records are")
            logger.warning("%s is unfinished: %s read", name, records)
        if self.too_short:
            logger.warning(
                "%s: %d of %s left out, shorter than %s",
                name,
                self.too_short,
                counted(found, "record is", "records are"),
                counted(self._window, "latent frame"),
            )

    @functools.cached_property
    def scale(self) -> Scale:
        """The scale of the dataset: mean and deviation per channel of samples of all latents.

        Raises:
          LatentsError: if the dataset holds no latents, or a channel of them never changes.
        """
        if isinstance(self._given_scale, Scale):
            return self._given_scale
        raise LatentsError(f"{self._catalogue.folder.name} has no scale: {self._given_scale}")

    def normalise(self, z: Any) -> Any:
        """Returns what a diffusion model is given of latents, with deviation 1 per channel.

        Args:
          z: latents as the encoder gives them, [..., C]; a JAX or a NumPy array.
        """
        return self.scale.normalise(z)

    def denormalise(self, z: Any) -> Any:
        """Returns the latents that the decoder takes; the inverse of `normalise`.

        Args:
          z: what a diffusion model gives, [..., C]; a JAX or a NumPy array.
        """
        return self.scale.denormalise(z)

    def __getstate__(self):
        return {n: v for n, v in self.__dict__.items() if n != "_lock"}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of items."""
        return self._count

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns the item with a number.

        Raises:
          IndexError: if there is no such item.
          LatentsError: if it is damaged and `damaged` is "raise", or if 64 records of the bucket,
            one after another, are.
        """
        number = operator.index(index)
        number += self._count if number < 0 else 0
        if not 0 <= number < self._count:
            raise IndexError(f"item {index} of {self._count}")
        item, passed_over = self.read(number, (self._seed, number))
        if passed_over:
            self.note(passed_over)
        return item

    def read(self, number: int, seed: tuple[int, ...]) -> Read:
        """Reads an item, or another of its bucket if it is damaged; notes nothing.

        Args:
          number: the number of the item.
          seed: decides the noise of a sample, and which item takes the place of a damaged one.

        Raises:
          LatentsError: as `__getitem__` does.
        """
        passed_over: dict[str, str] = {}
        chosen = number
        for attempt in range(_ATTEMPTS):
            record, first = self._record_of(chosen)
            try:
                return Read(self._made(record, first, seed), passed_over)
            except LatentsError as error:
                if self._damaged == "raise":
                    raise
                passed_over[self._catalogue.name(record)] = str(error)
            others = self.drawn_of(self._bucket(record)) or self.items_of(self._bucket(record))
            chosen = others[int(np.random.default_rng([*seed, attempt]).integers(len(others)))]
        reasons = "\n  ".join(list(passed_over.values())[:5])
        raise LatentsError(f"{_ATTEMPTS} records in a row cannot be read:\n  {reasons}")

    def _record_of(self, number: int) -> tuple[int, int]:
        """Returns the record of an item, and the first latent frame of its window."""
        if self._window is None:
            return number, 0
        record = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[record - 1]) if record else 0
        return record, (number - before) * self._stride

    def _bucket(self, record: int) -> str:
        return self.description.buckets[self._catalogue.bucket[record]].name

    def _made(self, record: int, first: int, seed: tuple[int, ...]) -> dict[str, Any]:
        catalogue = self._catalogue
        found = catalogue.read(record)
        latents, header = found.latents, found.header
        if self._window is not None:
            latents = latents[first : first + self._window]
        frames = int(catalogue.frames[record])
        return {
            "latents": self._view(latents, seed),
            "frames": frames_of(self._in_time, first, len(latents), frames),
            "first": first,
            "entry": found.entry,
            "bucket": self._bucket(record),
            "source": header.get("source", ""),
            "fps": header.get("fps", 0.0),
            "place": header.get("place"),
            "columns": found.columns,
        }

    def note(self, problems: Mapping[str, str]) -> None:
        """Logs problems that were not seen before, and keeps them in `problems`."""
        if not problems:
            return
        with self._lock:
            for name in problems.keys() - self.problems.keys():
                self.problems[name] = problems[name]
                logger.warning("passed over (%d so far): %s", len(self.problems), problems[name])

    def items_of(self, bucket: str) -> range:
        """Returns the numbers of a bucket's items."""
        low, count = self._items.get(bucket, (0, 0))
        return range(low, low + count)

    def held_out(self, bucket: str) -> list[int]:
        """Returns the numbers of a bucket's items that batches never have."""
        items = self.items_of(bucket)
        count = min(self._holdout, len(items))
        return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]

    def drawn_of(self, bucket: str) -> Sequence[int]:
        """Returns the numbers of a bucket's items that batches have, in ascending order."""
        items = self.items_of(bucket)
        return _Without(items, self.held_out(bucket)) if self._holdout else items

    def each_columns(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the name of every record and what its source says of the video, by column.

        Every record is read for it. Damaged ones are left out, or raise, as `damaged` says.

        Raises:
          LatentsError: if a record is damaged and `damaged` is "raise".
        """
        for record in range(len(self._catalogue)):
            try:
                yield self._catalogue.name(record), self._catalogue.read(record).columns
            except LatentsError:
                if self._damaged == "raise":
                    raise

    def check_equal_lengths(self, bucket: str) -> None:
        """Checks that a bucket's items can be stacked.

        Raises:
          ValueError: if they have different numbers of latent frames.
        """
        if self._window is not None:
            return
        items = self.items_of(bucket)
        lengths = collections.Counter(self._catalogue.latent_frames[items.start : items.stop])
        if len(lengths) > 1:
            raise ValueError(
                f"the records of the bucket {bucket} have {min(lengths)} to {max(lengths)} latent "
                "frames, so they cannot be stacked: give window."
            )

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        first: int = 0,
        rates: Mapping[str, float] | None = None,
        rows: Sequence[int] | None = None,
        process_index: int | None = None,
        process_count: int | None = None,
        workers: int = 0,
        threads: int = 2,
    ) -> LatentBatches:
        """Returns endless batches, each of one bucket, which are read ahead.

        The batch with a number depends on the number and the arguments alone: it is the same for
        any number of threads and workers. So a run goes on to the bit with `first`. Every item of
        a bucket is drawn once before any is drawn twice.

        A batch is a dict with the arrays "latents" [b, n, h, w, C], "frames" [b, n, 2], "first",
        "entry" and "fps" [b]; the lists "source", "place" and "columns" of b values each; "bucket",
        the name of its bucket, and "number", its own number. Samples have other noise each time
        that an item is drawn.

        Args:
          batch_size: the number of items per batch, over all processes of the training.
          seed: decides the order, and the noise of samples.
          first: the number of the first batch.
          rates: the share of batches of each bucket, by its name; they are exact over every 10,000
            batches, and need not add up to 1. None draws all items equally often.
          rows: which items of each batch this process reads, counted from 0; None for all.
          process_index: the number of this process, instead of `rows`: it reads its part of each
            batch.
          process_count: the number of processes.
          workers: the number of processes that read; 0 reads in threads of this process. Workers
            import neither JAX nor the program's main module.
          threads: the number of threads, in each worker.

        Raises:
          ValueError: if a bucket is not known or has no items, or its items have different lengths,
            or the arguments do not fit together.
        """
        from odvae_jax.latents.batches import LatentBatches, rows_of

        rows = rows_of(batch_size, rows, process_index, process_count)
        return LatentBatches(
            self, batch_size, seed, first, rates, rows, workers=workers, threads=threads
        )


class _Without(Sequence):
    """Numbers without some of them, in ascending order; it takes no memory for those that stay.

    Args:
      numbers: the numbers.
      without: those that are left out, in ascending order.
    """

    def __init__(self, numbers: range, without: Sequence[int]):
        self._numbers = numbers
        # How many numbers that stay come before each of those that are left out.
        self._before = [number - numbers.start - i for i, number in enumerate(without)]

    def __len__(self) -> int:
        return len(self._numbers) - len(self._before)

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._numbers[place + bisect.bisect_right(self._before, place)]


def _scale_of(opened: Opened) -> Scale | str:
    """Returns the scale of a dataset, or why it has none."""
    if opened.description.scale is not None:
        return Scale.from_dict(opened.description.scale)
    try:
        return Scale.of(total_statistics(pair for shards in opened.shards for pair in shards))
    except ValueError as error:
        return str(error)


def _numbers(description: Description, buckets: Sequence[str] | str | None) -> list[int]:
    """Returns the numbers of buckets by their names."""
    names = [bucket.name for bucket in description.buckets]
    wanted = names if buckets is None else [buckets] if isinstance(buckets, str) else list(buckets)
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"there is no bucket {unknown[0]!r:.80}; there are {names}.")
    return sorted({names.index(name) for name in wanted})
