"""The released implementation's golden numbers, and our model with the same weights."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from odvae_jax import ODVAEConfig
from odvae_jax.checkpoints.native import abstract_model, named_parameters, with_parameters
from tests.fixtures import weights_recipe

FIXTURES = Path(__file__).parent / "fixtures"


def golden(case):
    """Video, moments and reconstruction of the mean, channels last."""
    with np.load(FIXTURES / "official_v4.npz") as file:
        names = ("video", "moments", "reconstruction_of_mean")
        return [np.moveaxis(file[f"{case}/{name}"], 1, -1) for name in names]


def released_model():
    """Variant 4 at width 32 with the recipe's weights, by the released names."""
    shapes = json.loads((FIXTURES / "official_v4.json").read_text())["parameters"]
    vae = abstract_model(ODVAEConfig.variant(4, width=32, upsample="linear", precision="highest"))
    parameters, used = {}, set()
    for name in named_parameters(vae):
        layer, leaf = name.rsplit(".", 1)
        leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
        (theirs,) = {f"{layer}.{leaf}", f"{layer}.conv.{leaf}"} & shapes.keys()
        used.add(theirs)
        value = weights_recipe.weight(theirs, tuple(shapes[theirs]))
        if value.ndim > 1:
            value = value.reshape(*value.shape[:2], -1, *value.shape[-2:]).transpose(2, 3, 4, 1, 0)
        parameters[name] = jnp.asarray(value)
    assert used == shapes.keys()
    return with_parameters(vae, parameters)
