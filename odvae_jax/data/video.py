"""Video files in and out, through PyAV."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

T = TypeVar("T")
# swscale's short cuts make every colour one level darker.
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# From PyAV 19 on titles and the like that are no UTF-8 never keep a file from being opened.
_OPEN_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

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
        ".asf",
        ".f4v",
        ".m2ts",
        ".m2v",
        ".mts",
        ".mxf",
        ".vob",
    ]
)


class VideoError(ValueError):
    """A file that cannot be used as a video; the message names it and says why."""


class PartError(VideoError):
    """A part of a video that cannot be used; others may."""


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


def find_files(path: str | os.PathLike, extensions: frozenset[str], what: str) -> list[str]:
    """Files with these extensions anywhere below a folder, sorted; or the one file itself.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if there is none below it.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; expected a folder of {what}s, or one.")
    if root.is_file():
        return [str(root)]
    files = sorted(_files_below(root))
    # What begins with ._ are macOS's notes on files of other disks.
    found = [
        str(p) for p in files if p.suffix.lower() in extensions and not p.name.startswith("._")
    ]
    if not found:
        raise ValueError(
            f"no {what} below {root}: found {len(files)} files, looked for {sorted(extensions)}."
        )
    return found


def _files_below(root: Path) -> Iterator[Path]:
    """Links to folders are followed, each folder once."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def find_videos(path: str | os.PathLike) -> list[str]:
    """`find_files` for videos."""
    return find_files(path, EXTENSIONS, "video")


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
      uint8 RGB, [count, H, W, 3], turned as the file says.

    Raises:
      VideoError: if the file does not yield these frames.
    """
    if count < 1:
        raise ValueError(f"{count} frames were asked for; expected at least 1.")
    if start < 0 or start + count > info.frames:
        raise VideoError(
            f"{info.path} has {info.frames} frames; {start} to {start + count} were asked for."
        )
    with VideoReader(info.path, threads=0) as video:
        base = float(video.time_base)
        first = info.timestamps[start] * base
        wanted = info.timestamps[start : start + count]
        frames = []
        if start > 0:
            near = (f for t, f in video.frames_from(first) if t >= first - base / 2)
            frames = list(itertools.islice(near, count))
        if [frame.pts for frame in frames] != list(wanted):
            # Frames without time stamps, or that come in another order: count from the beginning.
            shown = itertools.islice(video.frames_from(None), start, start + count)
            frames = [frame for _, frame in shown]
        if len(frames) < count:
            raise VideoError(
                f"{info.path} yielded {len(frames)} of {count} frames from frame {start} on."
            )
        return np.stack(to_rgb(frames, short_side))


class VideoReader:
    """An open video: what its header says, and its frames from any moment on.

    Times are in seconds, as in the file.

    Args:
      source: a path, or the bytes of a file.
      name: for messages; the path unless told.
      threads: that decode; 0 lets FFmpeg choose.

    Attributes:
      start, end: when the first frame begins and the last one ends, as the header has it.
      fps: frames a second, on average.
      declared: how many frames there are, as the header has it; 0 where it says nothing.
      promised: until when, at least, they last, as the header has it; None where it says nothing.

    Raises (here, and wherever frames are decoded inside the `with` statement):
      VideoError: if it cannot be opened, read or decoded.
    """

    def __init__(self, source: str | bytes, name: str | None = None, *, threads: int = 1):
        self._source = source
        self.name = name or (source if isinstance(source, str) else "a video in memory")
        self._threads = threads

    def __enter__(self) -> VideoReader:
        try:
            self._open()
            self._read_header()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, _, error, __):
        if getattr(self, "_container", None) is not None:
            self._container.close()
            self._container = None
        if isinstance(error, (av.FFmpegError, OSError, ValueError, MemoryError)) and not isinstance(
            error, VideoError
        ):
            raise VideoError(f"{self.name} cannot be read as a video: {error}.") from error

    def _open(self):
        self._container = None
        if isinstance(self._source, bytes):
            source = io.BytesIO(self._source)
        else:  # a relative path with a colon would be taken for a protocol
            exists = os.path.exists(self._source)
            source = os.path.abspath(self._source) if exists else self._source
        self._container = av.open(source, **_OPEN_OPTIONS)
        if not self._container.streams.video:
            raise VideoError(f"{self.name} holds no video stream.")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = self._threads
        self._stream.thread_type = "SLICE" if self._threads == 1 else "AUTO"

    def _read_header(self):
        stream, container = self._stream, self._container
        self.time_base = stream.time_base
        self.declared = stream.frames
        self.fps = float(stream.average_rate or stream.guessed_rate or 25)
        self.promised = _promised_end(container, stream)
        self.start = float((stream.start_time or 0) * stream.time_base)
        if stream.duration:
            self.end = self.start + float(stream.duration * stream.time_base)
        elif container.duration:
            self.end = (
                container.start_time or 0
            ) / av.time_base + container.duration / av.time_base
        else:  # nothing but the packets says how long it is
            packets = [p.pts for p in container.demux(stream) if p.pts is not None]
            if not packets:
                raise VideoError(f"{self.name} holds no frames with time stamps.")
            self.end = float(max(packets) * stream.time_base) + 1 / self.fps
            self._container.close()
            self._open()

    def frames_from(self, moment: float | None) -> Iterator[tuple[float, av.VideoFrame]]:
        """Time and frame, from a key frame at or before `moment` on, or from the beginning.

        What lies before a key frame that was sought may refer to frames that were not read, so it
        is left out. In formats that cannot be sought well, the beginning is where it begins.
        """
        if moment is not None:
            for back in (0.0, 2.0, 10.0):
                if moment - back <= self.start:
                    break
                frames = self._sought(moment - back)
                first = next(frames, None)
                if first is not None and first[0] <= moment + 0.5 / self.fps:
                    yield first
                    yield from frames
                    return
        self._container.close()
        self._open()
        for index, frame in enumerate(self._container.decode(self._stream)):
            self._check(frame)
            yield self.start + index / self.fps if frame.time is None else frame.time, frame

    def _sought(self, moment):
        try:
            self._container.seek(int(moment / self.time_base), stream=self._stream, backward=True)
        except av.FFmpegError:
            return
        begun = False
        for frame in self._container.decode(self._stream):
            if frame.time is None:
                return
            begun = begun or frame.key_frame
            if begun:
                self._check(frame)
                yield frame.time, frame

    def _check(self, frame):
        if frame.is_corrupt:
            raise PartError(f"{self.name} is damaged at {frame.time} s.")


def _promised_end(container, stream) -> float | None:
    """Seconds at which a header says that the last frame ends; None where it does not say it.

    Transport streams and fragmented files say nothing: their length is guessed from their end.
    """
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.frames and stream.duration:
        return start + float(stream.duration * stream.time_base)
    if tag := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, tag.groups())
        return hours * 3600 + minutes * 60 + seconds
    names = set(container.format.name.split(","))
    if container.duration and names & {"matroska", "webm", "flv"}:
        return container.duration / av.time_base - 1.0  # sound may last a little longer
    return None


def select_frames(
    frames: Iterable[tuple[float, T]],
    start: float,
    count: int,
    *,
    rate: float,
    stride: int = 1,
    fps: float | None = None,
) -> list[T]:
    """Every `stride`-th of the frames from `start` on, or those on show at `fps` moments a second.

    Args:
      frames: time in seconds and frame, in order, from `start` or before on.
      start: seconds.
      count: how many.
      rate: frames a second that they come in.
      stride: of frames; without meaning if `fps` is given.
      fps: moments a second; each shows the latest frame that has begun.

    Returns:
      `count` frames, or fewer if there are no more.
    """
    chosen: list[T] = []
    if fps is None:
        later = (frame for time, frame in frames if time >= start - 0.5 / rate)
        return list(itertools.islice(later, 0, (count - 1) * stride + 1, stride))
    moments = start + np.arange(count) / fps + 1e-6
    shown, time = None, start
    for time, frame in frames:
        while shown is not None and len(chosen) < count and time > moments[len(chosen)]:
            chosen.append(shown)
        if len(chosen) == count:
            return chosen
        shown = frame
    while shown is not None and len(chosen) < count and moments[len(chosen)] < time + 1 / rate:
        chosen.append(shown)
    return chosen


def to_rgb(frames: Sequence[av.VideoFrame], short_side: int | None = None) -> list[np.ndarray]:
    """Frames as uint8 RGB [H, W, 3], scaled (antialiased) and turned as the file says."""
    scaler = VideoReformatter()
    width, height = scaled_size(frames[0].width, frames[0].height, short_side)
    turns = round(frames[0].rotation / 90) % 4
    arrays = [
        scaler.reformat(f, width, height, "rgb24", interpolation=_SCALING, threads=1).to_ndarray()
        for f in frames
    ]
    return [np.rot90(array, turns) for array in arrays] if turns else arrays


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Sides with the shorter one made `short_side`; as they are for None."""
    if short_side is None:
        return width, height
    scale = short_side / min(width, height)
    return tuple(max(round(s * scale), short_side) for s in (width, height))


def centre_crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of [..., H, W, C]."""
    top, left = (frames.shape[-3] - height) // 2, (frames.shape[-2] - width) // 2
    return frames[..., top : top + height, left : left + width, :]


class FrameBlocks:
    """The frames of a video file in blocks: `step` + 1 of them, then `step` each, then the rest.

    To be iterated once. Decoding and scaling go on in threads meanwhile, some frames ahead. A video
    that ends in the middle, or cannot be decoded any further, ends there, and `problem` says so.

    Args:
      path: of the file.
      step: as above.
      short_side: scales the frames so that the shorter side has this many pixels, antialiased.
      size: cuts the centre of so many rows and columns.
      threads: that scale.

    Attributes (of what was read so far):
      fps: frames a second, on average.
      frames, height, width: how many, and their sides.
      problem: what ended it too early; empty if nothing did.

    Raises (where it is iterated):
      VideoError: if there is not one frame, or frames are smaller than `size`.
    """

    _TOGETHER = 8  # frames that a thread converts at a time

    def __init__(
        self,
        path: str | os.PathLike,
        step: int,
        *,
        short_side: int | None = None,
        size: int | None = None,
        threads: int = 2,
    ):
        self.path, self.fps, self.problem = str(path), 0.0, ""
        self.frames = self.height = self.width = 0
        self._step, self._short_side, self._size, self._threads = step, short_side, size, threads

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 RGB, [n, H, W, 3] each."""
        waiting, wanted = [], self._step + 1
        for frame in self._shown():
            if not self.frames:
                self.height, self.width = frame.shape[:2]
            elif frame.shape[:2] != (self.height, self.width):
                self.problem = f"{self.path} changes its size after {self.frames} frames."
                break
            waiting.append(frame)
            self.frames += 1
            if len(waiting) == wanted:
                yield np.stack(waiting)
                waiting, wanted = [], self._step
        if waiting:
            yield np.stack(waiting)

    def _shown(self):
        try:
            yield from self._converted()
        except VideoError as error:
            if not self.frames:
                raise
            self.problem = f"{error} {self.frames} frames could be shown before."

    def _converted(self):
        pending: collections.deque = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            for batch in self._decoded():
                pending.append(pool.submit(self._convert, batch))
                if len(pending) > 2 * self._threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def _convert(self, frames):
        try:
            rgb = to_rgb(frames, self._short_side)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise VideoError(f"{self.path} has frames that cannot be shown: {error}.") from error
        if self._size is None:
            return rgb
        height, width = rgb[0].shape[:2]
        if min(height, width) < self._size:
            raise VideoError(
                f"{self.path} has frames of {height}×{width}; a cut of {self._size} needs more, or "
                "a short side that they are scaled to."
            )
        return [centre_crop(frame, self._size, self._size) for frame in rgb]

    def _decoded(self):
        batch, count, end = [], 0, 0.0
        try:
            with VideoReader(self.path, threads=0) as video:
                self.fps = video.fps
                for time, frame in video.frames_from(None):
                    if batch and (frame.width, frame.height) != (batch[0].width, batch[0].height):
                        yield batch
                        batch = []
                    batch.append(frame)
                    count, end = count + 1, time + 1 / video.fps
                    if len(batch) == self._TOGETHER:
                        yield batch
                        batch = []
                fewer = count < video.declared or not video.declared
                if fewer and video.promised and end < video.promised - 1.5 / video.fps:
                    self.problem = (
                        f"{self.path} ends after {count} of {video.declared or 'more'} frames, at "
                        f"{end:.2f} of {video.promised:.2f} s."
                    )
        except VideoError as error:
            if not count:
                raise
            self.problem = f"{error} {count} frames could be read before."
        if batch:
            yield batch


class VideoWriter:
    """Writes uint8 RGB frames as H.264 in mp4, as they come.

    To be used in a `with` statement: the file is whole at its end.

    Args:
      target: a path, or a file open for writing.
      fps: frames a second.
      crf: 0 to 51, lower is better.
      exact: keeps odd sides (in 4:4:4, which browsers do not show); else they are cut to even ones.
      options: more of them, of libx264.
    """

    def __init__(
        self, target: str | io.IOBase, fps: float, *, crf: int, exact: bool = False, **options: str
    ):
        self._target, self._fps, self._exact = target, fps, exact
        self._options = {"crf": str(crf), **options}
        self._stream = None

    def __enter__(self) -> VideoWriter:
        self._container = av.open(self._target, "w", format="mp4")
        self._scaler = VideoReformatter()
        return self

    def write(self, frames: np.ndarray) -> None:
        """Frames [n, H, W, 3], all of one size."""
        height, width = frames.shape[1:3]
        if self._stream is None:
            odd = height % 2 or width % 2
            rate = Fraction(self._fps).limit_denominator(100_000)
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.pix_fmt = "yuv444p" if odd and self._exact else "yuv420p"
            if not self._exact:
                height, width = height - height % 2, width - width % 2
            self._stream.height, self._stream.width = height, width
            self._stream.options = self._options
        for array in frames[:, : self._stream.height, : self._stream.width]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame = self._scaler.reformat(
                frame, format=self._stream.pix_fmt, interpolation=_SCALING
            )
            self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind, *_) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 RGB frames [T, H, W, 3] as H.264 (even sides) at high quality."""
    Path(path).write_bytes(encode_h264(frames, fps, crf=14))


def encode_h264(frames: np.ndarray, fps: float, *, crf: int, **options: str) -> bytes:
    """The content of an mp4 file with these uint8 RGB frames [T, H, W, 3], sides cut to even ones.

    Args:
      frames: as above.
      fps: frames a second.
      crf: 0 to 51, lower is better.
      options: more of them, of libx264.
    """
    file = io.BytesIO()
    with VideoWriter(file, fps, crf=crf, **options) as writer:
        writer.write(frames)
    return file.getvalue()
