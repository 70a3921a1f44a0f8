"""Whether the memory grows while many small videos become a dataset of latents.

python benchmarks/latents_memory.py --videos=2000

Prints the memory that the process and its workers have to themselves, in the mean over each tenth
of the run. The exit status is 1 if a later tenth is more than 5% above the second, with which the
time after the first tenth begins.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import psutil

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.data.video import write_video
from odvae_jax.transcoding import Cut, DatasetSettings, encode_dataset, parse_buckets


def own_memory() -> int:
    """Returns the bytes that this process and its children have to themselves."""
    total, me = 0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--width", type=int, default=8, help="The model's width.")
    given = parser.parse_args()
    vae = ODVAE(ODVAEConfig.variant(4, width=given.width, groups=4, norm="frame"), rngs=0)
    sizes = parse_buckets("9x64x64,9x48x80", time=4, space=8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "videos"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number in range(20):
            sides = (72, 72) if number % 2 else (56, 88)
            video = rng.integers(0, 256, (9 + number, *sides, 3), np.uint8)
            write_video(folder / f"{number:05}.mp4", video, 24)
        for number in range(20, given.videos):
            shutil.copy(folder / f"{number % 20:05}.mp4", folder / f"{number:05}.mp4")
        samples: list[tuple[float, int]] = []
        ended = threading.Event()

        def watch():
            while not ended.wait(0.5):
                samples.append((time.perf_counter(), own_memory()))

        settings = DatasetSettings(
            cut=Cut(buckets=sizes, clips_per_video=1), batch=4, workers=2, threads=1
        )
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        summary = encode_dataset(
            vae, "m", str(folder), str(Path(name) / "d"), settings, devices=jax.devices()[:1]
        )
        end = time.perf_counter()
        ended.set()
        watcher.join()
    # From the first clip that was read on; what came before was planning and compiling.
    during = [bytes_ for at, bytes_ in samples if at > end - summary.seconds]
    tenths = [float(np.mean(part)) for part in np.array_split(during, 10)]
    print(f"{summary.clips} clips in {summary.seconds:.0f} s")
    print("| tenth | MB | beside the second |\n|---|---|---|")
    for number, value in enumerate(tenths, 1):
        print(f"| {number} | {value / 1e6:.0f} | {value / tenths[1] - 1:+.1%} |")
    return int(max(tenths[1:]) > 1.05 * tenths[1])


if __name__ == "__main__":
    sys.exit(main())
