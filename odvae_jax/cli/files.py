"""The options that encode, decode and reconstruct share, and the functions that run them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from odvae_jax.cli.parsing import (
    Parser,
    dtype,
    gigabytes,
    groups,
    not_negative,
    part,
    path,
    positive,
    seconds,
)
from odvae_jax.cli.programs import add_host_options, join_hosts
from odvae_jax.files import counted, line_about, printable

_TERMINATED_STATUS = 143  # as shells have it after SIGTERM


def add_files(parser: Parser, inputs: str, output: str) -> None:
    """Adds what is read and where it is written, with a sentence about each."""
    group = parser.add_argument_group("the files")
    group.add_argument("inputs", nargs="+", metavar="INPUT", type=path, help=inputs)
    group.add_argument("output", metavar="OUTPUT", type=path, help=output)
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="Replace existing files. Without this option, they stay as they are.",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="Do only part I of N parts of the files, counted from 0, as in 0/4. With several "
        "hosts, each does its part by itself.",
    )


def add_devices(group: argparse._ArgumentGroup) -> None:
    """Adds how many devices work side by side."""
    group.add_argument(
        "--devices",
        type=positive,
        metavar="N",
        help="The number of devices of this host that work in parallel, each on its own clips. The "
        "default is all accelerators, or one device on a CPU.",
    )


def devices_of(arguments: argparse.Namespace) -> list:
    """Returns the devices that work side by side.

    Raises:
      ValueError: if there are not so many.
    """
    import jax

    devices = jax.local_devices()
    count = arguments.devices or (1 if devices[0].platform == "cpu" else len(devices))
    if count > len(devices):
        raise ValueError(f"--devices={count}: this machine has {counted(len(devices), 'device')}.")
    return devices[:count]


def add_model(parser: Parser, ckpt: str, *, required: bool = True) -> None:
    """Adds the model, with a sentence about it, and how it computes."""
    group = parser.add_argument_group("the model")
    group.add_argument("--ckpt", required=required, metavar="MODEL", type=path, help=ckpt)
    add_dtype(group)
    add_no_verify(group)
    group.add_argument(
        "--rows",
        type=positive,
        default=1,
        metavar="N",
        help="The number of devices that share the rows of a frame. The default is 1.",
    )
    add_devices(group)
    group = parser.add_argument_group("tiling (long videos and large frames)")
    group.add_argument(
        "--tiling",
        type=groups,
        metavar="N",
        help="Temporal tiling in groups of N frames, where N is 4k + 1. The default is 33, for "
        "models that cannot be streamed. auto takes the largest groups or chunks that fit the "
        "device's memory, the same for all files, and tiles of frames if even the smallest groups "
        "do not fit. Other autoencoders than OD-VAE and SD-VAE take whole clips.",
    )
    group.add_argument(
        "--memory",
        type=gigabytes,
        metavar="GB",
        help="For --tiling=auto, the memory of a device in gigabytes (1e9 bytes). The default is "
        "what the device reports. A CPU does not report it.",
    )
    add_exact_and_tiles(group)
    add_host_options(parser)


def add_exact_and_tiles(group: argparse._ArgumentGroup) -> None:
    """Adds streaming in time, and tiles."""
    group.add_argument(
        "--streaming",
        type=positive,
        metavar="N",
        help='Exact streaming in chunks of N frames. It needs a model with norm="frame", for which '
        "it is the default, with 32 frames.",
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


def add_dtype(group: argparse._ArgumentGroup) -> None:
    """Adds the dtype of the computation."""
    group.add_argument(
        "--dtype",
        type=dtype,
        metavar="DTYPE",
        help="The dtype of the computation: bfloat16 (bf16), float32 (fp32) or float16 (fp16). The "
        "default is float32 on a CPU, and bfloat16 on other devices.",
    )


def add_no_verify(group: argparse._ArgumentGroup) -> None:
    """Adds the option by which files need not be those that were written."""
    group.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="Do not compare files with their digests (checksums). This allows files that have "
        "changed, such as a config.json that you edited.",
    )


def add_read_timeout(group: argparse._ArgumentGroup) -> None:
    """Adds the limit for one read; without the option, the arguments have no such field."""
    group.add_argument(
        "--read-timeout",
        type=seconds,
        default=argparse.SUPPRESS,  # the library's
        metavar="S",
        help="The time limit for one read, in seconds; 0 means no limit. If a read takes longer, "
        "its file is left out. The default is 60.",
    )


def read_timeout(arguments: argparse.Namespace) -> float | None:
    """The limit for one read in seconds; None for no limit."""
    from odvae_jax.data.video import READ_TIMEOUT

    return getattr(arguments, "read_timeout", READ_TIMEOUT)


def add_reading(parser: Parser) -> argparse._ArgumentGroup:
    """Adds how files are read, and returns the group."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--readers",
        type=positive,
        default=4,
        metavar="N",
        help="The number of files that are read at the same time. The default is 4.",
    )
    add_read_timeout(group)
    return group


def add_scaling(group: argparse._ArgumentGroup) -> None:
    """Adds what is done to the frames of videos before they are encoded."""
    group.add_argument(
        "--short-side",
        type=positive,
        metavar="N",
        help="Scale videos so that the shorter side has N pixels.",
    )
    group.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="Cut out the centre square with this side. Videos are scaled to --short-side first "
        "or, without it, so that the shorter side has this size.",
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
        help="The quality of H.264, from 0 to 51. A lower number gives a better quality and a "
        "larger file. The default is 16.",
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
    return ended_by_signals(work, lambda: _transcode(arguments, work))


def ended_by_signals(work: str, run: Callable[[], int]) -> int:
    """Runs something that SIGTERM ends as Ctrl-C does; returns its exit status, or 143."""
    with _terminated_like_interrupted():
        try:
            return run()
        except _TerminatedError:
            print(f"odvae {work}: terminated; the same command goes on", file=sys.stderr)
            return _TERMINATED_STATUS


class _TerminatedError(KeyboardInterrupt):
    """The process was told to end (SIGTERM), as a scheduler does before it kills."""


@contextlib.contextmanager
def _terminated_like_interrupted():
    """Lets SIGTERM remove unfinished files as Ctrl-C does."""

    def end(*_):
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _transcode(arguments: argparse.Namespace, work: str) -> int:
    import jax

    from odvae_jax import registry, transcoding
    from odvae_jax.compilation import use_compilation_cache

    use_compilation_cache()
    jobs, problems = _plan(arguments, work)
    shard = part(arguments.shard) if arguments.shard is not None else None
    which, count = shard or (jax.process_index(), jax.process_count())
    every, jobs = jobs, jobs[which::count]
    if not jobs and not problems:
        print(f"nothing to do for part {which} of {count}")
        return 0
    check_tiling(arguments)
    model = arguments.ckpt
    if work == "decode" and not model:
        model = _model_of(jobs, problems, arguments)
    if not jobs or not model:
        return _report(work, transcoding.Outcome(problems=problems))
    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    vae = registry.load_autoencoder(model, dtype=dtype, verify=arguments.verify)
    device = jax.local_devices()[0].device_kind
    print(f"{printable(model)}, {vae.config.name}, {dtype}, {device}", flush=True)
    settings = _settings(arguments, vae.config.space_compression)
    options = {"mesh": _mesh(arguments.rows), "overwrite": arguments.overwrite}
    if arguments.tiling == "auto":
        settings = transcoding.choose_tiling(vae, every, settings, work, **options)
        if settings.tiling:  # else no file can be read
            print(f"tiling: {' and '.join(map(repr, settings.tiling))}", flush=True)
    options["devices"] = _side_by_side(arguments)
    if work == "encode":
        outcome = transcoding.encode_files(vae, model, jobs, settings, **options)
    else:
        files = {"decode": transcoding.decode_files, "reconstruct": transcoding.reconstruct_files}
        outcome = files[work](vae, jobs, settings, **options)
    outcome.problems = problems | outcome.problems
    return _report(work, outcome)


def _plan(arguments: argparse.Namespace, work: str):
    """Returns which file or record goes where, and what cannot be done, by the name of a file."""
    from odvae_jax import transcoding
    from odvae_jax.data.sources import resolve
    from odvae_jax.latents import SUFFIX, find_latents
    from odvae_jax.latents.chosen import choose_records, is_dataset

    problems: dict[str, str] = {}
    if work == "decode":
        datasets = [place for place in arguments.inputs if is_dataset(place)]
        if len(datasets) > (len(arguments.inputs) == 1):
            raise ValueError(
                f"{printable(datasets[0])} is a dataset of latents: give it as the one input."
            )
        if datasets:
            records = choose_records(datasets[0], arguments.records, problems)
            return transcoding.plan_records(records, arguments.output), problems
        if arguments.records is not None:
            raise ValueError("--records is of datasets of latents; the input is none.")
    unread: dict[str, str] = {}  # what could not be looked at below folders, and why
    find = functools.partial(find_latents if work == "decode" else resolve, problems=unread)
    jobs = transcoding.plan_jobs(
        arguments.inputs,
        arguments.output,
        SUFFIX if work == "encode" else ".mp4",
        find,
        problems,
        skip_output=work == "reconstruct",
    )
    problems |= {path: line_about(path, OSError(reason)) for path, reason in unread.items()}
    return jobs, problems


def _mesh(rows: int):
    """The devices that share the rows of a frame; None for one device.

    Raises:
      ValueError: if there are not so many devices.
    """
    import jax

    from odvae_jax.sharding import make_mesh

    if rows == 1:
        return None
    devices = jax.local_devices()
    if rows > len(devices):
        raise ValueError(f"--rows={rows}: this machine has {counted(len(devices), 'device')}.")
    return make_mesh(1, 1, rows, devices=devices[:rows])


def _side_by_side(arguments: argparse.Namespace) -> list | None:
    """The devices that work side by side; None for one, or if they share the rows of frames.

    Raises:
      ValueError: if --rows and --devices are both given.
    """
    if arguments.rows > 1:
        if arguments.devices:
            raise ValueError("--rows and --devices are two ways to use several devices: give one.")
        return None
    devices = devices_of(arguments)
    return devices if len(devices) > 1 else None


def being_written(outcome) -> str:
    """Returns what a report says of files that other processes are writing; empty if none is."""
    if not outcome.busy:
        return ""
    return f"; {counted(outcome.busy, 'is', 'are')} being written by another process"


def _report(work: str, outcome) -> int:
    """Prints what came of a run, and returns the exit status."""
    for name, value in outcome.psnr.items():
        print(f"{printable(name)}: PSNR {value:.2f} dB")
    rate = outcome.frames / outcome.seconds if outcome.seconds else 0.0
    print(
        f"{counted(outcome.done, 'file')}, {counted(outcome.frames, 'frame')} in "
        f"{outcome.seconds:.1f} s, {rate:.1f} frames/s; "
        f"{counted(outcome.skipped, 'file was', 'files were')} there "
        f"already{being_written(outcome)}"
    )
    if outcome.statistics.count:
        print(outcome.statistics.table())
    sys.stdout.flush()
    for problem in outcome.problems.values():
        print(problem, file=sys.stderr)
    if outcome.problems:
        files = counted(len(outcome.problems), "file")
        print(f"odvae {work}: {files} with problems", file=sys.stderr)
    if outcome.ended:
        print(f"odvae {work}: {outcome.ended}", file=sys.stderr)
    return 1 if outcome.problems or outcome.ended else 0


def check_tiling(arguments: argparse.Namespace) -> None:
    """Checks that the options about tiling fit together.

    Raises:
      ValueError: if they do not.
    """
    automatic = arguments.tiling == "auto"
    if automatic and (arguments.streaming or arguments.tile):
        raise ValueError(
            "--tiling=auto chooses chunks and tiles: leave out --streaming and --tile."
        )
    if arguments.memory and not automatic:
        raise ValueError("--memory is for --tiling=auto: give that too.")
    if arguments.tiling and arguments.streaming:
        raise ValueError("--tiling and --streaming are two ways to cut a clip: give one.")
    if arguments.overlap is not None and not arguments.tile:
        raise ValueError("--overlap is of tiles: give --tile too.")


def tilings_of(arguments: argparse.Namespace, unit: int) -> Any:
    """Returns the tilings that the command line names; None if it names none.

    Args:
      arguments: the arguments.
      unit: the number of pixels per position of the latents.
    """
    from odvae_jax.tiling import AutoTiling, SpatialTiling, Streaming, TemporalTiling

    tiling, automatic = [], arguments.tiling == "auto"
    if arguments.tiling and not automatic:
        tiling.append(TemporalTiling(arguments.tiling))
    if arguments.streaming:
        tiling.append(Streaming(arguments.streaming))
    if arguments.tile:
        quarter = arguments.tile // (4 * unit) * unit
        overlap = quarter if arguments.overlap is None else arguments.overlap
        tiling.append(SpatialTiling(arguments.tile, overlap))
    return AutoTiling(arguments.memory) if automatic else tuple(tiling) or None


def _settings(arguments: argparse.Namespace, unit: int):
    """The settings of the command line; `unit` is pixels per position of the latents."""
    from odvae_jax.transcoding import Settings

    given = vars(arguments)
    known = {field.name for field in dataclasses.fields(Settings)} - {"tiling"}
    fields = {name: value for name, value in given.items() if name in known}
    if fields.get("size") and not fields["short_side"]:
        fields["short_side"] = fields["size"]
    return Settings(tiling=tilings_of(arguments, unit), **fields)


def info_of(path: str | os.PathLike, arguments: argparse.Namespace):
    """Returns what latents say about themselves, without a file's digests being compared.

    Args:
      path: the path of a file of latents, or a record of a dataset.
      arguments: the limit for one read.

    Raises:
      LatentsError: if it is damaged, or holds no latents.
      VideoError: if it is not read in time.
    """
    from odvae_jax.data.video import within
    from odvae_jax.latents.chosen import open_latents

    opened = functools.partial(open_latents, path, verify=False)
    return within(read_timeout(arguments), printable(path), opened).info


def _model_of(jobs, problems: dict[str, str], arguments: argparse.Namespace) -> str | None:
    """Returns the model that the first readable file of latents names.

    Args:
      jobs: which file of latents goes to which video.
      problems: where it is noted, by the path of the file, why files cannot be read, if none can.
      arguments: whether the model may be one on the hub, and the limit for one read.

    Returns:
      The model; None if no file can be read.

    Raises:
      ValueError: if the model is not on this machine, and it may not be downloaded.
    """
    from odvae_jax import shipped

    found = {}
    for job in jobs:
        try:
            model = info_of(job.source, arguments).model
        except Exception as error:
            found[str(job.source)] = line_about(job.source, error)
            continue
        if shipped.model_path(model).exists() or arguments.allow_download:
            return model
        raise ValueError(
            f"the latents were made with the model {printable(model)}, which is not on this "
            "machine: name it or another with --ckpt, or give --allow-download if it is on the hub."
        )
    problems |= found
    return None
