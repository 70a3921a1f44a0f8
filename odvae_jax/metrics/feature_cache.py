"""Vectors that networks made of clips, kept by the content of clip and network."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from odvae_jax import digests


def content_key(frames: UInt8[np.ndarray, "t h w 3"]) -> str:
    """Returns 32 hexadecimal digits that tell the frames of a clip from other frames."""
    return digests.of_bytes(repr(frames.shape).encode(), np.ascontiguousarray(frames))


class FeatureCache:
    """Vectors by network and by clip, in one file of JSON lines per network.

    A vector that was added stays, so that whoever measures again computes only what is new. Torn
    and damaged lines are left out, and their vectors are computed again.

    Args:
      folder: the folder of the files, which is made when it is first needed; None keeps the vectors
        in memory only.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self._folder = None if folder is None else Path(folder)
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def get(self, network: str, key: str) -> Float[np.ndarray, " d"] | None:
        """Returns the vector of a clip, float32, or None if it has to be computed.

        Args:
          network: the digest of the network.
          key: what `content_key` returns for the clip.
        """
        return self._vectors(network).get(key)

    def add(self, network: str, vectors: dict[str, Float[np.ndarray, " d"]]) -> None:
        """Keeps the vectors of some clips.

        Args:
          network: the digest of the network.
          vectors: the vectors by what `content_key` returns for the clip.
        """
        known = self._vectors(network)
        new = {k: np.asarray(v, "<f4") for k, v in vectors.items() if k not in known}
        known.update(new)
        if self._folder is None or not new:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path(network).open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():  # end a torn line first, so that the new ones are whole
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            for key, vector in new.items():
                line = {
                    "clip": key,
                    "float32": base64.b64encode(vector.tobytes()).decode(),
                    "digest": digests.of_bytes(vector.tobytes()),
                }
                file.write(json.dumps(line).encode() + b"\n")

    def _vectors(self, network: str) -> dict[str, np.ndarray]:
        if network not in self._known:
            self._known[network] = known = {}
            path = None if self._folder is None else self._path(network)
            lines = path.read_bytes().splitlines() if path and path.exists() else []
            for line in lines:
                try:
                    record = json.loads(line)
                    content = base64.b64decode(record["float32"])
                    if digests.of_bytes(content) == record["digest"]:
                        known[str(record["clip"])] = np.frombuffer(content, "<f4")
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # torn or damaged: it is computed again
        return self._known[network]

    def _path(self, network: str) -> Path:
        return self._folder / f"{network}.jsonl"
