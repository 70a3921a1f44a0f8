"""Exact streaming: chunks of frames, and what each chunk needs of the frames before it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from odvae_jax.checks import check_streams
from odvae_jax.config import ODVAEConfig
from odvae_jax.files import counted
from odvae_jax.layers.carry import START
from odvae_jax.tiling.parts import Part, joined
from odvae_jax.types import whole_numbers


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Chunks of frames that together give exactly the result of the whole clip.

    It is for models with `norm="frame"`. Each causal convolution carries the two frames before a
    chunk, and each linear upsampling in time carries the one frame that waits for the next. So no
    frame is computed twice. Inside `jit`, the size of the program does not depend on the clip's
    length, and it needs memory for the input, the output and one chunk.

    Args:
      chunk: the number of frames in a chunk, a multiple of 4 for the paper's variants. A clip's
        first chunk has one frame more.
    """

    chunk: int = 32

    def __post_init__(self):
        whole_numbers(self, "frames", "chunk")

    def check(self, config: ODVAEConfig) -> None:
        """Checks that a model can be streamed in such chunks.

        Raises:
          ValueError: if it cannot. The message has the nearest number of frames that it can take.
        """
        check_streams(config)
        step = config.time_compression
        if self.chunk < step or self.chunk % step:
            nearest = step * max(round(self.chunk / step), 1)
            raise ValueError(
                f"a chunk of {counted(self.chunk, 'frame')} is not a multiple of {step}; the "
                f"nearest is {nearest}."
            )

    @property
    def step(self) -> int:
        """The number of frames that a part adds to those before it; the first part has one more."""
        return self.chunk

    def run(self, part: Part, x: Shaped[Array, "b t ..."], step: int) -> Shaped[Array, "b u ..."]:
        """Runs a function on each chunk along axis 1 of `x`, and joins what it returns.

        Args:
          part: the function.
          x: the video or the latents.
          step: the number of frames in a chunk; the first chunk has one more.
        """
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
