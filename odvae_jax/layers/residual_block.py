"""The residual block: norm, SiLU and convolution, twice, plus a skip connection."""

from __future__ import annotations

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from odvae_jax.config import Kind, ODVAEConfig
from odvae_jax.layers.carry import FIRST_CONVOLUTION, WHOLE, Carry
from odvae_jax.layers.causal_conv import CausalConv, Generator
from odvae_jax.layers.group_norm import GroupNorm


class ResidualBlock(nnx.Module):
    """Norm, SiLU and 3×3 or 3×3×3 convolution, twice, plus a skip connection.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels. If it differs from `in_features`, the skip
        connection is a 1×1×1 convolution.
      kind: "2d": both convolutions are 2D and norms take their statistics per frame. "3d": both
        convolutions are causal 3D. "mixed": the first is 3D, the second 2D (variant 2). Except for
        "2d", norms take their statistics over the clip.
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kind: Kind,
        *,
        config: ODVAEConfig,
        rng: Generator,
    ):
        first = 1 if kind == "2d" else 3
        second = 3 if kind == "3d" else 1
        over_time = kind != "2d"
        self.norm1 = GroupNorm(in_features, over_time=over_time, activation=True, config=config)
        self.conv1 = CausalConv(in_features, out_features, (first, 3), config=config, rng=rng)
        self.norm2 = GroupNorm(out_features, over_time=over_time, activation=True, config=config)
        self.conv2 = CausalConv(out_features, out_features, (second, 3), config=config, rng=rng)
        self.nin_shortcut = (
            None
            if in_features == out_features
            else CausalConv(in_features, out_features, (1, 1), config=config, rng=rng)
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], carry: Carry = WHOLE
    ) -> Float[Array, "b t h w d"]:
        """Returns the clip, or its next chunk, after the block."""
        y = self.conv1(self.norm1(x), carry)
        y = checkpoint_name(y, FIRST_CONVOLUTION)  # kept for the gradient with remat="convolutions"
        y = self.conv2(self.norm2(y), carry)
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))
