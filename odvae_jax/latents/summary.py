"""What a dataset of latents holds, for people, from its description and its indices alone."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
from collections.abc import Sequence

from odvae_jax.files import counted
from odvae_jax.latents.catalogue import Opened, open_dataset
from odvae_jax.latents.description import PROBLEMS, Bucket
from odvae_jax.latents.shards import SHARD, total_statistics
from odvae_jax.latents.statistics import Statistics
from odvae_jax.latents.storage import Folder, open_folder

_PROBLEMS = PROBLEMS.replace(".", "*.")


@dataclasses.dataclass(frozen=True)
class BucketSummary:
    """What a bucket holds.

    Attributes:
      name: the bucket's name.
      records: the number of records.
      entries: the number of entries that were planned.
      frames: the number of frames of all clips.
      seconds: the length of all clips.
      bytes: the size of its shards.
      statistics: the sums over its latents.
    """

    name: str
    records: int
    entries: int
    frames: int
    seconds: float
    bytes: int
    statistics: Statistics

    def __str__(self):
        hours = f"{self.seconds / 3600:.2f} hours"
        return (
            f"{self.name}: {counted(self.records, 'record')} of "
            f"{counted(self.entries, 'entry', 'entries')}, {counted(self.frames, 'frame')}, "
            f"{hours}, {self.bytes / 1e6:.1f} MB"
        )


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a dataset holds; its text is for people.

    Attributes:
      name: what messages call the dataset.
      finished: whether it was written to its end.
      model: the model that made the latents, with what is stored of them.
      buckets: its buckets.
      statistics: the sums over all of its latents.
      left_out: how many videos are left out, by the reason.
      problems: what is wrong with shards and with entries, one line each.
    """

    name: str
    finished: bool
    model: str
    buckets: tuple[BucketSummary, ...]
    statistics: Statistics
    left_out: dict[str, int]
    problems: tuple[str, ...]

    def __str__(self):
        records = sum(bucket.records for bucket in self.buckets)
        state = "" if self.finished else " (unfinished)"
        lines = [f"{self.name}{state}: {counted(records, 'record')}, {self.model}"]
        left_out = self.left_out.items()
        lines += [f"{counted(count, 'video')} left out: {reason}" for reason, count in left_out]
        for bucket in self.buckets:
            lines.append(str(bucket))
            if bucket.statistics.count and len(self.buckets) > 1:
                lines.append(bucket.statistics.table())
        if self.statistics.count:
            if len(self.buckets) > 1:
                lines.append("all buckets")
            lines.append(self.statistics.table())
        return "\n".join(lines)


def summarise(place: str | os.PathLike) -> Summary:
    """Returns what a dataset of latents holds. It reads its indices, and no latents.

    Args:
      place: the path or the URL of the dataset.

    Raises:
      LatentsError: if there is no dataset, or its description is damaged.
      ValueError: if no driver for the URL is installed.
    """
    opened = open_dataset(open_folder(place))
    described, shared = opened.description, opened.description.shared
    buckets = zip(described.buckets, opened.shards, strict=True)
    return Summary(
        name=opened.folder.name,
        finished=described.records is not None,
        model=f"{shared['content']} in {shared['store']} of {shared['model']}",
        buckets=tuple(_of_bucket(opened.folder, *pair) for pair in buckets),
        statistics=total_statistics(pair for shards in opened.shards for pair in shards),
        left_out=described.left_out,
        problems=(*opened.problems.values(), *_noted(opened)),
    )


def _of_bucket(folder: Folder, bucket: Bucket, shards: Sequence) -> BucketSummary:
    return BucketSummary(
        name=bucket.name,
        records=sum(int(mask.sum()) for _, mask in shards),
        entries=bucket.entries,
        frames=sum(int(index.frames[mask].sum()) for index, mask in shards),
        seconds=sum(float(index.seconds[mask].sum()) for index, mask in shards),
        bytes=sum(folder.size(index.name + SHARD) for index, _ in shards),
        statistics=total_statistics(shards),
    )


def _noted(opened: Opened) -> list[str]:
    """Returns the problems that were noted when the dataset was written, and are none by now."""
    done = {e for shards in opened.shards for i, mask in shards for e in i.entries[mask].tolist()}
    lines = {}
    # Each part of a dataset that several processes write has a file of its own.
    for name in opened.folder.names():
        if not fnmatch.fnmatchcase(name, _PROBLEMS):
            continue
        text = opened.folder.read(name).decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line)
                if row["entry"] is None or row["entry"] not in done:
                    lines[row["entry"], row["video"]] = f"{row['video']}: {row['reason']}"
            except (ValueError, TypeError, KeyError, RecursionError):
                lines[number, name] = f"{opened.folder.name}/{name}: line {number} is damaged"
    return list(lines.values())
