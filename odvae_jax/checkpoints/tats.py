"""TATS's published autoencoders: Lightning checkpoints with an `argparse.Namespace` of settings."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax.baselines.tats import TATS, TATSConfig
from odvae_jax.checkpoints.files import WeightFile
from odvae_jax.checkpoints.folders import write_files
from odvae_jax.checkpoints.layout import (
    Progress,
    build,
    check_halves,
    from_kernel,
    length_of,
    lightning_state,
    torch_leaf,
)
from odvae_jax.checkpoints.native import with_overrides
from odvae_jax.checkpoints.torch_file import write_torch_file
from odvae_jax.files import one_line, printable
from odvae_jax.parameters import named_parameters

CLASS_NAME = None
"""It has no `config.json`."""
FILES = ("tats.ckpt",)
"""The files of a model, the weights first."""
_IGNORED = (
    "image_discriminator.",
    "video_discriminator.",
    "perceptual_model.",
    "codebook.N",
    "codebook.z_avg",
)
_COUNTER = ".num_batches_tracked"
_REQUIRED = {"image_channels": 3, "padding_type": "replicate"}
_FIELDS = {
    "width": "n_hiddens",
    "downsample": "downsample",
    "codes": "n_codes",
    "code_channels": "embedding_dim",
    "norm": "norm_type",
}


def released_name(ours: str) -> str:
    """Returns the name in the published file of a parameter with this package's name."""
    ours = ours.replace(".final_norm.", ".final_block.0.")
    if ours.endswith((".embeddings", ".running_mean", ".running_var")):
        return ours
    layer, leaf = torch_leaf(ours)
    if re.search(r"norm\d$|final_block\.0$", layer):
        return f"{layer}.{leaf}"
    return f"{layer}.{'convt' if layer.endswith('.up') else 'conv'}.{leaf}"


def is_released(file: WeightFile) -> bool:
    """Returns whether the names in a file are those of TATS's autoencoder."""
    state, _ = lightning_state(file, _IGNORED)
    return "codebook.embeddings" in state or any(n.endswith(".up.convt.weight") for n in state)


def config_from_settings(settings: Mapping[str, Any], source: Path) -> TATSConfig:
    """Returns the config of a published model from the settings in its checkpoint.

    Args:
      settings: the fields of the Namespace.
      source: the path of the checkpoint, for error messages.

    Raises:
      ValueError: if a field is missing or has a value that is not supported.
    """
    name = printable(source)
    for field in (*_REQUIRED, *_FIELDS.values()):
        if not _is_plain(settings.get(field)):
            raise ValueError(
                f"{name}: {field} in its hyper_parameters is neither a number nor a text nor a few "
                "of them."
            )
    for field, value in _REQUIRED.items():
        if settings.get(field, value) != value:
            raise ValueError(
                f"{name}: {field} is {settings[field]!r:.100}; only {value!r} is supported."
            )
    if missing := [theirs for theirs in _FIELDS.values() if theirs not in settings]:
        raise ValueError(f"{name}: its hyper_parameters lack {missing}.")
    fields = {ours: settings[theirs] for ours, theirs in _FIELDS.items()}
    try:
        return TATSConfig.from_dict(fields)
    except (ValueError, TypeError) as error:  # a pickle may hold anything
        raise ValueError(f"{name}: {one_line(error, 300)}") from error


def _is_plain(value: Any) -> bool:
    """Whether a setting can be shown: a pickle's lists may hold themselves many times over."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return len(values) <= 8 and all(isinstance(v, (str, int, float, type(None))) for v in values)


def infer_config(state: Mapping[str, Any], source: Path, downsample: Any) -> TATSConfig:
    """Returns the config of a checkpoint without settings, from names and shapes.

    Args:
      state: the tensors by name.
      source: the file, for error messages.
      downsample: by how much time, rows and columns are compressed, which no shape tells.

    Raises:
      ValueError: if the names are not a whole model's, or `downsample` is None.
    """
    _, table = ends = ("encoder.conv_first.conv.weight", "codebook.embeddings")
    if missing := [name for name in ends if name not in state]:
        raise ValueError(f"{printable(source)} is not a whole TATS autoencoder: {missing} missing.")
    if downsample is None:
        raise ValueError(
            f"{printable(source)} has no hyper_parameters, and no shape tells by how much time is "
            "compressed: pass downsample=(4, 8, 8) if it is the model of Table 1, or in the shell "
            "odvae convert with --downsample=4,8,8."
        )
    batch = any(name.endswith(".running_mean") for name in state)
    width, codes = (length_of(state[name], name, source) for name in ends)
    fields = {
        "width": width,
        "downsample": downsample,
        "codes": codes,
        "code_channels": state[table].shape[-1],
        "norm": "batch" if batch else "group",
    }
    try:
        return TATSConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{printable(source)}: {error}") from error


def load(
    file: WeightFile, config: TATSConfig | None = None, progress: Progress = iter, **overrides: Any
) -> tuple[TATS, list[str]]:
    """Loads the autoencoder of a checkpoint.

    The discriminators, the perceptual network and the codebook's running counts are ignored.

    Args:
      file: the opened file.
      config: the config; None takes that of the checkpoint's settings.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape; `downsample` too for a
        checkpoint without settings.

    Returns:
      The model, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of the model.
    """
    state, ignored = lightning_state(file, _IGNORED)
    counters = [name for name in state if name.endswith(_COUNTER)]
    state = {name: value for name, value in state.items() if name not in counters}
    check_halves(state, "a TATS autoencoder", file.path)
    if config is None:
        settings = _settings(file.content)
        if settings is not None:
            config = config_from_settings(settings, file.path)
        else:
            config = infer_config(state, file.path, overrides.pop("downsample", None))
    config = with_overrides(config, file.path, overrides)
    state = {name: _swapped(name, value) for name, value in state.items()}
    model = build(config, state, lambda n: (released_name(n),), file.path, progress)
    return model, [*counters, *ignored]


def _settings(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fields of the Namespace in a Lightning checkpoint; None if there is none."""
    found = content.get("hyper_parameters")
    found = found.get("args", found) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) and len(found) else None


def _swapped(name: str, weight: np.ndarray) -> np.ndarray:
    """Returns a transposed convolution's weight as the convolution's that computes it, or back."""
    if not name.endswith(".convt.weight") or np.ndim(weight) != 5:
        return weight
    return np.flip(weight.swapaxes(0, 1), (2, 3, 4))


def save(model: TATS, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a model as a folder with a Lightning checkpoint of the autoencoder alone.

    TATS's class loads it with `strict=False`: discriminators and perceptual network are not in it.

    Args:
      model: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    c = model.config
    state = {}
    for ours, value in named_parameters(model).items():
        value, name = np.asarray(value), released_name(ours)
        if ours.endswith(".kernel"):
            value = np.ascontiguousarray(_swapped(name, from_kernel(value, 5)))
        state[name] = value
        if name.endswith(".running_var"):
            state[name.removesuffix(".running_var") + _COUNTER] = np.zeros((), np.int64)
    state["codebook.N"] = np.zeros(c.codes, np.float32)
    state["codebook.z_avg"] = state["codebook.embeddings"]
    settings = {theirs: getattr(c, ours) for ours, theirs in _FIELDS.items()}
    arguments = argparse.Namespace(**settings, **_REQUIRED)

    def weights(file: Path) -> None:
        content = {"state_dict": state, "hyper_parameters": {"args": arguments}}
        write_torch_file(file, content)

    write_files(path, {FILES[0]: weights}, overwrite=overwrite)
