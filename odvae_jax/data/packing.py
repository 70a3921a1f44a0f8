"""Videos decoded once and stored small, in array_record files that training reads quickly."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from odvae_jax.data.processes import in_processes
from odvae_jax.data.sources import PACKED_SUFFIX, Files, Sampling, Source, open_source, pack
from odvae_jax.data.video import VideoError, VideoReader, encode_h264, to_rgb
from odvae_jax.files import write_whole

INFO_FILE = "packed.json"
_KEY_FRAMES = 12  # The distance of key frames, which is small since clips begin anywhere.


def pack_videos(
    text: str,
    dest: str | os.PathLike,
    *,
    short_side: int = 256,
    seconds: float = 10.0,
    kind: str = "h264",
    crf: int = 16,
    videos_per_shard: int = 256,
    workers: int = 1,
) -> str:
    """Packs every video of a source. An interrupted run is continued after its last whole shard.

    Args:
      text: names the source (see `odvae_jax.data.sources`).
      dest: the folder to write.
      short_side: the length in pixels to which the shorter side of videos is scaled.
      seconds: the length in seconds of the parts that longer videos are stored in. The last part of
        a video may be up to half as long again.
      kind: how frames are stored, "h264" or "raw" (RGB).
      crf: the quality of H.264, from 0 to 51; lower is better and larger.
      videos_per_shard: the number of videos per shard.
      workers: the number of processes that decode.

    Returns:
      A summary for people.

    Raises:
      ValueError: if the folder holds another packing or other files, or nothing could be packed.
      FileNotFoundError: if there is no such source.
    """
    source, dest = open_source(text), Path(dest)
    how = {"short_side": short_side, "seconds": seconds, "kind": kind, "crf": crf}
    info = {"source": str(text), "videos": len(source), "videos_per_shard": videos_per_shard, **how}
    done = _begin(dest, info)
    shards = -(-len(source) // videos_per_shard)
    names = [f"videos-{i:05d}-of-{shards:05d}{PACKED_SUFFIX}" for i in range(shards)]
    starts = range(0, len(source), videos_per_shard)
    parts = [range(i, min(i + videos_per_shard, len(source))) for i in starts]
    todo = [(n, part) for n, part in zip(names, parts, strict=True) if n not in done["shards"]]
    left = [index for _, part in todo for index in part]
    packed = in_processes(_packed, (source, how), left, workers)
    bar = tqdm(total=len(source), initial=len(source) - len(left), unit="video", dynamic_ncols=True)
    with bar, contextlib.closing(packed):
        for name, part in todo:
            count, unusable = _write_shard(dest / name, itertools.islice(packed, len(part)), bar)
            done["unusable"] |= {source.name(part[i]): error for i, error in unusable.items()}
            done["shards"][name] = count
            _note(dest, info, done)
    return _summary(dest, len(source), done)


def _begin(dest: Path, info: dict) -> dict:
    """Makes the folder, or checks that it holds a part of the same packing.

    Returns:
      What is done: "shards", the number of records by the name of a shard, and "unusable", the
      reason by the name of a video.

    Raises:
      ValueError: if the folder holds another packing, or other files.
    """
    done: dict = {"shards": {}, "unusable": {}}
    info_file = dest / INFO_FILE
    if info_file.exists():
        before = json.loads(info_file.read_text())
        done = {name: before.pop(name) for name in done}
        if differing := [n for n in info if before.get(n) != info[n]]:
            raise ValueError(
                f"{dest} holds another packing ({', '.join(differing)} differ); choose another "
                "folder, or go on with its own options."
            )
    elif dest.exists() and any(dest.iterdir()):
        raise ValueError(f"{dest} holds other files; choose an empty folder, or a new one.")
    dest.mkdir(parents=True, exist_ok=True)
    # Before the first shard, so that one that is whole but not yet noted is known as ours.
    _note(dest, info, done)
    return done


def _note(dest: Path, info: dict, done: dict) -> None:
    write_whole(dest / INFO_FILE, json.dumps({**info, **done}, indent=1) + "\n")


def _write_shard(
    path: Path, packed: Iterable[tuple[list[bytes], str]], bar: tqdm
) -> tuple[int, dict[int, str]]:
    """Writes the records of some videos into one file, which appears complete or not at all.

    Returns:
      The number of records, and what was wrong with videos, by their place among these.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    building = path.with_name(f".{path.name}.tmp")
    # Groups of one record: a record is read without its neighbours.
    writer = ArrayRecordWriter(str(building), "group_size:1,uncompressed")
    count, unusable = 0, {}
    for place, (records, error) in enumerate(packed):
        for record in records:
            writer.write(record)
        count += len(records)
        if error:
            unusable[place] = error
        bar.update()
    writer.close()
    os.replace(building, path)
    return count, unusable


def _summary(dest: Path, videos: int, done: dict) -> str:
    """Returns a summary for people.

    Raises:
      ValueError: if nothing could be packed.
    """
    total = sum(done["shards"].values())
    if not total:
        reasons = "\n  ".join(list(done["unusable"].values())[:20])
        raise ValueError(f"none of {videos} videos could be packed:\n  {reasons}")
    size = sum((dest / name).stat().st_size for name in done["shards"])
    lines = [
        f"{dest}: {total} records of {videos} videos in {len(done['shards'])} files, "
        f"{size / 1e6:.1f} MB; {len(done['unusable'])} unusable"
    ]
    return "\n  ".join([*lines, *done["unusable"].values()])


def _packed(shared: tuple[Source, dict], index: int) -> tuple[list[bytes], str]:
    """Returns the records of a video, and what was wrong with the video, "" for nothing."""
    source, how = shared
    records = []
    try:
        for part, (fps, frames) in enumerate(_parts(source, index, how)):
            header = {
                "name": f"{source.name(index)}#{part}",
                "kind": how["kind"],
                "fps": fps,
                "frames": len(frames),
                "height": frames.shape[1],
                "width": frames.shape[2],
            }
            content = frames.tobytes()
            if how["kind"] == "h264":
                content = encode_h264(frames, fps, crf=how["crf"], g=str(_KEY_FRAMES), bf="0")
            records.append(pack(header, content))
    except VideoError as error:  # what came before it is kept
        return records, str(error)
    return records, ""


def _parts(source: Source, index: int, how: dict) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the parts that a video is stored in: frames per second, and uint8 [T, H, W, 3]."""
    if isinstance(source, Files):
        yield from _parts_of_file(*source.entry(index), how)
        return
    places = []
    source.read(index, Sampling(frames=1), 1, lambda n: places.append(n) or 0)
    rate = source.rate(index)
    most = max(round(how["seconds"] * rate), 1)
    bounds = [*range(0, max(places[0] - most // 2, 1), most), places[0]]
    for first, last in itertools.pairwise(bounds):
        count = last - first
        sampling = Sampling(frames=count, short_side=how["short_side"])
        yield rate, source.read(index, sampling, 1, lambda _, first=first: first)


def _parts_of_file(
    path: str, start: float | None, end: float | None, how: dict
) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the parts of a video file as `_parts` does, decoding the file once."""
    with VideoReader(path) as video:
        most = max(round(how["seconds"] * video.fps), 1)
        waiting = []
        start = None if start is None else video.start + start
        end = None if end is None else video.start + end
        for time, frame in video.frames_from(start):
            if start is not None and time < start - 0.5 / video.fps:
                continue
            if end is not None and time >= end:
                break
            waiting.append(to_rgb([frame], how["short_side"])[0])
            if len(waiting) == most + most // 2:  # the last part is no shorter than half
                yield video.fps, np.stack(waiting[:most])
                waiting = waiting[most:]
        if waiting:
            yield video.fps, np.stack(waiting)
