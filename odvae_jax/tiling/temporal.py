"""The paper's temporal tiling (section 3.3): groups of frames, each computed alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from odvae_jax.config import ODVAEConfig
from odvae_jax.files import counted
from odvae_jax.tiling.parts import Part, joined
from odvae_jax.types import whole_numbers


@dataclasses.dataclass(frozen=True)
class TemporalTiling:
    """Groups of frames, each encoded and decoded alone (section 3.3).

    Each group begins with the last frame of the group before it. The result is an approximation: a
    group does not see what came before its first frame, and norms over time take their statistics
    over the group. Inside `jit`, the size of the program does not depend on the clip's length, and
    it needs memory for the input, the output and one group.

    Args:
      group: the number of frames in a group, 4k + 1 and at least 5 for the paper's variants.
    """

    group: int = 33

    def __post_init__(self):
        whole_numbers(self, "frames", "group")

    def check(self, config: ODVAEConfig) -> None:
        """Checks that a model can take such groups.

        Raises:
          ValueError: if it cannot. The message has the nearest number of frames that it can take.
        """
        step = config.time_compression
        if self.group < step + 1 or (self.group - 1) % step:
            nearest = step * max(round((self.group - 1) / step), 1) + 1
            raise ValueError(
                f"a group of {counted(self.group, 'frame')} is not {step}k + 1 with k at least 1; "
                f"the nearest is {nearest}."
            )

    @property
    def step(self) -> int:
        """The number of frames that a part adds to those before it; the first part has one more."""
        return self.group - 1

    def run(self, part: Part, x: Shaped[Array, "b t ..."], step: int) -> Shaped[Array, "b u ..."]:
        """Runs a function on each group along axis 1 of `x`, and joins what it returns.

        Args:
          part: the function.
          x: the video or the latents.
          step: one less than the number of frames in a group.
        """
        length = x.shape[1]
        if length <= step + 1:
            return part(x, None, True)[0]
        whole, rest = divmod(length - 1, step)

        def group(start):
            return part(jax.lax.dynamic_slice_in_dim(x, start, step + 1, axis=1), None, True)[0]

        outputs = jax.lax.map(group, jnp.arange(whole) * step)  # [n, B, u, ...]
        parts = [outputs[0, :, :1], joined(outputs[:, :, 1:])]
        if rest:
            parts.append(part(x[:, length - 1 - rest :], None, True)[0][:, 1:])
        return jnp.concatenate(parts, axis=1)
