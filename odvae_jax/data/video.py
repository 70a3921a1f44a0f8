"""Video files in and out, through PyAV."""

from __future__ import annotations

import dataclasses
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

EXTENSIONS = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".ts",
        ".gif",
        ".3gp",
        ".ogv",
    ]
)


# Containers whose frames keep their time stamps after a seek; others are decoded from the start.
_EXACT_SEEKING = ("mp4", "matroska")


class VideoError(ValueError):
    """A file that cannot be used as a video; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a file holds.

    Its path, the frames' sorted time stamps, size and rate.
    """

    path: str
    timestamps: tuple[int, ...]
    width: int
    height: int
    fps: float

    @property
    def frames(self) -> int:
        return len(self.timestamps)


def find_videos(path: str | os.PathLike) -> list[str]:
    """Video files, by extension, anywhere below a folder, sorted; or the one file itself.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is no video below it.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; expected a folder of videos, or a video.")
    if root.is_file():
        return [str(root)]
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    videos = [str(p) for p in files if p.suffix.lower() in EXTENSIONS]
    if not videos:
        raise ValueError(
            f"no video below {root}: found {len(files)} files, looked for {sorted(EXTENSIONS)}."
        )
    return videos


def inspect_video(path: str | os.PathLike) -> VideoInfo:
    """Reads a file's packets, without decoding them, for the number and time stamps of its frames.

    Raises:
      VideoError: if it is not a video or holds no frame.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} holds no video stream.")
            stream = container.streams.video[0]
            stamps = sorted(
                packet.pts
                for packet in container.demux(stream)
                if packet.pts is not None and not packet.is_discard
            )
            if not stamps:
                raise VideoError(f"{path} holds no frames with time stamps.")
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            return VideoInfo(str(path), tuple(stamps), stream.width, stream.height, float(rate))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be read as a video: {error}.") from error


def read_frames(
    info: VideoInfo, start: int, count: int, *, short_side: int | None = None
) -> np.ndarray:
    """Decodes `count` frames from the `start`-th on, seeking to the key frame before.

    Args:
      info: from `inspect_video`.
      start: index of the first frame wanted.
      count: how many.
      short_side: scales the frames so that the shorter side has this many pixels, antialiased.

    Returns:
      uint8 RGB, [count, H, W, 3].

    Raises:
      VideoError: if the file does not yield these frames.
    """
    if count < 1:
        raise ValueError(f"{count} frames were asked for; expected at least 1.")
    if start < 0 or start + count > info.frames:
        raise VideoError(
            f"{info.path} has {info.frames} frames; {start} to {start + count} were asked for."
        )
    width, height = info.width, info.height
    if short_side is not None:
        scale = short_side / min(width, height)
        width, height = (max(round(s * scale), short_side) for s in (width, height))
    wanted = info.timestamps[start : start + count]
    try:
        frames = _decode_from(info, wanted[0], count) if start > 0 else []
        if [frame.pts for frame in frames] != list(wanted):
            # Some containers cannot be sought exactly: count frames from the beginning.
            frames = _decode_from(info, None, start + count)[start:]
        arrays = [
            frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
            for frame in frames
        ]
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{info.path} cannot be decoded: {error}.") from error
    if len(arrays) < count:
        raise VideoError(
            f"{info.path} yielded {len(arrays)} of {count} frames from frame {start} on."
        )
    return np.stack(arrays)


def _decode_from(info: VideoInfo, first: int | None, count: int) -> list[av.VideoFrame]:
    """Up to `count` frames from time stamp `first` on, or all from the beginning if it is None."""
    frames = []
    with av.open(info.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if first is not None:
            if not any(name in container.format.name for name in _EXACT_SEEKING):
                return []
            container.seek(first, stream=stream, backward=True)
        for frame in container.decode(stream):
            if first is not None and (frame.pts is None or frame.pts < first):
                continue
            frames.append(frame)
            if len(frames) == count:
                break
    return frames


def centre_crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of [..., H, W, C]."""
    top, left = (frames.shape[-3] - height) // 2, (frames.shape[-2] - width) // 2
    return frames[..., top : top + height, left : left + width, :]


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 RGB frames [T, H, W, 3] as H.264 (even sides) at high quality."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "14"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
