"""What a dataset of latents says about itself: `dataset.json` and the plan of its entries.

Its folder holds these files:

    DEST/dataset.json                       the description
    DEST/entries-9f0c31aa.index             the plan: one row per entry
    DEST/BUCKET/WRITER-00017.array_record   a shard
    DEST/BUCKET/WRITER-00017.index          what the shard holds
    DEST/problems.jsonl                     entries that came to nothing, each with its reason
    DEST/left-out.jsonl                     videos that have no entry, each with its reason

The last two are for people.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Bool, Int64

from odvae_jax.files import one_line
from odvae_jax.latents.records import SHARED
from odvae_jax.latents.scale import Scale
from odvae_jax.latents.schema import LatentsError, check_tiling, check_values
from odvae_jax.latents.storage import Folder

DATASET = "dataset.json"
PROBLEMS = "problems.jsonl"
FORMAT = "odvae_jax dataset of latents 1"
# Of the shared fields those that decide what latents are; a model may be moved, or calibrated.
_DECIDE = ("encoder", "content", "tiling", "dtype", "store", "seed")
_PLAN_FORMAT = "odvae_jax plan of a dataset of latents 1"


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A size that clips are brought to, and how many of them a device computes together.

    Attributes:
      name: the name of the bucket's folder, such as "17x128x128".
      frames: the number of frames per clip; None for videos as a whole, whatever their length.
      height, width: the rows and columns of a frame in pixels.
      batch: the number of clips that a device computes together; 1 for videos as a whole.
      entries: the number of entries.
    """

    name: str
    frames: int | None
    height: int
    width: int
    batch: int
    entries: int


@dataclasses.dataclass(frozen=True)
class Description:
    """What `dataset.json` says.

    Attributes:
      shared: the fields of `LatentsInfo` that all records have in common, by their names.
      source: "text" names the source, "videos" is the number of its videos, "digest" is that of
        their names and sizes.
      cut: how clips are cut out of videos, and brought to their sizes.
      buckets: the buckets, in the order of their numbers.
      left_out: how many videos are left out, by the reason.
      plan: tells the plan from others; names of writers begin with it. Empty for a dataset whose
        plan is in `entries.index`.
      records: the number of records; None while the dataset is being written.
      scale: mean and deviation per channel of samples of all latents, and the single factor (see
        `odvae_jax.latents.scale.Scale`); None while the dataset is being written.
    """

    shared: dict[str, Any]
    source: dict[str, Any]
    cut: dict[str, Any]
    buckets: tuple[Bucket, ...]
    left_out: dict[str, int]
    plan: str = ""
    records: int | None = None
    scale: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """Returns the content of `dataset.json`."""
        return (
            json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"
        ).encode()

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Description:
        """Returns the description whose file has this content.

        Args:
          content: the content.
          name: what error messages call the file.

        Raises:
          LatentsError: if it is none, or of another version.
        """
        try:
            fields = json.loads(content)
            found = fields.pop("format", None)
            if found != FORMAT:
                raise ValueError(f"its format is {found!r:.80}; this version reads {FORMAT!r}")
            buckets = tuple(Bucket(**b) for b in fields.pop("buckets"))
            described = cls(buckets=buckets, **fields)
            if missing := sorted(set(SHARED) - described.shared.keys()):
                raise ValueError(f"{missing} are missing")
            check_values({field: described.shared[field] for field in SHARED})
            check_tiling(described.shared["config"], described.shared["tiling"])
            if described.scale is not None:
                Scale.from_dict(described.scale)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LatentsError(f"{name} describes no dataset: {one_line(error)}.") from error
        return described

    def differences(self, other: Description) -> list[str]:
        """Returns the names of what would make other records than another description would."""
        found = [n for n in _DECIDE if self.shared.get(n) != other.shared.get(n)]
        found += [n for n in ("digest", "videos") if self.source.get(n) != other.source.get(n)]
        found += sorted(
            n for n in self.cut.keys() | other.cut.keys() if self.cut.get(n) != other.cut.get(n)
        )
        return found + ([] if self.buckets == other.buckets or found else ["buckets"])


def read_description(folder: Folder) -> Description | None:
    """Returns what a dataset says about itself; None if the folder has no description.

    Raises:
      LatentsError: if it is damaged, or of another version.
    """
    try:
        content = folder.read(DATASET)
    except FileNotFoundError:
        return None
    return Description.from_bytes(content, f"{folder.name}/{DATASET}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The entries of a dataset: which clip of which video each is. An entry's number is its row.

    Attributes:
      video: the number of the video in the source.
      start: the frame that the clip begins with, among those at which one can begin.
      bucket: the number of the bucket.
      mirrored: whether left and right are exchanged.
    """

    video: Int64[np.ndarray, " n"]
    start: Int64[np.ndarray, " n"]
    bucket: Int64[np.ndarray, " n"]
    mirrored: Bool[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.video)

    def to_bytes(self) -> bytes:
        """Returns the content of the plan's file."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return safetensors.numpy.save(arrays, {"format": _PLAN_FORMAT})

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Plan:
        """Returns the plan whose file has this content.

        Args:
          content: the content.
          name: what error messages call the file.

        Raises:
          LatentsError: if it is none.
        """
        try:
            plan = cls(**safetensors.numpy.load(content))
            if len({len(getattr(plan, f.name)) for f in dataclasses.fields(cls)}) != 1:
                raise ValueError("its columns have different lengths")
        except (safetensors.SafetensorError, TypeError, ValueError) as error:
            raise LatentsError(f"{name} is no plan of a dataset: {one_line(error)}.") from error
        return plan

    def units(self, buckets: tuple[Bucket, ...]) -> list[tuple[int, Int64[np.ndarray, " m"]]]:
        """Returns what devices compute together: pairs of a bucket's number and its entries.

        The entries of a unit are always the same, whatever is done already, since the place of a
        clip among those that are computed together must not change.
        """
        units = []
        for number, bucket in enumerate(buckets):
            entries = np.flatnonzero(self.bucket == number)
            units += [
                (number, entries[at : at + bucket.batch])
                for at in range(0, len(entries), bucket.batch)
            ]
        # In the order of the source, so that neighbours are read together.
        return sorted(units, key=lambda unit: int(unit[1][0]))


def entries_file(plan: str) -> str:
    """Returns the name of the file of a plan, which `Description.plan` tells from others."""
    return f"entries-{plan}.index" if plan else "entries.index"


def read_plan(folder: Folder, description: Description) -> Plan:
    """Returns the plan of a dataset.

    Raises:
      LatentsError: if there is none, or it is damaged.
    """
    file = entries_file(description.plan)
    try:
        content = folder.read(file)
    except FileNotFoundError:
        raise LatentsError(f"{folder.name}/{file} is missing.") from None
    return Plan.from_bytes(content, f"{folder.name}/{file}")


def problem_row(entry: int | None, video: str, reason: str, **more: Any) -> bytes:
    """Returns a line of `problems.jsonl`.

    Args:
      entry: the number of the entry; None for a video that no entry could be planned for.
      video: the name of the video.
      reason: why it came to nothing.
      **more: further fields that JSON can hold.
    """
    row: Mapping[str, Any] = {"entry": entry, "video": video, "reason": reason, **more}
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
