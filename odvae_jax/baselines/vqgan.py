"""VQGAN, f8 with 8192 codes (taming-transformers' `GumbelVQ`, 2021), applied to each frame.

Its layers are SD-VAE's, with attention after every block of the lowest level. A code is chosen by
logits, a 1×1 convolution of the encoder's features, and not by distance.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from odvae_jax.autoencoder import Middle
from odvae_jax.baselines.base import Baseline, BaselineConfig, Codes, best_codes
from odvae_jax.config import IMAGE_CHANNELS, MOST_BLOCKS, ODVAEConfig, positive_integers
from odvae_jax.layers.attention import Attention
from odvae_jax.layers.causal_conv import CausalConv, Generator, gaussian_kernel, generator
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.layers.resample import Downsample, Upsample
from odvae_jax.layers.residual_block import ResidualBlock
from odvae_jax.types import AnyArray

_GROUPS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANConfig(BaselineConfig):
    """The hyper-parameters of a VQGAN with a Gumbel quantiser; the defaults are the published f8's.

    Attributes:
      width: channels of level 0, a multiple of 32.
      width_multipliers: channels of each level, in units of the width; every level but the last
        halves rows and columns.
      blocks: residual blocks per level of the encoder; the decoder has one more.
      attention_levels: levels with attention after each block.
      codes: the number of codes.
      code_channels: channels of a code, and of the features that it is chosen by.

    Raises:
      ValueError: if a field has a value that no model can have. The message names the field.
    """

    model: ClassVar[str] = "vqgan"
    name: ClassVar[str] = "VQGAN"

    width_multipliers: tuple[int, ...] = (1, 1, 2, 4)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (3,)
    codes: int = 8192
    code_channels: int = 256

    def __post_init__(self):
        super().__post_init__()
        positive_integers(self, "blocks", "codes", "code_channels")
        multipliers = self.width_multipliers
        if not isinstance(multipliers, tuple) or not 1 <= len(multipliers) <= 8:
            raise ValueError(f"width_multipliers={multipliers!r} must be a tuple of 1 to 8 levels.")
        if not all(isinstance(m, int) and 1 <= m <= 16 for m in multipliers):
            raise ValueError(f"width_multipliers={multipliers!r} must be integers from 1 to 16.")
        if self.blocks * len(multipliers) > MOST_BLOCKS:
            raise ValueError(f"blocks={self.blocks} is more than {MOST_BLOCKS} on all levels.")
        if self.width % _GROUPS:
            raise ValueError(f"width={self.width} is not a multiple of {_GROUPS}.")
        if not set(self.attention_levels) <= set(range(len(multipliers))):
            raise ValueError(
                f"attention_levels={self.attention_levels!r} are not all among the levels "
                f"0 to {len(multipliers) - 1}."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * m for m in self.width_multipliers)

    @property
    def space_compression(self) -> int:
        """The number of rows, and of columns, per position of the codes."""
        return 2 ** (len(self.width_multipliers) - 1)


class Level(nnx.Module):
    """Residual blocks, each followed by attention if the level has it; then a change of resolution.

    Args:
      widths: the channels of the input, and the channels after each block.
      attention: whether attention follows each block.
      downsample: the change of resolution in the encoder; None at its lowest level.
      upsample: the change of resolution in the decoder; None at its level 0.
      config: the config of the layers.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        widths: list[int],
        attention: bool,
        *,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
        config: ODVAEConfig,
        rng: Generator,
    ):
        self.block = nnx.List(
            ResidualBlock(a, b, "2d", config=config, rng=rng) for a, b in itertools.pairwise(widths)
        )
        self.attn = nnx.List(
            Attention(w, "2d", config=config, rng=rng) for w in widths[1:] if attention
        )
        self.downsample = downsample
        self.upsample = upsample

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t v y d"]:
        """Returns the clip after the blocks and the change of resolution."""
        for block, attention in itertools.zip_longest(self.block, self.attn):
            x = block(x)
            x = x if attention is None else attention(x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Encoder(nnx.Module):
    """Maps the frames of a video to features, up to the quant convolution.

    Args:
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(self, config: VQGANConfig, *, rng: Generator):
        c, layers, top = config, config.layers(), len(config.widths) - 1
        self.conv_in = CausalConv(IMAGE_CHANNELS, c.widths[0], (1, 3), config=layers, rng=rng)
        self.down = nnx.List()
        for i, width in enumerate(c.widths):
            down = Downsample(width, "2d", (1, 2), config=layers, rng=rng) if i < top else None
            widths = [c.widths[max(i - 1, 0)]] + [width] * c.blocks
            attention = i in c.attention_levels
            self.down.append(Level(widths, attention, downsample=down, config=layers, rng=rng))
        self.mid = Middle(c.widths[-1], config=layers, rng=rng)
        self.norm_out = GroupNorm(c.widths[-1], over_time=False, activation=True, config=layers)
        self.conv_out = CausalConv(
            c.widths[-1], c.code_channels, (1, 3), out_dtype="float32", config=layers, rng=rng
        )

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t v y c"]:
        """Returns the features of a video in [-1, 1], in float32."""
        x = self.conv_in(video)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nnx.Module):
    """Maps the frames of codes, after the post-quant convolution, to a video.

    `up[i]` is level i; level 0, at full resolution, comes last.

    Args:
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(self, config: VQGANConfig, *, rng: Generator):
        c, layers, top = config, config.layers(), len(config.widths) - 1
        self.conv_in = CausalConv(c.code_channels, c.widths[-1], (1, 3), config=layers, rng=rng)
        self.mid = Middle(c.widths[-1], config=layers, rng=rng)
        self.up = nnx.List()
        for i, width in enumerate(c.widths):
            up = None
            if i:
                up = Upsample(width, "2d", space="nearest", time=None, config=layers, rng=rng)
            widths = [c.widths[min(i + 1, top)]] + [width] * (c.blocks + 1)
            attention = i in c.attention_levels
            self.up.append(Level(widths, attention, upsample=up, config=layers, rng=rng))
        self.norm_out = GroupNorm(c.widths[0], over_time=False, activation=True, config=layers)
        self.conv_out = CausalConv(
            c.widths[0], IMAGE_CHANNELS, (1, 3), out_dtype="float32", config=layers, rng=rng
        )

    def __call__(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b t v y 3"]:
        """Returns the video, about [-1, 1], in float32."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))


class Quantiser(nnx.Module):
    """Logits of the codes at each position, and the channels of each code.

    Args:
      config: the config of the model.
      rng: draws the initial kernel and the initial codes.
    """

    def __init__(self, config: VQGANConfig, *, rng: Generator):
        c = config.code_channels
        # In full float32: rounding could choose another code.
        precise = config.layers(dtype="float32", precision="highest")
        self.proj = CausalConv(c, config.codes, (1, 1), config=precise, rng=rng)
        self.embed = nnx.Param(gaussian_kernel(rng, (config.codes, c), config.param_dtype))

    def logits(self, features: Float[Array, "b t h w c"]) -> Float[Array, "b t h w n"]:
        """Returns the logit of each code, in float32; their softmax is what training samples."""
        return self.proj(features)

    def rows(self, codes: Int[Array, "b t h w"]) -> Float[Array, "b t h w c"]:
        """Returns the channels of codes; those of a number past the last code are NaN."""
        return jnp.take(self.embed[...], codes, axis=0)


class VQGAN(Baseline):
    """VQGAN with a Gumbel quantiser: 1×8×8, one of 8192 codes per position.

    Args:
      config: the config of the model; `VQGANConfig()` is the published one.
      rngs: decides the initial parameters, as in `ODVAE`; None makes all kernels zero.
    """

    config_class = VQGANConfig

    def __init__(self, config: VQGANConfig, *, rngs: nnx.Rngs | int | None = 0):
        super().__init__(config)
        rng, c = generator(rngs), config.code_channels
        precise = config.layers(dtype="float32")
        self.encoder = Encoder(config, rng=rng)
        self.quant_conv = CausalConv(c, c, (1, 1), config=precise, rng=rng)
        self.quantize = Quantiser(config, rng=rng)
        self.post_quant_conv = CausalConv(c, c, (1, 1), config=config.layers(), rng=rng)
        self.decoder = Decoder(config, rng=rng)

    def features(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t v y c"]:
        """Returns what codes are chosen by, in float32; it neither checks nor compiles."""
        return self.quant_conv(self.encoder(video))

    def to_latents(self, video: Float[Array, "b t h w 3"]) -> Int[Array, "b t v y"]:
        """Returns the code with the highest logit at each position; it does not compile."""
        return best_codes(self.quantize.logits, self.features(video), self.config.codes)

    def to_video(self, latents: Int[Array, "b t h w"], frames: int) -> Float[Array, "b t v y 3"]:
        """Returns the video of codes, in float32; it neither checks nor compiles."""
        return self.decoder(self.post_quant_conv(self.quantize.rows(latents)))

    def sample(self, video: Float[AnyArray, "b t h w 3"], key: Key[Array, ""]) -> Codes:
        """Returns codes drawn from the softmax of the logits, as the reference draws them.

        The reference does so outside of training too, so its reconstructions differ from run to
        run. `encode` takes the most probable codes instead.

        Args:
          video: floating point in [-1, 1], [B, T, H, W, 3].
          key: decides the draw.

        Raises:
          ValueError: as `encode` does.
        """
        self.check_video(video)
        return Codes(_sampled(self, video, key))


@jax.jit
def _sampled(model: VQGAN, video, key):
    features = model.features(video)
    keys = jax.random.split(key, features.shape[1])
    frames = jnp.moveaxis(features, 1, 0)[:, :, None]

    def drawn(frame_and_key):
        frame, key = frame_and_key
        return jax.random.categorical(key, model.quantize.logits(frame))[:, 0]

    return jnp.moveaxis(jax.lax.map(drawn, (frames, keys)), 0, 1).astype(jnp.int32)
