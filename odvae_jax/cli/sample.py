"""Makes videos with a denoiser that was trained on latents.

Each sample becomes OUTPUT/NUMBER.mp4. The file samples.csv lists the samples with their classes,
and is a source of videos. Sample n depends only on the seed and on n, not on how many samples are
made together. Existing samples are not made again. So the same command continues an interrupted
one, and a larger --count adds samples.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from odvae_jax.cli import files
from odvae_jax.cli.parsing import Parser, not_negative, part, path, positive, positive_number
from odvae_jax.cli.programs import add_host_options, join_hosts
from odvae_jax.files import counted, printable

EXAMPLE = "odvae sample --ckpt=runs/latte --output=SAMPLES --count=16 --steps=50 --guidance=4"
GOES_ON = True

_GUIDANCE = 7.0  # the paper's, for denoisers with classes
_STEPS = {"gaussian": 250, "flow": 50}
_NO_CLASS = ("none", "-1")


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae sample`."""
    group = parser.add_argument_group("the models")
    group.add_argument(
        "--ckpt",
        required=True,
        metavar="DENOISER",
        type=path,
        help="The denoiser: the folder of a training run or of a saved denoiser, or a released .pt "
        "of Latte.",
    )
    group.add_argument(
        "--vae",
        metavar="MODEL",
        type=path,
        help="The autoencoder. The default is the one that the denoiser was trained with, if it is "
        "on this machine. The denoiser's config names it.",
    )
    files.add_dtype(group)
    files.add_no_verify(group)
    files.add_devices(group)
    group = parser.add_argument_group("the samples")
    group.add_argument(
        "--output", required=True, metavar="FOLDER", type=path, help="The folder for the videos."
    )
    group.add_argument(
        "--count",
        type=positive,
        default=16,
        metavar="N",
        help="The number of samples, including those that are in the folder already. The default "
        "is 16.",
    )
    group.add_argument(
        "--classes",
        metavar="LIST",
        help="The classes that the samples get in turn, by name or number. With horse,3 sample 0 "
        "is a horse, sample 1 is of class 3, and sample 2 is a horse again. If a number is also "
        "the name of a class, it is taken as the name. none or -1 means no class. The default is "
        "all classes.",
    )
    group.add_argument(
        "--sampler",
        metavar="NAME",
        default="",
        help="The sampler: ddpm (the default), ddim or ddim-strided. For rectified flow: euler "
        "(the default) or heun.",
    )
    group.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="The number of steps. The default is 250, or 50 for rectified flow.",
    )
    group.add_argument(
        "--guidance",
        type=float,
        metavar="S",
        help="The strength of guidance; 1 means no guidance. The default is 7, or 1 for a denoiser "
        "without classes.",
    )
    group.add_argument(
        "--interval",
        type=_interval,
        metavar="FIRST,LAST",
        help="Use guidance only between these two times, the smaller one first. Time goes from 999 "
        "(noise) to 0 (data); for rectified flow, from 0 (noise) to 1 (data).",
    )
    group.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="The seed. The default is 0."
    )
    group.add_argument(
        "--batch",
        type=positive,
        default=4,
        metavar="N",
        help="The number of samples that a device makes together. The default is 4.",
    )
    group.add_argument(
        "--latents",
        action="store_true",
        help="Write the latents, too, into OUTPUT/latents. odvae decode can read them.",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="Make only part I of N parts of the samples, counted from 0, as in 0/4. With several "
        "hosts, each does its part by itself.",
    )
    _add_decoding(parser)
    add_host_options(parser)


def _add_decoding(parser: Parser) -> None:
    """Adds how latents are decoded, and videos written."""
    group = parser.add_argument_group("decoding (long videos and large frames)")
    group.add_argument(
        "--tiling",
        type=positive,
        metavar="N",
        help="Temporal tiling in groups of N frames, where N is 4k + 1. The default is 33, for "
        "models that cannot be streamed.",
    )
    files.add_exact_and_tiles(group)
    group.add_argument(
        "--fps",
        type=positive_number,
        metavar="N",
        help="The frames per second of the videos. The default is that of the clips that the "
        "denoiser was trained on.",
    )
    group.add_argument(
        "--crf",
        type=not_negative,
        default=16,
        metavar="N",
        help="The quality of H.264, from 0 to 51. A lower number gives a better quality and a "
        "larger file. The default is 16.",
    )


def _interval(text: str) -> tuple[float, float]:
    """The first and the last time of an interval."""
    try:
        first, last = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers, as in 0.1,0.9") from None
    if not first <= last:
        raise argparse.ArgumentTypeError(f"{text!r}: the lesser time comes first")
    return first, last


def run(arguments: argparse.Namespace) -> int:
    """Makes samples, and returns 1 if some of them came to nothing."""
    logging.getLogger("odvae_jax").setLevel(logging.WARNING)
    join_hosts(arguments)
    return files.ended_by_signals("sample", lambda: _run(arguments))


def _run(arguments) -> int:
    import jax

    from odvae_jax import registry
    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.diffusion import Latte
    from odvae_jax.transcoding.samples import sample_files

    use_compilation_cache()
    shard = part(arguments.shard) if arguments.shard is not None else None
    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    denoiser = Latte.from_pretrained(arguments.ckpt, verify=arguments.verify, dtype=dtype)
    settings = _settings(arguments, denoiser.config)
    name = arguments.vae or _named(denoiser.config, arguments.ckpt)
    vae = registry.load_autoencoder(name, verify=arguments.verify, dtype=dtype)
    devices = files.devices_of(arguments)
    print(
        f"{printable(arguments.ckpt)}, {denoiser.config.name}, decoded by {printable(name)}, "
        f"{dtype}, {len(devices)} × {devices[0].device_kind}",
        flush=True,
    )
    outcome = sample_files(
        denoiser,
        vae,
        name,
        Path(arguments.output),
        arguments.count,
        settings(vae.config.space_compression),
        devices=devices,
        part=shard or (jax.process_index(), jax.process_count()),
    )
    made, there = counted(outcome.done, "sample"), counted(outcome.skipped, "was", "were")
    print(f"{made}; {there} there already{files.being_written(outcome)}", flush=True)
    for problem in outcome.problems.values():
        print(problem, file=sys.stderr)
    return int(bool(outcome.problems))


def _settings(arguments, config):
    """What makes the settings of the command line, of the pixels per position of the latents.

    Raises:
      ValueError: if they do not fit the denoiser.
    """
    from odvae_jax.transcoding.samples import SampleSettings

    arguments.memory = None  # these belong to tilings that are chosen, which samples have none of
    files.check_tiling(arguments)
    guidance = arguments.guidance
    classes = _classes(arguments.classes, config)
    if guidance is None:
        guided = any(one != config.classes for one in classes)  # "none" needs no guidance
        guidance = _GUIDANCE if config.classes and guided else 1.0

    def settings(unit):
        return SampleSettings(
            sampler=arguments.sampler,
            steps=arguments.steps or _STEPS[config.process],
            guidance=guidance,
            interval=arguments.interval,
            seed=arguments.seed,
            classes=classes,
            batch=arguments.batch,
            fps=arguments.fps,
            latents=arguments.latents,
            tiling=files.tilings_of(arguments, unit),
            crf=arguments.crf,
        )

    return settings


def _classes(text: str | None, config) -> tuple[int, ...]:
    """The numbers of the classes that a text names.

    Raises:
      ValueError: if there is no such class.
    """
    from odvae_jax.shipped import did_you_mean

    if not config.classes:
        if text is not None:
            raise ValueError("--classes: this denoiser has no classes; leave the option out.")
        return ()
    if text is None:
        return tuple(range(config.classes))
    names = list(config.trained_on.classes) if config.trained_on else []
    found = []
    for word in (one.strip() for one in text.split(",")):
        if word in _NO_CLASS and word in names:
            other = next(one for one in _NO_CLASS if one not in names)
            raise ValueError(
                f"--classes: {word!r} is the name of a class, and the word for no class: write "
                f"{names.index(word)} for the class, or {other} for no class."
            )
        if word in names:
            found.append(names.index(word))
        elif word.isascii() and word.isdigit() and int(word) < config.classes:
            found.append(int(word))
        elif word in _NO_CLASS:
            found.append(config.classes)
        else:
            listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            known = f"There are {listed}" if names else "They are numbers"
            raise ValueError(
                f"--classes: {word!r:.80} is not known. {did_you_mean(word, names)}{known}, "
                f"numbered 0 to {config.classes - 1}, and none."
            )
    return tuple(found)


def _named(config, ckpt: str) -> str:
    """The autoencoder that a denoiser's config names.

    Raises:
      ValueError: if it names none, or that is not on this machine.
    """
    from odvae_jax import shipped

    record = config.trained_on
    if record is None:
        raise ValueError(
            f"{printable(ckpt)} does not say which autoencoder it was trained with: name it, --vae."
        )
    if not shipped.model_path(record.vae).exists():
        raise ValueError(
            f"the denoiser was trained with the autoencoder {printable(record.vae)}, which is not "
            "on this machine: name it with --vae, a path or a hub id such as "
            "hf://owner/name/subfolder."
        )
    return record.vae
