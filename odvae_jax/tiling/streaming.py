"""Exact streaming: chunks of frames, with what each needs of those before."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from odvae_jax.checks import check_streams
from odvae_jax.config import ODVAEConfig
from odvae_jax.layers.carry import START
from odvae_jax.tiling.parts import Part, joined


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Chunks of frames, each with what it needs of those before: exactly the whole clip's result.

    For models with `norm="frame"`. Each causal convolution carries the two frames before a chunk,
    and each linear upsampling in time the one that waits for the next, so that no frame is computed
    twice. Inside `jit` the program's size does not depend on the clip's length, and its memory is
    that of input, output and one chunk.

    Args:
      chunk: frames after the first, a multiple of 4 for the paper's variants.
    """

    chunk: int = 32

    def check(self, config: ODVAEConfig) -> None:
        """Raises ValueError unless a model can be streamed, and in such chunks.

        Of a wrong number it names the nearest that would do.
        """
        check_streams(config)
        step = config.time_compression
        if self.chunk < step or self.chunk % step:
            nearest = step * max(round(self.chunk / step), 1)
            raise ValueError(
                f"a chunk of {self.chunk} frames is not a multiple of {step}; the nearest is "
                f"{nearest}."
            )

    @property
    def step(self) -> int:
        """Frames that a part adds to those before it; the first part has one more."""
        return self.chunk

    def run(self, part: Part, x: Shaped[Array, "b t ..."], step: int) -> Shaped[Array, "b u ..."]:
        """What `part` makes of chunks of `step`, of which the first has one more, joined."""
        rest = x.shape[1] - 1 - step
        if rest <= 0:
            return part(x, None, True)[0]
        first, state = part(x[:, : step + 1], START, False)
        parts, between = [first], (rest - 1) // step
        if between:

            def chunk(state, start):
                y, state = part(jax.lax.dynamic_slice_in_dim(x, start, step, axis=1), state, False)
                return state, y

            starts = 1 + step + jnp.arange(between) * step
            state, outputs = jax.lax.scan(chunk, state, starts)
            parts.append(joined(outputs))
        parts.append(part(x[:, 1 + step + between * step :], state, True)[0])
        return jnp.concatenate(parts, axis=1)
