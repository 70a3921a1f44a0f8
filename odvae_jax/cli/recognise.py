"""Counts how many samples show the class that they were made for.

A small network learns the classes from real clips, and is tested with other real clips. Then it
classifies the samples. It is made for classes that are motions, such as those of moving-shapes, and
takes some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
import time

from odvae_jax.cli.files import add_read_timeout, read_timeout
from odvae_jax.cli.parsing import Parser, not_negative, positive, source
from odvae_jax.cli.programs import log_to_stderr
from odvae_jax.files import counted, printable

EXAMPLE = "odvae recognise SAMPLES --data=moving-shapes --test=moving-shapes:test"
GOES_ON = False
_ENOUGH = 0.95  # of held-out clips, for what is said of samples to mean something
_NAMED = 10  # problems that are shown


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae recognise`."""
    group = parser.add_argument_group("the samples")
    group.add_argument(
        "samples",
        type=source,
        help="The folder that odvae sample filled, or another source of videos with labels. Each "
        "video is one clip.",
    )
    group.add_argument(
        "--label",
        default="label",
        metavar="COLUMN",
        help="The column with the number of a video's class. The default is label.",
    )
    add_read_timeout(group)
    group = parser.add_argument_group("the real clips")
    group.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        type=source,
        help="The videos that the network learns from, with labels (docs/data.md). Their clips get "
        "the samples' number of frames and frame rate.",
    )
    group.add_argument(
        "--test",
        required=True,
        metavar="SOURCE",
        type=source,
        help="Other real videos, to test the network. Videos that it learns from are refused.",
    )
    group.add_argument(
        "--names",
        metavar="COLUMN",
        help="The column of the real videos with the name of a class, which has to be the name in "
        "the samples' list. By default it is found by itself; --names= compares no names.",
    )
    group.add_argument(
        "--clips",
        type=positive,
        default=2048,
        metavar="N",
        help="The number of clips that it learns from. The default is 2048.",
    )
    group.add_argument(
        "--test-clips",
        type=positive,
        default=512,
        metavar="N",
        help="The number of clips that it is tested with. The default is 512.",
    )
    group = parser.add_argument_group("the network")
    group.add_argument(
        "--steps",
        type=positive,
        default=300,
        metavar="N",
        help="The number of steps of its training. The default is 300.",
    )
    group.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="The seed. The default is 0."
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints what is recognised; returns 1 if a sample cannot be used."""
    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.evaluation.recognition import Recognition, recognise, train_recogniser
    from odvae_jax.evaluation.results import as_text

    log_to_stderr()
    use_compilation_cache()
    samples, shown, learnt, test, made = _read(arguments)
    classes, begun = len(shown), time.perf_counter()
    network = train_recogniser(learnt, classes=classes, steps=arguments.steps, seed=arguments.seed)
    print(
        f"learnt {classes} classes from {counted(len(learnt.labels), 'clip')} of "
        f"{samples.frames} frames, {samples.fps:g} per second, in "
        f"{time.perf_counter() - begun:.0f} s"
    )
    held_out, generated = (
        Recognition.of(clips.labels, recognise(network, clips.frames), classes)
        for clips in (test, made)
    )
    print(_said("real clips", arguments.test, held_out))
    print(f"{_said('samples', arguments.samples, generated)} (by chance {1 / classes:.1%})\n")
    print(as_text(*generated.table(shown)), flush=True)
    if held_out.share < _ENOUGH:
        print(
            f"odvae recognise: less than {_ENOUGH:.0%} of the real clips are recognised, so the "
            "share of samples says little: give more --clips or --steps.",
            file=sys.stderr,
        )
    for problem in samples.problems[:_NAMED]:
        print(problem, file=sys.stderr)
    if samples.problems:
        left_out = counted(len(samples.problems), "sample")
        print(f"odvae recognise: {left_out} left out", file=sys.stderr)
    return int(bool(samples.problems))


def _read(arguments):
    """Returns the samples, what each class is called, and the clips of all three kinds.

    The labels of clips count the classes that there are, from 0 on.

    Raises:
      ValueError: if the clips do not fit together.
    """
    import numpy as np

    from odvae_jax.evaluation.recognition import (
        Samples,
        check_classes,
        check_test,
        names_in,
        real_clips,
    )

    options = {"label": arguments.label, "timeout": read_timeout(arguments)}
    samples = Samples(arguments.samples, **options)
    options |= {"frames": samples.frames, "fps": samples.fps, "seed": arguments.seed}
    learnt = real_clips(arguments.data, count=arguments.clips, **options)
    test = real_clips(arguments.test, count=arguments.test_clips, **options)
    check_test(learnt, test, arguments.data, arguments.test)
    numbers = np.unique(learnt.labels)
    if len(numbers) < 2:
        raise ValueError(f"all clips of {printable(arguments.data)} are of one class.")
    made = samples.read(numbers.tolist())
    names = {"label": arguments.label, "names": arguments.names}
    for clips, where in ((test, arguments.test), (made, arguments.samples)):
        check_classes(learnt, clips, arguments.data, where, **names)
    called = names_in(made)
    shown = [printable(called.get(number, str(number))) for number in numbers.tolist()]
    counted = (
        clips._replace(labels=np.searchsorted(numbers, clips.labels).astype(np.int32))
        for clips in (learnt, test, made)
    )
    return samples, shown, *counted


def _said(what: str, where: str, found) -> str:
    share = f"{found.right} of {found.total} recognised, {found.share:.1%}"
    return f"{what} of {printable(where)}: {share}"
