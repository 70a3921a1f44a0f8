"""The released Latte's golden numbers, and its weights by recipe."""

import functools
import json
from pathlib import Path

import numpy as np

from odvae_jax.checkpoints import latte
from odvae_jax.checkpoints.files import WeightFile
from tests.fixtures import weights_recipe

FIXTURES = Path(__file__).parents[1] / "fixtures"
ABOUT = json.loads((FIXTURES / "latte.json").read_text())
HEADS = 4


@functools.cache
def _arrays():
    with np.load(FIXTURES / "latte.npz") as file:
        return {name: file[name] for name in file.files}


def golden(name):
    """An array of the fixtures; channels of latents last."""
    array = _arrays()[name]
    latents = array.ndim == 5 and name.startswith(("cond", "cfg", "uncond", "diff", "step", "loop"))
    latents |= name == "train_noise"
    if latents:
        return np.moveaxis(array, 2, -1)
    return np.moveaxis(array, 3, -1) if name == "loop_noise" else array


def released_shapes(kind):
    """The shape of every released parameter of the network "cond" or "uncond"."""
    return {name: tuple(shape) for name, shape in ABOUT[kind]["parameters"].items()}


def released_state(kind):
    """The recipe's weights and the fixed embeddings, by released name."""
    state = {n: weights_recipe.weight(n, s) for n, s in released_shapes(kind).items()}
    fixed = ("pos_embed", "temp_embed")
    return state | {name: golden(f"{kind}_{name}") for name in fixed}


@functools.cache
def released_model(kind, **overrides):
    """The network "cond" or "uncond" with these weights, in full float32."""
    file = WeightFile(FIXTURES / "latte.json", {"ema": released_state(kind)})
    overrides = {"precision": "highest", **overrides}
    return latte.load(file, heads=HEADS, **overrides)[0]
