"""How quickly a dataset of latents is read, beside the plain reader of its files.

python benchmarks/latents_reading.py

Writes a dataset of random numbers into a temporary folder and reads it in random order: the plain
records of array_record, values as they are stored, and normalised samples of mean and log-variance;
one after another, and in batches with workers. The plain records of batches go through the same
processes, as bytes. Prints records and MB per second, medians of some rounds, which take turns. The
files are in the memory of the system, so the numbers are those of the programs and not of a disk.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from odvae_jax.data.processes import InOrder
from odvae_jax.latents import LatentDataset, LatentsInfo, Scale, Statistics
from odvae_jax.latents.description import DATASET, Bucket, Description
from odvae_jax.latents.records import SHARED, as_stored, pack_record
from odvae_jax.latents.shards import ShardWriter, read_indices, total_statistics, without_doubles
from odvae_jax.latents.storage import open_folder

CONFIG = {"structure": "v4", "width": 128, "groups": 32, "latent_channels": 4}


def write(path, frames, side, count, store):
    """Writes records of moments; their numbers come from a small stock."""
    folder, name = open_folder(path), f"{frames}x{side}x{side}"
    writer = ShardWriter(folder, name, "benchmark")
    shape = ((frames - 1) // 4 + 1, side // 8, side // 8, 8)
    stock = np.random.default_rng(0).standard_normal((8, *shape), np.float32) * 0.5
    for entry in range(count):
        mean, logvar = np.split(stock[entry % 8], 2, axis=-1)
        sums = Statistics()
        sums.add(mean, logvar)
        info = LatentsInfo(
            source=f"videos/{entry:06d}.mp4", model="runs/v4", encoder="0" * 32, config=CONFIG,
            content="moments", scaling_factor=0.2, frames=frames, height=side, width=side,
            fps=24.0, tiling={"TemporalTiling": {"group": 33}}, dtype="bfloat16", store=store,
            seed=None, prepared={"short_side": None, "size": None, "cover": [side, side]},
            columns={"caption": "a caption of some length " * 4},
            place={"video": entry, "start": 0, "stride": 1, "mirrored": False},
        )  # fmt: skip
        record = pack_record(entry, info, as_stored(stock[entry % 8], store))
        latent_frames, seconds = shape[0], frames / info.fps
        writer.add(entry, record, frames, latent_frames, seconds, sums)
        if writer.due:
            writer.finish()
    writer.finish()
    total = total_statistics(without_doubles(read_indices(folder)))
    described = Description(
        shared={n: v for n, v in dataclasses.asdict(info).items() if n in SHARED},
        source={"text": "random", "videos": count, "digest": ""},
        cut={},
        buckets=(Bucket(name, frames, side, side, 1, count),),
        left_out={},
        records=count,
        scale=Scale.of(total).to_dict(),
    )
    folder.write(DATASET, described.to_bytes())
    return len(record)


class Plain:
    """The records as bytes, by the package that wrote them alone."""

    def __init__(self, path, batch_size):
        self._paths = [os.fsencode(p) for p in sorted(Path(path).rglob("*.array_record"))]
        self._batch_size, self._readers = batch_size, None

    def __getitem__(self, index):
        if self._readers is None:
            from array_record.python.array_record_module import ArrayRecordReader

            options = "readahead_buffer_size:0"
            readers = [ArrayRecordReader(p, options=options) for p in self._paths]
            self._where = [(r, i) for r in readers for i in range(r.num_records())]
            self._readers = readers
        reader, place = self._where[index]
        return reader.read([place])[0]

    def batches(self, batch_size, *, seed, workers, threads):
        """Endless batches of bytes."""
        ahead = max(workers, 1) * threads + 1
        return InOrder(
            _plain_batch, self, itertools.count(), workers=workers, threads=threads, ahead=ahead
        )

    def __getstate__(self):
        return {**self.__dict__, "_readers": None, "_where": None}


def _plain_batch(plain, number):
    plain[0]
    rng = np.random.default_rng(number)
    return [plain[int(i)] for i in rng.integers(len(plain._where), size=plain._batch_size)]


def one_by_one(source, order):
    """Records per second."""
    start = time.perf_counter()
    for index in order:
        source[index]
    return len(order) / (time.perf_counter() - start)


def in_batches(source, workers, threads, batch_size, count):
    """Records per second, from when the first batches are there."""
    batches = source.batches(batch_size, seed=0, workers=workers, threads=threads)
    for _ in range(3):
        next(batches)
    start = time.perf_counter()
    for _ in range(max(count // batch_size, 1)):
        next(batches)
    taken = time.perf_counter() - start
    batches.close()
    return max(count // batch_size, 1) * batch_size / taken


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=81, help="of a clip")
    parser.add_argument("--side", type=int, default=256, help="of a frame in pixels")
    parser.add_argument("--records", type=int, default=1000, help="of the dataset")
    parser.add_argument("--store", default="bfloat16", help="the dtype of what is stored")
    parser.add_argument("--batch", type=int, default=16, help="records per batch")
    parser.add_argument("--threads", type=int, default=2, help="in each worker")
    parser.add_argument("--rounds", type=int, default=9, help="of which the median is printed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        size = write(path, arguments.frames, arguments.side, arguments.records, arguments.store)
        sources = {
            "plain records": Plain(path, arguments.batch),
            "as stored": LatentDataset(path),
            "sampled, normalised": LatentDataset(path, view="sample", normalised=True),
        }
        order = np.random.default_rng(0).permutation(arguments.records).tolist()
        found = {}
        for kind in (None, 0, 1, 2):
            rates = {name: [] for name in sources}
            for source in sources.values():
                one_by_one(source, order[:50])
            for turn in range(arguments.rounds):
                for name, source in sources.items():
                    if kind is None:  # a part of the records, so that a round is short
                        rate = one_by_one(source, order[turn % 4 :: 4])
                    else:
                        rate = in_batches(
                            source, kind, arguments.threads, arguments.batch, arguments.records
                        )
                    rates[name].append(rate)
            found[kind] = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{arguments.records} records of {size / 1e3:.0f} kB, {os.cpu_count()} CPU cores")
    print(f"{'':22}{'':20}{'records/s':>12}{'MB/s':>9}{'of plain':>10}")
    for kind, rates in found.items():
        how = "one by one" if kind is None else f"batches, {kind} workers"
        for name, rate in rates.items():
            share = rate / rates["plain records"]
            print(f"{how:22}{name:20}{rate:12.0f}{rate * size / 1e6:9.0f}{share:10.0%}")


if __name__ == "__main__":
    main()
