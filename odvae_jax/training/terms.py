"""Terms of the loss that are a user's own functions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.training.importing import import_named

FIELD = "config.loss.terms"
ARGUMENTS = ("video", "reconstruction", "posterior", "key")


class Term(NamedTuple):
    """One term of the loss that is a user's own function.

    Attributes:
      name: the name of the function. The metric has the same name with "term_" before it.
      function: maps (video, reconstruction, posterior, key) to a scalar.
      weight: what the scalar is multiplied by in the loss.
    """

    name: str
    function: Callable
    weight: float


def load_terms(given: Sequence[Any]) -> tuple[Term, ...]:
    """Imports the functions that `config.loss.terms` names.

    Args:
      given: pairs of "package.module:function" and a weight.

    Raises:
      ValueError: for what is no such pair, a function that does not exist or takes other
        arguments than those of a term, or two functions of one name.
    """
    terms: list[Term] = []
    for pair in given:
        if not _is_pair(pair):
            raise ValueError(
                f'{FIELD}: {pair!r} is not known; expected ("package.module:function", weight), '
                'as in (("my_losses:smooth", 0.1),).'
            )
        text, weight = pair
        function = import_named(text, FIELD)
        if not callable(function):
            raise ValueError(f"{FIELD}: {text!r} is no function.")
        _check_arguments(function, text)
        terms.append(Term(text.partition(":")[2], function, float(weight)))
    names = [term.name for term in terms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{FIELD} has two functions of the name {twice[0]!r}: rename one.")
    return tuple(terms)


def _check_arguments(function: Callable, text: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions that are written in C have none
        return
    try:
        signature.bind(*ARGUMENTS)
    except TypeError as error:
        raise ValueError(
            f"{FIELD}: {text!r} cannot be called as {text.partition(':')[2]}"
            f"({', '.join(ARGUMENTS)}): {error}."
        ) from None


def _is_pair(pair) -> bool:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        return False
    text, weight = pair
    number = isinstance(weight, (int, float)) and math.isfinite(weight)
    return number and isinstance(text, str) and all(text.partition(":"))


def sum_of_terms(
    terms: Sequence[Term],
    video: Float[Array, "b t h w 3"],
    reconstruction: Float[Array, "b t h w 3"],
    posterior: DiagonalGaussian,
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the weighted sum of the terms, and the unweighted value of each by its metric's name.

    Each term gets a key of its own.

    Raises:
      ValueError: if a function returns anything but a scalar. The message names it.
    """
    total, values = jnp.zeros(()), {}
    for i, term in enumerate(terms):
        value = term.function(video, reconstruction, posterior, jax.random.fold_in(key, i))
        if jnp.shape(value) != ():
            raise ValueError(
                f"{FIELD}: {term.name!r} returned an array of shape {jnp.shape(value)}; expected "
                "a scalar, such as a mean over the batch."
            )
        values[f"term_{term.name}"] = jnp.asarray(value, jnp.float32)
        total = total + term.weight * values[f"term_{term.name}"]
    return total, values
