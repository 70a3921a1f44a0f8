"""Clips in parts: the paper's temporal tiling (section 3.3), and exact streaming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from odvae_jax.layers.state import START, State

Chunked = Callable[[jax.Array, State, bool], tuple[jax.Array, State]]
"""Maps a chunk, the state before it and whether it is the last to its output and the state after it
(odvae_jax/layers/state.py)."""
TIME_COMPRESSION = 4
"""Of the video models, whatever their variant."""


@dataclasses.dataclass(frozen=True)
class TemporalTiling:
    """Groups of frames, each encoded and decoded alone; the first of each is the last before it.

    What it costs: a group does not see what came before its first frame, and where norms are taken
    over time, their statistics are the group's. Inside `jit` the program's size does not depend on
    the clip's length, and its memory is that of input, output and one group.

    Args:
      group: frames, 4k + 1 and at least 5.

    Raises:
      ValueError: for another number, naming the nearest that would do.
    """

    group: int = 33

    def __post_init__(self):
        if self.group < TIME_COMPRESSION + 1 or (self.group - 1) % TIME_COMPRESSION:
            nearest = TIME_COMPRESSION * max(round((self.group - 1) / TIME_COMPRESSION), 1) + 1
            raise ValueError(
                f"a group of {self.group} frames is not 4k + 1 with k at least 1; the nearest is "
                f"{nearest}."
            )

    def encode(
        self,
        run: Callable[[Shaped[Array, "b t h w 3"]], Float[Array, "b u v x c"]],
        video: Shaped[Array, "b t h w 3"],
    ) -> Float[Array, "b u v x c"]:
        """What `run` makes of each group of `video`, joined; `run` maps frames to moments."""
        return _by_groups(run, video, self.group - 1)

    def decode(
        self,
        run: Callable[[Float[Array, "b t h w c"]], Shaped[Array, "b u v x 3"]],
        latents: Float[Array, "b t h w c"],
        time_compression: int,
    ) -> Shaped[Array, "b u v x 3"]:
        """What `run` makes of each group of `latents`, joined; `run` maps latents to frames."""
        return _by_groups(run, latents, (self.group - 1) // time_compression)


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Chunks of frames, each with what it needs of those before: exactly the whole clip's result.

    For models with `norm="frame"`. Each causal convolution carries the two frames before a chunk,
    and each linear upsampling in time the one that waits for the next, so that no frame is computed
    twice. Inside `jit` the program's size does not depend on the clip's length, and its memory is
    that of input, output and one chunk.

    Args:
      chunk: frames after the first, a multiple of 4.

    Raises:
      ValueError: for another number, naming the nearest that would do.
    """

    chunk: int = 32

    def __post_init__(self):
        if self.chunk < TIME_COMPRESSION or self.chunk % TIME_COMPRESSION:
            nearest = TIME_COMPRESSION * max(round(self.chunk / TIME_COMPRESSION), 1)
            raise ValueError(
                f"a chunk of {self.chunk} frames is not a multiple of 4; the nearest is {nearest}."
            )

    def encode(self, run: Chunked, video: Shaped[Array, "b t h w 3"]) -> Float[Array, "b u v x c"]:
        """What `run` makes of the chunks of `video`, joined; `run` maps frames to moments."""
        return _in_chunks(run, video, self.chunk)

    def decode(
        self, run: Chunked, latents: Float[Array, "b t h w c"], time_compression: int
    ) -> Shaped[Array, "b u v x 3"]:
        """What `run` makes of the chunks of `latents`, joined; `run` maps latents to frames."""
        return _in_chunks(run, latents, self.chunk // time_compression)


def _in_chunks(run, x, step):
    """`run` over a first chunk of `step` + 1 along axis 1, others of `step`, and what is left."""
    rest = x.shape[1] - 1 - step
    if rest <= 0:
        return run(x, None, True)[0]
    first, state = run(x[:, : step + 1], START, False)
    parts, between = [first], (rest - 1) // step
    if between:

        def chunk(state, start):
            y, state = run(jax.lax.dynamic_slice_in_dim(x, start, step, axis=1), state, False)
            return state, y

        starts = 1 + step + jnp.arange(between) * step
        state, outputs = jax.lax.scan(chunk, state, starts)
        parts.append(_joined(outputs))
    parts.append(run(x[:, 1 + step + between * step :], state, True)[0])
    return jnp.concatenate(parts, axis=1)


def _by_groups(run, x, stride):
    """`run` over groups of `stride` + 1 along axis 1, without each group's first but the first's.

    The last group is what is left.
    """
    length = x.shape[1]
    whole = (length - 1) // stride
    if length <= stride + 1:
        return run(x)

    def group(start):
        return run(jax.lax.dynamic_slice_in_dim(x, start, stride + 1, axis=1))

    outputs = jax.lax.map(group, jnp.arange(whole) * stride)  # [n, B, u, ...]
    parts = [outputs[0, :, :1], _joined(outputs[:, :, 1:])]
    if rest := length - 1 - whole * stride:
        parts.append(run(x[:, length - 1 - rest :])[:, 1:])
    return jnp.concatenate(parts, axis=1)


def _joined(groups):
    """[n, B, u, ...] to [B, n u, ...]."""
    n, b, u, *rest = groups.shape
    return jnp.moveaxis(groups, 0, 1).reshape(b, n * u, *rest)
