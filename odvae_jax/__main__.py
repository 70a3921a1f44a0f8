"""Videos to latents and back, from the shell.

python -m odvae_jax encode VIDEO_OR_FOLDER... OUT --ckpt=MODEL
python -m odvae_jax decode LATENTS_OR_FOLDER... OUT
python -m odvae_jax reconstruct VIDEO_OR_FOLDER... OUT --ckpt=MODEL
python -m odvae_jax summary FOLDER
python -m odvae_jax variants

OUT is a folder, or a file for one input. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys

from odvae_jax.checkpoints.native import ENCODER
from odvae_jax.config import STRUCTURES, ODVAEConfig
from odvae_jax.data.latents import (
    CONTENTS,
    SUFFIX,
    LatentsError,
    LatentsFile,
    Statistics,
    find_latents,
)
from odvae_jax.parameters import abstract_model, named_parameters

_LISTED = 20  # problems


def print_variants(arguments: argparse.Namespace) -> None:
    """Prints a table of all structures.

    Which levels are 3D, and parameters of encoder and decoder.
    """
    print(
        f"{'model':8}{'encoder levels':24}{'decoder levels':24}"
        f"{'encoder':>13}{'decoder':>13}{'all':>13}"
    )
    for name, parts in STRUCTURES.items():
        width = arguments.width
        config = ODVAEConfig(structure=name, width=width, groups=math.gcd(width, 32))
        parameters = named_parameters(abstract_model(config))
        sizes = {n: math.prod(p.shape) for n, p in parameters.items()}
        encoder = sum(s for n, s in sizes.items() if n.startswith(ENCODER))
        total = sum(sizes.values())
        levels = [" ".join(kinds) for kinds in (parts.encoder_levels, parts.decoder_levels)]
        print(f"{name:8}{levels[0]:24}{levels[1]:24}{encoder:13,}{total - encoder:13,}{total:13,}")


def print_summary(arguments: argparse.Namespace) -> None:
    """Prints mean and standard deviation of the latents in a folder."""
    infos = [LatentsFile(path).info for path in find_latents(arguments.folder)]
    encoders = {info.encoder for info in infos}
    if len(encoders) > 1:
        raise LatentsError(
            f"{arguments.folder} holds latents of {len(encoders)} different encoders."
        )
    frames = sum(info.frames for info in infos)
    print(f"{len(infos)} files, {frames} frames, of {infos[0].model}")
    print(Statistics.total(info.statistics for info in infos).table())


def transcode(arguments: argparse.Namespace) -> int:
    """Encodes, decodes or reconstructs; returns the exit status."""
    import jax

    if not arguments.coordinator and (arguments.processes or arguments.process) is not None:
        raise ValueError("--processes and --process need --coordinator: where the first listens.")
    if arguments.coordinator == "auto":
        jax.distributed.initialize()
    elif arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)

    from odvae_jax import transcoding
    from odvae_jax.autoencoder import ODVAE
    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.data.video import find_videos
    from odvae_jax.sharding import make_mesh

    use_compilation_cache()
    work = arguments.work
    find, suffix = (find_latents, ".mp4") if work == "decode" else (find_videos, ".mp4")
    suffix = SUFFIX if work == "encode" else suffix
    skip = {"skip_output": work == "reconstruct"}
    jobs = transcoding.plan_jobs(arguments.inputs, arguments.output, suffix, find, **skip)
    which, count = _shard(arguments.shard) or (jax.process_index(), jax.process_count())
    jobs = jobs[which::count]
    if not jobs:
        print(f"nothing to do for part {which} of {count}")
        return 0
    settings = _settings(arguments)
    model = arguments.ckpt or _model_of(jobs)
    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    vae = ODVAE.from_pretrained(model, dtype=dtype)
    device = jax.local_devices()[0].device_kind
    print(f"{model}, {vae.config.structure}, {dtype}, {device}", flush=True)
    mesh = None
    if arguments.height > 1:
        devices = jax.local_devices()
        if arguments.height > len(devices):
            raise ValueError(f"--height={arguments.height}: there are {len(devices)} devices.")
        mesh = make_mesh(1, 1, arguments.height, devices=devices[: arguments.height])
    options = {"mesh": mesh, "overwrite": arguments.overwrite}
    if work == "encode":
        outcome = transcoding.encode_files(vae, model, jobs, settings, **options)
    else:
        run = {"decode": transcoding.decode_files, "reconstruct": transcoding.reconstruct_files}
        outcome = run[work](vae, jobs, settings, **options)
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


def _settings(arguments):
    from odvae_jax.tiling import SpatialTiling, Streaming, TemporalTiling
    from odvae_jax.transcoding import Settings

    if arguments.tiling and arguments.streaming:
        raise ValueError("--tiling and --streaming are two ways to cut a clip: give one.")
    if arguments.overlap is not None and not arguments.tile:
        raise ValueError("--overlap is of tiles: give --tile too.")
    tiling = []
    if arguments.tiling:
        tiling.append(TemporalTiling(arguments.tiling))
    if arguments.streaming:
        tiling.append(Streaming(arguments.streaming))
    if arguments.tile:
        default = SpatialTiling(arguments.tile, 0).tile // 32 * 8
        overlap = default if arguments.overlap is None else arguments.overlap
        tiling.append(SpatialTiling(arguments.tile, overlap))
    given = vars(arguments)
    names = ("short_side", "size", "content", "store", "seed", "crf", "alone", "readers", "threads")
    fields = {name: given[name] for name in names if name in given}
    if fields.get("size") and not fields["short_side"]:
        fields["short_side"] = fields["size"]
    return Settings(tiling=tuple(tiling) or None, **fields)


def _model_of(jobs) -> str:
    """That the first readable file of latents names."""
    error = None
    for job in jobs:
        try:
            return LatentsFile(job.source).info.model
        except LatentsError as found:
            error = error or found
    raise error


def _shard(text):
    if text is None:
        return None
    which, slash, count = text.partition("/")
    if not (slash and which.isdigit() and count.isdigit() and int(which) < int(count)):
        raise ValueError(f"--shard={text} is not i/n with i from 0 to n - 1.")
    return int(which), int(count)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m odvae_jax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="work")
    helps = {
        "encode": "videos to files of latents",
        "decode": "files of latents to mp4",
        "reconstruct": "videos through encoder and decoder, to mp4 beside the originals",
    }
    for work, text in helps.items():
        command = commands.add_parser(work, help=text)
        command.set_defaults(run=transcode)
        add = command.add_argument
        add("inputs", nargs="+", help="files and folders")
        add("output", help="a folder; or, of one input, a file")
        add(
            "--ckpt",
            required=work != "decode",
            help="whatever ODVAE.from_pretrained takes"
            + (" (what the latents were made with)" if work == "decode" else ""),
        )
        add("--tiling", type=_positive, help="frames of a group of temporal tiling (33)")
        add(
            "--streaming",
            type=_positive,
            help='exact, in chunks of so many frames, for norm="frame"',
        )
        add("--tile", type=_positive, help="side of tiles, for frames too large for the device")
        add("--overlap", type=int, help="of tiles (a quarter)")
        add("--height", type=_positive, default=1, help="devices that share the rows of a frame")
        add("--dtype", help="of the computation (bfloat16; float32 on a CPU)")
        add("--shard", help="do the i-th of n parts of the files, as in 0/4")
        add("--overwrite", action="store_true", help="replace files that are there already")
        add("--readers", type=_positive, default=2, help="files read at the same time (2)")
        add("--coordinator", help="of several hosts: where the first listens, or auto")
        add("--processes", type=_positive, help="how many processes there are")
        add("--process", type=int, help="which of them this one is, from 0")
        if work != "decode":
            add("--short-side", type=_positive, help="scale videos to it")
            add("--size", type=_positive, help="cut the centre of that side, after scaling to it")
            add("--threads", type=_positive, default=2, help="that scale the frames of a file (2)")
        if work == "encode":
            add(
                "--content",
                choices=CONTENTS,
                default="mean",
                help="of the posterior: its mean, moments (mean and log-variance), or a sample",
            )
            add("--store", choices=["float32", "float16", "bfloat16"], default="float32")
            add("--seed", type=int, default=0, help="of samples")
        else:
            add("--crf", type=int, default=16, help="quality of H.264: lower is better (16)")
        if work == "reconstruct":
            add("--alone", action="store_true", help="without the originals beside")
    summary = commands.add_parser("summary", help="mean and deviation of the latents in a folder")
    summary.add_argument("folder")
    summary.set_defaults(run=print_summary)
    variants = commands.add_parser("variants", help="the models of the paper and their sizes")
    variants.add_argument("--width", type=_positive, default=128, help="base width")
    variants.set_defaults(run=print_variants)
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    logging.getLogger("odvae_jax").setLevel(logging.WARNING)
    try:
        status = arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"odvae_jax {arguments.work}: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
