"""The plan of a dataset: which clips of which videos are encoded, and in which bucket each is."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from odvae_jax import digests
from odvae_jax.data.processes import InOrder, doing
from odvae_jax.data.sources import Sampling, Source, problem_of
from odvae_jax.data.video import within
from odvae_jax.latents.buckets import LeftOutError, Size, choose
from odvae_jax.latents.description import Bucket, Plan

_PIXELS = 2**22
"""About how many pixels a device computes together, if nothing else is said."""
_MOST = 16


@dataclasses.dataclass(frozen=True)
class Cut:
    """How clips are cut out of the videos of a source.

    Attributes:
      frames: the number of frames per clip; None takes videos as a whole, or, with buckets, what
        the bucket says.
      stride: the distance between the frames of a clip, in frames of the video.
      fps: the frames per second of a clip, used instead of `stride`; None uses `stride`.
      spread: whether a clip's frames are evenly spread over `frames` times `stride` frames of the
        video, or over all of a shorter one, as Latte's are; not with `fps` or `buckets`.
      hop: the distance between the beginnings of two clips, in frames of the video. None lets one
        clip begin where the one before ends.
      clips_per_video: the number of clips per video, evenly spread over it, instead of `hop`.
      short_side: the length in pixels to which the shorter side is scaled; None keeps the size.
      size: the side of the square that is cut out of the centre; None keeps the whole frame.
      buckets: the sizes that clips are scaled and cut to, instead of `short_side` and `size`.
      mirror: whether each clip has a twin with left and right exchanged.
      longest: the greatest length in seconds of a video; longer ones are left out. None for no
        limit.

    Raises:
      ValueError: if two of these exclude each other, or a number is not positive.
    """

    frames: int | None = None
    stride: int = 1
    fps: float | None = None
    hop: int | None = None
    clips_per_video: int | None = None
    short_side: int | None = None
    size: int | None = None
    buckets: tuple[Size, ...] = ()
    mirror: bool = False
    longest: float | None = None
    spread: bool = False

    def __post_init__(self):
        for name in ("frames", "stride", "fps", "hop", "clips_per_video", "size", "longest"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; expected a number greater than 0.")
        if self.buckets and (self.frames or self.size or self.short_side):
            raise ValueError(
                "buckets say how many frames, rows and columns clips have; leave out frames, size "
                "and short_side."
            )
        if self.hop and self.clips_per_video:
            raise ValueError("hop and clips_per_video are two ways to choose clips: give one.")
        if self.spread and (not self.frames or self.fps):
            raise ValueError(
                "spread is about clips of a number of frames: give frames, and no fps."
            )
        whole = not (self.frames or self.buckets)
        for name in ("hop", "clips_per_video", "fps"):
            if whole and getattr(self, name):
                raise ValueError(f"{name} is about clips of a length: give frames or buckets too.")
        if whole and self.stride != 1:
            raise ValueError("stride is about clips of a length: give frames or buckets too.")

    def sampling(self, size: Size | None) -> Sampling:
        """Returns how a clip of a bucket is read; None is the bucket of videos as a whole."""
        frames = 1 if size is None else size.frames
        stride = (self.stride, self.stride)
        if self.buckets:
            return Sampling(frames, None, stride, self.fps, cover=(size.height, size.width))
        side = self.short_side or self.size
        return Sampling(frames, side, stride, self.fps, spread=self.spread)

    def to_dict(self) -> dict:
        """Returns the fields as values that JSON can hold."""
        fields = dataclasses.asdict(self)
        if not self.spread:  # datasets were written before there was a choice
            del fields["spread"]
        return {**fields, "buckets": [str(size) for size in self.buckets]}


@dataclasses.dataclass
class Planned:
    """What was planned.

    Attributes:
      plan: the entries.
      buckets: the buckets that have entries.
      left_out: why a video is left out, in few words, by the video's name.
      unusable: why a video cannot be read, in a sentence, by the video's number and name.
      seconds: the length of all clips together.
      frames: the number of frames of each video as a whole, by the bucket's name.
    """

    plan: Plan
    buckets: tuple[Bucket, ...]
    left_out: dict[str, str]
    unusable: dict[tuple[int, str], str]
    seconds: float
    frames: dict[str, list[int]]

    @property
    def counts(self) -> dict[str, int]:
        """How many videos are left out, or cannot be read, by the reason."""
        counts = dict(sorted(collections.Counter(self.left_out.values()).items()))
        return counts | ({"cannot be read": len(self.unusable)} if self.unusable else {})


def source_identity(text: str, source: Source) -> dict:
    """Returns what tells a source from another: its text, and a digest of its videos' names.

    Names count from the place that the text names, so that it may be named by another path, or be
    at another place. Sizes do not count: a video that was mended is the same.
    """
    place = str(text).partition(":")[2] if re.match(r"[a-z_]+:(?!//)", str(text)) else str(text)
    roots = sorted({place, os.path.dirname(place)} - {""}, key=len, reverse=True)

    def below(name):
        rest = next((name[len(root) :] for root in roots if name.startswith(root)), name)
        return rest.lstrip("/")

    listed = (f"{below(source.name(i))}\n" for i in range(len(source)))
    digest = digests.of_bytes(*(line.encode("utf-8", "backslashreplace") for line in listed))
    return {"text": str(text), "videos": len(source), "digest": digest}


def plan_entries(
    source: Source,
    cut: Cut,
    *,
    batch: int | None = None,
    videos: Sequence[int] | None = None,
    workers: int = 0,
    threads: int = 4,
    bar: bool = True,
) -> Planned:
    """Plans the entries of a dataset from what the headers of videos say.

    Args:
      source: the source.
      cut: how clips are cut out of videos.
      batch: the number of clips that a device computes together; None takes as many as have about
        four million pixels, and at most 16.
      videos: the numbers of the videos; None for all.
      workers: the number of processes that read headers; 0 reads them in threads.
      threads: the number of threads, in each process.
      bar: whether a progress bar is shown.
    """
    found: dict[Size | tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(list)
    unusable: dict[tuple[int, str], str] = {}
    frames: dict[str, list[int]] = collections.defaultdict(list)
    left_out: dict[str, str] = {}
    length = 0.0
    videos = range(len(source)) if videos is None else videos
    looks = InOrder(
        _look,
        (source, cut),
        videos,
        workers=workers,
        threads=threads,
        ahead=64 * max(workers, 1),
        lost=lambda video, reason, _: _Looked(problem=f"{source.name(video)}: {reason}."),
    )
    progress = tqdm(
        total=len(videos), unit="header", dynamic_ncols=True, disable=not bar, leave=False
    )
    with contextlib.closing(looks), progress:
        for video, look in zip(videos, looks, strict=True):
            progress.update()
            if look.problem:
                unusable[video, source.name(video)] = look.problem
            elif look.left_out:
                left_out[source.name(video)] = look.left_out
            else:
                found[look.key] += [(video, start) for start in look.starts]
                length += look.seconds * (2 if cut.mirror else 1)
                if not isinstance(look.key, Size):
                    frames[bucket_name(look.key)] += [look.frames] * (2 if cut.mirror else 1)
    plan, buckets = _numbered(found, cut, batch)
    return Planned(plan, buckets, left_out, unusable, length, dict(frames))


@dataclasses.dataclass
class _Looked:
    """What the header of a video says: its bucket and the first frames of its clips."""

    key: Size | tuple[int, int] = (0, 0)
    starts: Sequence[int] = ()
    seconds: float = 0.0
    frames: int = 0
    left_out: str = ""
    problem: str = ""


def _look(shared: tuple[Source, Cut], video: int) -> _Looked:
    source, cut = shared
    name = source.name(video)
    try:
        doing(name)
        return within(source.timeout, name, _clips_of, source, cut, video)
    except LeftOutError as error:
        return _Looked(left_out=str(error))
    except Exception as error:  # whatever is wrong with one video is not the others' problem
        return _Looked(problem=problem_of(name, error))


def _clips_of(source: Source, cut: Cut, video: int) -> _Looked:
    header = source.header(video)
    if cut.longest is not None and header.frames / header.fps > cut.longest:
        raise LeftOutError("too long")
    if not (cut.frames or cut.buckets):
        height, width = _frame_size(header.height, header.width, cut)
        return _Looked((height, width), [0], header.frames / header.fps, header.frames)
    span = functools.partial(_span, cut, header.fps)
    if cut.buckets:
        lengths = [s.frames for s in cut.buckets if span(s.frames) <= header.frames]
        size = choose(cut.buckets, max(lengths, default=0), header.height, header.width)
    else:
        size = Size(cut.frames, *_frame_size(header.height, header.width, cut))
    if round(span(size.frames)) > header.frames:
        raise LeftOutError("too short")
    places = source.places(video, cut.sampling(size), cut.stride)
    if cut.clips_per_video:
        count = min(cut.clips_per_video, places)
        starts = [(2 * i + 1) * places // (2 * count) for i in range(count)]
    else:
        whole = size.frames * cut.stride if cut.spread else round(span(size.frames))
        starts = list(range(0, places, cut.hop or max(whole, 1)))
    fps = cut.fps or header.fps / cut.stride
    return _Looked(size, starts, len(starts) * size.frames / fps)


def _span(cut: Cut, rate: float, frames: int) -> float:
    """The number of frames of the video that a clip spans, at least."""
    if cut.spread:
        return frames
    if cut.fps is not None:
        return (frames - 1) / cut.fps * rate + 1
    return (frames - 1) * cut.stride + 1


def _frame_size(height: int, width: int, cut: Cut) -> tuple[int, int]:
    short_side = cut.short_side or cut.size
    if short_side is not None:
        scale = short_side / min(height, width)
        height, width = (max(round(s * scale), short_side) for s in (height, width))
    if cut.size is None:
        return height, width
    if min(height, width) < cut.size:
        raise LeftOutError("too small")
    return cut.size, cut.size


def bucket_name(key: Size | tuple[int, int]) -> str:
    """Returns the name of a bucket: of clips frames×height×width, of whole videos height×width."""
    return str(key) if isinstance(key, Size) else f"{key[0]}x{key[1]}"


def _numbered(found: dict, cut: Cut, batch: int | None) -> tuple[Plan, tuple[Bucket, ...]]:
    """Makes the plan, and its buckets, of what was found."""
    keys = sorted(found, key=lambda k: (k.frames, k.height, k.width) if isinstance(k, Size) else k)
    rows, buckets = [], []
    twins = (False, True) if cut.mirror else (False,)
    for number, key in enumerate(keys):
        frames = key.frames if isinstance(key, Size) else None
        height, width = (key.height, key.width) if isinstance(key, Size) else key
        name = bucket_name(key)
        together, count = 1, len(found[key]) * len(twins)
        if frames:
            fitting = _PIXELS // (frames * height * width)
            together = min(batch or min(max(fitting, 1), _MOST), count)
        buckets.append(Bucket(name, frames, height, width, together, count))
        rows += [(video, start, number, m) for video, start in found[key] for m in twins]
    rows.sort()  # in the order of the source
    video, start, bucket, mirrored = np.array(rows, np.int64).reshape(-1, 4).T
    plan = Plan(video.copy(), start.copy(), bucket.copy(), mirrored.astype(bool))
    return plan, tuple(buckets)
