"""Shows what the small model does with three short videos that are installed along.

Two commands are run, which you can run by yourself, too: the model reconstructs frames of the
videos, and a whole video is streamed through it. Then a page shows what came of it. The same
command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from odvae_jax.cli.parsing import Parser, path

EXAMPLE = "odvae demo --output=runs/demo"
GOES_ON = True
_CLIP = "bikes"


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae demo`."""
    group = parser.add_argument_group("the demo")
    group.add_argument(
        "--output",
        default="runs/demo",
        metavar="FOLDER",
        type=path,
        help="The folder for everything that is written. The default is runs/demo.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the commands and writes the page."""
    from odvae_jax.cli import main
    from odvae_jax.data.sources.sample_clips import find_sample_clips

    output = Path(arguments.output)
    clip = next(name for name in find_sample_clips() if Path(name).stem == _CLIP)
    for title, argv in _commands(output, clip):
        print(f"\n=== {title}\n$ odvae {shlex.join(argv)}", flush=True)
        if status := main(argv):
            return status
    from odvae_jax.evaluation.demo_page import write_demo_page

    print(f"\n=== What came of it\n{write_demo_page(output)}")
    return 0


def _commands(output: Path, clip: str) -> list[tuple[str, list[str]]]:
    """Returns the commands, each with what it is for."""
    clips = "--data=sample-clips --frames=17 --size=128 --start=-17 --nofvd"
    cut = "--size=128 --streaming=16"
    return [
        (
            "The small model reconstructs the last frames of three videos",
            ["eval", "--ckpt=small", *clips.split(), f"--output={output}/eval"],
        ),
        (
            "A whole video goes through encoder and decoder in chunks of 16 frames, as a stream",
            ["reconstruct", clip, f"{output}/streamed.mp4", "--ckpt=small", *cut.split()],
        ),
    ]
