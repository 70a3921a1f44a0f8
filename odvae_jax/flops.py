"""Counting the floating-point operations that a function must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

# Dense bfloat16 operations per second from the makers' data sheets, by a part of the name that JAX
# gives the kind of device. The first that fits counts.
_PEAK = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Returns a device's bfloat16 operations per second as its maker states them.

    It returns None if the device is not known here.
    """
    return next((peak for kind, peak in _PEAK.items() if kind in device.device_kind), None)


def count_flops(function: Callable, *args: Any) -> int:
    """Returns the number of operations of the convolutions and matrix products in a function.

    Only what the function's results depend on is counted; a multiply-add counts as two operations.
    The count is taken from the traced program, so that nothing is compiled or run. Where platforms
    compute in different ways, the default platform's way counts. Of the branches of a condition the
    costliest one counts. The body of a scan counts once per iteration, and the body of a `while`
    loop only once.

    Args:
      function: a function that JAX can trace.
      *args: its arguments; arrays may be `jax.ShapeDtypeStruct`s.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _count(jaxpr, [True] * len(jaxpr.outvars))[0]


def _count(jaxpr, wanted: list[bool]) -> tuple[int, list[bool]]:
    """Returns the operations behind the wanted outputs, and which inputs these depend on."""
    live = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and not _is_literal(v)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        outputs = [v in live for v in equation.outvars]
        if not any(outputs) and not equation.effects:
            continue
        flops, inputs = _equation(equation, outputs)
        total += flops
        live |= {
            v
            for v, need in zip(equation.invars, inputs, strict=True)
            if need and not _is_literal(v)
        }
    return total, [v in live for v in jaxpr.invars]


def _equation(equation, outputs):
    parameters, everything = equation.params, [True] * len(equation.invars)
    name = equation.primitive.name
    if name == "conv_general_dilated":
        kernel, output = equation.invars[1].aval, equation.outvars[0].aval
        out_features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        flops = 2 * output.size * kernel.size // out_features
        # The gradient of a strided convolution puts zeros between inputs; nobody multiplies these.
        return flops // math.prod(parameters["lhs_dilation"]), everything
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * equation.outvars[0].aval.size * length, everything
    if "branches" in parameters:
        branches = _taken(parameters["branches"], parameters.get("branches_platforms"))
        counts = [_count(branch.jaxpr, outputs) for branch in branches]
        needed = [any(need) for need in zip(*(inputs for _, inputs in counts), strict=True)]
        return max(flops for flops, _ in counts), [True, *needed]
    inner = [j for value in parameters.values() for j in _jaxprs(value)]
    if len(inner) == 1 and name not in ("scan", "while"):
        (called,) = inner
        same = (len(equation.invars), len(outputs)) == (len(called.invars), len(called.outvars))
        if same:
            return _count(called, outputs)
    flops = sum(_count(j, [True] * len(j.outvars))[0] for j in inner)
    return flops * parameters.get("length", 1) if name == "scan" else flops, everything


def _taken(branches, platforms):
    """Returns the branches that the default platform may take."""
    if platforms is None:
        return branches
    return [next(b for b, names in zip(branches, platforms, strict=True) if _is_for(names))]


def _is_for(platforms) -> bool:
    """Whether the default platform is one of some; None stands for all platforms."""
    platform = jax.default_backend()
    if platform == "gpu":
        version = jax.devices()[0].client.platform_version
        platform = "rocm" if "rocm" in version.lower() else "cuda"
    return platforms is None or platform in platforms


def _is_literal(variable) -> bool:
    return hasattr(variable, "val")


def _jaxprs(value):
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
