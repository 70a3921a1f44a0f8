"""Operations that say themselves how they are spread over devices.

XLA's partitioner cannot look into a kernel, and knows no good way for some operations between
neighbouring rows. Such an operation is written for what one device holds, with a rule that says
which axes may be spread.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


class Rows(NamedTuple):
    """Which rows of the frames one device holds, inside an operation that is spread over devices.

    Attributes:
      axes: the names of the mesh axes that the rows are spread over.
      count: the number of devices that share the rows of one clip.
    """

    axes: tuple[str, ...] = ()
    count: int = 1

    def first(self) -> Array:
        """Returns whether this device has the first rows of the frames."""
        return jax.lax.axis_index(self.axes) == 0

    def last(self) -> Array:
        """Returns whether this device has the last rows of the frames."""
        return jax.lax.axis_index(self.axes) == self.count - 1

    def above(self, x: Array, n: int) -> Array:
        """Returns the `n` rows (axis 2) above those of `x`; zeros above the first of the frames."""
        return self._moved(x[:, :, x.shape[2] - n :], 1)

    def below(self, x: Array, n: int) -> Array:
        """Returns the `n` rows (axis 2) below those of `x`; zeros below the last of the frames."""
        return self._moved(x[:, :, :n], -1)

    def _moved(self, rows, step):
        places = range(max(-step, 0), self.count - max(step, 0))
        return jax.lax.ppermute(rows, self.axes, [(i, i + step) for i in places])


WHOLE = Rows()
"""The rows of a frame that lies on one device."""


def partitioned(
    rule: str, *, together: Sequence[str], rows_multiple: int | None = None, **sizes: int
) -> Callable[[Callable], Callable]:
    """Returns a decorator that lets an operation be spread over devices, and batched by `vmap`.

    The operation is a function of arrays to a list of arrays. It is called with the part of each
    array that a device holds.

    Args:
      rule: which axes of its arrays are the same, in the notation of `custom_partitioning`. The
        first array is a clip, "b t h w c"; its rows may also be "(v z)". Other arrays that begin
        with "b" hold one entry per clip.
      together: the names, one letter each, of axes that must lie on one device.
      rows_multiple: None if each row is computed alone. With a number, the operation has one more
        argument, `rows`, a `Rows`. Rows are spread only if each device gets the same number of
        them, a multiple of this number. Otherwise every device gets all rows.
      **sizes: the size of each name that stands second in brackets.
    """
    arrays, results = ([_axes(a) for a in part.split(",")] for part in rule.split("->"))

    def decorate(run):
        def on_one_device(*operands):
            return run(*operands) if rows_multiple is None else run(*operands, rows=WHOLE)

        spread = custom_partitioning(on_one_device)

        def shardings(mesh, x, wanted):
            spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else ()
            axes = dict(zip(arrays[0], (*spec, *(None,) * 5)[:5], strict=True))
            axes |= dict.fromkeys(together)
            rows = arrays[0][2]
            if rows_multiple and not _evenly(mesh, axes[rows], x.shape[2], rows_multiple):
                axes[rows] = None
            return tuple(
                NamedSharding(mesh, PartitionSpec(*(axes.get(name) for name in names)))
                for names in wanted
            )

        def partition(mesh, arguments, shapes):
            inputs = shardings(mesh, arguments[0], arrays)
            outputs = shardings(mesh, arguments[0], results)
            local = run
            if rows_multiple is not None:
                local = functools.partial(run, rows=_rows(mesh, inputs[0].spec[2]))
            return mesh, local, _like(shapes, outputs), inputs

        def infer(mesh, arguments, shapes):
            return _like(shapes, shardings(mesh, arguments[0], results))

        spread.def_partition(
            partition,
            infer_sharding_from_operands=infer,
            sharding_rule=rule,
            need_replication_factors=tuple(sorted(together, key=rule.index)),
            **sizes,
        )
        return functools.wraps(run)(_over_clips(spread, on_one_device, arrays))

    return decorate


def _axes(array: str) -> list[str]:
    """Returns the names of an array's axes; of several in brackets, the first stands for them."""
    names, inside = [], False
    for name in array.replace("(", " ( ").replace(")", " ) ").split():
        if name in "()":
            inside, first = name == "(", name == "("
        elif not inside or first:
            names.append(name)
            first = False
    return names


def _rows(mesh, axes) -> Rows:
    axes = axes if isinstance(axes, tuple) else (() if axes is None else (axes,))
    return Rows(axes, math.prod(mesh.shape[axis] for axis in axes))


def _evenly(mesh, axes, size, multiple) -> bool:
    """Returns whether rows can be spread so that neighbours can exchange them.

    If there are fewer rows on the last device, its other rows hold anything. Over several axes,
    `ppermute` numbers the devices in the order of the mesh.
    """
    rows = _rows(mesh, axes)
    places = [mesh.axis_names.index(axis) for axis in rows.axes]
    return size % (rows.count * multiple) == 0 and places == sorted(places)


def _over_clips(spread, on_one_device, arrays):
    """Returns the operation with a rule for `vmap`, which makes the batch of clips larger."""

    def over_clips(*operands):
        @jax.custom_batching.custom_vmap
        def one(*operands):
            # Where nothing can be spread, a program is freer without the rule for it.
            return (spread if jax.device_count() > 1 else on_one_device)(*operands)

        @one.def_vmap
        def batched(size, in_batched, *operands):
            axes = [0 if is_batched else None for is_batched in in_batched]
            per_clip = [names[0] == "b" for names in arrays]
            if any(b and not clips for b, clips in zip(in_batched, per_clip, strict=True)):
                outputs = jax.vmap(on_one_device, axes)(*operands)
                return outputs, [True] * len(outputs)
            merged = [
                _merged(a, b, size) if clips else a
                for a, b, clips in zip(operands, in_batched, per_clip, strict=True)
            ]
            outputs = over_clips(*merged)
            outputs = [y.reshape(size, -1, *y.shape[1:]) for y in outputs]
            return outputs, [True] * len(outputs)

        return one(*operands)

    return over_clips


def _merged(a, is_batched, size):
    """Returns an array of [B, ...] for each of `size` places in a batch as one of more clips."""
    a = a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
    return a.reshape(-1, *a.shape[2:])


def _like(shapes, values):
    return jax.tree.unflatten(jax.tree.structure(shapes), values)
