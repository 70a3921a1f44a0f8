"""What public functions take: arrays and whole numbers."""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
"""A JAX array (traced ones included) or a NumPy array."""


def whole_numbers(owner: Any, unit: str, *names: str, least: int | None = None) -> None:
    """Makes fields of a frozen dataclass plain integers.

    Args:
      owner: the dataclass.
      unit: what the fields count, for the error.
      names: the names of the fields.
      least: the least value that a field may have; None for no limit.

    Raises:
      ValueError: if a field is no whole number, or is less than `least`. True and False are none.
    """
    for name in names:
        value = getattr(owner, name)
        try:
            number = operator.index(value)
            allowed = not isinstance(value, bool | np.bool_) and (least is None or number >= least)
        except TypeError:
            allowed = False
        if not allowed:
            above = "" if least is None else f", at least {least}"
            raise ValueError(
                f"{type(owner).__name__}({name}={value!r:.100}): expected a whole number of "
                f"{unit}{above}."
            )
        object.__setattr__(owner, name, number)
