"""Prints the models of the paper: which levels are 3D, and how many parameters each part has.

A second table has the other autoencoders of Table 1 in their released sizes. It has the parameters
as the reference implementation and the paper count them, the parameters of the autoencoder alone,
and the values of a codebook that is not trained by gradients.
"""

from __future__ import annotations

import argparse
import math

from odvae_jax.cli.parsing import Parser, positive

EXAMPLE = "odvae variants --width=64"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae variants`."""
    parser.add_argument_group("the models").add_argument(
        "--width",
        type=positive,
        default=128,
        metavar="N",
        help="The base width of the paper's own models, which is the number of channels at full "
        "resolution. The default is 128, the paper's.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the tables."""
    from odvae_jax.checkpoints.native import ENCODER
    from odvae_jax.config import STRUCTURES, ODVAEConfig
    from odvae_jax.parameters import abstract_model, named_parameters

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
    _print_baselines()


def _print_baselines() -> None:
    from odvae_jax.baselines import MODELS, model_class
    from odvae_jax.baselines.base import parameter_counts
    from odvae_jax.parameters import abstract_model

    print(
        f"\n{'model':8}{'compression':24}{'latents':24}"
        f"{'counted':>13}{'autoencoder':>13}{'codebook':>13}"
    )
    for model in MODELS:
        config = model_class(model).config_class()
        counts = parameter_counts(abstract_model(config))
        sides = f"{config.time_compression}×" + "×".join([str(config.space_compression)] * 2)
        latents = f"{config.codes} codes" if config.codes else f"{config.latent_channels} channels"
        codebook = f"{counts.codebook:,}" if counts.codebook else "–"
        print(
            f"{config.name:8}{sides:24}{latents:24}{counts.reference:13,}{counts.autoencoder:13,}"
            f"{codebook:>13}"
        )
