"""Converts weights:

`python -m odvae_jax.checkpoints SOURCE DEST [--variant 4 --init tail] [--to LAYOUT]`.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys

from tqdm import tqdm

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints import native, open_sora_plan, sd_vae
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.config import ODVAEConfig
from odvae_jax.inflation import METHODS, inflate

FILES = {
    "native": (native.CONFIG_FILE, native.WEIGHTS_FILE),
    "open-sora-plan": (native.CONFIG_FILE, open_sora_plan.WEIGHTS_FILE),
    "diffusers": (native.CONFIG_FILE, sd_vae.WEIGHTS_FILE),
}
WRITERS = {"native": native.save, "open-sora-plan": open_sora_plan.save, "diffusers": sd_vae.save}


def convert(arguments: argparse.Namespace) -> None:
    """Loads, inflates if a variant is asked for, and writes.

    Then says what was done with the parameters.
    """
    native.check_destination(
        arguments.destination, FILES[arguments.to], overwrite=arguments.overwrite
    )
    switches = {n: getattr(arguments, n) for n in ("upsample", "norm", "time_upsample")}
    switches = {name: value for name, value in switches.items() if value is not None}
    progress = functools.partial(tqdm, desc="reading", unit="parameter", dynamic_ncols=True)
    loaded = load_pretrained(
        arguments.source,
        revision=arguments.revision,
        subfolder=arguments.subfolder,
        progress=progress,
        **({} if arguments.variant else switches),
    )
    vae, taken = loaded.vae, set(native.named_parameters(loaded.vae))
    inflated: set[str] = set()
    if arguments.variant:
        vae = inflated_model(vae, arguments, switches)
        before, after = (native.named_parameters(m) for m in (loaded.vae, vae))
        inflated = {name for name in after if after[name].shape != before[name].shape}
        if arguments.init == "random":
            taken, inflated = set(), set()
        taken -= inflated
    WRITERS[arguments.to](vae, arguments.destination, overwrite=arguments.overwrite)
    parameters = native.named_parameters(vae)

    def count(names):
        return (
            f"{len(names):4} tensors, "
            f"{sum(math.prod(parameters[n].shape) for n in names):12,} values"
        )

    print(
        f"{loaded.source} ({loaded.layout}, {loaded.vae.config.structure})"
        f" -> {arguments.destination}"
    )
    print(
        f"{arguments.to}, {vae.config.structure}, "
        f"width {vae.config.width}, {vae.config.param_dtype}"
    )
    print(f"  taken    {count(taken)}")
    print(f"  inflated {count(inflated)}")
    print(f"  random   {count(parameters.keys() - taken - inflated)}")
    if loaded.ignored:
        some = ", ".join(loaded.ignored[:8]) + (", ..." if len(loaded.ignored) > 8 else "")
        print(f"  ignored  {len(loaded.ignored):4} names of the file: {some}")
    if loaded.inert:
        print(f"  inert    {', '.join(loaded.inert)}")


def inflated_model(image: ODVAE, arguments: argparse.Namespace, switches: dict[str, str]) -> ODVAE:
    """The video model that the command asks for."""
    same = (
        "width",
        "latent_channels",
        "groups",
        "scaling_factor",
        "dtype",
        "param_dtype",
        "precision",
    )
    fields = {name: getattr(image.config, name) for name in same}
    config = ODVAEConfig.variant(arguments.variant, **fields, **switches)
    return inflate(image, config, arguments.init or "tail", seed=arguments.seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m odvae_jax.checkpoints", description=__doc__)
    parser.add_argument("source", help="folder, file of weights, or hub id")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument("--to", choices=WRITERS, default="native", help="layout to write")
    parser.add_argument(
        "--variant", type=int, choices=(1, 2, 3, 4), help="make this variant from an image model"
    )
    parser.add_argument("--init", choices=METHODS, help="how its kernels are inflated (tail)")
    parser.add_argument("--seed", type=int, default=0, help="of --init random")
    for name in ("upsample", "norm", "time_upsample"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", help=f"the model's {name} (docs/models.md)"
        )
    parser.add_argument("--revision", help="of the hub's repository")
    parser.add_argument("--subfolder", help='folder of the model in the repository, such as "vae"')
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is at the destination"
    )
    arguments = parser.parse_args()
    if arguments.init and not arguments.variant:
        parser.error("--init says how a --variant is made from an image model: give both")
    try:
        convert(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
