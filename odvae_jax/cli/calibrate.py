"""Measures mean and deviation of a model's latents per channel, and writes them into the model.

vae.normalise and vae.denormalise use them. For a model of this package, they are written into
config.json, and the weights do not change. For weights in other layouts, they are written into a
file beside the weights, odvae_latents_scale.json. Clips are drawn at random, as in training.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os

from odvae_jax.cli.files import add_dtype, add_no_verify, add_read_timeout, read_timeout
from odvae_jax.cli.parsing import Parser, not_negative, path, positive
from odvae_jax.cli.programs import add_source
from odvae_jax.files import counted, printable

EXAMPLE = "odvae calibrate runs/v4 VIDEOS --frames=25 --size=256"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae calibrate`."""
    group = parser.add_argument_group("the model")
    group.add_argument(
        "model",
        type=path,
        help="The model: the folder of a training run or of a saved model, or a file of weights.",
    )
    add_dtype(group)
    add_no_verify(group)
    group = parser.add_argument_group("the clips")
    add_source(group)
    group.add_argument(
        "--frames",
        type=positive,
        default=25,
        metavar="N",
        help="The number of frames of a clip; 4k + 1 for OD-VAE and CV-VAE. The default is 25.",
    )
    group.add_argument(
        "--size",
        type=positive,
        default=256,
        metavar="N",
        help="The side of a clip in pixels, a multiple of 8. Videos are scaled so that their "
        "shorter side has this length. The default is 256.",
    )
    group.add_argument(
        "--clips",
        type=positive,
        default=256,
        metavar="N",
        help="The number of clips. The default is 256.",
    )
    group.add_argument(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="Decides which clips are drawn. The default is 0.",
    )
    group = parser.add_argument_group("the work")
    group.add_argument(
        "--batch",
        type=positive,
        default=1,
        metavar="N",
        help="The number of clips that are encoded together. The default is 1.",
    )
    add_read_timeout(group)


def run(arguments: argparse.Namespace) -> None:
    """Measures, writes, and prints what was measured and where it was written."""
    import jax
    from tqdm import tqdm

    from odvae_jax.calibration import measure
    from odvae_jax.checkpoints.pretrained import load_pretrained, write_scale
    from odvae_jax.checks import check_continuous, check_video_shape
    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.data.clips import RandomClips, batches
    from odvae_jax.latents import Scale

    logging.getLogger("odvae_jax").setLevel(logging.WARNING)
    _check_own(arguments.model)
    use_compilation_cache()
    computed = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    loaded = load_pretrained(arguments.model, verify=arguments.verify, dtype=computed)
    check_continuous(loaded.vae.config)
    _check_writable(loaded)
    shape = (arguments.batch, arguments.frames, arguments.size, arguments.size, 3)
    check_video_shape(shape, loaded.vae.config)
    drawn = RandomClips(
        arguments.source,
        frames=arguments.frames,
        size=arguments.size,
        seed=arguments.seed,
        timeout=read_timeout(arguments),
    )
    wanted = min(arguments.batch, arguments.clips)
    total = -(-arguments.clips // wanted)
    with contextlib.closing(batches(drawn, wanted)) as feed:
        taken = itertools.islice(feed, total)
        bar = tqdm(taken, total=total, unit="batch", dynamic_ncols=True)
        statistics = measure(loaded.vae, iter(bar), arguments.clips)
    scale = Scale.of(statistics)
    written = write_scale(loaded, scale)
    size = f"{arguments.frames}×{arguments.size}×{arguments.size}"
    print(
        f"{counted(arguments.clips, 'clip')} of {size} of {printable(arguments.source)}, {computed}"
    )
    print(statistics.table())
    print(f"written into {printable(written)}")
    if drawn.skipped:
        unusable = counted(len(drawn.skipped), "video")
        print(f"{unusable} could not be used, and others were drawn instead")


def _check_writable(loaded) -> None:
    """Refuses a model that could not be written, before the work begins.

    Raises:
      PermissionError: if its folder, or the folder around it, in which a model is built, is closed.
    """
    folder = loaded.source.parent.resolve()
    for needed in (folder, *([folder.parent] if loaded.layout == "native" else [])):
        if not os.access(needed, os.W_OK):
            raise PermissionError(
                f"{printable(needed)} cannot be written: copy the model (odvae convert), and "
                "calibrate the copy."
            )


def _check_own(model: str) -> None:
    """Refuses a model that is not the user's own.

    Raises:
      ValueError: if it comes with the package, or is on the hub.
    """
    from odvae_jax import shipped

    if os.path.exists(model):
        return
    if model in shipped.model_names() or shipped.on_hub(model):
        raise ValueError(
            f"{printable(model)} is not a folder of your own: `odvae convert {printable(model)} "
            "FOLDER` makes one, which can be calibrated."
        )
    raise shipped.unknown_model(model)
