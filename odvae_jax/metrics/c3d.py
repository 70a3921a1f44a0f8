"""C3D (Tran et al. 2015), whose classes of UCF101 the Inception score of videos compares.

No package carries its weights. TGANv2's release holds them as `conv3d_deepnetA_ucf.npz`, trained on
Sports-1M and then UCF101, with `mean2.npz`, which is taken from clips. StyleGAN-V's release holds
the same network as a TorchScript file.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from odvae_jax.checks import check_array
from odvae_jax.files import counted, one_line, printable
from odvae_jax.metrics.torchscript import TorchScriptNetwork
from odvae_jax.metrics.weights import digest_of_files
from odvae_jax.parameters import check_finite, differences
from odvae_jax.pixels import to_unit_range
from odvae_jax.types import AnyArray

FRAMES = 16
"""The number of frames that the network takes."""
SIDE = 112
"""The number of rows and of columns that frames are scaled to."""
CLASSES = 101
WEIGHTS = "conv3d_deepnetA_ucf.npz"
"""The name of the file of weights in TGANv2's release."""
MEAN = "mean2.npz"
"""The name of the file of the mean clip in TGANv2's release."""
TORCHSCRIPT = "c3d_ucf101.pt"
"""The name of StyleGAN-V's TorchScript file."""
_SOURCES = (
    f"take {WEIGHTS} and {MEAN} from TGANv2's release "
    f"(github.com/rezoo/tgan2/releases/tag/v1.0), or {TORCHSCRIPT} from StyleGAN-V's "
    "(github.com/universome/stylegan-v), which needs --trust-torchscript"
)
_CORNER = 8  # the first row and column of the mean clip that are used

# The convolutions with their input and output channels; a number is the frames of the max-pooling
# window that follows.
_LAYERS: tuple[tuple[str, int, int, int | None], ...] = (
    ("conv1a", 3, 64, 1),
    ("conv2a", 64, 128, 2),
    ("conv3a", 128, 256, None),
    ("conv3b", 256, 256, 2),
    ("conv4a", 256, 512, None),
    ("conv4b", 512, 512, 2),
    ("conv5a", 512, 512, None),
    ("conv5b", 512, 512, 2),
)
_LINEAR = (("fc6", 8192, 4096), ("fc7", 4096, 4096), ("fc8", 4096, CLASSES))


@runtime_checkable
class VideoClassifier(Protocol):
    """A network that maps clips to probabilities of classes, for the Inception score.

    Attributes:
      digest: tells networks apart, so that probabilities of different networks are never compared.
    """

    digest: str

    def probabilities(self, video: UInt8[AnyArray, "b 16 h w 3"]) -> Float[np.ndarray, "b classes"]:
        """Returns the probabilities of the classes, on the host, for clips of 16 uint8 frames."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["units", "mean"], meta_fields=["digest"]
)
@dataclasses.dataclass(frozen=True)
class C3D:
    """The C3D network with its trained weights.

    It is a pytree: pass it to `jax.jit` as an argument.

    Attributes:
      units: the kernel and the bias [out] of each layer, by its name. Kernels of convolutions are
        [t, h, w, in, out], those of linear layers [in, out].
      mean: what is subtracted from clips, [16, 112, 112, 3], in the order blue, green, red.
      digest: hexadecimal digits that tell the files of the weights from other files.
    """

    units: dict[str, tuple[Any, Any]]
    mean: Float[Array, "16 112 112 3"]
    digest: str

    def __call__(self, video: Float[AnyArray, "b 16 h w 3"]) -> Float[Array, "b 101"]:
        """Returns the logits of clips in [-1, 1], in float32.

        Raises:
          ValueError: if there are not 16 frames, or it is no array of numbers that JAX can take.
        """
        x = self.network_input(video)
        for name, _, _, pool in _LAYERS:
            kernel, bias = self.units[name]
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (1, 1, 1),
                "SAME",
                dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
                precision="highest",
            )
            x = jax.nn.relu(x + bias[None, None, None, None])
            if pool is not None:
                x = _max_pool(x, (pool, 2, 2))
        x = jnp.transpose(x, (0, 4, 1, 2, 3)).reshape(x.shape[0], -1)  # as the kernel of fc6 has it
        for name, _, _ in _LINEAR:
            kernel, bias = self.units[name]
            x = jnp.matmul(x, kernel, precision="highest") + bias[None]
            x = x if name == "fc8" else jax.nn.relu(x)
        return x

    def network_input(self, video: Float[AnyArray, "b 16 h w 3"]) -> Float[Array, "b 16 112 112 3"]:
        """Returns what the first convolution takes of clips in [-1, 1].

        Frames are scaled to 112 × 112 pixels by bilinear interpolation between pixels whose corners
        stay corners. Values are scaled to 8 bits, colours are turned to blue, green, red, and the
        mean is subtracted.

        Raises:
          ValueError: if there are not 16 frames, or it is no array of numbers that JAX can take.
        """
        check_array("video", video)
        if video.shape[1] != FRAMES:
            raise ValueError(f"clips of {video.shape[1]} frames: C3D takes {FRAMES}.")
        x = jnp.asarray(video, jnp.float32)[..., ::-1] * 128.0
        rows, columns = (_between_corners(side) for side in x.shape[2:4])
        x = jnp.einsum("bthwc,yh->btywc", x, rows, precision="highest")
        x = jnp.einsum("btywc,xw->btyxc", x, columns, precision="highest")
        return x + 128.0 - self.mean[None]

    def probabilities(self, video: UInt8[AnyArray, "b 16 h w 3"]) -> Float[np.ndarray, "b 101"]:
        """Returns the probabilities of UCF101's classes, on the host, in a compiled program.

        Raises:
          ValueError: if there are not 16 frames, or it is no array of numbers that JAX can take.
        """
        check_array("video", video)
        return jax.device_get(_probabilities(self, video))


class TorchC3D(TorchScriptNetwork):
    """C3D as StyleGAN-V's TorchScript file, which takes uint8 clips and returns probabilities.

    It runs only if the caller says that it is trusted; see `TorchScriptNetwork`.
    """

    expected = TORCHSCRIPT
    otherwise = f"or take TGANv2's {WEIGHTS}, which holds weights alone"

    def probabilities(self, video: UInt8[AnyArray, "b 16 h w 3"]) -> Float[np.ndarray, "b classes"]:
        """Returns the probabilities of the classes, on the host, as the file computes them.

        Raises:
          ValueError: if there are not 16 frames, it is no array of numbers, or the file returns
            something else than probabilities.
        """
        check_array("video", video)
        if video.shape[1] != FRAMES:
            raise ValueError(f"clips of {video.shape[1]} frames: C3D takes {FRAMES}.")
        import torch

        clips = torch.from_numpy(np.array(video)).permute(0, 4, 1, 2, 3).contiguous()
        with torch.no_grad():
            p = np.asarray(self._network(clips))
        if p.ndim != 2 or len(p) != len(video) or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
            raise ValueError(
                f"{self.name} returned no probabilities of classes, {list(p.shape)} for "
                f"{counted(len(video), 'clip')}; expected {TORCHSCRIPT} of StyleGAN-V."
            )
        return p


def load_classifier(
    path: str | os.PathLike | None,
    *,
    mean: str | os.PathLike | None = None,
    trust_torchscript: bool = False,
) -> VideoClassifier:
    """Loads C3D from a file: `.npz` with TGANv2's weights, or else StyleGAN-V's TorchScript.

    Args:
      path: the path of the file; None raises the error that says what to get.
      mean: the path of the mean clip of an `.npz`; None takes `mean2.npz` in the same folder.
      trust_torchscript: whether a TorchScript file may run: it is a program.

    Raises:
      FileNotFoundError: if no file is given, if a file does not exist, or PyTorch is missing.
      ValueError: if a file is damaged, holds something else, or is a program that is not trusted.
    """
    if path is None:
        raise FileNotFoundError(f"no package carries C3D's weights: {_SOURCES}.")
    if Path(path).suffix == ".npz":
        return load_c3d(path, mean=mean)
    return TorchC3D(path, trust_torchscript=trust_torchscript)


def load_c3d(path: str | os.PathLike, *, mean: str | os.PathLike | None = None) -> C3D:
    """Loads C3D with the weights of TGANv2's release. Nothing in the files is executed.

    Args:
      path: the path of `conv3d_deepnetA_ucf.npz`.
      mean: the path of the mean clip, an `.npz` with one array [3, 16, H, W] with blue first, of at
        least 120 rows and columns; None takes `mean2.npz` in the same folder.

    Raises:
      FileNotFoundError: if a file does not exist.
      ValueError: if a file holds something else, is damaged, or holds values that are not finite.
    """
    mean = Path(path).with_name(MEAN) if mean is None else Path(mean)
    for file in (Path(path), mean):
        if not file.is_file():
            raise FileNotFoundError(f"{printable(file)} does not exist: {_SOURCES}.")
    clip = _mean_clip(mean)
    shapes = _shapes()
    arrays = _read(path, "C3D's weights", tuple(shapes))
    found = {name: array.shape for name, array in arrays.items()}
    if wrong := differences(shapes, found):
        raise ValueError(f"{printable(path)} does not hold C3D's weights: {wrong}.")
    check_finite(arrays, path)
    units = {}
    for name in [layer[0] for layer in (*_LAYERS, *_LINEAR)]:
        kernel, bias = arrays.pop(f"{name}/W"), arrays.pop(f"{name}/b")
        axes = (2, 3, 4, 1, 0) if kernel.ndim > 2 else (1, 0)
        units[name] = (jnp.asarray(kernel.transpose(axes)), jnp.asarray(bias))
    return C3D(units, jnp.asarray(clip), digest_of_files(path, mean))


def _shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in the file, by name."""
    kernels = {name: (after, before, 3, 3, 3) for name, before, after, _ in _LAYERS}
    kernels |= {name: (after, before) for name, before, after in _LINEAR}
    shapes = {f"{name}/W": shape for name, shape in kernels.items()}
    return shapes | {f"{name}/b": shape[:1] for name, shape in kernels.items()}


def _read(
    path: str | os.PathLike, what: str, wanted: tuple[str, ...] | None = None
) -> dict[str, np.ndarray]:
    """The wanted arrays of an .npz that it has, or all of them, in float32."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [n for n in file.files if wanted is None or n in wanted]
            return {name: np.asarray(file[name], np.float32) for name in names}
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{printable(path)} does not hold {what}: {one_line(error)}; expected an .npz."
        ) from error


def _mean_clip(path: Path) -> np.ndarray:
    """The part of the mean clip that is subtracted, channels last."""
    arrays = _read(path, "C3D's mean clip")
    least = _CORNER + SIDE
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(arrays) == 1:
        (array,) = arrays.values()
        while array.ndim > 4 and 1 in array.shape:
            array = array.squeeze(array.shape.index(1))
        if array.ndim == 4 and array.shape[:2] == (3, FRAMES) and min(array.shape[2:]) >= least:
            check_finite(arrays, path)
            part = array[:, :, _CORNER:least, _CORNER:least]
            return np.ascontiguousarray(part.transpose(1, 2, 3, 0))
    raise ValueError(
        f"{printable(path)} does not hold C3D's mean clip: it has the arrays {shapes}; expected "
        f"one [3, {FRAMES}, H, W] with at least {least} rows and columns."
    )


@jax.jit
def _probabilities(c3d: C3D, video):
    return jax.nn.softmax(c3d(to_unit_range(video)), axis=-1)


def _between_corners(side: int) -> Float[np.ndarray, "112 side"]:
    """The matrix that scales `side` pixels to 112 linearly, so that the ends stay the ends."""
    places = np.arange(SIDE) * ((side - 1) / (SIDE - 1))
    distance = np.abs(places[:, None] - np.arange(side)[None])
    return np.maximum(0.0, 1.0 - distance).astype(np.float32)


def _max_pool(x, window):
    """Max-pooling with windows from the front, the last of which may hang over the end."""
    over = [(0, -size % step) for size, step in zip(x.shape[1:4], window, strict=True)]
    window = (1, *window, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, ((0, 0), *over, (0, 0)))
