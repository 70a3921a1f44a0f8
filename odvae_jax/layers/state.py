"""What layers carry from one chunk of a clip to the next.

A layer's `chunk(x, state)` returns its output and the state for the chunk that follows. Given the
clip's chunks in turn it gives what `layer(clip)` does, in parts. A state is a pytree: arrays of the
frames that the next chunk needs. None stands for a whole clip, of which nothing is carried, and
START for the beginning of one that comes in chunks.
"""

from __future__ import annotations

from typing import Any

import jax

State = Any
START: State = ()


def split(state: State, count: int) -> tuple[State, ...]:
    """The states of a layer's parts."""
    return (state,) * count if state is None or state == START else state


def carried(state: State) -> jax.Array | None:
    """The frames in a state; None at a clip's beginning."""
    return None if state is None or isinstance(state, tuple) else state
