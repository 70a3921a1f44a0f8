"""The reference implementations' golden numbers, names, and weights by recipe."""

import json
from pathlib import Path

import numpy as np

from tests.fixtures import weights_recipe

FIXTURES = Path(__file__).parent.parent / "fixtures"


def golden(model, case, *names):
    """Arrays of a case, channels last."""
    with np.load(FIXTURES / f"{model}.npz") as file:
        arrays = [file[f"{case}/{name}"] for name in names]
    return [np.moveaxis(a, 1, -1) if a.ndim == 5 else a for a in arrays]


def description(model):
    """The reference's config at small width, and the shape of every parameter by its name."""
    read = json.loads((FIXTURES / f"{model}.json").read_text())
    return read["config"], {name: tuple(shape) for name, shape in read["parameters"].items()}


def state(model):
    """The recipe's weights by the reference's names; what it cannot give is stored."""
    _, shapes = description(model)
    with np.load(FIXTURES / f"{model}.npz") as file:
        stored = {n.removeprefix("state/"): file[n] for n in file.files if n.startswith("state/")}
    for name in shapes:
        if name.endswith("num_batches_tracked"):
            stored[name] = np.zeros((), np.int64)
    return {
        name: stored[name] if name in stored else weights_recipe.weight(name, shape)
        for name, shape in shapes.items()
    }
