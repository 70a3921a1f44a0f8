"""Counting the floating-point operations that a function must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable, *args: Any) -> int:
    """Operations of the convolutions and matrix products in `function`.

    A multiply-add counts as two.

    Counted from the traced program, so nothing is compiled or run and `args` may be
    `jax.ShapeDtypeStruct`s. Of a branch the costliest is counted, a scan's body once an iteration;
    a `while` loop's body counts once.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        parameters = equation.params
        if equation.primitive.name == "conv_general_dilated":
            kernel, output = equation.invars[1].aval, equation.outvars[0].aval
            out_features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * output.size * kernel.size // out_features
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * length
        elif "branches" in parameters:
            total += max(_count(branch.jaxpr) for branch in parameters["branches"])
        else:
            inner = sum(_count(j) for value in parameters.values() for j in _jaxprs(value))
            total += (
                inner * parameters.get("length", 1) if equation.primitive.name == "scan" else inner
            )
    return total


def _jaxprs(value):
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
