"""CV-VAE: SD-VAE's plan in 3D, 4×8×8, in chunks of frames and in tiles of rows and columns.

Its encoder is causal; its decoder sees the frames on both sides. Chunks and tiles are a part of the
model: every convolution, norm and attention ends at their edges.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from odvae_jax.baselines.base import Baseline, ContinuousConfig
from odvae_jax.baselines.convolution import PaddedConv, Padding
from odvae_jax.config import IMAGE_CHANNELS, ODVAEConfig, positive_integers
from odvae_jax.layers.attention import Attention, attend
from odvae_jax.layers.causal_conv import CausalConv, Generator, generator
from odvae_jax.layers.group_norm import GroupNorm
from odvae_jax.layers.resample import Downsample

EPSILON = 1e-5
"""What every norm adds to the variance."""
WIDTHS = (1, 2, 4, 4)
"""The channels of each level, in units of the width."""
TIME_STRIDES = (2, 1, 2)
"""By how much each change of resolution changes the number of frames."""
_EDGE = Padding("edge", 1, 1)
_TIME, _SPACE = 4, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CVVAEConfig(ContinuousConfig):
    """The config of CV-VAE; `CVVAEConfig()` is the released model.

    Attributes:
      groups: groups of every group norm; must divide `width`.
      frames_at_a_time: the frames by which chunks follow each other, a multiple of 4. A chunk has
        one frame more, which it shares with the next. None takes clips whole.
      tile_side: the rows and columns of a tile, where a clip has more; None makes no tiles.
      tile_overlap: the part of a tile that it shares with the next, less than 1/2. `tile_side` * (1
        - `tile_overlap`), rounded, must be a multiple of 8.
    """

    model: ClassVar[str] = "cv_vae"
    name: ClassVar[str] = "CV-VAE"
    time_compression: ClassVar[int] = _TIME
    space_compression: ClassVar[int] = _SPACE
    first_frames: ClassVar[int] = 1
    frame_step: ClassVar[int] = _TIME
    changeable: ClassVar[tuple[str, ...]] = (
        *ContinuousConfig.changeable,
        "frames_at_a_time",
        "tile_side",
        "tile_overlap",
    )

    groups: int = 32
    frames_at_a_time: int | None = 16
    tile_side: int | None = 576
    tile_overlap: float = 0.2222

    def __post_init__(self):
        super().__post_init__()
        positive_integers(self, "groups")
        if self.width % self.groups:
            raise ValueError(
                f"width={self.width} is not a multiple of groups={self.groups}: "
                "choose a width that is, or fewer groups."
            )
        for name, step in (("frames_at_a_time", _TIME), ("tile_side", _SPACE)):
            if getattr(self, name) is None:
                continue
            positive_integers(self, name)
            if getattr(self, name) % step:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of {step}.")
        overlap = self.tile_overlap
        if isinstance(overlap, bool) or not isinstance(overlap, (int, float)):
            raise ValueError(f"tile_overlap={overlap!r} must be a number from 0 to less than 1/2.")
        if not 0 <= overlap < 0.5:
            raise ValueError(f"tile_overlap={overlap!r} must be a number from 0 to less than 1/2.")
        if self.tile_side is not None and self.tile_step % _SPACE:
            raise ValueError(
                f"tile_side={self.tile_side} and tile_overlap={overlap} begin a tile every "
                f"{self.tile_step} rows; expected a multiple of {_SPACE}, as tiles would not fit "
                "together otherwise."
            )

    @property
    def tile_step(self) -> int:
        """The rows, and the columns, from the beginning of a tile to the next."""
        return round(self.tile_side * (1 - self.tile_overlap))


class ResidualBlock(nnx.Module):
    """Norm, SiLU and 3×3×3 convolution, then norm, SiLU and 3×3 convolution, plus the skip.

    Args:
      in_features: the number of input channels.
      out_features: the number of output channels.
      first: the class of the 3×3×3 convolution.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        first: type[nnx.Module],
        *,
        config: ODVAEConfig,
        rng: Generator,
    ):
        make = functools.partial(CausalConv, in_features, out_features, config=config, rng=rng)
        self.norm1 = _norm(in_features, config)
        self.conv1 = first(in_features, out_features, (3, 3), config=config, rng=rng)
        self.norm2 = _norm(out_features, config)
        self.conv2 = CausalConv(out_features, out_features, (1, 3), config=config, rng=rng)
        self.nin_shortcut = None if in_features == out_features else make((1, 1))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """Returns the clip after the block."""
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class LayerNorm(nnx.Module):
    """Normalisation over the channels of each position, with statistics in float32.

    Args:
      features: the number of channels.
      config: gives the dtypes.
    """

    def __init__(self, features: int, *, config: ODVAEConfig):
        self.scale = nnx.Param(jnp.ones((features,), config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), config.param_dtype))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Returns the clip after the norm, in its dtype."""
        scale, bias = (
            jax.lax.broadcast_to_rank(p[...].astype(jnp.float32), x.ndim)
            for p in (self.scale, self.bias)
        )
        y = jax.nn.standardize(x.astype(jnp.float32), axis=-1, epsilon=EPSILON)
        return (y * scale + bias).astype(x.dtype)


class SpaceTimeAttention(Attention):
    """Attention over the positions of each frame, then over the frames at each position.

    There is one skip connection around both. Every frame sees every frame.

    Args:
      features: the number of channels, which is also the width of the heads.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(self, features: int, *, config: ODVAEConfig, rng: Generator):
        super().__init__(features, "2d", epsilon=EPSILON, config=config, rng=rng)
        make = functools.partial(CausalConv, features, features, (1, 1), config=config, rng=rng)
        self.norm_t = LayerNorm(features, config=config)
        self.q_t, self.k_t, self.v_t = make(), make(), make()
        self.proj_out_t = make()

    def added(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Returns what the layer adds to a clip."""
        b, t, h, w, c = x.shape
        y = self.norm_t(super().added(x))
        layers = (self.q_t, self.k_t, self.v_t)
        q, k, v = (layer(y).reshape(b, t, h * w, c).swapaxes(1, 2) for layer in layers)
        y = attend(q, k, v, self.precision).swapaxes(1, 2)
        return self.proj_out_t(y.reshape(x.shape))


class Upsample(nnx.Module):
    """Doubling in space by the nearest, and a convolution that can also double in time.

    With `time`, T frames become 2T - 1.

    Args:
      features: the number of channels, in and out.
      time: whether the number of frames doubles.
      config: gives the dtypes.
      rng: draws the initial kernel.
    """

    def __init__(self, features: int, *, time: bool, config: ODVAEConfig, rng: Generator):
        self.phases = 2 if time else 1
        self.conv = PaddedConv(
            features,
            features * self.phases,
            (3, 3),
            time=_EDGE,
            doubling="nearest",
            config=config,
            rng=rng,
        )

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u v y c"]:
        """Returns the larger clip."""
        y = self.conv(x)
        b, t, h, w, c = y.shape
        y = y.reshape(b, t, h, w, self.phases, c // self.phases)  # channel n C + c is of phase n
        y = jnp.moveaxis(y, 4, 2).reshape(b, t * self.phases, h, w, c // self.phases)
        return y[:, self.phases - 1 :]


class Level(nnx.Module):
    """Residual blocks at one resolution, followed by a change of resolution.

    Args:
      widths: the channels of the input, and the channels after each block.
      first: the class of the blocks' first convolutions.
      downsample: the change of resolution in the encoder, if there is one.
      upsample: the change of resolution in the decoder, if there is one.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        widths: list[int],
        first: type[nnx.Module],
        *,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
        config: ODVAEConfig,
        rng: Generator,
    ):
        self.block = nnx.List(
            ResidualBlock(a, b, first, config=config, rng=rng)
            for a, b in itertools.pairwise(widths)
        )
        self.downsample = downsample
        self.upsample = upsample

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b u v y d"]:
        """Returns the clip after the blocks and the change of resolution."""
        for block in self.block:
            x = block(x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Middle(nnx.Module):
    """A residual block, attention and a residual block, at the lowest resolution.

    Args:
      width: the number of channels.
      first: the class of the blocks' first convolutions.
      attention: the attention.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(
        self,
        width: int,
        first: type[nnx.Module],
        attention: Attention,
        *,
        config: ODVAEConfig,
        rng: Generator,
    ):
        self.block_1 = ResidualBlock(width, width, first, config=config, rng=rng)
        self.attn_1 = attention
        self.block_2 = ResidualBlock(width, width, first, config=config, rng=rng)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Returns the clip after the three layers."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nnx.Module):
    """Maps a chunk of a video to moments; its convolutions are causal.

    Args:
      width: the channels of level 0.
      latent_channels: the channels of a latent.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(self, width: int, latent_channels: int, *, config: ODVAEConfig, rng: Generator):
        with_rng = {"config": config, "rng": rng}
        widths = [width * m for m in WIDTHS]
        top = widths[-1]
        self.conv_in = CausalConv(IMAGE_CHANNELS, width, (3, 3), **with_rng)
        self.down = nnx.List()
        for i, d in enumerate(widths):
            strides = None if i == len(TIME_STRIDES) else (TIME_STRIDES[i], 2)
            downsample = strides and Downsample(d, "3d", strides, **with_rng)
            of_blocks = [widths[max(i - 1, 0)], d, d]
            self.down.append(Level(of_blocks, CausalConv, downsample=downsample, **with_rng))
        attention = Attention(top, "2d", epsilon=EPSILON, **with_rng)
        self.mid = Middle(top, CausalConv, attention, **with_rng)
        self.norm_out = _norm(top, config)
        self.conv_out = CausalConv(
            top, 2 * latent_channels, (3, 3), out_dtype="float32", **with_rng
        )

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v y c2"]:
        """Returns the moments of a chunk of 4k + 1 frames in [-1, 1], in float32."""
        x = self.conv_in(video)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nnx.Module):
    """Maps a chunk of latents to a video; its convolutions see the frames on both sides.

    `up[i]` is level i; level 0, at full resolution, comes last.

    Args:
      width: the channels of level 0.
      latent_channels: the channels of a latent.
      config: gives the groups and the dtypes.
      rng: draws the initial kernels.
    """

    def __init__(self, width: int, latent_channels: int, *, config: ODVAEConfig, rng: Generator):
        with_rng = {"config": config, "rng": rng}
        widths = [width * m for m in WIDTHS]
        top = widths[-1]
        self.conv_in = PaddedConv(latent_channels, top, (3, 3), **with_rng)
        attention = SpaceTimeAttention(top, **with_rng)
        self.mid = Middle(top, PaddedConv, attention, **with_rng)
        self.up = nnx.List()
        for i, d in enumerate(widths):
            upsample = Upsample(d, time=TIME_STRIDES[i - 1] == 2, **with_rng) if i else None
            of_blocks = [widths[min(i + 1, len(TIME_STRIDES))], d, d, d]
            self.up.append(Level(of_blocks, PaddedConv, upsample=upsample, **with_rng))
        self.norm_out = _norm(width, config)
        self.conv_out = PaddedConv(width, IMAGE_CHANNELS, (3, 3), out_dtype="float32", **with_rng)

    def __call__(self, z: Float[Array, "b t h w c"]) -> Float[Array, "b u v y 3"]:
        """Returns the video of a chunk of latents, about [-1, 1], in float32."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))


class CVVAE(Baseline):
    """CV-VAE, a video autoencoder of 4×8×8 whose chunks of 16 frames do not see each other.

    Args:
      config: the config of the model; `CVVAEConfig()` is the released one.
      rngs: decides the initial parameters, as in `ODVAE`.

    Attributes:
      config: the config of the model.

    Raises:
      ValueError: if `config` is no `CVVAEConfig`, or `rngs` is none of the types that it may have.
    """

    config_class = CVVAEConfig

    def __init__(self, config: CVVAEConfig, *, rngs: nnx.Rngs | int | None = 0):
        super().__init__(config)
        sizes, layers = (config.width, config.latent_channels), config.layers(groups=config.groups)
        rng = generator(rngs)
        self.encoder = Encoder(*sizes, config=layers, rng=rng)
        self.decoder = Decoder(*sizes, config=layers, rng=rng)

    def to_latents(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b u v y c2"]:
        """Returns moments, as a plain function that neither checks nor compiles."""
        c = self.config
        run = functools.partial(_in_chunks, self.encoder, step=c.frames_at_a_time)
        if c.tile_side is None:
            return run(video)
        cut, overlap = (n // _SPACE for n in (c.tile_step, c.tile_side - c.tile_step))
        return _in_tiles(run, video, c.tile_side, c.tile_step, cut, overlap)

    def to_video(
        self, latents: Float[Array, "b t h w c"], frames: int
    ) -> Float[Array, "b u v y 3"]:
        """Returns the video of latents, as a plain function that neither checks nor compiles."""
        c = self.config
        step = c.frames_at_a_time and c.frames_at_a_time // _TIME
        run = functools.partial(_in_chunks, self.decoder, step=step)
        if c.tile_side is None:
            return run(latents)
        side, every = (n // _SPACE for n in (c.tile_side, c.tile_step))
        return _in_tiles(run, latents, side, every, c.tile_step, c.tile_side - c.tile_step)


def _norm(features, config):
    return GroupNorm(features, over_time=True, activation=True, epsilon=EPSILON, config=config)


def _in_chunks(run: Callable, x: Array, step: int | None) -> Array:
    """Returns the results of chunks of `step` + 1 frames, joined in time.

    Each chunk shares its last frame with the next one, whose first result is dropped.
    """
    t = x.shape[1]
    step = step or t
    starts = range(0, max(t - 1, 1), step)
    first, *later = _each(run, [x[:, i : i + step + 1] for i in starts])
    return jnp.concatenate([first, *(y[:, 1:] for y in later)], axis=1)


def _in_tiles(run: Callable, x: Array, side: int, step: int, cut: int, overlap: int) -> Array:
    """Returns the results of tiles, blended where they overlap and joined.

    Args:
      run: maps a tile to its result.
      x: the clip.
      side: the rows and columns of a tile; the last ones may have fewer.
      step: the rows and columns from one tile to the next.
      cut: the rows and columns of a result from one tile to the next.
      overlap: the rows and columns of a result that two neighbours share.
    """
    # The last tile is the first one that reaches the border.
    tops, lefts = (range(0, max(n - side + step, 1), step) for n in x.shape[2:4])
    tiles = [x[:, :, i : i + side, j : j + side] for i in tops for j in lefts]
    results = iter(_each(run, tiles))
    above: list[Array] = []
    rows = []
    for _ in tops:
        row: list[Array] = []
        for j, _ in enumerate(lefts):
            tile = next(results)
            tile = _blended(above[j], tile, overlap, 2) if above else tile
            row.append(_blended(row[-1], tile, overlap, 3) if row else tile)
        rows.append(_joined(row, cut, 3))
        above = row
    return _joined(rows, cut, 2)


def _blended(before: Array, tile: Array, overlap: int, axis: int) -> Array:
    """Returns a tile that begins as the end of the one before it, and goes over into its own."""
    if not overlap:
        return tile
    shape = [-1 if i == axis else 1 for i in range(tile.ndim)]
    weight = (jnp.arange(overlap, dtype=tile.dtype) / overlap).reshape(shape)
    old = jax.lax.slice_in_dim(before, before.shape[axis] - overlap, None, axis=axis)
    new = jax.lax.slice_in_dim(tile, 0, overlap, axis=axis)
    rest = jax.lax.slice_in_dim(tile, overlap, None, axis=axis)
    return jnp.concatenate([old * (1 - weight) + new * weight, rest], axis=axis)


def _joined(parts: list[Array], cut: int, axis: int) -> Array:
    """Returns the first `cut` rows or columns of each part, and all of the last one, joined."""
    short = [jax.lax.slice_in_dim(part, 0, cut, axis=axis) for part in parts[:-1]]
    return jnp.concatenate([*short, parts[-1]], axis=axis)


def _each(run: Callable, parts: list[Array]) -> list[Array]:
    """Returns the result of each part.

    Parts of one shape go one after another through one loop of the program, which so holds the
    network once per shape and not once per part.
    """
    results: list[Array | None] = [None] * len(parts)
    for shape in dict.fromkeys(part.shape for part in parts):
        places = [i for i, part in enumerate(parts) if part.shape == shape]
        alike = [parts[i] for i in places]
        ran = [run(alike[0])] if len(alike) == 1 else jax.lax.map(run, jnp.stack(alike))
        for i, result in zip(places, ran, strict=True):
            results[i] = result
    return results
