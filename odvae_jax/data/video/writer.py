"""Video files written: H.264 in mp4."""

from __future__ import annotations

import io
import os
import queue
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from odvae_jax.data.video.scaling import INTERPOLATION
from odvae_jax.files import WholeFile, counted, printable


class VideoWriter:
    """Writes RGB frames as H.264 in mp4, as they come.

    It is used in a `with` statement, at whose end the file is complete.

    Args:
      target: a path, or a file that is open for writing.
      fps: the number of frames per second.
      crf: the quality of H.264, from 0 to 51; lower is better and larger.
      exact: whether odd sides are kept. They are then written with full colour resolution (4:4:4),
        which browsers do not show. Otherwise odd sides lose their last row or column.
      options: further options of libx264, as strings.
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

    def write(self, frames: UInt8[np.ndarray, "n h w 3"]) -> None:
        """Adds RGB frames, uint8 [n, H, W, 3]; the size must be the same in every call."""
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
                frame, format=self._stream.pix_fmt, interpolation=INTERPOLATION
            )
            self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind, *_) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def write_video(path: str | os.PathLike, frames: UInt8[np.ndarray, "t h w 3"], fps: float) -> None:
    """Writes RGB frames, uint8 [T, H, W, 3], as an mp4 file in H.264 at high quality.

    Odd sides lose their last row or column.

    Args:
      path: the path of the file.
      frames: the frames.
      fps: the number of frames per second.
    """
    Path(path).write_bytes(encode_h264(frames, fps, crf=14))


def encode_h264(
    frames: UInt8[np.ndarray, "t h w 3"], fps: float, *, crf: int, **options: str
) -> bytes:
    """Returns the content of an mp4 file in H.264 with the given frames.

    Odd sides lose their last row or column.

    Args:
      frames: RGB frames, uint8 [T, H, W, 3].
      fps: the number of frames per second.
      crf: the quality of H.264, from 0 to 51; lower is better and larger.
      options: further options of libx264, as strings.
    """
    file = io.BytesIO()
    with VideoWriter(file, fps, crf=crf, **options) as writer:
        writer.write(frames)
    return file.getvalue()


class ThreadedVideoWriter:
    """Writes an mp4 file in a thread of its own; the file appears complete or not at all.

    `finish` completes the file. `close` removes what was written of a file that was not finished.
    Odd sides are kept (see `VideoWriter`).

    Args:
      target: the path of the file.
      fps: the number of frames per second.
      crf: the quality of H.264, from 0 to 51; lower is better and larger.

    Raises:
      OSError: on construction, or later in `write` and `finish`, if the file cannot be written.
    """

    def __init__(self, target: Path, fps: float, crf: int):
        self._target, self._fps, self._crf = target, fps, crf
        self._count = 0
        self._whole = WholeFile(target)
        self._waiting: queue.Queue = queue.Queue(2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self):
        frames = self._until_the_end()
        try:
            with VideoWriter(self._whole.file, self._fps, crf=self._crf, exact=True) as writer:
                for some in frames:
                    writer.write(some)
        except BaseException as error:
            self._error = error
            for _ in frames:  # take what still comes, so that `write` never waits for ever
                pass

    def _until_the_end(self):
        while (frames := self._waiting.get()) is not None:
            yield frames

    def write(self, frames: UInt8[np.ndarray, "n h w 3"]) -> None:
        """Adds RGB frames, uint8 [n, H, W, 3]; waits while two calls' frames are unwritten.

        Raises:
          OSError: if earlier frames could not be written.
        """
        self._check()
        self._count += len(frames)
        self._waiting.put(frames)

    def finish(self) -> None:
        """Waits for the last frames, checks the file, and gives it its name.

        Raises:
          OSError: if the file could not be written, or does not hold the frames.
        """
        self._end()
        self._check()
        self._whole.file.flush()
        _check_written(self._whole.part, self._target, self._count, self._fps)
        self._whole.finish()

    def close(self) -> None:
        """Removes what was written, unless the file was finished."""
        self._end()
        self._whole.close()

    def _end(self):
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _check(self):
        if self._error is not None:
            name = printable(self._target)
            raise OSError(f"{name} cannot be written: {self._error}") from self._error


def _check_written(part: Path, target: Path, count: int, fps: float) -> None:
    """Checks that a file holds so many frames at this rate, without decoding them.

    Args:
      part: the path of the file.
      target: what messages call the file.
      count: the number of frames that were written.
      fps: the number of frames per second.

    Raises:
      OSError: if the file holds something else.
    """
    try:
        with part.open("rb") as file, av.open(file, format="mp4") as container:
            stream = container.streams.video[0]
            shown = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
            seconds = float(stream.duration * stream.time_base)
    except (av.FFmpegError, IndexError, TypeError) as error:
        raise OSError(f"{printable(target)} was written, but cannot be read: {error}") from error
    if not count or len(shown) != count or abs(seconds - count / fps) > 1.5 / fps:
        raise OSError(
            f"{printable(target)} was written, but holds {counted(len(shown), 'frame')} in "
            f"{seconds:.3f} s; {counted(count, 'frame')} at {fps:g} per second went in"
        )
