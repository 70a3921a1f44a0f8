"""Writes a model into a repository on the hub, with a model card.

The repository gets config.json, model.safetensors and README.md (the card) in one commit. If there
is no such repository, it is made. Everybody who can read it can load the model by its name,
owner/name. The hub's token is read from HF_TOKEN in the environment, or from the place where `hf
auth login` stored it.
"""

from __future__ import annotations

import argparse

from odvae_jax.cli.files import add_no_verify
from odvae_jax.cli.parsing import Parser, path

EXAMPLE = "odvae push runs/v4 owner/name --license=apache-2.0 --results=runs/v4/eval"
GOES_ON = False


def add_arguments(parser: Parser) -> None:
    """Adds the options of `odvae push`."""
    group = parser.add_argument_group("the model")
    group.add_argument(
        "source",
        type=path,
        help="The model: the folder of a training run or of a saved model, a file of weights, or "
        "the name of a shipped model. It is written in this package's own layout.",
    )
    add_no_verify(group)
    group = parser.add_argument_group("the repository")
    group.add_argument("repository", help="The repository on the hub, owner/name.")
    group.add_argument(
        "--revision",
        metavar="NAME",
        help="The branch to write to, which is made if there is none. The default is main.",
    )
    group.add_argument(
        "--private",
        action="store_true",
        help="Make a new repository private. An existing repository does not change.",
    )
    group.add_argument("--message", metavar="TEXT", help="The message of the commit.")
    group = parser.add_argument_group("the model card")
    group.add_argument(
        "--results",
        type=path,
        metavar="PATH",
        help="The results of odvae eval for this model: the file results.json, or its folder. The "
        "card shows them in a table.",
    )
    group.add_argument(
        "--license",
        metavar="NAME",
        help="The hub's name for the licence of the weights, such as apache-2.0. Without it, the "
        "card names no licence.",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="Print the card, and write nothing to the hub."
    )


def run(arguments: argparse.Namespace) -> None:
    """Loads the model, writes it to the hub, and prints the address of the commit."""
    from odvae_jax import registry
    from odvae_jax.evaluation.card import model_card

    model = registry.load(arguments.source, verify=arguments.verify)
    card = {"results": arguments.results, "license": arguments.license}
    if arguments.dry_run:
        print(model_card(model, arguments.repository, **card), end="")
        return
    address = model.push_to_hub(
        arguments.repository,
        **card,
        private=arguments.private or None,
        revision=arguments.revision,
        message=arguments.message,
    )
    print(address)
