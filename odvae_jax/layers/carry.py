"""What layers keep from one chunk of a clip to the next, and what gradients compute again.

A layer is called as `layer(x, carry)`. With the default, `WHOLE`, `x` is a whole clip and nothing
is kept. If a clip comes in chunks, each layer takes from the carry the frames that it left there
last time, and leaves those that the next chunk needs. A carry lives inside one function call. What
goes from call to call is the state, a plain tuple of arrays in the order of the layers' calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float

State = tuple[jax.Array, ...] | None
"""The frames that all layers left after a chunk.

It is a pytree whose size does not depend on the clip's length. `START` stands for the beginning of
a clip, None for a whole clip.
"""
START: State = ()

Remat = Literal["none", "blocks", "convolutions"]
FIRST_CONVOLUTION = "first convolution of a residual block"


class Carry:
    """The frames that layers left before a chunk, and the frames that they leave after it.

    Args:
      before: the state after the chunk before this one; `START` at the beginning of a clip, None
        for a whole clip.
      final: whether this is the clip's last chunk.

    Attributes:
      before: the state before the chunk.
      final: whether this is the clip's last chunk.
      after: the frames that layers have left so far.
    """

    def __init__(self, before: State, final: bool = True):
        self.before, self.final = before, final
        self.after: list[jax.Array] = []

    @property
    def in_chunks(self) -> bool:
        """Whether the clip comes in chunks, so that layers have to take and leave frames."""
        return self.before is not None

    def take(self) -> Float[Array, "b s h w c"] | None:
        """Returns the frames that the calling layer left last time; None at a clip's beginning."""
        return self.before[len(self.after)] if self.before else None

    def leave(self, frames: Float[Array, "b s h w c"]) -> None:
        """Keeps frames for the calling layer's next chunk.

        A layer must call it once after each `take`.
        """
        self.after.append(frames)

    @property
    def state(self) -> State:
        """The state for the next chunk: all frames that were left; None for a whole clip."""
        return tuple(self.after) if self.in_chunks else None


WHOLE = Carry(None)


def run(
    layer: Callable, x: Float[Array, "b t h w c"], carry: Carry = WHOLE, remat: Remat = "none"
) -> Float[Array, "b u v y d"]:
    """Runs a layer so that a gradient keeps only the layer's input and computes the rest again.

    With "convolutions" the gradient also keeps the output of a residual block's first convolution.
    No gradient needs the output of the second one. So no convolution runs twice.

    This is the only place that rematerialises. A carry must not go through `jax.checkpoint`, which
    would leak what is traced inside. So another carry is opened inside, and what it holds in the
    end comes out as arrays.

    Args:
      layer: a function of a clip and a carry.
      x: the clip, or its next chunk.
      carry: takes and keeps frames from chunk to chunk.
      remat: "none" keeps everything for the gradient, "blocks" only the layer's input,
        "convolutions" also the first convolution.
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
