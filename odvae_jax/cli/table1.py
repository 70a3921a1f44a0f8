"""Measures the paper's Table 1: seven autoencoders, compared with the paper's figures.

Each model is measured on one clip of 25×256×256 of every video, as in the paper. If the weights of
a model do not exist, its row is marked "missing". With --speed, the command times all seven models
with random weights instead. If it is interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from odvae_jax.cli.files import add_no_verify, read_timeout
from odvae_jax.cli.measuring import add_clips, add_computation, add_speed, complain, say_memory
from odvae_jax.cli.parsing import Parser, labelled_source, path
from odvae_jax.cli.programs import log_to_stderr
from odvae_jax.files import printable

EXAMPLE = "odvae table1 --data=WebVid-10M=CLIPS --data=Panda-70M=OTHERS --models=FILE.json"
GOES_ON = True


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae table1`."""
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]SOURCE",
        type=labelled_source,
        help="Videos: a folder, or another source (docs/data.md). If the name is WebVid-10M or "
        "Panda-70M, the table has only the paper's figures for that set. Give the option once per "
        "source.",
    )
    group.add_argument(
        "--models",
        metavar="FILE.json|NAME=MODEL,...",
        help="Where the weights of VQGAN, SD-VAE, SVD-VAE, TATS, CV-VAE, OPS-VAE and OD-VAE are "
        "(docs/table1.md). Other names get rows of their own.",
    )
    add_no_verify(group)
    add_clips(
        parser,
        "the paper's, 25, and 81 with --speed",
        "the paper's, 256",
        ": of 25 frames, TATS takes 24",
    )
    group = parser.add_argument_group("the computation")
    group.add_argument(
        "--output",
        default="runs/table1",
        metavar="FOLDER",
        type=path,
        help="The folder for the tables. An interrupted run continues from it. The default is "
        "runs/table1.",
    )
    add_computation(group)
    add_speed(
        parser,
        "speed",
        "Time how all seven models encode and decode random clips, with random weights.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures the table, or times its models.

    Returns 1 if a reconstruction is not finite or a video could not be used.
    """
    from odvae_jax.compilation import use_compilation_cache

    log_to_stderr()
    use_compilation_cache()
    try:
        return _speed(arguments) if arguments.speed else _measure(arguments)
    except RuntimeError as error:
        return say_memory(error, "odvae table1", "--batch=1")


def _measure(arguments: argparse.Namespace) -> int:
    from odvae_jax.evaluation.clips import FixedClips
    from odvae_jax.evaluation.paper import FRAMES
    from odvae_jax.evaluation.results import as_text, notes
    from odvae_jax.evaluation.run import evaluate, load_meters
    from odvae_jax.evaluation.table1 import (
        dataset_of,
        load_listed,
        read_list,
        table,
        write_table,
    )

    if not arguments.models or not arguments.data:
        raise ValueError(
            "--models and --data are needed: the models' weights, and the videos to measure on."
        )
    folders = _folders(arguments)
    all_clips = {
        name: FixedClips(
            source,
            frames=arguments.frames or FRAMES,
            size=arguments.size,
            limit=arguments.clips,
            timeout=read_timeout(arguments),
        )
        for name, source in arguments.data
    }
    # In full float32 results do not depend on the batch.
    overrides = {"dtype": arguments.dtype or "float32", "precision": "highest"}
    listed = read_list(arguments.models)
    contenders, absent = load_listed(listed, verify=arguments.verify, **overrides)
    if not contenders:
        reasons = "; ".join(f"{name}: {why}" for name, why in absent.items())
        raise ValueError(f"none of the models is there ({reasons}).")
    meters, results, status = load_meters(fvd=False), {}, 0
    for name, clips in all_clips.items():
        found, _ = evaluate(
            contenders,
            clips,
            meters,
            output=folders[name],
            batch=arguments.batch,
            strict=arguments.strict,
            absent=absent,
        )
        results[name] = found
        print(f"{name}\n{as_text(*table(found, dataset_of(name)))}\n")
        print("\n".join(notes(found)), end="\n\n")
        status |= complain(found, clips, "odvae table1")
    for file in write_table(results, Path(arguments.output)):
        print(printable(file))
    return status


def _folders(arguments: argparse.Namespace) -> dict[str, Path]:
    """Returns the folder of each source's report, by the source's name.

    Raises:
      ValueError: if two sources have one name.
    """
    folders = {}
    for name, _ in arguments.data:
        folder = Path(arguments.output) / (re.sub(r"[^\w-]+", "_", name) or "_")
        if folder in folders.values():
            raise ValueError(f"several sources are called {name!r}; name them with NAME=SOURCE.")
        folders[name] = folder
    return folders


def _speed(arguments: argparse.Namespace) -> int:
    from odvae_jax.evaluation.paper import SPEED_FRAMES
    from odvae_jax.evaluation.speed import LARGEST_BATCH, WORKS, speed_table
    from odvae_jax.evaluation.table1 import random_models

    if arguments.data or arguments.models:
        raise ValueError(
            "--speed times random weights and clips: leave out --data and --models; odvae eval "
            "--speed times checkpoints."
        )
    name = arguments.dtype or "bfloat16"
    size = (arguments.frames or SPEED_FRAMES, arguments.size, arguments.size)
    lines = speed_table(
        random_models(name),
        size,
        name,
        works=arguments.work or WORKS,
        largest_batch=arguments.largest_batch or LARGEST_BATCH,
    )
    for line in lines:
        print(line, flush=True)
    return 0
