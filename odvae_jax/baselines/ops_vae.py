"""OPS-VAE, Open-Sora 1.2's autoencoder: an image model, and a temporal model of its latents.

Clips are cut into micro clips, which do not see each other. What a micro clip lacks to a multiple
of 4 frames is put in front of it as zeros.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.autoencoder import ODVAE
from odvae_jax.baselines.base import Baseline, ContinuousConfig, in_chunks
from odvae_jax.baselines.convolution import PaddedConv, Padding
from odvae_jax.config import MOST_CHANNELS, ODVAEConfig, positive_integers
from odvae_jax.layers.causal_conv import Generator, generator
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.posterior import LOGVAR_RANGE

EPSILON = 1e-5
"""What the norms of the temporal model add to the variance; those of the image model add 1e-6."""
WIDTHS = (1, 2, 2, 4)
"""The channels of each level of the temporal model, in units of its width."""
HALVED = (1, 2)
"""The levels of the temporal encoder after which the number of frames is halved."""
BLOCKS = 4
"""The residual blocks of each level, and of the rest, of the temporal model."""
BETWEEN = 0.18215
"""What the latents of the image model are multiplied by before the temporal model."""
_TIME = 4
_CAUSAL = Padding("zeros", 2, 0)
_HALVING = Padding("zeros", 1, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OPSVAEConfig(ContinuousConfig):
    """The config of OPS-VAE; `OPSVAEConfig()` is the released model.

    Attributes:
      width: the channels of the temporal model's level 0.
      image_width: the channels of the image model's level 0.
      groups: groups of every group norm; must divide both widths.
      micro_frames: the frames of a micro clip; None takes clips whole, as the release's script for
        reconstructions does.
      frames_at_a_time: the frames of each clip that the image model takes at once; None takes all.
        It changes no numbers.
      shift: what is taken off the temporal model's latents, per channel.
      deviation: what the latents are then divided by, per channel. What `encode` returns has gone
        through both, so that a diffusion model takes it as it is.
    """

    model: ClassVar[str] = "ops_vae"
    name: ClassVar[str] = "OPS-VAE"
    time_compression: ClassVar[int] = _TIME
    needs_frames: ClassVar[bool] = True
    changeable: ClassVar[tuple[str, ...]] = (
        *ContinuousConfig.changeable,
        "micro_frames",
        "frames_at_a_time",
    )
    without_influence: ClassVar[tuple[str, ...]] = (
        *ContinuousConfig.changeable,
        "frames_at_a_time",
    )

    scaling_factor: float = 1.0
    image_width: int = 128
    groups: int = 32
    micro_frames: int | None = 17
    frames_at_a_time: int | None = 4
    shift: tuple[float, ...] = (-0.1, 0.34, 0.27, 0.98)
    deviation: tuple[float, ...] = (3.85, 2.32, 2.33, 3.06)

    def __post_init__(self):
        super().__post_init__()
        positive_integers(self, "image_width", "groups")
        if self.image_width > MOST_CHANNELS // 16:
            raise ValueError(f"image_width={self.image_width} makes a layer of too many channels.")
        for name in ("width", "image_width"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not a multiple of groups={self.groups}: "
                    "choose a width that is, or fewer groups."
                )
        for name in ("micro_frames", "frames_at_a_time"):
            if getattr(self, name) is not None:
                positive_integers(self, name)
        for name in ("shift", "deviation"):
            object.__setattr__(self, name, self._per_channel(name, getattr(self, name)))
        if min(map(abs, self.deviation)) < 1e-6:
            raise ValueError(f"deviation={self.deviation!r} must not be 0.")

    def _per_channel(self, name: str, values: Any) -> tuple[float, ...]:
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        numbers = listed and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6 for v in values
        )
        if not numbers or len(values) != self.latent_channels:
            raise ValueError(
                f"{name}={values!r:.100} must be {self.latent_channels} numbers, one per channel "
                "of the latents."
            )
        return tuple(map(float, values))

    def latent_frames(self, frames: int) -> int:
        """Returns the number of latent frames of a clip, those of its micro clips together."""
        return sum(-(-n // _TIME) for n in self.micro_clips(frames))

    def micro_clips(self, frames: int) -> list[int]:
        """Returns the number of frames of each micro clip of a clip."""
        length = self.micro_frames or frames
        return [min(length, frames - start) for start in range(0, frames, length)]

    def frames_of(self, latent_frames: int, frames: int | None = None) -> int:
        """Returns the number of frames that latents are decoded to, which is `frames`.

        Args:
          latent_frames: the number of latent frames.
          frames: the number of frames of the clip that was encoded.

        Raises:
          ValueError: if `frames` is None, or a clip of so many frames has not so many latent
            frames.
        """
        if frames is None:
            raise ValueError(
                f"{self.name} cannot tell from {latent_frames} latent frames how many frames the "
                "clip had: pass frames=."
            )
        if frames < 1 or self.latent_frames(frames) != latent_frames:
            raise ValueError(
                f"frames={frames} does not fit {latent_frames} latent frames with "
                f"micro_frames={self.micro_frames}: pass the number of frames of the clip that was "
                "encoded."
            )
        return frames


class ResidualBlock(nnx.Module):
    """Norm, SiLU and 3×3×3 convolution, twice, plus a skip connection; without biases.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels. If it differs from `in_features`, the skip
        connection is a 1×1×1 convolution.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(self, in_features: int, out_features: int, *, config: ODVAEConfig, rng: Generator):
        plain = {"time": _CAUSAL, "bias": False, "config": config, "rng": rng}
        self.norm1 = _norm(in_features, config)
        self.conv1 = PaddedConv(in_features, out_features, (3, 3), **plain)
        self.norm2 = _norm(out_features, config)
        self.conv2 = PaddedConv(out_features, out_features, (3, 3), **plain)
        same = in_features == out_features
        self.conv3 = None if same else PaddedConv(in_features, out_features, (1, 1), **plain)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """Returns the clip after the block."""
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return y + (x if self.conv3 is None else self.conv3(x))


class Upsample(nnx.Module):
    """A 3×3×3 convolution to twice the channels, which become twice the frames.

    Args:
      features: the number of channels, in and out.
      config: gives the dtypes.
      rng: draws the initial kernel.
    """

    def __init__(self, features: int, *, config: ODVAEConfig, rng: Generator):
        self.conv = PaddedConv(features, 2 * features, (3, 3), time=_CAUSAL, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u h w c"]:
        """Returns the clip with 2T frames in place of T."""
        b, t, h, w, c = x.shape
        y = self.conv(x).reshape(b, t, h, w, c, 2)  # channel 2c + n is channel c of frame 2t + n
        return jnp.moveaxis(y, 5, 2).reshape(b, 2 * t, h, w, c)


class Level(nnx.Module):
    """Residual blocks of one width, followed by a change of the number of frames, if there is one.

    Args:
      in_features: the number of input channels.
      features: the channels after each block.
      resample: what follows the blocks; None for nothing.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        resample: nnx.Module | None = None,
        *,
        config: ODVAEConfig,
        rng: Generator,
    ):
        widths = [in_features] + [features] * BLOCKS
        self.block = nnx.List(
            ResidualBlock(a, b, config=config, rng=rng) for a, b in itertools.pairwise(widths)
        )
        self.resample = resample

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u h w d"]:
        """Returns the clip after the blocks and what follows them."""
        for block in self.block:
            x = block(x)
        return x if self.resample is None else self.resample(x)


class TemporalEncoder(nnx.Module):
    """Maps the image model's latents of a micro clip to moments, up to the quant convolution.

    Args:
      width: the channels of level 0.
      latent_channels: the channels of a latent.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(self, width: int, latent_channels: int, *, config: ODVAEConfig, rng: Generator):
        with_rng = {"config": config, "rng": rng}
        widths = [width * m for m in WIDTHS]
        self.conv_in = PaddedConv(
            latent_channels, width, (3, 3), time=_CAUSAL, bias=False, **with_rng
        )
        self.down = nnx.List()
        for i, d in enumerate(widths):
            halving = i in HALVED and PaddedConv(d, d, (3, 3), (2, 1), time=_HALVING, **with_rng)
            self.down.append(Level(widths[max(i - 1, 0)], d, halving or None, **with_rng))
        self.rest = Level(widths[-1], widths[-1], **with_rng)
        self.norm_out = _norm(widths[-1], config)
        self.conv_out = PaddedConv(
            widths[-1], 2 * latent_channels, (1, 1), out_dtype="float32", **with_rng
        )

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u h w c2"]:
        """Returns what the quant convolution is applied to; T must be a multiple of 4."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.rest(x)))


class TemporalDecoder(nnx.Module):
    """Maps latents of a micro clip, after the post-quant convolution, to those of its frames.

    `up[i]` is level i; level 0 comes last.

    Args:
      width: the channels of level 0.
      latent_channels: the channels of a latent.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(self, width: int, latent_channels: int, *, config: ODVAEConfig, rng: Generator):
        with_rng = {"config": config, "rng": rng}
        widths = [width * m for m in WIDTHS]
        self.conv_in = PaddedConv(latent_channels, widths[-1], (3, 3), time=_CAUSAL, **with_rng)
        self.rest = Level(widths[-1], widths[-1], **with_rng)
        self.up = nnx.List()
        for i, d in enumerate(widths):
            doubling = Upsample(d, **with_rng) if i - 1 in HALVED else None
            self.up.append(Level(widths[min(i + 1, len(widths) - 1)], d, doubling, **with_rng))
        self.norm_out = _norm(width, config)
        self.conv_out = PaddedConv(
            width, latent_channels, (3, 3), time=_CAUSAL, out_dtype="float32", **with_rng
        )

    def __call__(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b u h w c"]:
        """Returns the image model's latents of 4T frames, in float32."""
        x = self.rest(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))


class TemporalVAE(nnx.Module):
    """The temporal model: it compresses the image model's latents 4× in time, not in space.

    Args:
      width: the channels of level 0.
      latent_channels: the channels of a latent.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(self, width: int, latent_channels: int, *, config: ODVAEConfig, rng: Generator):
        c = latent_channels
        # In float32, so that the posterior is more than its last bfloat16 rounding.
        precise = dataclasses.replace(config, dtype="float32")
        self.encoder = TemporalEncoder(width, c, config=config, rng=rng)
        self.quant_conv = PaddedConv(2 * c, 2 * c, (1, 1), config=precise, rng=rng)
        self.post_quant_conv = PaddedConv(c, c, (1, 1), config=config, rng=rng)
        self.decoder = TemporalDecoder(width, c, config=config, rng=rng)

    def to_moments(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u h w c2"]:
        """Returns the moments of a micro clip, with zeros in front up to a multiple of 4 frames."""
        missing = -x.shape[1] % _TIME
        x = jnp.pad(x, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0)))
        return self.quant_conv(self.encoder(x))

    def to_frames(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b u h w c"]:
        """Returns the image model's latents of a micro clip, with those of the zeros in front."""
        return self.decoder(self.post_quant_conv(z))


class OPSVAE(Baseline):
    """OPS-VAE, a video autoencoder of 4×8×8 whose micro clips of 17 frames do not see each other.

    Its decoder must be told how many frames the clip had. The posterior is that of the mean of the
    image model's latents.

    Args:
      config: the config of the model; `OPSVAEConfig()` is the released one.
      rngs: decides the initial parameters, as in `ODVAE`.

    Attributes:
      config: the config of the model.

    Raises:
      ValueError: if `config` is no `OPSVAEConfig`, or `rngs` is none of the types that it may have.
    """

    config_class = OPSVAEConfig

    def __init__(self, config: OPSVAEConfig, *, rngs: nnx.Rngs | int | None = 0):
        super().__init__(config)
        c = config.latent_channels
        image = config.layers(width=config.image_width, groups=config.groups, latent_channels=c)
        layers = config.layers(groups=config.groups)
        self.spatial_vae = ODVAE(image, rngs=rngs)
        self.temporal_vae = TemporalVAE(config.width, c, config=layers, rng=generator(rngs))

    def to_latents(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v y c2"]:
        """Returns moments after shift and deviation; a plain function that does not check."""
        mean, logvar = jnp.split(self.to_moments(self.to_spatial(video)), 2, axis=-1)
        shift, deviation = self._shift_and_deviation()
        logvar = jnp.clip(logvar, *LOGVAR_RANGE) - 2 * jnp.log(jnp.abs(deviation))
        return jnp.concatenate([(mean - shift) / deviation, logvar], axis=-1)

    def to_video(
        self, latents: Float[Array, "b t h w c"], frames: int
    ) -> Float[Array, "b u v y 3"]:
        """Returns the video of latents, as a plain function that neither checks nor compiles."""
        shift, deviation = self._shift_and_deviation()
        spatial = self.from_latents(latents.astype(jnp.float32) * deviation + shift, frames)
        run = self.spatial_vae.to_video
        return in_chunks(run, spatial / BETWEEN, self.config.frames_at_a_time)

    def to_spatial(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t v y c"]:
        """Returns the image model's mean of each frame as the temporal model takes it."""
        run = self.spatial_vae.to_moments
        moments = in_chunks(run, video, self.config.frames_at_a_time)
        return moments[..., : self.config.latent_channels] * BETWEEN

    def to_moments(self, spatial: Float[Array, "b t h w c"]) -> Float[Array, "b u h w c2"]:
        """Returns the temporal model's moments of what `to_spatial` returned."""
        return in_chunks(self.temporal_vae.to_moments, spatial, self.config.micro_frames)

    def from_latents(
        self, z: Float[Array, "b t h w c"], frames: int
    ) -> Float[Array, "b {frames} h w c"]:
        """Returns what the temporal decoder makes of latents in place of `to_spatial`'s result.

        Args:
          z: latents before shift and deviation.
          frames: the number of frames of the clip.
        """
        length = self.config.micro_frames
        decoded = in_chunks(self.temporal_vae.to_frames, z, length and -(-length // _TIME))
        kept, start = [], 0
        for n in self.config.micro_clips(frames):
            stop = start + -(-n // _TIME) * _TIME
            kept.append(np.arange(stop - n, stop))
            start = stop
        if start == frames:  # no micro clip was padded
            return decoded
        return jnp.concatenate([decoded[:, i[0] : i[-1] + 1] for i in kept], axis=1)

    def _shift_and_deviation(self) -> list[jax.Array]:
        numbers = (self.config.shift, self.config.deviation)
        return [jnp.asarray(n, jnp.float32).reshape(1, 1, 1, 1, -1) for n in numbers]


def _norm(features, config):
    return GroupNorm(features, over_time=True, activation=True, epsilon=EPSILON, config=config)
