"""Converts weights from one layout to another, and inflates image models to video models.

Reads everything that odvae_jax.from_pretrained takes. Prints how many parameters were copied, how
many were inflated, and how many were drawn at random.
"""

from __future__ import annotations

import argparse
import functools
import math
from typing import Any

from odvae_jax.cli.files import add_no_verify
from odvae_jax.cli.parsing import Parser, UsageError, path, positive
from odvae_jax.files import printable

_SWITCHES = ("upsample", "norm", "time_upsample")
_UNSAID = ("downsample", "groups", "heads")
EXAMPLE = "odvae convert small SMALL_AGAIN --to=native"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae convert`."""
    group = parser.add_argument_group("the weights")
    group.add_argument(
        "source",
        type=path,
        help="A folder, a file of weights, the name of a shipped model, or a hub id, owner/name or "
        "hf://owner/name@revision/subfolder.",
    )
    group.add_argument("destination", type=path, help="The folder to write.")
    group.add_argument(
        "--to",
        choices=["native", "open-sora-plan", "diffusers", "published"],
        default="native",
        help="The layout to write: our own (native, the default), that of the released OD-VAE "
        "(open-sora-plan), that of diffusers for an image model (diffusers), or the one in which "
        "another autoencoder was published, such as VQGAN or SVD-VAE (published).",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="Replace an existing model at the destination."
    )
    add_no_verify(group)
    group = parser.add_argument_group("the hub")
    group.add_argument(
        "--revision", metavar="NAME", help="A branch, tag or commit of the hub's repository."
    )
    group.add_argument(
        "--subfolder",
        metavar="NAME",
        help="The model's folder in the repository, or in the local folder, such as vae.",
    )
    group = parser.add_argument_group("inflation")
    group.add_argument(
        "--variant",
        type=int,
        choices=(1, 2, 3, 4),
        help="Make this variant of the paper from an image model.",
    )
    group.add_argument(
        "--init",
        choices=["tail", "average", "random"],
        help="How the image model's kernels are inflated: tail (the default), average or random.",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="The seed of --init=random; 0 by default."
    )
    group = parser.add_argument_group("the model's switches")
    ways = ("nearest", "linear")
    group.add_argument(
        "--upsample",
        choices=ways,
        help="How the decoder doubles rows and columns (docs/models.md).",
    )
    group.add_argument(
        "--norm",
        choices=("clip", "frame"),
        help="What norms take their statistics over (docs/models.md).",
    )
    group.add_argument(
        "--time-upsample", choices=ways, help="How the decoder doubles frames (docs/models.md)."
    )
    group = parser.add_argument_group("what a file does not say of itself (docs/weights.md)")
    group.add_argument(
        "--downsample",
        type=_three_numbers,
        metavar="T,H,W",
        help="For a TATS checkpoint without settings: how much it compresses time, rows and "
        "columns. The model of Table 1 has 4,8,8.",
    )
    group.add_argument(
        "--groups",
        type=positive,
        metavar="N",
        help="For a single file of an image model: the number of groups of its norms. It is needed "
        "if 32 does not divide the model's width.",
    )
    group.add_argument(
        "--heads",
        type=positive,
        metavar="N",
        help="For a released .pt file of Latte: the number of attention heads. It is needed if the "
        "width is not that of one of Latte's sizes.",
    )


def _three_numbers(text: str) -> tuple[int, ...]:
    """Three integers with commas between them."""
    numbers = tuple(positive(word) for word in text.split(","))
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers, as in 4,8,8")
    return numbers


def run(arguments: argparse.Namespace) -> None:
    """Loads, inflates if a variant is asked for, writes, and prints what was done."""
    from tqdm import tqdm

    from odvae_jax.checkpoints import native, open_sora_plan, sd_vae
    from odvae_jax.checkpoints.folders import check_destination
    from odvae_jax.checkpoints.pretrained import load_pretrained, save_published
    from odvae_jax.parameters import named_parameters

    if arguments.init and not arguments.variant:
        message = "--init says how a --variant is made from an image model: give both."
        raise UsageError(f"odvae convert: {message}", "odvae convert")
    files, save = {
        "native": ((native.CONFIG_FILE, native.WEIGHTS_FILE), native.save),
        "open-sora-plan": (open_sora_plan.FILES, open_sora_plan.save),
        "diffusers": (sd_vae.FILES, sd_vae.save),
        "published": (None, save_published),  # which files they are depends on the model
    }[arguments.to]
    check_destination(arguments.destination, files, overwrite=arguments.overwrite)
    switches = _given(arguments, _SWITCHES)
    try:
        loaded = load_pretrained(
            arguments.source,
            revision=arguments.revision,
            subfolder=arguments.subfolder,
            verify=arguments.verify,
            progress=functools.partial(tqdm, desc="reading", unit="parameter", dynamic_ncols=True),
            **_given(arguments, _UNSAID),
            **({} if arguments.variant else switches),
        )
    except native.OverrideError as error:
        raise ValueError(_in_options(error, arguments.source)) from error
    vae, taken = loaded.vae, set(named_parameters(loaded.vae))
    if arguments.variant or arguments.to in ("open-sora-plan", "diffusers"):
        vae = loaded.odvae
    inflated: set[str] = set()
    if arguments.variant:
        vae = _inflated(vae, arguments, switches)
        before, after = (named_parameters(m) for m in (loaded.vae, vae))
        inflated = {name for name in after if after[name].shape != before[name].shape}
        if arguments.init == "random":
            taken, inflated = set(), set()
        taken -= inflated
    save(vae, arguments.destination, overwrite=arguments.overwrite)
    _report(loaded, vae, arguments, taken, inflated)


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options among these that were given, by the names of fields."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _in_options(error, source: str) -> str:
    """What an error says about fields, said about options."""
    options = ", ".join(f"--{name.replace('_', '-')}" for name in error.fields)
    why = "whose file decides that" if error.decided else "which has no such setting"
    return f"{options}: {printable(source)} holds {error.model}, {why}; leave the option out."


def _inflated(image, arguments: argparse.Namespace, switches: dict[str, str]):
    """The video model that the command asks for."""
    from odvae_jax.config import ODVAEConfig
    from odvae_jax.inflation import inflate

    same = (
        "width",
        "latent_channels",
        "groups",
        "scaling_factor",
        "dtype",
        "param_dtype",
        "precision",
    )
    way = arguments.init or "tail"
    if way == "tail":  # its latents are those of the image model
        same += ("latents_mean", "latents_std")
    fields = {name: getattr(image.config, name) for name in same}
    config = ODVAEConfig.variant(arguments.variant, **fields, **switches)
    return inflate(image, config, way, seed=arguments.seed)


def _report(loaded, vae, arguments: argparse.Namespace, taken: set[str], inflated: set[str]):
    from odvae_jax.checkpoints.files import shown
    from odvae_jax.parameters import named_parameters

    parameters = named_parameters(vae)

    def count(names):
        return (
            f"{len(names):4} tensors, "
            f"{sum(math.prod(parameters[n].shape) for n in names):12,} values"
        )

    source, destination = printable(loaded.source), printable(arguments.destination)
    print(f"{source} ({loaded.layout}, {loaded.vae.config.name}) -> {destination}")
    print(f"{arguments.to}, {vae.config.name}, width {vae.config.width}, {vae.config.param_dtype}")
    print(f"  taken    {count(taken)}")
    print(f"  inflated {count(inflated)}")
    print(f"  random   {count(parameters.keys() - taken - inflated)}")
    if loaded.ignored:
        some = ", ".join(loaded.ignored[:8]) + (", ..." if len(loaded.ignored) > 8 else "")
        print(f"  ignored  {len(loaded.ignored):4} names of the file: {some}")
    if loaded.inert:
        some = ", ".join(map(shown, loaded.inert[:8])) + (", ..." if len(loaded.inert) > 8 else "")
        print(f"  inert    {some}")
