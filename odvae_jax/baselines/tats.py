"""TATS's autoencoder, a 3D VQGAN (2022): 4×8×8, one of 16384 codes per position, not causal.

Padding repeats the edge in time and in space, everywhere. With batch norms, which take running
statistics, it is a plain convolutional network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from odvae_jax.baselines.base import Baseline, BaselineConfig, Buffer, Constant, best_codes
from odvae_jax.baselines.convolution import PaddedConv, Padding, padded
from odvae_jax.config import IMAGE_CHANNELS, ODVAEConfig, one_of, positive_integers
from odvae_jax.layers.causal_conv import CausalConv, Generator, gaussian_kernel, generator
from odvae_jax.layers.group_norm import GroupNorm, Normed

BATCH_NORM_EPSILON = 1e-5
_GROUPS = 32
_SIDE = 4  # of the kernels that change the resolution
_TRAINING = 28_540_546  # the parameters of the released model's discriminators and LPIPS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TATSConfig(BaselineConfig):
    """The hyper-parameters of TATS's autoencoder; the defaults are those that Table 1 counts.

    Attributes:
      width: channels before the first stage, `n_hiddens`; each stage of the encoder doubles them.
      downsample: by how much time, rows and columns are compressed, powers of two; rows and columns
        alike.
      codes: the number of codes.
      code_channels: channels of a code, and of the features that it is chosen by.
      norm: "batch" norms with running statistics, or "group" norms over a clip, with 32 groups.

    Raises:
      ValueError: if a field has a value that no model can have. The message names the field.
    """

    model: ClassVar[str] = "tats"
    name: ClassVar[str] = "TATS"

    width: int = 32
    downsample: tuple[int, int, int] = (4, 8, 8)
    codes: int = 16384
    code_channels: int = 256
    norm: Literal["batch", "group"] = "batch"

    def __post_init__(self):
        super().__post_init__()
        positive_integers(self, "codes", "code_channels")
        one_of(self, "norm", ("batch", "group"))
        factors = self.downsample
        powers = (1, 2, 4, 8, 16)
        if not isinstance(factors, tuple) or len(factors) != 3 or set(factors) - set(powers):
            raise ValueError(f"downsample={factors!r} must be three powers of two up to 16.")
        if factors[1] != factors[2] or factors[1] == 1:
            raise ValueError(
                f"downsample={factors!r} must compress rows and columns alike, by 2 or more."
            )
        if self.norm == "group" and 2 * self.width % _GROUPS:
            raise ValueError(f"width={self.width} is not a multiple of {_GROUPS // 2}.")

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """The strides of each stage in time and in space; encoder and decoder have the same."""
        time, space, _ = (round(math.log2(n)) for n in self.downsample)
        return tuple((1 + (i < time), 1 + (i < space)) for i in range(max(time, space)))

    @property
    def training_parameters(self) -> int:
        """The parameters of the discriminators and of LPIPS that the released model has.

        They are 0 for a model of other sizes: nobody knows with which it was trained.
        """
        released = TATSConfig()
        same = {name: getattr(released, name) for name in self.changeable}
        return _TRAINING if dataclasses.replace(self, **same) == released else 0

    @property
    def time_compression(self) -> int:
        """The number of frames per latent frame."""
        return self.downsample[0]

    @property
    def frame_step(self) -> int:
        """The step between the numbers of frames that the model takes."""
        return self.downsample[0]

    @property
    def space_compression(self) -> int:
        """The number of rows, and of columns, per position of the codes."""
        return self.downsample[1]


class BatchNorm(nnx.Module):
    """A batch norm with its running statistics, followed by SiLU.

    Args:
      features: the number of channels.
      config: the config of the layers.
    """

    def __init__(self, features: int, *, config: ODVAEConfig):
        self.scale = nnx.Param(jnp.ones((features,), config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), config.param_dtype))
        self.running_mean = Constant(jnp.zeros((features,), config.param_dtype))
        self.running_var = Constant(jnp.ones((features,), config.param_dtype))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Normed:
        """Returns the norm of a clip, which is not computed yet."""
        scale, bias, mean, variance = (
            p[...].astype(jnp.float32)
            for p in (self.scale, self.bias, self.running_mean, self.running_var)
        )
        multiplier = scale * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
        shape = (x.shape[0], 1, 1, 1, x.shape[-1])
        scales = (jnp.broadcast_to(a, shape) for a in (multiplier, bias - mean * multiplier))
        return Normed(x, tuple(scales), activation=True)


def _norm(features: int, config: TATSConfig) -> BatchNorm | GroupNorm:
    if config.norm == "batch":
        return BatchNorm(features, config=config.layers())
    return GroupNorm(features, over_time=True, activation=True, config=config.layers())


def _edges(side: int, stride: int) -> Padding:
    """Repeated edges, `side - stride` in all, of which the larger half stands in front."""
    missing = side - stride
    return Padding("edge", missing - missing // 2, missing // 2)


def _conv(
    a: int,
    b: int,
    side: int,
    strides: tuple[int, int] = (1, 1),
    *,
    out_dtype: Literal["float32"] | None = None,
    config: TATSConfig,
    rng: Generator,
) -> PaddedConv:
    """A convolution with a cubic kernel between edges that are repeated."""
    time, space = (_edges(side, stride) for stride in strides)
    make = functools.partial(PaddedConv, time=time, space=space, out_dtype=out_dtype)
    return make(a, b, (side, side), strides, config=config.layers(), rng=rng)


class Up(nnx.Module):
    """A transposed convolution with a cubic kernel of side 4, between edges that are repeated.

    The kernel is that of the convolution which it is computed as: of the clip with `stride - 1`
    zeros between neighbours.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels.
      strides: by how much time and space grow.
      config: the config of the model.
      rng: draws the initial kernel.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: tuple[int, int],
        *,
        config: TATSConfig,
        rng: Generator,
    ):
        self.strides = strides
        self.dtype, self.precision = config.dtype, config.precision
        shape = (_SIDE,) * 3 + (in_features, out_features)
        self.kernel = nnx.Param(gaussian_kernel(rng, shape, config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), config.param_dtype))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u v y d"]:
        """Returns the larger clip."""
        st, s = self.strides
        for axis, stride in ((1, st), (2, s), (3, s)):
            x = padded(x, axis, _edges(_SIDE, stride))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=(1, 1, 1),
            padding=((0, 0),) * 3,
            lhs_dilation=(st, s, s),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            precision=self.precision,
        )
        return y + jax.lax.broadcast_to_rank(self.bias[...].astype(y.dtype), y.ndim)


class Block(nnx.Module):
    """Norm, SiLU and a 3×3×3 convolution, twice, plus the input.

    Args:
      features: the number of channels.
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(self, features: int, *, config: TATSConfig, rng: Generator):
        self.norm1 = _norm(features, config)
        self.conv1 = _conv(features, features, 3, config=config, rng=rng)
        self.norm2 = _norm(features, config)
        self.conv2 = _conv(features, features, 3, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Returns the clip after the block."""
        return x + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class DownStage(nnx.Module):
    """A convolution with strides, to twice the channels, and a block.

    Args:
      width: the number of input channels.
      strides: the strides in time and in space.
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(self, width: int, strides: tuple[int, int], *, config: TATSConfig, rng: Generator):
        self.down = _conv(width, 2 * width, _SIDE, strides, config=config, rng=rng)
        self.res = Block(2 * width, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u v y d"]:
        """Returns the smaller clip."""
        return self.res(self.down(x))


class UpStage(nnx.Module):
    """A transposed convolution and two blocks.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels.
      strides: by how much time and space grow.
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: tuple[int, int],
        *,
        config: TATSConfig,
        rng: Generator,
    ):
        self.up = Up(in_features, out_features, strides, config=config, rng=rng)
        self.res1 = Block(out_features, config=config, rng=rng)
        self.res2 = Block(out_features, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u v y d"]:
        """Returns the larger clip."""
        return self.res2(self.res1(self.up(x)))


class Encoder(nnx.Module):
    """Maps a video to features, up to the convolution before the quantiser.

    Args:
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(self, config: TATSConfig, *, rng: Generator):
        width = config.width
        self.conv_first = _conv(IMAGE_CHANNELS, width, 3, config=config, rng=rng)
        self.conv_blocks = nnx.List()
        for strides in config.strides:
            self.conv_blocks.append(DownStage(width, strides, config=config, rng=rng))
            width *= 2
        self.final_norm = _norm(width, config)

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v y c"]:
        """Returns the features of a video in [-0.5, 0.5]."""
        x = self.conv_first(video)
        for stage in self.conv_blocks:
            x = stage(x)
        return self.final_norm(x).array()


class Decoder(nnx.Module):
    """Maps the rows of codes, after the convolution that follows the quantiser, to a video.

    Args:
      config: the config of the model.
      rng: draws the initial kernels.
    """

    def __init__(self, config: TATSConfig, *, rng: Generator):
        width = before = config.width * 2 ** len(config.strides)
        self.final_norm = _norm(width, config)
        self.conv_blocks = nnx.List()
        for strides in config.strides:
            self.conv_blocks.append(UpStage(before, width, strides, config=config, rng=rng))
            before, width = width, width // 2
        self.conv_last = _conv(
            before, IMAGE_CHANNELS, 3, out_dtype="float32", config=config, rng=rng
        )

    def __call__(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b u v y 3"]:
        """Returns the video, about [-0.5, 0.5], in float32."""
        x = self.final_norm(z).array()
        for stage in self.conv_blocks:
            x = stage(x)
        return self.conv_last(x)


class Codebook(nnx.Module):
    """The codes and their channels; the nearest code stands for features.

    Args:
      config: the config of the model.
      rng: draws the initial codes.
    """

    def __init__(self, config: TATSConfig, *, rng: Generator):
        shape = (config.codes, config.code_channels)
        self.embeddings = Buffer(gaussian_kernel(rng, shape, config.param_dtype))

    def closeness(self, features: Float[Array, "b t h w c"]) -> Float[Array, "b t h w n"]:
        """Returns minus the squared distance to each code, but for a term that all share."""
        # In full float32: rounding could choose another code.
        codes = self.embeddings[...].astype(jnp.float32)
        products = jnp.einsum(
            "bthwc,nc->bthwn", features.astype(jnp.float32), codes, precision="highest"
        )
        return 2 * products - jax.lax.broadcast_to_rank(jnp.sum(codes**2, axis=-1), 5)

    def rows(self, codes: Int[Array, "b t h w"]) -> Float[Array, "b t h w c"]:
        """Returns the channels of codes; those of a number past the last code are NaN."""
        return jnp.take(self.embeddings[...], codes, axis=0)


class TATS(Baseline):
    """TATS's autoencoder: 4×8×8, one of 16384 codes per position, not causal in time.

    Args:
      config: the config of the model; `TATSConfig()` is the one that Table 1 counts.
      rngs: decides the initial parameters, as in `ODVAE`; None makes all kernels zero.
    """

    config_class = TATSConfig

    def __init__(self, config: TATSConfig, *, rngs: nnx.Rngs | int | None = 0):
        super().__init__(config)
        rng = generator(rngs)
        inner, c = config.width * 2 ** len(config.strides), config.code_channels
        precise = config.layers(dtype="float32")
        self.encoder = Encoder(config, rng=rng)
        self.pre_vq_conv = CausalConv(inner, c, (1, 1), config=precise, rng=rng)
        self.codebook = Codebook(config, rng=rng)
        self.post_vq_conv = CausalConv(c, inner, (1, 1), config=config.layers(), rng=rng)
        self.decoder = Decoder(config, rng=rng)

    def features(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v y c"]:
        """Returns what codes are chosen by, in float32; it neither checks nor compiles."""
        return self.pre_vq_conv(self.encoder(video / 2))

    def to_latents(self, video: Float[Array, "b t h w 3"]) -> Int[Array, "b u v y"]:
        """Returns the nearest code at each position; it neither checks nor compiles."""
        return best_codes(self.codebook.closeness, self.features(video), self.config.codes)

    def to_video(self, latents: Int[Array, "b t h w"], frames: int) -> Float[Array, "b u v y 3"]:
        """Returns the video of codes, in float32; it neither checks nor compiles."""
        return 2 * self.decoder(self.post_vq_conv(self.codebook.rows(latents)))
