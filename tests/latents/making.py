"""Datasets of latents of random numbers, written with what `odvae encode` writes them with."""

import dataclasses

import numpy as np

from odvae_jax.latents import LatentsInfo, Scale, Statistics
from odvae_jax.latents.description import DATASET, Bucket, Description, Plan, entries_file
from odvae_jax.latents.records import SHARED, as_stored, pack_record
from odvae_jax.latents.schema import compression, in_time
from odvae_jax.latents.shards import ShardWriter, read_indices, total_statistics, without_doubles
from odvae_jax.latents.storage import open_folder

VIDEO = {"structure": "v4", "width": 8, "groups": 4, "latent_channels": 4}
IMAGE = {**VIDEO, "structure": "image"}
BUCKETS = {"17x16x24": 7, "9x24x16": 5}
"""The number of entries by the bucket."""


def moments_of(entry, frames, height, width, config):
    """The mean and the log-variance of an entry, float32 [t, h, w, 2 C]; numbers of its own."""
    _, space = compression(config)
    channels = config["latent_channels"]
    count = in_time(config).latent_frames(frames)
    shape = (count, height // space, width // space, 2 * channels)
    numbers = np.random.default_rng([11, entry]).standard_normal(shape)
    deviations = np.repeat([1.5, 0.5], channels)
    return (numbers * deviations + np.linspace(-3, 1, shape[-1])).astype(np.float32)


def size_of(bucket):
    return tuple(map(int, bucket.split("x")))


def make_dataset(
    place,
    *,
    buckets=BUCKETS,
    content="moments",
    store="float32",
    config=VIDEO,
    finished=True,
    writers=2,
    lengths=None,
    more=None,
):
    """Writes a dataset, and returns each entry's moments.

    Args:
      place: its path or URL.
      buckets: the number of entries by the bucket.
      writers: how many writers share the entries.
      lengths: the number of frames by the entry, for videos as a whole.
      more: further fields of `LatentsInfo`.
    """
    folder = open_folder(place)
    shared, made, numbers = None, {}, []
    for number, (bucket, count) in enumerate(buckets.items()):
        each = [ShardWriter(folder, bucket, f"writer{i}") for i in range(writers)]
        frames, height, width = size_of(bucket)
        for i in range(count):
            entry = len(numbers)
            numbers.append(number)
            frames = lengths[entry] if lengths else frames
            moments = moments_of(entry, frames, height, width, config)
            mean, logvar = np.split(moments, 2, axis=-1)
            sums = Statistics()
            sums.add(mean, logvar)
            stored = as_stored({"moments": moments, "mean": mean}[content], store)
            info = LatentsInfo(
                source=f"video{entry}.mp4", model="small", encoder="0" * 32, config=config,
                content=content, scaling_factor=0.2, frames=frames, height=height, width=width,
                fps=8.0, tiling={"TemporalTiling": {"group": 9}}, dtype="float32", store=store,
                seed=None, prepared={"short_side": None, "size": None},
                columns={"caption": f"caption {entry}"},
                place={"video": entry, "start": 3, "stride": 1, "mirrored": False},
            )  # fmt: skip
            info = dataclasses.replace(info, **(more or {}))
            shared = {name: getattr(info, name) for name in SHARED}
            record = pack_record(entry, info, stored)
            writer = each[i % writers]
            writer.add(entry, record, frames, len(stored), frames / info.fps, sums)
            if i == count // 2:
                writer.finish()
            made[entry] = moments.astype(stored.dtype)
        for writer in each:
            writer.finish()
    count = len(numbers)
    plan = Plan(
        np.arange(count), np.zeros(count, int), np.array(numbers, int), np.zeros(count, bool)
    )
    folder.write(entries_file(""), plan.to_bytes())
    total = total_statistics(without_doubles(read_indices(folder)))
    described = Description(
        shared=shared or shared_of(content, store, config),
        source={"text": "VIDEOS", "videos": count, "digest": "0" * 32},
        cut={"fps": 8.0},
        buckets=tuple(
            Bucket(n, None if lengths else size_of(n)[0], *size_of(n)[1:], 2, buckets[n])
            for n in buckets
        ),
        left_out={"too short": 2},
        records=count if finished else None,
        scale=Scale.of(total).to_dict() if finished and count else None,
    )
    folder.write(DATASET, described.to_bytes())
    return made


def shared_of(content, store, config):
    return {
        "model": "small", "encoder": "0" * 32, "config": config, "content": content,
        "scaling_factor": 0.2, "tiling": {"TemporalTiling": {"group": 9}}, "dtype": "float32",
        "store": store, "seed": None,
    }  # fmt: skip
