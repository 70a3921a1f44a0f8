"""Videos decoded once and stored small, in array_record files that training reads quickly."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from odvae_jax.data.processes import in_processes
from odvae_jax.data.sources import PACKED_SUFFIX, Files, Sampling, Source, open_source, pack
from odvae_jax.data.video import VideoError, VideoReader, encode_h264, to_rgb
from odvae_jax.files import write_whole

INFO_FILE = "packed.json"
_KEY_FRAMES = 12  # distance of key frames: a clip begins anywhere


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
    """Packs every video of a source; run again, it goes on after the last finished shard.

    Args:
      text: names the source (`data.sources`).
      dest: the folder to write.
      short_side: that videos are scaled to.
      seconds: longer videos are stored in parts of this length, the last up to half as long
        again.
      kind: "h264" or "raw" (RGB).
      crf: quality of H.264, 0 to 51, lower is better.
      videos_per_shard: videos in one file.
      workers: processes.

    Returns:
      A summary for people.

    Raises:
      ValueError: if the folder holds another packing, or nothing could be packed.
      FileNotFoundError: if there is no such source.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    source = open_source(text)
    dest = Path(dest)
    how = {"short_side": short_side, "seconds": seconds, "kind": kind, "crf": crf}
    info = {"source": str(text), "videos": len(source), "videos_per_shard": videos_per_shard, **how}
    info_file = dest / INFO_FILE
    done: dict = {"shards": {}, "unusable": {}}
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
    write_whole(info_file, json.dumps({**info, **done}, indent=1) + "\n")
    shards = -(-len(source) // videos_per_shard)
    names = [f"videos-{i:05d}-of-{shards:05d}{PACKED_SUFFIX}" for i in range(shards)]
    parts = [
        range(i, min(i + videos_per_shard, len(source)))
        for i in range(0, len(source), videos_per_shard)
    ]
    todo = [(n, part) for n, part in zip(names, parts, strict=True) if n not in done["shards"]]
    packed = in_processes(_packed, (source, how), [i for _, part in todo for i in part], workers)
    left = sum(len(part) for _, part in todo)
    with (
        tqdm(
            total=len(source), initial=len(source) - left, unit="video", dynamic_ncols=True
        ) as bar,
        contextlib.closing(packed),
    ):
        for name, part in todo:
            building = dest / f".{name}.tmp"
            # One record a group: a record is read without its neighbours.
            writer = ArrayRecordWriter(str(building), "group_size:1,uncompressed")
            count = 0
            for index in part:
                records, error = next(packed)
                for record in records:
                    writer.write(record)
                count += len(records)
                if error:
                    done["unusable"][source.name(index)] = error
                bar.update()
            writer.close()
            os.replace(building, dest / name)
            done["shards"][name] = count
            write_whole(info_file, json.dumps({**info, **done}, indent=1) + "\n")
    total = sum(done["shards"].values())
    if not total:
        reasons = "\n  ".join(list(done["unusable"].values())[:20])
        raise ValueError(f"none of {len(source)} videos could be packed:\n  {reasons}")
    size = sum((dest / name).stat().st_size for name in done["shards"])
    lines = [
        f"{dest}: {total} records of {len(source)} videos in {shards} files, {size / 1e6:.1f} MB; "
        f"{len(done['unusable'])} unusable"
    ]
    return "\n  ".join([*lines, *done["unusable"].values()])


def _packed(shared: tuple[Source, dict], index: int) -> tuple[list[bytes], str]:
    """The records of a video, and what was wrong with it if anything was."""
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


def _parts(source, index: int, how: dict) -> Iterator[tuple[float, np.ndarray]]:
    if isinstance(source, Files):
        path, start, end = source.entry(index)
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
