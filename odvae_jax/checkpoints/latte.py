"""The released PyTorch Latte: a `.pt` of its training (October 2025), with "ema" and "model".

The fixed embeddings are parameters there, which nothing trains. They are compared with ours and
left out, and tell the number of frames and tokens. What the file does not tell is the number of
heads: it is that of the table of sizes, or an argument.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odvae_jax.checkpoints.files import WeightFile, others, tensors
from odvae_jax.checkpoints.folders import write_files
from odvae_jax.checkpoints.layout import Progress
from odvae_jax.checkpoints.native import with_overrides
from odvae_jax.checkpoints.torch_file import write_torch_file
from odvae_jax.diffusion import positions
from odvae_jax.diffusion.config import SIZES, LatteConfig
from odvae_jax.diffusion.denoiser import Latte
from odvae_jax.files import counted, printable
from odvae_jax.parameters import (
    abstract_model,
    check_finite,
    converted,
    differences,
    named_parameters,
    with_parameters,
)

logger = logging.getLogger(__name__)
CLASS_NAME = None
"""No `config.json` names this layout."""
WEIGHTS_FILE = "latte.pt"
PLACES, FRAMES = "pos_embed", "temp_embed"
_PATCH, _LAST = "x_embedder.proj.weight", "final_layer.linear.weight"
_MODULATION = "blocks.0.adaLN_modulation.1.weight"
_LABELS = "y_embedder.embedding_table.weight"
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_EMBEDDED = 1e-5  # how far a fixed embedding may be from ours: float32, or computed in it
# Ours and theirs, from the beginning of a name to the leaf.
_NAMES = (
    (r"patches", "x_embedder.proj"),
    (r"conditioning\.time_1", "t_embedder.mlp.0"),
    (r"conditioning\.time_2", "t_embedder.mlp.2"),
    (r"blocks\.(\d+)\.modulation\.linear", r"blocks.\1.adaLN_modulation.1"),
    (r"blocks\.(\d+)\.attention\.qkv", r"blocks.\1.attn.qkv"),
    (r"blocks\.(\d+)\.attention\.out", r"blocks.\1.attn.proj"),
    (r"blocks\.(\d+)\.mlp\.linear_(\d)", r"blocks.\1.mlp.fc\2"),
    (r"last\.modulation\.linear", "final_layer.adaLN_modulation.1"),
    (r"last\.linear", "final_layer.linear"),
)


def released_name(ours: str) -> str:
    """Returns the name in the released layout of a parameter with this package's name `ours`."""
    if ours == "conditioning.labels":
        return _LABELS
    layer, leaf = ours.rsplit(".", 1)
    for pattern, theirs in _NAMES:
        if re.fullmatch(pattern, layer):
            return f"{re.sub(pattern, theirs, layer)}.{'bias' if leaf == 'bias' else 'weight'}"
    raise ValueError(f"{ours} has no name in the released layout.")


def is_released(file: WeightFile) -> bool:
    """Returns whether the names in a file are those of a released Latte."""
    state = _state(file)[0]
    return _PATCH in state and _MODULATION in state


def load(
    file: WeightFile,
    config: None = None,
    progress: Progress = iter,
    *,
    heads: int | None = None,
    **overrides: Any,
) -> tuple[Latte, list[str]]:
    """Loads the denoiser of a released checkpoint. EMA weights are preferred.

    Args:
      file: the opened file.
      config: None, for nothing lies beside a released file.
      progress: wraps the loop over parameters, for example in a progress bar.
      heads: the heads of every attention; None takes them from the table of sizes, by the width.
      **overrides: config fields to change that change no parameter's shape.

    Returns:
      The denoiser, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of a Latte, its fixed embeddings are not
        Latte's, values are not finite, or the number of heads is not known.
    """
    state, ignored = _state(file)
    config = with_overrides(_config(state, file.path, heads), file.path, overrides)
    _check_embeddings(state, config, file.path)
    model = abstract_model(config)
    expected = {n: tuple(p.shape) for n, p in named_parameters(model).items()}
    names = {ours: released_name(ours) for ours in expected}
    wanted = {names[n]: _torch_shape(n, shape, config) for n, shape in expected.items()}
    found = {n: np.shape(v) for n, v in state.items() if n not in (PLACES, FRAMES)}
    if problems := differences(wanted, found):
        raise ValueError(
            f"{printable(file.path)} does not hold a {config.name} of depth {config.depth} and "
            f"width {config.width}: {problems}."
        )
    parameters = {}
    for ours, theirs in progress(names.items()):
        value = np.asarray(state[theirs])
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{printable(file.path)}: {theirs} is of {value.dtype}; weights are floating point."
            )
        if ours.endswith(".kernel"):
            value = value.reshape(value.shape[0], -1).T  # of a patch: channel, row, column
        parameters[ours] = converted(value, config.param_dtype)
    check_finite({names[ours]: value for ours, value in parameters.items()}, file.path)
    # Copies: what is mapped from a file would change with the file.
    model = with_parameters(model, {n: jnp.array(v, copy=True) for n, v in parameters.items()})
    return model, [*ignored, PLACES, FRAMES]


def save(model: Latte, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a denoiser as `latte.pt`, which the released implementation loads strictly as an EMA.

    Args:
      model: the denoiser.
      path: the folder.
      overwrite: whether a denoiser that the folder holds already is replaced.

    Raises:
      ValueError: if the released implementation cannot hold the denoiser, or would compute
        something else with it. The message names the field.
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    config = model.config
    if config.process != "gaussian":
        raise ValueError(
            f"process is {config.process!r}; the released implementation samples by 'gaussian', so "
            "the same weights would be another model there."
        )
    if config.rows != config.columns:
        raise ValueError(
            f"rows are {config.rows} and columns {config.columns}; the released implementation "
            "has square latents."
        )
    if record := config.trained_on:
        logger.warning(
            "the layout has no place for what the denoiser was trained on, which is left out: the "
            "autoencoder %s, to be named with --vae, the scale of its latents (factor %g%s), clips "
            "of %s at %g frames per second, and the names of %s",
            printable(record.vae),
            record.scale.factor,
            ", with a mean and a deviation per channel" if record.scale.measured else "",
            counted(record.frames, "frame"),
            record.fps,
            counted(len(record.classes), "class", "classes"),
        )
    state = {
        PLACES: positions.of_places(*config.grid, config.width)[None],
        FRAMES: positions.of_frames(config.frames, config.width)[None],
    }
    for ours, value in named_parameters(model).items():
        value = np.asarray(jax.device_get(value))
        if ours.endswith(".kernel"):
            value = value.T.reshape(_torch_shape(ours, value.shape, config))
        state[released_name(ours)] = value

    def weights(file: Path) -> None:
        write_torch_file(file, {"ema": state})

    write_files(path, {WEIGHTS_FILE: weights}, overwrite=overwrite)


def _torch_shape(ours, shape, config) -> tuple[int, ...]:
    """The shape of PyTorch's tensor for our parameter."""
    if ours == "patches.kernel":
        return shape[1], config.channels, config.patch, config.patch
    return tuple(reversed(shape)) if ours.endswith(".kernel") else tuple(shape)


def _config(state, source: Path, heads: int | None) -> LatteConfig:
    """The config that the shapes tell."""
    name = printable(source)
    if _PATCH not in state and any(n.startswith("transformer_blocks.") for n in state):
        raise ValueError(f"{name} is Latte for text (LatteT2V), which is another network.")
    for needed, axes in ((_PATCH, 4), (_LAST, 2), (PLACES, 3), (FRAMES, 3)):
        if needed not in state or np.ndim(state[needed]) != axes:
            raise ValueError(
                f"{name} is not a whole Latte: {needed} is missing or has not {axes} axes."
            )
    if any(n.startswith("text_embedding_projection.") for n in state):
        raise ValueError(f"{name} is a Latte for text, of which nothing was released to train on.")
    width, channels, patch, _ = np.shape(state[_PATCH])
    tokens, frames = np.shape(state[PLACES])[1], np.shape(state[FRAMES])[1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{name}: {PLACES} has {tokens} tokens, which are no square of latents.")
    if np.shape(state[_LAST])[0] != 2 * channels * patch**2:
        raise ValueError(
            f"{name}: {_LAST} has {np.shape(state[_LAST])[0]} rows; expected "
            f"{2 * channels * patch**2}, for a network with a learned variance."
        )
    blocks = {match[1] for n in state if (match := re.match(r"blocks\.(\d{1,9})\.", n))}
    heads = heads or next((h for _, w, h in SIZES.values() if w == width), None)
    if heads is None:
        raise ValueError(
            f"{name} has width {width}, which no size of Latte has, and does not say how many "
            "heads its attention has: pass heads=, or in the shell odvae convert with --heads."
        )
    classes = np.shape(state[_LABELS])[0] - 1 if np.ndim(state.get(_LABELS)) == 2 else None
    try:
        return LatteConfig(
            depth=len(blocks),
            width=width,
            heads=heads,
            patch=patch,
            frames=frames,
            rows=side * patch,
            columns=side * patch,
            channels=channels,
            classes=classes,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_embeddings(state, config: LatteConfig, source: Path) -> None:
    """Refuses a network whose fixed embeddings are not those that ours computes."""
    for name, ours in (
        (PLACES, positions.of_places(*config.grid, config.width)),
        (FRAMES, positions.of_frames(config.frames, config.width)),
    ):
        theirs = np.asarray(state[name], np.float32)[0]
        tolerance = _EMBEDDED if state[name].dtype.itemsize >= 4 else 1e-2
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=tolerance, rtol=0):
            raise ValueError(
                f"{printable(source)}: {name} is not Latte's fixed embedding, so that the network "
                "would compute something else here; is it of another model, or damaged?"
            )


def _state(file: WeightFile) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the tensors, those of the EMA if there are any, and the names left out."""
    content, left_out = file.content, []
    for key in ("ema", "model"):
        inner = content.get(key)
        if isinstance(inner, Mapping) and len(inner):
            left_out = [*others(content, key), *(n for n in tensors(content))]
            content = inner
            break
    left_out = [*left_out, *others(content)]
    state = tensors(content)
    for prefix in _PREFIXES:
        if any(n.startswith(prefix) for n in state):
            state = {n.removeprefix(prefix): state[n] for n in state}
    return state, left_out
