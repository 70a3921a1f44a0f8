"""How fast `odvae encode --to=shards` is beside what the devices could do.

python benchmarks/latents_writing.py --clips=2000 --devices=1,2

Writes real H.264 files, encodes them into datasets of latents with a model with random weights, on
so many devices at a time, and prints frames per second, the share of the devices' own rate, and
the processor cores that were busy. A device's own rate is that of the same program on clips that
are on the device already. Compiling is not counted; it is printed alone. Meanwhile the first clips
are read, as many as the readers keep ready: about 100 on four devices.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import psutil

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.compilation import use_compilation_cache
from odvae_jax.data.video import write_video
from odvae_jax.transcoding import Cut, DatasetSettings, encode_dataset, parse_buckets
from odvae_jax.transcoding.units import encode_unit


def write_files(folder: Path, count: int, frames: int, size: int) -> list[Path]:
    """Writes H.264 files of moving patterns with some noise, as real videos have it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    paths = []
    for number in range(count):
        waves = rng.uniform(0.02, 0.2, (3, 3))
        noise = rng.normal(0, 6, (size, size, 3))
        video = np.stack(
            [
                np.stack([np.sin(a * x + b * y + c * 4 * t) for a, b, c in waves], -1) * 100
                + np.roll(noise, 3 * t, axis=1)
                + 128
                for t in range(frames)
            ]
        )
        paths.append(folder / f"{number:03}.mp4")
        write_video(paths[-1], np.clip(video, 0, 255).astype(np.uint8), 24)
    return paths


def own_rate(vae: ODVAE, shape: tuple[int, ...], seconds: float) -> float:
    """Returns the frames per second of the first device, with clips that are there already."""
    device = jax.local_devices()[0]
    vae = jax.device_put(vae, device)
    clips = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8), device)
    jax.block_until_ready(encode_unit(vae, clips, tiling=None))
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        moments = [encode_unit(vae, clips, tiling=None) for _ in range(8)]
        jax.block_until_ready(moments)
        rounds += 8
    return rounds * shape[0] * shape[1] / (time.perf_counter() - start)


def busy_seconds() -> float:
    """Returns the processor time of this process and its children so far."""
    total, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total + sum(me.cpu_times()[2:4])  # children that have ended


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clips", type=int, default=2000, help="Clips per run.")
    parser.add_argument("--files", type=int, default=40, help="Files, which repeat.")
    parser.add_argument("--frames", type=int, default=81, help="Frames per clip, 4k + 1.")
    parser.add_argument("--size", type=int, default=256, help="Rows and columns.")
    parser.add_argument("--width", type=int, default=128, help="The model's width.")
    parser.add_argument("--batch", type=int, help="Clips that a device computes together.")
    parser.add_argument("--workers", type=int, default=12, help="Processes that read, per device.")
    parser.add_argument("--devices", default="1", help="Numbers of devices, as in 1,2.")
    given = parser.parse_args()
    use_compilation_cache()
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    vae = ODVAE(
        ODVAEConfig.variant(4, width=given.width, groups=min(given.width // 4, 32), dtype=dtype)
    )
    size = parse_buckets(f"{given.frames}x{given.size}x{given.size}", time=4, space=8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        paths = write_files(folder / "videos", given.files, given.frames, given.size)
        rows = "\n".join(str(paths[i % len(paths)]) for i in range(given.clips))
        (folder / "list.csv").write_text(f"path\n{rows}\n")
        print(f"{len(paths)} files written in {time.perf_counter() - start:.0f} s", flush=True)
        rates = {}
        for count in map(int, given.devices.split(",")):
            settings = DatasetSettings(
                cut=Cut(buckets=size),
                store="bfloat16",
                batch=given.batch,
                workers=given.workers * count,
                threads=1,
            )
            before = busy_seconds()
            started = time.perf_counter()
            summary = encode_dataset(
                vae,
                "random",
                str(folder / "list.csv"),
                str(folder / f"latents-{count}"),
                settings,
                devices=jax.local_devices()[:count],
                bar=False,
            )
            cores = (busy_seconds() - before) / (time.perf_counter() - started)
            rates[count] = summary, cores
            batch = summary.description.buckets[0].batch
            print(f"{count} devices: {summary.seconds:.1f} s", flush=True)
        shape = (batch, given.frames, given.size, given.size, 3)
        own = own_rate(vae, shape, 10)
    kind = jax.local_devices()[0].device_kind
    print(f"{kind}; {given.clips} clips {given.frames}×{given.size}×{given.size}, batch {batch}")
    print(f"the device's own rate: {own:.0f} frames/s")
    print("| devices | frames/s | of their own rate | of one device | compiling | cores busy |")
    print("|---|---|---|---|---|---|")
    first = None
    for count, (summary, cores) in rates.items():
        rate = summary.frames / summary.seconds
        first = first or rate / count
        print(
            f"| {count} | {rate:.0f} | {rate / own / count:.1%} | {rate / first:.2f} times | "
            f"{summary.compiling:.1f} s | {cores:.1f} |"
        )


if __name__ == "__main__":
    main()
