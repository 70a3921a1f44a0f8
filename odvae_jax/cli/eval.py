"""Compares models on videos, or generated videos with real ones, or times models.

Prints a table of PSNR, SSIM, LPIPS and Fréchet video distance. The output folder gets the table,
figures, the best and the worst clip, and a page that shows them all (results.html). With
--generated, the table has FVD, KVD and the Inception score, and the page shows samples. With
--speed, the command times encoding and decoding instead. If it is interrupted, the same command
continues.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from odvae_jax.cli.files import add_no_verify, read_timeout
from odvae_jax.cli.measuring import (
    add_c3d,
    add_clips,
    add_computation,
    add_i3d,
    add_speed,
    complain,
    say_memory,
)
from odvae_jax.cli.parsing import Parser, labelled, part, path, positive, source
from odvae_jax.cli.programs import add_rate, log_to_stderr
from odvae_jax.files import printable

if TYPE_CHECKING:
    from odvae_jax.evaluation.models import Contender

EXAMPLE = "odvae eval --ckpt=small --data=sample-clips --frames=17 --size=128 --nofvd --output=OUT"
GOES_ON = True
# What only one of the two kinds of comparison takes.
_OF_RECONSTRUCTIONS = [
    "--ckpt",
    "--reconstructions",
    "--callable",
    "--eight-bit",
    "--no-verify",
    "--nofloor",
    "--strict",
    "--start",
    "--clips",
    "--shard",
    "--tiling",
    "--dtype",
    "--nofvd",
    "--speed",
    "--work",
    "--largest-batch",
]
_OF_GENERATED = ["--count", "--spread", "--c3d"]


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae eval`."""
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--ckpt",
        action="append",
        default=[],
        metavar="[LABEL=]MODEL",
        type=labelled,
        help="A model: anything that odvae_jax.from_pretrained takes (docs/weights.md), such as "
        "small, which comes with the package. For a training run, RUN or RUN@ema are the averaged "
        "weights that it exported, and RUN@raw are those of its last checkpoint. Tables show the "
        "label. Give the option once per model.",
    )
    group.add_argument(
        "--reconstructions",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        type=labelled,
        help="A folder of reconstructions that another program made of the clips. Their files have "
        "the names of the original videos. Lossless formats are best, such as FFV1 in .mkv.",
    )
    group.add_argument(
        "--callable",
        action="append",
        default=[],
        metavar="[NAME=]MODULE:FUNCTION",
        help="A function that maps uint8 clips [B, T, H, W, 3] to their reconstructions. Its "
        "module may lie in the current folder.",
    )
    group.add_argument(
        "--data",
        metavar="SOURCE",
        type=source,
        help="The videos: a folder, sample-clips, or another source (docs/data.md).",
    )
    group.add_argument(
        "--eight-bit",
        action="store_true",
        help="Round the reconstructions of models to 8 bits before they are measured. Those of "
        "--reconstructions and --callable have 8 bits already.",
    )
    add_no_verify(group)
    group.add_argument(
        "--nofloor",
        dest="floor",
        action="store_false",
        help="Leave out the floor. The floor is a row for a trivial model, which replaces each "
        "block of pixels by its mean colour.",
    )
    _add_clips(parser)
    _add_generated(parser)
    _add_computation(parser)
    add_speed(
        parser,
        "speed (Table 3)",
        "Time the models on random clips instead. Without --ckpt, the four variants with random "
        "weights are timed.",
    )


def _add_clips(parser: Parser) -> None:
    group = add_clips(parser, "25, 16 with --generated, and 81 with --speed", "256", "")
    group.add_argument(
        "--start",
        type=int,
        default=0,
        metavar="N",
        help="The first frame of the clip. Negative numbers count from the end. The default is 0.",
    )
    add_rate(group)
    group.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="Measure only part I of N parts of the clips, counted from 0, as in 0/4. At the end, "
        "the same command without it reports all.",
    )


def _add_generated(parser: Parser) -> None:
    group = parser.add_argument_group("generated videos (Table 2)")
    group.add_argument(
        "--generated",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        type=labelled,
        help="Compare the generated videos of a folder with real clips. These are cut from the "
        "videos of --data at random places. Each generated video is one clip of --frames frames "
        "with --size rows and columns. Give the option once per set of videos.",
    )
    group.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="The number of clips of each set, and of real ones. The default is 2048, as in "
        "published results.",
    )
    group.add_argument(
        "--spread",
        action="store_true",
        help="Spread the frames of a real clip evenly over --stride times --frames frames of the "
        "video, or over all of a shorter one, as Latte does.",
    )
    add_c3d(group)


def _add_computation(parser: Parser) -> None:
    group = parser.add_argument_group("the computation")
    group.add_argument(
        "--output",
        metavar="FOLDER",
        type=path,
        help="The folder for the results. An interrupted run continues from it.",
    )
    group.add_argument(
        "--tiling",
        type=int,
        metavar="N",
        help="Temporal tiling in groups of N frames, such as 33.",
    )
    add_computation(group)
    group.add_argument(
        "--nofvd",
        dest="fvd",
        action="store_false",
        help="Leave out the Fréchet video distance, which takes most of the time.",
    )
    add_i3d(group, "the Fréchet video distance, and KVD with --generated")


def run(arguments: argparse.Namespace) -> int:
    """Compares or times models.

    Returns 1 if a reconstruction or a generated clip is not finite or a video could not be used.
    """
    from odvae_jax.compilation import use_compilation_cache

    log_to_stderr()
    use_compilation_cache()
    try:
        _check_together(arguments)
        if arguments.generated:
            return _generated(arguments)
        return _speed(arguments) if arguments.speed else _compare(arguments)
    except RuntimeError as error:
        return say_memory(error, "odvae eval", "--batch=1, --tiling")


def _check_together(arguments: argparse.Namespace) -> None:
    """Refuses options, and a folder, that belong to the other kind of comparison."""
    from odvae_jax.evaluation.generated import FEATURES_FOLDER
    from odvae_jax.evaluation.run import MEASUREMENTS_FOLDER

    given = [word.partition("=")[0] for word in arguments.given]
    if arguments.generated:
        if wrong := [name for name in _OF_RECONSTRUCTIONS if name in given]:
            raise ValueError(
                f"{wrong[0]} is for models and reconstructions, and --generated compares sets of "
                "videos: leave out one of them."
            )
    elif wrong := [name for name in _OF_GENERATED if name in given]:
        raise ValueError(
            f"{wrong[0]} is for generated videos: name their folder with --generated, or leave "
            f"{wrong[0]} out."
        )
    folders = {"reconstructions": MEASUREMENTS_FOLDER, "generated videos": FEATURES_FOLDER}
    folders.pop("generated videos" if arguments.generated else "reconstructions")
    ((other, folder),) = folders.items()
    if arguments.output and Path(arguments.output, folder).exists():
        raise ValueError(
            f"{printable(arguments.output)} holds an evaluation of {other}, which this one would "
            "replace: choose another --output."
        )


def _generated(arguments: argparse.Namespace) -> int:
    from odvae_jax.evaluation.drawn import DrawnClips, GeneratedClips
    from odvae_jax.evaluation.generated import evaluate_generated, notes, table
    from odvae_jax.evaluation.models import labels_and_sources
    from odvae_jax.evaluation.results import as_text
    from odvae_jax.metrics.c3d import FRAMES
    from odvae_jax.metrics.clip_sets import COUNT, load_networks

    if not arguments.data:
        raise ValueError("--data is needed: the real videos to compare --generated with.")
    shape = {
        "frames": FRAMES if arguments.frames is None else arguments.frames,
        "size": arguments.size,
        "timeout": read_timeout(arguments),
    }
    how = {name: getattr(arguments, name) for name in ("stride", "fps", "spread")}
    results, written = evaluate_generated(
        {
            label: GeneratedClips(folder, **shape)
            for label, folder in labels_and_sources(arguments.generated, "sets")
        },
        DrawnClips(arguments.data, **how, **shape),
        load_networks(
            i3d=arguments.i3d, c3d=arguments.c3d, trust_torchscript=arguments.trust_torchscript
        ),
        count=COUNT if arguments.count is None else arguments.count,
        output=arguments.output,
        batch=arguments.batch,
    )
    print(as_text(*table(results)))
    print("\n" + "\n".join(notes(results)))
    for file in written:
        print(printable(file))
    for complaint in results.complaints:
        print(f"odvae eval: {complaint}", file=sys.stderr)
    return int(bool(results.complaints))


def _compare(arguments: argparse.Namespace) -> int:
    from odvae_jax.evaluation.clips import FixedClips
    from odvae_jax.evaluation.results import as_text, first_and_rest, notes, table
    from odvae_jax.evaluation.run import evaluate, load_meters

    compared = arguments.ckpt or arguments.reconstructions or arguments.callable
    if not compared or not arguments.data:
        raise ValueError(
            "--ckpt and --data are needed: a model (or --reconstructions, --callable), and the "
            "videos to measure it on; or --generated and --data."
        )
    shard = part(arguments.shard)
    if shard[1] > 1 and not arguments.output:
        raise ValueError("--shard needs --output: the parts meet there.")
    clips = FixedClips(
        arguments.data,
        frames=25 if arguments.frames is None else arguments.frames,
        size=arguments.size,
        start=arguments.start,
        stride=arguments.stride,
        fps=arguments.fps,
        limit=arguments.clips,
        timeout=read_timeout(arguments),
    )
    results, written = evaluate(
        _contenders(arguments),
        clips,
        load_meters(
            fvd=arguments.fvd, i3d=arguments.i3d, trust_torchscript=arguments.trust_torchscript
        ),
        tiling=arguments.tiling,
        output=arguments.output,
        batch=arguments.batch,
        shard=shard,
        with_floor=arguments.floor,
        strict=arguments.strict,
    )
    if shard[1] > 1:
        print(f"part {arguments.shard} is measured; without --shard the same command reports all.")
        return 0
    print(as_text(*table(results)))
    if len(results.rows[0].by_frame):
        print("\n" + as_text(*first_and_rest(results)))
    print("\n" + "\n".join(notes(results)))
    for file in written:
        print(printable(file))
    return complain(results, clips, "odvae eval")


def _contenders(arguments: argparse.Namespace) -> list[Contender]:
    from odvae_jax.evaluation import outside
    from odvae_jax.evaluation.models import (
        check_labels,
        from_outside,
        labels_and_sources,
        load_contenders,
        rounded,
    )

    # In full float32 results do not depend on the batch.
    overrides = {"dtype": arguments.dtype or "float32", "precision": "highest"}
    found = load_contenders(arguments.ckpt, verify=arguments.verify, **overrides)
    if arguments.eight_bit:
        found = [rounded(c) for c in found]
    for kind, texts in (
        (outside.Reconstructions, arguments.reconstructions),
        (outside.Function, arguments.callable),
    ):
        for label, where in labels_and_sources(texts):
            found.append(from_outside(label, where, kind(where)))
    check_labels([c.label for c in found])
    return found


def _speed(arguments: argparse.Namespace) -> int:
    from odvae_jax import ODVAE, ODVAEConfig
    from odvae_jax.evaluation.models import labels_and_sources, load_model
    from odvae_jax.evaluation.speed import LARGEST_BATCH, WORKS, speed_table

    if arguments.tiling is not None or arguments.data:
        raise ValueError("--speed times whole random clips: leave out --tiling and --data.")
    if arguments.reconstructions or arguments.callable:
        raise ValueError("--speed times models: leave out --reconstructions and --callable.")
    frames = 81 if arguments.frames is None else arguments.frames  # the paper's for speed
    name = arguments.dtype or "bfloat16"
    same = {"dtype": name, "param_dtype": name}

    def variant(i):
        return ODVAE(ODVAEConfig.variant(i, **same), rngs=0)

    def loaded(source):
        return load_model(source, verify=arguments.verify, **same)[0]

    models = [
        (label, functools.partial(loaded, source))
        for label, source in labels_and_sources(arguments.ckpt)
    ] or [(f"variant {i}", functools.partial(variant, i)) for i in range(1, 5)]
    size = (frames, arguments.size, arguments.size)
    lines = speed_table(
        models,
        size,
        name,
        works=arguments.work or WORKS,
        largest_batch=arguments.largest_batch or LARGEST_BATCH,
    )
    for line in lines:
        print(line, flush=True)
    return 0
