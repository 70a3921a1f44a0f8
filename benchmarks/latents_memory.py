"""Whether the memory grows while many small videos become a dataset of latents.

python benchmarks/latents_memory.py --videos=2000

Runs `odvae encode --to=shards` and prints the memory that the process and its workers have to
themselves, in the mean over each tenth of the run, from the first record on. The exit
status is 1 if a later tenth is more than 5% above the second, with which the time after the first
tenth begins.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.data.video import write_video


def own_memory(process: psutil.Process) -> int:
    """Returns the bytes that a process and its children have to themselves."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def write_videos(folder: Path, count: int) -> None:
    """Writes small H.264 files of 20 lengths and two shapes, which repeat."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        sides = (72, 72) if number % 2 else (56, 88)
        video = rng.integers(0, 256, (9 + number, *sides, 3), np.uint8)
        write_video(folder / f"{number:05}.mp4", video, 24)
    for number in range(20, count):
        shutil.copy(folder / f"{number % 20:05}.mp4", folder / f"{number:05}.mp4")


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--width", type=int, default=8, help="The model's width.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_videos(folder / "videos", given.videos)
        config = ODVAEConfig.variant(4, width=given.width, groups=4, norm="frame")
        ODVAE(config).save_pretrained(folder / "model")
        command = [sys.executable, "-m", "odvae_jax", "encode", "videos", "latents"]
        command += ["--ckpt=model", "--to=shards", "--buckets=9x64x64,9x48x80", "--batch=4"]
        command += ["--clips-per-video=1", "--workers=2", "--threads=1"]
        process = subprocess.Popen(command, cwd=folder)
        samples, watched = [], psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.25)
            if any((folder / "latents").glob("*/.*")):  # a shard is being written
                samples.append(own_memory(watched))
        if process.returncode:
            return process.returncode
    samples = [sample for sample in samples if sample]
    tenths = [float(np.mean(part)) for part in np.array_split(samples, 10)]
    print("| tenth | MB | beside the second |\n|---|---|---|")
    for number, value in enumerate(tenths, 1):
        print(f"| {number} | {value / 1e6:.0f} | {value / tenths[1] - 1:+.1%} |")
    return int(max(tenths[1:]) > 1.05 * tenths[1])


if __name__ == "__main__":
    sys.exit(main())
