"""Packed videos: `array_record:PATH`, what `odvae data pack` wrote."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from odvae_jax.data.finding import check_regular
from odvae_jax.data.sources.base import Extent, Header, cut
from odvae_jax.data.sources.images import scale_image
from odvae_jax.data.sources.packed_format import PACKED_SUFFIX, unpack
from odvae_jax.data.sources.records import Records
from odvae_jax.data.video import FrameBlocks, ReadBlocks, VideoError, VideoReader, to_rgb
from odvae_jax.files import counted, printable

_TOGETHER = 8  # frames that a thread scales at a time


class Packed(Records):
    """Videos in the packed format, one per record.

    Args:
      paths: the paths of the shards.
    """

    def name(self, index):
        return f"{printable(Path(self._paths[0]).parent)}, record {index}"

    def rate(self, index):
        return self._unpacked(index)[0]["fps"]

    def columns(self, index):
        return self._unpacked(index)[0].get("columns", {})

    def header(self, index):
        header = self._unpacked(index)[0]
        return Header(*(header[name] for name in ("frames", "height", "width", "fps")))

    def blocks(self, index, length, *, short_side=None, size=None, threads=2):
        header, content = self._unpacked(index)
        how = {"size": size, "threads": threads}
        if header["kind"] == "raw":
            raw = self._raw(index, header, content)
            parts = np.array_split(raw, -(-len(raw) // _TOGETHER))
            scale = functools.partial(_scaled, short_side=short_side)
            jobs = (functools.partial(scale, part) for part in parts)
            return ReadBlocks(header["name"], length, lambda: (header["fps"], jobs), **how)
        how |= {"name": header["name"], "short_side": short_side, "timeout": self.timeout}
        return FrameBlocks(content, length, **how)

    def frames(self, index, sampling, stride, where):
        header, content = self._unpacked(index)
        if header["kind"] == "raw":
            raw = self._raw(index, header, content)
            extent = Extent(header["name"], 0.0, len(raw) / header["fps"], header["fps"])
            times = [(i / extent.rate, frame) for i, frame in enumerate(raw)]
            chosen = cut(lambda _: times, extent, sampling, stride, where)
            return _scaled(chosen, sampling.short_side, sampling.cover)
        with VideoReader(content, header["name"], timeout=self.timeout) as video:
            extent = Extent(header["name"], video.start, video.end, video.fps)
            chosen = cut(video.frames_from, extent, sampling, stride, where)
            return to_rgb(chosen, sampling.short_side, sampling.cover)

    def _unpacked(self, index):
        return unpack(self.record(index), self.name(index))

    def _raw(self, index, header, content):
        shape = [header[name] for name in ("frames", "height", "width")]
        if len(content) != np.prod(shape) * 3:
            raise VideoError(
                f"{self.name(index)} has {counted(len(content), 'byte')} for {shape} pixels."
            )
        return np.frombuffer(content, np.uint8).reshape(*shape, 3)


def _scaled(frames, short_side, cover=None):
    return [scale_image(frame, short_side, cover) for frame in frames]


def open_packed(text: str, *, in_memory: bool = False) -> Packed:
    """Opens packed videos.

    Args:
      text: the path of a folder of shards, or of one shard.
      in_memory: without effect; packed videos are quick to read.

    Raises:
      FileNotFoundError: if there is no such path.
      ValueError: if the folder holds no packed video, or no shard can be read.
    """
    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(
            f"{printable(path)} does not exist; write it with `odvae data pack SOURCE {path}`."
        )
    if not path.is_dir():
        check_regular(path)
        return Packed([str(path)])
    files = [p for p in sorted(path.glob(f"*{PACKED_SUFFIX}")) if not p.name.startswith(".")]
    if not files:
        raise ValueError(
            f"{path} holds no *{PACKED_SUFFIX} file (found {sorted(os.listdir(path))[:5]}); write "
            f"them with `odvae data pack SOURCE {path}`."
        )
    return Packed([str(p) for p in files])
