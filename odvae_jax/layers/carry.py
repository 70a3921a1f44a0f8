"""What layers leave from one chunk of a clip to the next, and what gradients compute again.

A layer is called as `layer(x, carry)`. With the default, `WHOLE`, `x` is a whole clip and nothing
is left. For a clip that comes in chunks, each layer takes from the carry the frames that it left
there last time, and leaves those that the next chunk needs. A carry lives inside one function call;
what goes from call to call is the state, a plain tuple of arrays in the order of the layers' calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax

State = tuple[jax.Array, ...] | None
"""The frames that all layers left after a chunk: a pytree whose size does not depend on the clip's
length. `START` stands for the beginning of a clip, None for a whole clip."""
START: State = ()

Remat = Literal["none", "blocks", "convolutions"]
FIRST_CONVOLUTION = "first convolution of a residual block"


class Carry:
    """The frames left before a chunk, and those that it leaves.

    Args:
      before: the state after the chunk before this one; `START`, or None for a whole clip.
      final: whether this is the clip's last chunk.
    """

    def __init__(self, before: State, final: bool = True):
        self.before, self.final = before, final
        self.after: list[jax.Array] = []

    @property
    def in_chunks(self) -> bool:
        """Whether the clip comes in chunks, so that layers have to take and leave frames."""
        return self.before is not None

    def take(self) -> jax.Array | None:
        """The frames that the layer which asks left last time; None at the clip's beginning."""
        return self.before[len(self.after)] if self.before else None

    def leave(self, frames: jax.Array) -> None:
        """Keeps frames for the layer's next chunk; to be called once after each `take`."""
        self.after.append(frames)

    @property
    def state(self) -> State:
        """All that was left, for the next chunk; None of a whole clip."""
        return tuple(self.after) if self.in_chunks else None


WHOLE = Carry(None)


def run(layer: Callable, x: jax.Array, carry: Carry = WHOLE, remat: Remat = "none") -> jax.Array:
    """The layer's output, of which a gradient keeps the layer's input alone.

    With "convolutions" it also keeps the first convolution of a residual block. No gradient needs
    the output of the second, so that no convolution runs twice.

    This is the only place that rematerialises: a carry must not go through `jax.checkpoint`, which
    would leak what is traced inside. So a carry of its own is opened inside, and what it holds in
    the end comes out as arrays.
    """
    if remat == "none":
        return layer(x, carry)

    def inside(x, before):
        inner = Carry(before, carry.final)
        return layer(x, inner), inner.after

    before = carry.before[len(carry.after) :] if carry.before else carry.before
    names = (FIRST_CONVOLUTION,) if remat == "convolutions" else ()
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    y, after = jax.checkpoint(inside, policy=policy)(x, before)
    carry.after += after
    return y
