"""Video files read: what their headers say, and their frames from any moment on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import heapq
import io
import itertools
import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, TypeVar

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import UInt8

from odvae_jax.data import READ_TIMEOUT
from odvae_jax.data.finding import check_regular
from odvae_jax.data.once import warn_once
from odvae_jax.data.urls import UrlFile, is_url, open_url
from odvae_jax.data.video.errors import OrderError, PartError, VideoError
from odvae_jax.data.video.limits import Guard, each_within, moved, within
from odvae_jax.data.video.scaling import to_rgb
from odvae_jax.files import counted, one_line, printable

T = TypeVar("T")
_END: Any = object()
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics, as ITU-T H.273 numbers them
_FAR_BUFFER = 2**18  # The number of bytes that FFmpeg asks of an open file at a time.
_LATE = 16  # The number of frames that a decoder may keep back to put others in order.
_PROBED = 32  # The number of packets after which time stamps that never go back are suspicious.
_PICTURES = {"ffv1", "gif", "png", "apng"}  # like intra-only codecs; FFmpeg does not say it

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


def inspect_video(path: str | os.PathLike, *, timeout: float | None = READ_TIMEOUT) -> VideoInfo:
    """Reads the number, time stamps and size of a video's frames from its packets.

    Nothing is decoded.

    Args:
      path: the path of the file.
      timeout: the seconds that one read may take; None for no limit.

    Raises:
      VideoError: if the file is not a video or holds no frame.
    """
    return within(timeout, printable(path), _inspected, path)


def _inspected(path: str | os.PathLike) -> VideoInfo:
    name, source = printable(path), os.fspath(path)
    far = _open_far(source, name)
    try:
        with contextlib.closing(far or io.BytesIO()), _open(source, name, far) as container:
            stream = _video_stream(container, name)
            stamps = sorted(
                packet.pts
                for packet in _packets(container, stream)
                if packet.pts is not None and not packet.is_discard
            )
            if not stamps:
                raise VideoError(f"{name} holds no frames with time stamps.")
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            return VideoInfo(str(path), tuple(stamps), stream.width, stream.height, float(rate))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{name} cannot be read as a video: {one_line(error)}.") from error


def _open_far(source: str | bytes, name: str) -> UrlFile | io.BytesIO | None:
    """Opens what a URL names, or bytes; returns None for the path of a file.

    Raises:
      VideoError: if it cannot be opened.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not is_url(source):
        return None
    try:
        return open_url(source)
    except OSError as error:
        reason = error.strerror or one_line(error).rstrip(".")
        raise VideoError(f"{name} cannot be read as a video: {reason}.") from error
    except ValueError as error:
        raise VideoError(str(error)) from error


def _open(source: str | bytes, name: str, far=None) -> av.container.InputContainer:
    """Opens a regular file, or what `_open_far` returned for anything else.

    Raises:
      VideoError: if it is something else, such as a named pipe, which would block.
    """
    if far is not None:
        far.seek(0)
        return av.open(far, buffer_size=_FAR_BUFFER, **_OPEN_OPTIONS)
    try:
        check_regular(source)
    except OSError as error:
        raise VideoError(f"{name} cannot be read as a video: {error.strerror}.") from error
    except ValueError as error:
        raise VideoError(str(error)) from error
    # A relative path with a colon would be taken for a protocol.
    return av.open(os.path.abspath(source), **_OPEN_OPTIONS)


def _video_stream(container, name: str) -> av.VideoStream:
    """Returns the video of a file as the program ffmpeg chooses it.

    It is the largest one. The file's default one counts as if it had 5 million pixels more. A
    cover picture is no video.

    Raises:
      VideoError: if there is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        cover = ", only a picture" if container.streams.video else ""
        raise VideoError(f"{name} holds no video stream{cover}.")
    streams = [s for s in streams if s.codec_context is not None]
    if not streams:
        raise VideoError(f"{name} holds video of a codec that is not known here.")

    def rank(stream):
        default = bool(stream.disposition & Disposition.default)
        return (stream.width or 0) * (stream.height or 0) + 5_000_000 * default

    stream = max(streams, key=rank)
    if kind := _HDR.get(int(stream.codec_context.color_trc or 0)):
        warn_once(
            "HDR",
            f"{name} is an HDR video ({kind}), perhaps one of several: its colours are taken as "
            "they are, without tone mapping, and look pale; convert such videos to SDR first.",
        )
    return stream


def _packets(container, stream) -> Iterator[av.Packet]:
    for packet in container.demux(stream):
        moved()
        yield packet


def read_frames(
    info: VideoInfo,
    start: int,
    count: int,
    *,
    short_side: int | None = None,
    timeout: float | None = READ_TIMEOUT,
) -> UInt8[np.ndarray, "count h w 3"]:
    """Decodes some frames of a video, starting at the key frame before the first of them.

    Args:
      info: what `inspect_video` returned for the file.
      start: the index of the first frame, from 0 on.
      count: the number of frames.
      short_side: the length in pixels to which the shorter side is scaled, with antialiasing. None
        keeps the size.
      timeout: the seconds that one read may take; None for no limit.

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
            f"{printable(info.path)} has {counted(info.frames, 'frame')}; {start} to "
            f"{start + count} were asked for."
        )
    with VideoReader(info.path, threads=0, timeout=timeout) as video:
        base = float(video.time_base)
        first = info.timestamps[start] * base
        wanted = info.timestamps[start : start + count]
        frames = []
        if start > 0:
            near = (pair for pair in video.frames_from(first) if pair[0] >= first - base / 2)
            with contextlib.suppress(OrderError):
                nearest = list(itertools.islice(near, count))
                video.check_end()
                if [_ticks(*pair, base) for pair in nearest] == list(wanted):
                    frames = [frame for _, frame in nearest]
        if not frames:
            # Frames without time stamps, or that come in another order: count from the beginning.
            shown = itertools.islice(video.frames_in_order(None), start, start + count)
            frames = [frame for _, frame in shown]
        if len(frames) < count:
            raise VideoError(
                f"{video.name} yielded {len(frames)} of {counted(count, 'frame')} from frame "
                f"{start} on."
            )
        return np.stack(to_rgb(frames, short_side))


def _ticks(time: float, frame: av.VideoFrame, base: float) -> int | None:
    """Returns the time of a frame in units of `base`; None if its file does not say it."""
    return None if frame.pts is None else round(time / base)


class VideoReader:
    """An open video file: what its header says, and its frames from any moment on.

    It is used in a `with` statement, which opens and closes the file. All times are in seconds, as
    the file counts them.

    Args:
      source: the path or URL of a file, or its bytes.
      name: what error messages call the video; None takes the path.
      threads: the number of threads that decode; 0 lets FFmpeg choose.
      timeout: the seconds that opening, or reading on to the next frame, may take; None for no
        limit.

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

    def __init__(
        self,
        source: str | bytes,
        name: str | None = None,
        *,
        threads: int = 1,
        timeout: float | None = READ_TIMEOUT,
    ):
        self._source = source
        in_memory = isinstance(source, bytes)
        self.name = name or ("a video in memory" if in_memory else printable(source))
        self._threads, self._timeout = threads, timeout
        self._container = self._far = None

    def __enter__(self) -> VideoReader:
        self._guard = Guard(self._close, VideoError(f"{self.name} is closed."))
        try:
            within(self._timeout, self.name, self._guard.use, self._read_header)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, _, error, __):
        self._guard.close()  # a thread that was given up may still use the container
        if isinstance(error, (av.FFmpegError, OSError, ValueError, MemoryError)) and not isinstance(
            error, VideoError
        ):
            reason = one_line(error)
            raise VideoError(f"{self.name} cannot be read as a video: {reason}.") from error

    def _close(self):
        if self._container is not None:
            self._container.close()
        if self._far is not None:
            self._far.close()
        self._container = self._far = None

    def _open(self):
        if self._far is None:  # it is kept when the container is opened anew
            self._far = _open_far(self._source, self.name)
        self._container = _open(self._source, self.name, self._far)
        self._stream = _video_stream(self._container, self.name)
        self._stream.codec_context.thread_count = self._threads
        self._stream.thread_type = "SLICE" if self._threads == 1 else "AUTO"

    def _read_header(self):
        self._open()
        stream, container = self._stream, self._container
        self.time_base = stream.time_base
        self.declared = stream.frames
        self.fps = float(stream.average_rate or stream.guessed_rate or 25)
        self.promised = _promised_end(container, stream)
        self.start = float((stream.start_time or 0) * stream.time_base)
        codec = stream.codec_context.codec
        self._independent = codec.intra_only or codec.name in _PICTURES
        self._doubtful = stream.codec_context.has_b_frames and not _goes_back(container, stream)
        if stream.duration:
            self.end = self.start + float(stream.duration * stream.time_base)
        elif container.duration:
            self.end = (
                container.start_time or 0
            ) / av.time_base + container.duration / av.time_base
        else:  # nothing but the packets says how long it is
            self._container.close()
            self._open()
            packets = _packets(self._container, self._stream)
            stamps = [packet.pts for packet in packets if packet.pts is not None]
            if not stamps:
                raise VideoError(f"{self.name} holds no frames with time stamps.")
            self.end = float(max(stamps) * self.time_base) + 1 / self.fps
            self._container.close()
            self._open()

    def frames_from(self, moment: float | None) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields pairs of a time in seconds and a decoded frame, in the order of time.

        The first frame is a key frame at or before `moment`. Where `moment` is None, or the file
        cannot be searched for a moment, it is the first frame of the file. A frame without a time
        stamp is taken to follow the one before it at the video's rate. If a codec has frames that
        are stored in another order than that of time, but the first time stamps of the file are in
        the order of storage, this does what `frames_in_order` does.

        Raises:
          PartError: if a frame is damaged.
          OrderError: if the time stamps go backwards.
        """
        if self._doubtful:
            return self.frames_in_order(moment)
        return self._each(self._checked(self._decoded(moment)))

    def frames_in_order(self, moment: float | None) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields what `frames_from` does, and mends time stamps that go backwards.

        Decoders of codecs with frames that depend on others yield the frames in the right order.
        There the frames stay in this order, and the time stamps are sorted. Where every frame
        stands alone, as in MJPEG, the frames are sorted by their time stamps.

        For it some more frames are decoded before the first one is yielded. A time stamp may come
        sixteen places too late; if one comes later still, this raises OrderError, too.
        """
        ordered = _sorted_frames if self._independent else _sorted_times
        return self._each(self._checked(ordered(self._decoded(moment))))

    def _each(self, frames):
        used = iter(functools.partial(self._guard.use, next, frames, _END), _END)
        return each_within(self._timeout, self.name, used)

    def shown_size(self) -> tuple[int, int]:
        """Returns the height and width of the first frame in pixels, turned as the file says.

        The first frame is decoded for it. Afterwards `frames_from` and `frames_in_order` have to
        be called anew.

        Raises:
          VideoError: if the file has no frame, or the first one cannot be decoded.
        """
        _, frame = within(
            self._timeout, self.name, self._guard.use, next, self._decoded(None), (0.0, None)
        )
        if frame is None:
            raise VideoError(f"{self.name} holds no frame that can be decoded.")
        sides = frame.height, frame.width
        return sides[::-1] if round(frame.rotation / 90) % 2 else sides

    def check_end(self) -> None:
        """Checks that what `frames_from` yielded so far is not followed by earlier frames.

        It looks at the next sixteen packets, and decodes nothing. Afterwards `frames_from` and
        `frames_in_order` have to be called anew.

        Raises:
          OrderError: if earlier frames follow.
        """
        within(self._timeout, self.name, self._guard.use, self._check_end)

    def _check_end(self):
        with contextlib.suppress(av.FFmpegError):  # what comes later may be broken
            for packet in itertools.islice(self._container.demux(self._stream), _LATE):
                if packet.pts is not None and not packet.is_discard:
                    self._check_time(float(packet.pts * self.time_base))

    def _checked(self, frames):
        """Yields times and frames, and raises an error where time goes backwards."""
        self._last = -math.inf
        for time, frame in frames:
            self._check_time(time)
            self._last = time
            yield time, frame

    def _check_time(self, time):
        if time < self._last - float(self.time_base) / 2:
            raise OrderError(
                f"{self.name} has time stamps that go backwards, from {self._last:.3f} to "
                f"{time:.3f} s; write it anew, for instance with ffmpeg."
            )

    def _decoded(self, moment):
        """Yields times and frames as they come out of the decoder."""
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
        yield from self._timed(self._container.decode(self._stream), self.start)

    def _sought(self, moment):
        try:
            self._container.seek(int(moment / self.time_base), stream=self._stream, backward=True)
        except av.FFmpegError:
            return
        decoded = self._container.decode(self._stream)
        # Frames before the first key frame may depend on frames that were not read.
        first = next((frame for frame in decoded if frame.key_frame or frame.time is None), None)
        if first is not None and first.time is not None:
            yield from self._timed(itertools.chain([first], decoded), first.time)

    def _timed(self, frames, start):
        """Yields frames with their times; those without a time stamp follow at the rate."""
        known, since = start, 0
        for frame in frames:
            self._check(frame)
            if frame.time is not None:
                known, since = frame.time, 0
            yield known + since / self.fps, frame
            since += 1

    def _check(self, frame):
        if frame.is_corrupt:
            raise PartError(f"{self.name} is damaged at {frame.time} s.")


def _goes_back(container, stream) -> bool:
    """Returns whether time stamps go backwards among the first packets, as B-frames need it.

    Some programs write the order of storage as time stamps. Then FFmpeg's decoder yields frames in
    the right order with wrong time stamps.
    """
    last = None
    with contextlib.suppress(av.FFmpegError):  # what is wrong shows when it is decoded
        for packet in itertools.islice(_packets(container, stream), _PROBED):
            if packet.pts is not None:
                if last is not None and packet.pts < last:
                    return True
                last = packet.pts
    return False


def _sorted_frames(frames: Iterator[tuple[float, T]]) -> Iterator[tuple[float, T]]:
    """Yields times and frames sorted by time, if none comes more than `_LATE` places too late."""
    waiting: list = []  # a heap; the number keeps frames of one time in their order
    problem = None
    try:
        for number, (time, frame) in enumerate(frames):
            heapq.heappush(waiting, (time, number, frame))
            if len(waiting) > _LATE:
                time, _, frame = heapq.heappop(waiting)
                yield time, frame
    except (av.FFmpegError, VideoError) as error:
        problem = error
    while waiting:
        time, _, frame = heapq.heappop(waiting)
        yield time, frame
    if problem is not None:
        raise problem


def _sorted_times(frames: Iterator[tuple[float, T]]) -> Iterator[tuple[float, T]]:
    """Yields the frames in their order, the n-th with the n-th smallest time.

    A time may come `_LATE` places too late.
    """
    times: list[float] = []  # a heap
    waiting: collections.deque[T] = collections.deque()
    problem = None
    try:
        for time, frame in frames:
            heapq.heappush(times, time)
            waiting.append(frame)
            if len(waiting) > _LATE:
                yield heapq.heappop(times), waiting.popleft()
    except (av.FFmpegError, VideoError) as error:
        problem = error
    while waiting:
        yield heapq.heappop(times), waiting.popleft()
    if problem is not None:
        raise problem


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
