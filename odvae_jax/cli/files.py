"""What encode, decode and reconstruct share: their options, and how they are run."""

from __future__ import annotations

import argparse
import logging
import sys

from odvae_jax.cli.parsing import Parser, dtype, not_negative, part, path, positive
from odvae_jax.cli.programs import add_host_options, join_hosts

_LISTED = 20  # problems


def add_files(parser: Parser, inputs: str, output: str) -> None:
    """Adds what is read and where it is written, with a sentence about each."""
    group = parser.add_argument_group("the files")
    group.add_argument("inputs", nargs="+", metavar="INPUT", type=path, help=inputs)
    group.add_argument("output", metavar="OUTPUT", type=path, help=output)
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="Replace files that are there already. Without it they are left as they are.",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="Do only the i-th of n parts of the files, as in 0/4. With several hosts, each does "
        "its part without being told.",
    )


def add_model(parser: Parser, ckpt: str, *, required: bool = True) -> None:
    """Adds the model, with a sentence about it, and how it computes."""
    group = parser.add_argument_group("the model")
    group.add_argument("--ckpt", required=required, metavar="MODEL", type=path, help=ckpt)
    group.add_argument(
        "--dtype",
        type=dtype,
        metavar="DTYPE",
        help="The dtype of the computation: bfloat16 (bf16), float32 (fp32) or float16 (fp16). The "
        "default is bfloat16, and float32 on a CPU.",
    )
    group.add_argument(
        "--rows",
        type=positive,
        default=1,
        metavar="N",
        help="The number of devices that share the rows of a frame. The default is 1.",
    )
    group = parser.add_argument_group("tiling (long videos and large frames)")
    group.add_argument(
        "--tiling",
        type=positive,
        metavar="N",
        help="Temporal tiling in groups of so many frames, 4k + 1. The default is 33, for models "
        "that cannot be streamed.",
    )
    group.add_argument(
        "--streaming",
        type=positive,
        metavar="N",
        help='Exact streaming in chunks of so many frames, for models with norm="frame". The '
        "default is 32, for these models.",
    )
    group.add_argument(
        "--tile",
        type=positive,
        metavar="N",
        help="The side of square tiles, for frames that are too large for the device.",
    )
    group.add_argument(
        "--overlap",
        type=int,
        metavar="N",
        help="The overlap of tiles in pixels. The default is a quarter of the side.",
    )
    add_host_options(parser)


def add_reading(parser: Parser) -> argparse._ArgumentGroup:
    """Adds how files are read, and returns the group."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--readers",
        type=positive,
        default=2,
        metavar="N",
        help="The number of files that are read at the same time. The default is 2.",
    )
    return group


def add_scaling(group: argparse._ArgumentGroup) -> None:
    """Adds what is done to the frames of videos before they are encoded."""
    group.add_argument(
        "--short-side",
        type=positive,
        metavar="N",
        help="Scale videos so that the shorter side has so many pixels.",
    )
    group.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="Cut out the centre square of this side, after scaling to --short-side, or else to "
        "this size.",
    )
    group.add_argument(
        "--threads",
        type=positive,
        default=2,
        metavar="N",
        help="The number of threads that scale the frames of one file. The default is 2.",
    )


def add_quality(parser: Parser) -> argparse._ArgumentGroup:
    """Adds how videos are written, and returns the group."""
    group = parser.add_argument_group("writing")
    group.add_argument(
        "--crf",
        type=not_negative,
        default=16,
        metavar="N",
        help="The quality of H.264, 0 to 51: lower is better. The default is 16.",
    )
    return group


def transcode(arguments: argparse.Namespace, work: str) -> int:
    """Encodes, decodes or reconstructs as the arguments say; returns the exit status.

    Args:
      arguments: the arguments of the command line.
      work: "encode", "decode" or "reconstruct".

    Raises:
      ValueError: if the arguments do not fit together or with the files.
      OSError: if something cannot be read or written.
    """
    logging.getLogger("odvae_jax").setLevel(logging.WARNING)
    join_hosts(arguments)
    import jax

    from odvae_jax import transcoding
    from odvae_jax.autoencoder import ODVAE
    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.data.latents import SUFFIX, find_latents
    from odvae_jax.data.sources import resolve
    from odvae_jax.sharding import make_mesh

    use_compilation_cache()
    jobs = transcoding.plan_jobs(
        arguments.inputs,
        arguments.output,
        SUFFIX if work == "encode" else ".mp4",
        find_latents if work == "decode" else resolve,
        skip_output=work == "reconstruct",
    )
    shard = part(arguments.shard) if arguments.shard is not None else None
    which, count = shard or (jax.process_index(), jax.process_count())
    jobs = jobs[which::count]
    if not jobs:
        print(f"nothing to do for part {which} of {count}")
        return 0
    _check_tiling(arguments)
    model = arguments.ckpt or _model_of(jobs)
    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    vae = ODVAE.from_pretrained(model, dtype=dtype)
    device = jax.local_devices()[0].device_kind
    print(f"{model}, {vae.config.name}, {dtype}, {device}", flush=True)
    settings = _settings(arguments, vae.config.space_compression)
    mesh = None
    if arguments.rows > 1:
        devices = jax.local_devices()
        if arguments.rows > len(devices):
            raise ValueError(f"--rows={arguments.rows}: there are {len(devices)} devices.")
        mesh = make_mesh(1, 1, arguments.rows, devices=devices[: arguments.rows])
    options = {"mesh": mesh, "overwrite": arguments.overwrite}
    if work == "encode":
        outcome = transcoding.encode_files(vae, model, jobs, settings, **options)
    else:
        files = {"decode": transcoding.decode_files, "reconstruct": transcoding.reconstruct_files}
        outcome = files[work](vae, jobs, settings, **options)
    return _report(outcome)


def _report(outcome) -> int:
    for name, value in outcome.psnr.items():
        print(f"{name}: PSNR {value:.2f} dB")
    rate = outcome.frames / outcome.seconds if outcome.seconds else 0.0
    print(
        f"{outcome.done} files, {outcome.frames} frames in {outcome.seconds:.1f} s, "
        f"{rate:.1f} frames/s; {outcome.skipped} files were there already"
    )
    if outcome.statistics.count:
        print(outcome.statistics.table())
    for problem in list(outcome.problems.values())[:_LISTED]:
        print(problem, file=sys.stderr)
    if len(outcome.problems) > _LISTED:
        print(f"and {len(outcome.problems) - _LISTED} more problems", file=sys.stderr)
    return 1 if outcome.problems else 0


def _check_tiling(arguments: argparse.Namespace) -> None:
    if arguments.tiling and arguments.streaming:
        raise ValueError("--tiling and --streaming are two ways to cut a clip: give one.")
    if arguments.overlap is not None and not arguments.tile:
        raise ValueError("--overlap is of tiles: give --tile too.")


def _settings(arguments: argparse.Namespace, unit: int):
    """The settings of the command line; `unit` is pixels per position of the latents."""
    from odvae_jax.tiling import SpatialTiling, Streaming, TemporalTiling
    from odvae_jax.transcoding import Settings

    tiling = []
    if arguments.tiling:
        tiling.append(TemporalTiling(arguments.tiling))
    if arguments.streaming:
        tiling.append(Streaming(arguments.streaming))
    if arguments.tile:
        quarter = arguments.tile // (4 * unit) * unit
        overlap = quarter if arguments.overlap is None else arguments.overlap
        tiling.append(SpatialTiling(arguments.tile, overlap))
    given = vars(arguments)
    names = ("short_side", "size", "content", "store", "seed", "crf", "alone", "readers", "threads")
    fields = {name: given[name] for name in names if name in given}
    if fields.get("size") and not fields["short_side"]:
        fields["short_side"] = fields["size"]
    return Settings(tiling=tuple(tiling) or None, **fields)


def _model_of(jobs) -> str:
    """The model that the first readable file of latents names."""
    from odvae_jax.data.latents import LatentsError, LatentsFile

    error = None
    for job in jobs:
        try:
            return LatentsFile(job.source).info.model
        except LatentsError as found:
            error = error or found
    raise error
