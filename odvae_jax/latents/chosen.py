"""Records of a dataset of latents, each read as a file of latents is."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from odvae_jax.latents.catalogue import Catalogue, open_dataset
from odvae_jax.latents.description import DATASET
from odvae_jax.latents.files import LatentsFile
from odvae_jax.latents.schema import LatentsError, LatentsInfo
from odvae_jax.latents.storage import is_url, open_folder


def is_dataset(place: str) -> bool:
    """Whether a path is that of a dataset of latents; URLs always are taken for one."""
    return is_url(place) or (Path(place) / DATASET).is_file()


class StoredRecord(os.PathLike):
    """One record of a dataset. As a path it is what messages call it.

    Args:
      catalogue: the records of the dataset.
      number: the number of the record in the catalogue.

    Attributes:
      entry: the number of the record's entry in the dataset's plan.
      bucket: the name of its bucket.
    """

    def __init__(self, catalogue: Catalogue, number: int):
        self._catalogue, self._number = catalogue, number
        self.entry = int(catalogue.entries[number])
        self.bucket: str = catalogue.description.buckets[catalogue.bucket[number]].name

    def __fspath__(self) -> str:
        return self._catalogue.name(self._number)

    __str__ = __fspath__

    def open(self) -> RecordLatents:
        """Reads the record, and checks all that it says of itself.

        Raises:
          LatentsError: if it is damaged, or says of itself what cannot be true.
        """
        found = self._catalogue.read(self._number)
        try:
            info = found.info(self._catalogue.description.shared)
        except LatentsError as error:
            raise LatentsError(f"{self} is damaged: {error}.") from error
        return RecordLatents(self, info, found.latents)


class RecordLatents:
    """The latents of one record, with what `LatentsFile` has that decoding needs.

    Args:
      path: the record.
      info: what it says of itself.
      stored: the latents as they are stored.

    Attributes:
      path: the record, which as a path is what messages call it.
      info: what it says of itself.
      shape: the shape of the stored array, [t, h, w, C], or [t, h, w, 2 C] for moments.
    """

    def __init__(self, path: StoredRecord, info: LatentsInfo, stored: np.ndarray):
        self.path, self.info, self.shape = path, info, stored.shape
        self._stored = stored

    def read(self, start: int = 0, stop: int | None = None) -> Float32[np.ndarray, "n h w c"]:
        """Reads the latent frames from `start` up to `stop`, float32 [n, h, w, C].

        For moments it reads the mean. None for `stop` reads to the end.
        """
        channels = self.info.config["latent_channels"]
        return self._stored[start:stop, ..., :channels].astype(np.float32)

    blocks = LatentsFile.blocks


def open_latents(path: str | os.PathLike, *, verify: bool = True) -> LatentsFile | RecordLatents:
    """Opens a file of latents, or a record of a dataset.

    Args:
      path: the path of the file, or the record.
      verify: whether a file is compared with its digests; a record always is.

    Raises:
      LatentsError: if it is damaged.
    """
    if isinstance(path, StoredRecord):
        return path.open()
    return LatentsFile(path, verify=verify)


def choose_records(place: str, text: str | None, problems: dict[str, str]) -> list[StoredRecord]:
    """Returns records of a dataset, by bucket, then by entry.

    Args:
      place: the path or the URL of the dataset.
      text: the numbers of entries, such as "0,7,10-19"; None takes all records.
      problems: is filled with what is wrong with shards, by their names.

    Raises:
      LatentsError: if there is no such dataset.
      ValueError: if the text is not understood, or names an entry that has no record.
    """
    opened = open_dataset(open_folder(place))
    problems |= opened.problems
    catalogue = Catalogue(opened, range(len(opened.description.buckets)))
    record = functools.partial(StoredRecord, catalogue)
    if text is None:
        return list(map(record, range(len(catalogue))))
    wanted = np.zeros(len(catalogue), bool)
    for part in text.split(","):
        if not (found := re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)):
            raise ValueError(f"--records={text}: {part!r} is no number, and not like 10-19.")
        first, last = int(found[1]), int(found[2] or found[1])
        inside = (first <= catalogue.entries) & (catalogue.entries <= last)
        if not inside.any():
            raise ValueError(
                f"--records={text}: {opened.folder.name} has no record of the entry {part.strip()}."
            )
        wanted |= inside
    return list(map(record, np.flatnonzero(wanted).tolist()))
