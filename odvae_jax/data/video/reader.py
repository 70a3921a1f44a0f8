"""Video files read: what their headers say, and their frames from any moment on."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import UInt8

from odvae_jax.data.video.errors import PartError, VideoError
from odvae_jax.data.video.scaling import to_rgb

# PyAV before 19 refuses to open a file with a title or the like that is not UTF-8.
_OPEN_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What the packets of a video file say about its frames, without decoding them.

    Attributes:
      path: the path of the file.
      timestamps: the time stamp of every frame, sorted, in the file's own unit of time.
      width, height: the sides of a frame in pixels, before it is turned.
      fps: the average number of frames per second.
    """

    path: str
    timestamps: tuple[int, ...]
    width: int
    height: int
    fps: float

    @property
    def frames(self) -> int:
        """The number of frames in the file."""
        return len(self.timestamps)


def inspect_video(path: str | os.PathLike) -> VideoInfo:
    """Reads the number, time stamps and size of a video's frames from its packets.

    Nothing is decoded.

    Raises:
      VideoError: if the file is not a video or holds no frame.
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
) -> UInt8[np.ndarray, "count h w 3"]:
    """Decodes some frames of a video, starting at the key frame before the first of them.

    Args:
      info: what `inspect_video` returned for the file.
      start: the index of the first frame, from 0 on.
      count: the number of frames.
      short_side: the length in pixels to which the shorter side is scaled, with antialiasing. None
        keeps the size.

    Returns:
      The frames in RGB, uint8 [count, H, W, 3], turned as the file says.

    Raises:
      ValueError: if `count` is less than 1.
      VideoError: if the file does not have these frames, or they cannot be decoded.
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
    """An open video file: what its header says, and its frames from any moment on.

    It is used in a `with` statement, which opens and closes the file. All times are in seconds, as
    the file counts them.

    Args:
      source: the path of a file, or its bytes.
      name: what error messages call the video; None takes the path.
      threads: the number of threads that decode; 0 lets FFmpeg choose.

    Attributes:
      start: the time at which the first frame begins, according to the header.
      end: the time at which the last frame ends, according to the header.
      fps: the average number of frames per second.
      declared: the number of frames according to the header; 0 if the header does not say it.
      promised: the time until which the frames last at least, according to the header; None if the
        header does not say it.
      time_base: the length of the file's unit of time, in seconds.

    Raises:
      VideoError: in the `with` statement and inside it, if the file cannot be opened, read or
        decoded. Errors of PyAV become this one.
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
        """Yields pairs of a time in seconds and a decoded frame, in the order of time.

        The first frame is a key frame at or before `moment`. Where `moment` is None, or the file
        cannot be searched for a moment, it is the first frame of the file.

        Raises:
          PartError: if a frame is damaged.
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
        # Frames before the first key frame may depend on frames that were not read.
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
    """Returns the time in seconds at which a header says that the last frame ends, or None.

    Transport streams and fragmented files do not say it: FFmpeg guesses their length from the last
    packets that are there.
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
