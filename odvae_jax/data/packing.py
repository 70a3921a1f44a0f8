"""Videos decoded once and stored small, in array_record files that training reads quickly."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from odvae_jax.data.finding import check_regular
from odvae_jax.data.processes import WorkerError, in_processes
from odvae_jax.data.sources import (
    PACKED_SUFFIX,
    Source,
    open_source,
    pack,
    problem_of,
    workers_for,
)
from odvae_jax.data.video import READ_TIMEOUT, VideoError, encode_h264, within
from odvae_jax.files import BusyError, WholeFile, counted, one_line, part_of, printable, write_whole

INFO_FILE = "packed.json"
_LOCK = "packing"
_BLOCK = 32  # The number of frames of a video that are read at a time.
_KEY_FRAMES = 12  # The distance of key frames, which is small since clips begin anywhere.


@dataclasses.dataclass
class Packing:
    """What was packed; its text is a summary for people.

    Attributes:
      dest: the folder that was written.
      videos: the number of videos of the source.
      records: the number of records that were written, by the name of a file.
      bytes: the size of all these files together.
      unusable: what was wrong with a video, by the video's name. What came before the fault is
        packed.
      problems: what else was wrong, such as folders that cannot be read.
    """

    dest: Path
    videos: int
    records: dict[str, int]
    bytes: int
    unusable: dict[str, str]
    problems: tuple[str, ...] = ()

    def __str__(self):
        first = (
            f"{printable(self.dest)}: {counted(sum(self.records.values()), 'record')} of "
            f"{counted(self.videos, 'video')} in {counted(len(self.records), 'file')}, "
            f"{self.bytes / 1e6:.1f} MB; {len(self.unusable)} unusable"
        )
        return "\n  ".join([first, *self.unusable.values(), *self.problems])


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
    timeout: float | None = READ_TIMEOUT,
) -> Packing:
    """Packs every video of a source. An interrupted run is continued after its last whole shard.

    Whatever goes wrong with a video is that video's problem: the others are packed.

    Args:
      text: names the source (see `odvae_jax.data.sources`).
      dest: the folder to write.
      short_side: the length in pixels to which the shorter side of videos is scaled.
      seconds: the length in seconds of the parts that longer videos are stored in. The last part of
        a video may be up to half as long again.
      kind: how frames are stored, "h264" or "raw" (RGB).
      crf: the quality of H.264, from 0 to 51; lower is better and larger.
      videos_per_shard: the number of videos per shard.
      workers: the number of processes that decode. A video that a process dies of is unusable.
      timeout: the seconds that opening a video, or reading on in it, may take; None for no limit.

    Returns:
      What was packed.

    Raises:
      BusyError: if another process packs into the folder.
      OSError: if a shard cannot be written, for instance because the disk is full. The shards
        before it stay.
      ValueError: if the folder holds another packing or other files, or nothing could be packed.
      FileNotFoundError: if there is no such source.
      WorkerError: if no process can be started.
    """
    source, dest = open_source(text, timeout=timeout), Path(dest)
    how = {"short_side": short_side, "seconds": seconds, "kind": kind, "crf": crf}
    info = {"source": str(text), "videos": len(source), "videos_per_shard": videos_per_shard, **how}
    with contextlib.closing(_lock(dest)):
        done = _begin(dest, info)
        _write_shards(source, dest, info, done, how, workers)
        if not sum(done["shards"].values()):
            reasons = "\n  ".join(list(done["unusable"].values())[:20])
            raise ValueError(
                f"none of {counted(len(source), 'video')} could be packed:\n  {reasons}"
            )
        size = sum((dest / name).stat().st_size for name in done["shards"])
    return Packing(dest, len(source), done["shards"], size, done["unusable"], source.problems)


def _lock(dest: Path) -> WholeFile:
    """Makes the folder, and a file in it that only one process can have open.

    Raises:
      BusyError: if another process has it.
    """
    try:
        return WholeFile(dest / _LOCK)
    except BusyError:
        raise BusyError(
            f"{printable(dest)} is being packed by another process; wait for it, or choose another "
            "folder."
        ) from None


def _begin(dest: Path, info: dict) -> dict:
    """Checks that a folder is empty or holds a part of the same packing, and tidies it.

    Returns:
      What is done: "shards", the number of records by the name of a shard, and "unusable", the
      reason by the name of a video.

    Raises:
      ValueError: if the folder holds another packing, or other files.
    """
    done: dict = {"shards": {}, "unusable": {}}
    info_file = dest / INFO_FILE
    if info_file.exists():
        before = _read_info(info_file)
        done = {name: before.pop(name) for name in done}
        if differing := [n for n in info if before.get(n) != info[n]]:
            raise ValueError(
                f"{printable(dest)} holds another packing ({', '.join(differing)} differ); choose "
                "another folder, or go on with its own options."
            )
        # A file that is gone or was cut short since is written again.
        done["shards"] = {n: c for n, c in done["shards"].items() if holds(dest / n, c)}
    elif any(path.name != part_of(dest / _LOCK).name for path in dest.iterdir()):
        raise ValueError(
            f"{printable(dest)} holds other files; choose an empty folder, or a new one."
        )
    for pattern in (_building(dest / f"videos-*{PACKED_SUFFIX}").name, f".{INFO_FILE}.*.part"):
        for leftover in dest.glob(pattern):  # of a packing that was killed
            leftover.unlink()
    # Before the first shard, so that one that is whole but not yet noted is known as ours.
    _note(dest, info, done)
    return done


def _read_info(path: Path) -> dict:
    try:
        info = json.loads(path.read_bytes())
        if not all(isinstance(info[name], dict) for name in ("shards", "unusable")):
            raise ValueError("shards and unusable are no tables")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{printable(path)} is damaged ({one_line(error)}), so it is not known what is packed; "
            "remove the folder and pack again, or choose another folder."
        ) from None
    return info


def holds(path: Path, count: int) -> bool:
    """Returns whether an array_record file is whole and has so many records."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        check_regular(path)
        reader = ArrayRecordReader(os.fsencode(path), options="readahead_buffer_size:0")
        return reader.ok() and reader.num_records() == count
    except (OSError, ValueError, RuntimeError):
        return False


def _note(dest: Path, info: dict, done: dict) -> None:
    write_whole(dest / INFO_FILE, json.dumps({**info, **done}, indent=1) + "\n")


def _write_shards(source, dest, info, done, how, workers) -> None:
    """Writes the shards that are not done yet, and notes each in `done` and in the folder."""
    each = info["videos_per_shard"]
    starts = range(0, len(source), each)
    shards = len(starts)
    todo = [
        (f"videos-{i:05d}-of-{shards:05d}{PACKED_SUFFIX}", range(at, min(at + each, len(source))))
        for i, at in enumerate(starts)
    ]
    todo = [(name, part) for name, part in todo if name not in done["shards"]]
    left = [index for _, part in todo for index in part]

    def lost(index, reason):
        return [], f"{source.name(index)} cannot be packed: {reason}."

    workers = workers_for([source], workers, 1)
    packed = in_processes(_packed, (source, how), left, workers, lost)
    bar = tqdm(total=len(source), initial=len(source) - len(left), unit="video", dynamic_ncols=True)
    with bar, contextlib.closing(packed):
        for name, part in todo:
            count, unusable = _write_shard(dest / name, itertools.islice(packed, len(part)), bar)
            for index in part:
                done["unusable"].pop(source.name(index), None)  # from an earlier run
            done["unusable"] |= {source.name(part[i]): error for i, error in unusable.items()}
            done["shards"][name] = count
            _note(dest, info, done)


def _building(path: Path) -> Path:
    """The path of a shard while it is written."""
    return path.with_name(f".{path.name}.tmp")


def _write_shard(
    path: Path, packed: Iterable[tuple[list[bytes], str]], bar: tqdm
) -> tuple[int, dict[int, str]]:
    """Writes the records of some videos into one file, which appears complete or not at all.

    Returns:
      The number of records, and what was wrong with videos, by their place among these.

    Raises:
      OSError: if the file cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    building = _building(path)
    count, unusable = 0, {}
    try:
        # Groups of one record: a record is read without its neighbours.
        writer = ArrayRecordWriter(os.fsencode(building), "group_size:1,uncompressed")
        for place, (records, error) in enumerate(packed):
            for record in records:
                writer.write(record)
            count += len(records)
            if error:
                unusable[place] = error
            bar.update()
        writer.close()
        with building.open("rb") as file:
            os.fsync(file.fileno())
        if not holds(building, count):  # a writer may be silent about a full disk
            raise OSError("it was not written to its end; is the disk full?")
        os.replace(building, path)
    except WorkerError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise OSError(f"{printable(path)} cannot be written: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            building.unlink(missing_ok=True)
    return count, unusable


def _packed(shared: tuple[Source, dict], index: int) -> tuple[list[bytes], str]:
    """Returns the records of a video, and what was wrong with the video, "" for nothing."""
    source, how = shared
    records = []
    try:
        name = source.name(index)
        columns = within(source.timeout, name, source.columns, index)
        for part, (fps, frames) in enumerate(_parts(source, index, how)):
            header = {
                "name": f"{name}#{part}",
                "kind": how["kind"],
                "fps": fps,
                "frames": len(frames),
                "height": frames.shape[1],
                "width": frames.shape[2],
            }
            if columns:
                header["columns"] = columns
            content = frames.tobytes()
            if how["kind"] == "h264":
                content = encode_h264(frames, fps, crf=how["crf"], g=str(_KEY_FRAMES), bf="0")
            records.append(pack(header, content))
    except Exception as error:  # what came before it is kept
        return records, problem_of(source.name(index), error)
    return records, ""


def _parts(source: Source, index: int, how: dict) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the parts that a video is stored in: frames per second, and uint8 [T, H, W, 3].

    Raises:
      VideoError: at the end, if something is wrong with the video.
    """
    blocks = source.blocks(index, _BLOCK, short_side=how["short_side"], threads=1)
    waiting: list[np.ndarray] = []
    most = 0
    for frame in itertools.chain.from_iterable(blocks):
        most = most or max(round(how["seconds"] * blocks.fps), 1)
        waiting.append(frame)
        if len(waiting) == most + most // 2:  # the last part is no shorter than half
            yield blocks.fps, np.stack(waiting[:most])
            waiting = waiting[most:]
    if waiting:
        yield blocks.fps, np.stack(waiting)
    if blocks.problem:
        raise VideoError(blocks.problem)
