"""SVD-VAE, Stable Video Diffusion's autoencoder (2023): SD-VAE's encoder and a temporal decoder.

The encoder takes each frame by itself. In the decoder a temporal block follows every residual
block, and a learned number blends the two.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax import autoencoder
from odvae_jax.baselines.base import Baseline, ContinuousConfig, in_chunks
from odvae_jax.baselines.convolution import PaddedConv
from odvae_jax.config import IMAGE_CHANNELS, ODVAEConfig, positive_integers
from odvae_jax.layers.attention import Attention
from odvae_jax.layers.causal_conv import CausalConv, Generator, generator
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.layers.resample import Upsample
from odvae_jax.layers.residual_block import ResidualBlock

TEMPORAL_EPSILON = 1e-5
"""The epsilon of the norms of temporal blocks; the others have SD-VAE's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVDVAEConfig(ContinuousConfig):
    """The hyper-parameters of an SVD-VAE; the defaults are the released model.

    Attributes:
      width: channels of level 0; the other levels have 2, 4 and 4 times as many.
      groups: groups of every group norm; must divide `width`.
      decode_chunk: the latent frames that the decoder takes at once. No chunk sees another, so that
        the result depends on it; None, the default, decodes a clip whole.

    Raises:
      ValueError: if a field has a value that no model can have. The message names the field.
    """

    model: ClassVar[str] = "svd_vae"
    name: ClassVar[str] = "SVD-VAE"
    changeable: ClassVar[tuple[str, ...]] = (*ContinuousConfig.changeable, "decode_chunk")
    without_influence: ClassVar[tuple[str, ...]] = changeable

    groups: int = 32
    decode_chunk: int | None = None

    def __post_init__(self):
        super().__post_init__()
        positive_integers(self, "groups")
        if self.decode_chunk is not None:
            positive_integers(self, "decode_chunk")
        self.layers()  # checks width and groups

    def layers(self, **fields: object) -> ODVAEConfig:
        """Returns the config of the SD-VAE that this one was made from."""
        shape = {n: getattr(self, n) for n in ("width", "groups", "latent_channels")}
        return super().layers(**{**shape, **fields})


class TemporalBlock(nnx.Module):
    """Norm, SiLU and a convolution over three frames, twice, plus the input.

    Norms take their statistics over all frames, and frames of zeros stand on both sides of a clip.

    Args:
      features: the number of channels.
      config: the config of the layers.
      rng: draws the initial kernels.
    """

    def __init__(self, features: int, *, config: ODVAEConfig, rng: Generator):
        norm = functools.partial(
            GroupNorm, features, over_time=True, activation=True, epsilon=TEMPORAL_EPSILON
        )
        self.norm1 = norm(config=config)
        self.conv1 = PaddedConv(features, features, (3, 1), config=config, rng=rng)
        self.norm2 = norm(config=config)
        self.conv2 = PaddedConv(features, features, (3, 1), config=config, rng=rng)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Returns the clip after the block."""
        return x + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class BlendedBlock(nnx.Module):
    """A residual block per frame, then a temporal block, and a blend of the two.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels.
      config: the config of the layers.
      rng: draws the initial kernels.
    """

    def __init__(self, in_features: int, out_features: int, *, config: ODVAEConfig, rng: Generator):
        self.spatial = ResidualBlock(in_features, out_features, "2d", config=config, rng=rng)
        self.temporal = TemporalBlock(out_features, config=config, rng=rng)
        self.mix_factor = nnx.Param(jnp.zeros((1,), config.param_dtype))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """Returns the clip after the block."""
        s = self.spatial(x)
        a = jax.nn.sigmoid(self.mix_factor[...].astype(jnp.float32)).astype(s.dtype)
        a = jax.lax.broadcast_to_rank(a, s.ndim)
        return (1 - a) * s + a * self.temporal(s)


class Middle(nnx.Module):
    """A blended block, attention per frame and a blended block, at the lowest resolution.

    Args:
      width: the number of channels.
      config: the config of the layers.
      rng: draws the initial kernels.
    """

    def __init__(self, width: int, *, config: ODVAEConfig, rng: Generator):
        self.block_1 = BlendedBlock(width, width, config=config, rng=rng)
        self.attn_1 = Attention(width, "2d", config=config, rng=rng)
        self.block_2 = BlendedBlock(width, width, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Returns the clip after the three layers."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nnx.Module):
    """Blended blocks at one resolution, followed by a doubling of rows and columns.

    Args:
      widths: the channels of the input, and the channels after each block.
      upsample: whether rows and columns are doubled; not so at level 0.
      config: the config of the layers.
      rng: draws the initial kernels.
    """

    def __init__(self, widths: list[int], upsample: bool, *, config: ODVAEConfig, rng: Generator):
        self.block = nnx.List(
            BlendedBlock(a, b, config=config, rng=rng) for a, b in itertools.pairwise(widths)
        )
        double = functools.partial(Upsample, space="nearest", time=None, config=config, rng=rng)
        self.upsample = double(widths[-1], "2d") if upsample else None

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t v y d"]:
        """Returns the clip after the blocks and the doubling."""
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Decoder(nnx.Module):
    """Maps latents to a video; there is no post-quant convolution.

    `up[i]` is level i; level 0, at full resolution, comes last.

    Args:
      config: the config of the layers.
      rng: draws the initial kernels.
    """

    def __init__(self, config: ODVAEConfig, *, rng: Generator):
        widths, top = config.decoder_widths, len(config.decoder_widths) - 1
        self.conv_in = CausalConv(
            config.latent_channels, widths[-1], (1, 3), config=config, rng=rng
        )
        self.mid = Middle(widths[-1], config=config, rng=rng)
        self.up = nnx.List()
        for i, width in enumerate(widths):
            of_blocks = [widths[min(i + 1, top)]] + [width] * config.parts.decoder_blocks
            self.up.append(Level(of_blocks, i > 0, config=config, rng=rng))
        self.norm_out = GroupNorm(widths[0], over_time=False, activation=True, config=config)
        last = {"out_dtype": "float32", "config": config, "rng": rng}
        self.conv_out = CausalConv(widths[0], IMAGE_CHANNELS, (1, 3), **last)
        self.time_conv_out = PaddedConv(IMAGE_CHANNELS, IMAGE_CHANNELS, (3, 1), **last)

    def __call__(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b t v y 3"]:
        """Returns the video of the latent frames that are decoded together, in float32."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.time_conv_out(self.conv_out(self.norm_out(x)))


class SVDVAE(Baseline):
    """SVD-VAE: 1×8×8, 4 channels, a Gaussian posterior per frame and a decoder that sees frames.

    Args:
      config: the config of the model; `SVDVAEConfig()` is the released one.
      rngs: decides the initial parameters, as in `ODVAE`; None makes all kernels zero.
    """

    config_class = SVDVAEConfig

    def __init__(self, config: SVDVAEConfig, *, rngs: nnx.Rngs | int | None = 0):
        super().__init__(config)
        rng, z = generator(rngs), 2 * config.latent_channels
        precise = config.layers(dtype="float32")
        self.encoder = autoencoder.Encoder(config.layers(), rng=rng)
        self.quant_conv = CausalConv(z, z, (1, 1), config=precise, rng=rng)
        self.decoder = Decoder(config.layers(), rng=rng)

    def to_latents(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t v y c2"]:
        """Returns moments of each frame, in float32; it neither checks nor compiles."""
        return self.quant_conv(self.encoder(video))

    def to_video(
        self, latents: Float[Array, "b t h w c"], frames: int
    ) -> Float[Array, "b t v y 3"]:
        """Returns the video of latents, in float32; it neither checks nor compiles."""
        return in_chunks(self.decoder, latents, self.config.decode_chunk)
