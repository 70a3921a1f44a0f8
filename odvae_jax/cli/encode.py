"""Encodes videos of any length into files of latents, in constant memory.

Each video becomes one safetensors file. With --to=shards, a source of any kind becomes a dataset of
latents instead, to train a diffusion model on. Existing files are not replaced, so the same command
continues an interrupted one. At the end, the command prints the mean and standard deviation of all
latents, per channel.
"""

from __future__ import annotations

import argparse

from odvae_jax.cli import files
from odvae_jax.cli.parsing import Parser, dtype, not_negative, positive, positive_number
from odvae_jax.cli.programs import add_rate
from odvae_jax.latents import CONTENTS

EXAMPLE = "odvae encode sample-clips LATENTS --ckpt=small --size=128"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae encode`."""
    files.add_files(
        parser,
        "Videos: files, folders with video files anywhere below them, or sample-clips.",
        "A folder; files in it have the same relative paths as the inputs. For a single video, it "
        "may be a .safetensors file.",
    )
    files.add_model(
        parser,
        "The model: the folder of a training run or of a saved model, a file of weights, small (a "
        "model that comes with the package), or a hub id, owner/name or "
        "hf://owner/name@revision/subfolder (docs/weights.md).",
    )
    group = parser.add_argument_group("the latents")
    group.add_argument(
        "--content",
        choices=CONTENTS,
        default="mean",
        help="What is stored of the posterior: its mean (the default), its moments (mean and "
        "log-variance), or a sample.",
    )
    group.add_argument(
        "--store",
        type=dtype,
        default="float32",
        metavar="DTYPE",
        help="The dtype in the files: float32 (fp32, the default), float16 (fp16) or bfloat16 "
        "(bf16).",
    )
    group.add_argument(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="The seed of samples. The default is 0.",
    )
    files.add_scaling(files.add_reading(parser))
    _add_dataset(parser)


def _add_dataset(parser: Parser) -> None:
    """Adds what makes a dataset of latents."""
    group = parser.add_argument_group("datasets of latents (docs/latents.md)")
    group.add_argument(
        "--to",
        choices=("files", "shards"),
        default="files",
        help="Write one file per video (files, the default), or a dataset for training (shards). "
        "With shards, INPUT is any source that training takes, such as tfds:NAME or a manifest.",
    )
    group.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="Encode clips of N frames instead of whole videos.",
    )
    add_rate(group)
    group.add_argument(
        "--spread",
        action="store_true",
        help="Spread the frames of a clip evenly over --stride times --frames frames of the video, "
        "or over all of a shorter one, as Latte does.",
    )
    group.add_argument(
        "--hop",
        type=positive,
        metavar="N",
        help="Begin a clip every N frames of the video. By default, a clip begins where the clip "
        "before ends.",
    )
    group.add_argument(
        "--clips-per-video",
        type=positive,
        metavar="N",
        help="Take N clips per video, evenly spread, instead of --hop.",
    )
    group.add_argument(
        "--buckets",
        metavar="SIZES",
        help="Sizes that clips are scaled and cut to: frames×height×width, or frames@pixels for "
        "sizes of many aspect ratios, as in 17x128x128,17x96x160 or 33@65536.",
    )
    group.add_argument(
        "--mirror",
        action="store_true",
        help="Encode the mirror image of each clip as a second clip.",
    )
    group.add_argument(
        "--longest",
        type=positive_number,
        metavar="S",
        help="Leave out videos of more than S seconds.",
    )
    group.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="The number of clips that a device computes together. The default depends on their "
        "size.",
    )
    group.add_argument(
        "--workers",
        type=not_negative,
        metavar="N",
        help="The number of processes that read clips; with 0, this process reads them. The "
        "default is the number of cores, but at most 32.",
    )
    group.add_argument(
        "--shard-mb",
        type=positive_number,
        metavar="MB",
        help="Close a shard when it has MB megabytes. The default is 268.",
    )
    group.add_argument(
        "--shard-seconds",
        type=positive_number,
        metavar="S",
        help="Close a shard S seconds after its first clip. If the command is killed, at most the "
        "work of this time is done again. The default is 300.",
    )
    group.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="Where to encode: on the devices of this machine (here, the default), or on a Ray "
        "cluster (ray; docs/clusters.md).",
    )
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="With --engine=ray, the address of the cluster, as ray.init takes it. The default is "
        "the address in RAY_ADDRESS. If that is not set, Ray is started on this machine.",
    )
    group.add_argument(
        "--actors",
        type=positive,
        metavar="N",
        help="With --engine=ray, the number of actors (processes that encode). The default is one "
        "per GPU, or one if there are no GPUs.",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="Encode nothing. Print how many clips, hours, programs and bytes there would be.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Encodes, and returns 1 if a video could not be read to its end."""
    if arguments.to == "shards":
        from odvae_jax.cli import encode_dataset

        return encode_dataset.run(arguments)
    given = (
        "frames",
        "fps",
        "spread",
        "hop",
        "clips_per_video",
        "buckets",
        "mirror",
        "longest",
        "batch",
    )
    given += ("shard_mb", "shard_seconds", "address", "actors", "dry_run")
    if arguments.engine != "here":
        raise ValueError("--engine is for datasets of latents: give --to=shards too.")
    for name in given:
        if getattr(arguments, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is for datasets of latents: give --to=shards too.")
    return files.transcode(arguments, "encode")
