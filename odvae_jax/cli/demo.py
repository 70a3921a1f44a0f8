"""Shows what the small model does with three short videos of the package.

It runs four commands, which you can also run yourself. The model reconstructs frames of the videos.
A whole video is streamed through the model. The model is tuned on one video. Then it is measured,
before and after tuning, on frames of that video that it was not tuned on. A page shows the results.
If it is interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from odvae_jax.cli.parsing import Parser, path

EXAMPLE = "odvae demo --output=runs/demo"
GOES_ON = True
_CONFIG = "finetune:decoder"
_STREAMED, _TUNED = "bikes", "carphone_pristine"
# Whole frames, always the same part of them: that is what is measured afterwards, too. The last 17
# frames are held out.
_TUNING = {
    "data.frames": 5,
    "data.size": 64,
    "data.short_side": 64,
    "data.short_side_max": 64,
    "data.crop": "centre",
    "data.flip": False,
    "data.holdout": 17,
    "model.dtype": "float32",
    "batch_size": 2,
    "steps": 60,
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_steps": 5,
    "optimizer.decay": "cosine",
    "loss.perceptual_weight": 0.0,
    "validate_every": 0,
    "checkpoint_every": 20,
}


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
    group.add_argument(
        "--no-fine-tune",
        dest="fine_tune",
        action="store_false",
        help="Leave out the fine-tuning, which takes most of the time.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the commands and writes the page."""
    from odvae_jax.cli import main
    from odvae_jax.data.sources.sample_clips import find_sample_clips

    output = Path(arguments.output)
    clips = {Path(name).stem: name for name in find_sample_clips()}
    commands = _commands(output, clips[_STREAMED])
    if arguments.fine_tune:
        commands += _fine_tuning(output, clips[_TUNED])
    for title, argv in commands:
        print(f"\n=== {title}\n$ odvae {shlex.join(argv)}", flush=True)
        if status := main(argv):
            return status
        if argv[0] == "train" and not _is_tuned(output):
            print("stopped before the last step; the same command goes on.", file=sys.stderr)
            return 130
    from odvae_jax.evaluation.demo_page import write_demo_page

    said = write_demo_page(output, tuned=arguments.fine_tune)
    print(f"\n=== What came of it\n{said}")
    return 0


def _is_tuned(output: Path) -> bool:
    """Whether the model was tuned to the last step; a run that is stopped exports one, too."""
    from odvae_jax.training.checkpoints import steps

    return max(steps(output / "tuned"), default=0) >= _TUNING["steps"]


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


def _fine_tuning(output: Path, clip: str) -> list[tuple[str, list[str]]]:
    """Returns the commands that tune on a video and measure on its last frames."""
    import jax

    # A batch divides over all devices, however many there are.
    devices = jax.device_count()
    batch = -(-_TUNING["batch_size"] // devices) * devices
    tuning = _TUNING | {"batch_size": batch}
    fields = [f"--config.{name}={value}" for name, value in tuning.items()]
    size, held_out = _TUNING["data.size"], _TUNING["data.holdout"]
    measured = f"--frames={held_out} --size={size} --start=-{held_out} --nofvd --nofloor"
    tuned = f"{output}/tuned"
    return [
        (
            f"The small model is tuned on one video, of which the last {held_out} frames are left "
            "out",
            [
                "train",
                f"--config={_CONFIG}",
                f"--workdir={tuned}",
                "--config.init.from_pretrained=small",
                f"--config.data.path={clip}",
                *fields,
            ],
        ),
        (
            "On those last frames it is measured, before and after",
            [
                "eval",
                "--ckpt=before=small",
                f"--ckpt=after={tuned}",
                f"--data={clip}",
                *measured.split(),
                f"--output={output}/gain",
            ],
        ),
    ]
