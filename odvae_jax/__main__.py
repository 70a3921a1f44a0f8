"""`python -m odvae_jax variants`: the models of section 3.2 and their sizes."""

from __future__ import annotations

import argparse
import math

from odvae_jax.checkpoints.native import abstract_model, named_parameters
from odvae_jax.config import STRUCTURES, ODVAEConfig


def print_variants(width: int) -> None:
    """Prints a table of all structures.

    Which levels are 3D, and parameters of encoder and decoder.
    """
    print(
        f"{'model':8}{'encoder levels':24}{'decoder levels':24}"
        f"{'encoder':>13}{'decoder':>13}{'all':>13}"
    )
    for name, parts in STRUCTURES.items():
        config = ODVAEConfig(structure=name, width=width, groups=math.gcd(width, 32))
        parameters = named_parameters(abstract_model(config))
        sizes = {n: math.prod(p.shape) for n, p in parameters.items()}
        encoder = sum(s for n, s in sizes.items() if n.startswith(("encoder.", "quant_conv.")))
        total = sum(sizes.values())
        levels = [" ".join(kinds) for kinds in (parts.encoder_levels, parts.decoder_levels)]
        print(f"{name:8}{levels[0]:24}{levels[1]:24}{encoder:13,}{total - encoder:13,}{total:13,}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m odvae_jax")
    commands = parser.add_subparsers(required=True)
    variants = commands.add_parser("variants", help="the models of the paper and their sizes")
    variants.add_argument("--width", type=int, default=128, help="base width")
    variants.set_defaults(run=lambda arguments: print_variants(arguments.width))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
