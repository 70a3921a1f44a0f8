"""SVD-VAE in its two layouts: diffusers' AutoencoderKLTemporalDecoder, and the original one.

What it shares with SD-VAE has SD-VAE's names in both.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax.baselines.svd_vae import SVDVAE, SVDVAEConfig
from odvae_jax.checkpoints import sd_vae
from odvae_jax.checkpoints.files import WeightFile
from odvae_jax.checkpoints.folders import CONFIG_FILE, SCALE_FILE, write_folder
from odvae_jax.checkpoints.layout import Progress, build, check_halves, length_of, torch_state
from odvae_jax.checkpoints.native import with_overrides
from odvae_jax.config import STRUCTURES
from odvae_jax.files import printable

logger = logging.getLogger(__name__)

CLASS_NAME = "AutoencoderKLTemporalDecoder"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FILES = (WEIGHTS_FILE, CONFIG_FILE, SCALE_FILE)
"""The files of a model, the weights first."""
_ROW = STRUCTURES["image"]
_NEWER, _ORIGINAL = ".temporal_res_block.", ".time_stack."
_REQUIRED = {
    "down_block_types": ["DownEncoderBlock2D"] * len(_ROW.width_multipliers),
    "layers_per_block": _ROW.encoder_blocks,
    "in_channels": 3,
    "out_channels": 3,
}
_TEMPORAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}


def diffusers_names(ours: str) -> tuple[str, ...]:
    """Returns the names that a parameter may have in diffusers' layout, the newest one first."""
    return tuple(
        name.replace(".spatial.", ".spatial_res_block.")
        .replace(".temporal.", _NEWER)
        .replace(".time_mixer.weight", ".time_mixer.mix_factor")
        for name in sd_vae.diffusers_names(ours.replace(".mix_factor", ".time_mixer.mix_factor"))
    )


def original_names(ours: str) -> tuple[str, ...]:
    """Returns the one name that a parameter has in the original layout."""
    if ours.endswith(".mix_factor"):
        return (ours,)
    (name,) = sd_vae.original_names(ours)
    name = name.replace("decoder.time_conv_out.", "decoder.conv_out.time_mix_conv.")
    name = re.sub(r"\.temporal\.(\w+)", lambda m: f"{_ORIGINAL}{_TEMPORAL[m[1]]}", name)
    return (name.replace(".spatial.", "."),)


def is_released(file: WeightFile) -> bool:
    """Returns whether a file holds an SVD-VAE, or the whole Stable Video Diffusion."""
    content = file.content
    inner = content.get("state_dict")
    names = inner if isinstance(inner, Mapping) else content
    return any(isinstance(n, str) and (_NEWER in n or _ORIGINAL in n) for n in names)


def config_from_json(fields: Mapping[str, Any], source: Path) -> SVDVAEConfig:
    """Returns the config of a diffusers SVD-VAE from its `config.json`.

    Args:
      fields: the content of `config.json`.
      source: the path of `config.json`, for error messages.

    Raises:
      ValueError: if the architecture is not that of SVD-VAE. The message names the field.
    """
    first = sd_vae.width_of(fields, _REQUIRED, "SVD-VAE", source)
    channels = fields.get("latent_channels", 4)
    return SVDVAEConfig(width=first, latent_channels=channels, **sd_vae.scale_of(fields))


def load(
    file: WeightFile,
    config: SVDVAEConfig | None = None,
    progress: Progress = iter,
    **overrides: Any,
) -> tuple[SVDVAE, list[str]]:
    """Loads the model of a weight file.

    Args:
      file: the opened file, of either layout. In a whole Stable Video Diffusion checkpoint
        everything but `first_stage_model.` is ignored.
      config: the config of the `config.json` next to the file; None reads width and latent channels
        off the shapes.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape.

    Returns:
      The model, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of an SVD-VAE.
    """
    state, ignored = sd_vae.state_of(file)
    newer = any(_NEWER in name for name in state)
    if not newer and not any(_ORIGINAL in name for name in state):
        raise ValueError(
            f"{printable(file.path)} holds no temporal decoder: the files of Stable Video "
            "Diffusion whose names end in image_decoder have a plain 2D one, and others none. "
            "Take svd.safetensors, svd_xt.safetensors or the folder vae."
        )
    check_halves(state, "an SVD-VAE", file.path)
    if config is None:
        ends = ("encoder.conv_in.weight", "decoder.conv_in.weight")
        if missing := [name for name in ends if name not in state]:
            raise ValueError(
                f"{printable(file.path)} is not a whole SVD-VAE: {missing} are missing."
            )
        width = length_of(state[ends[0]], ends[0], file.path)
        channels = state[ends[1]].shape[1:2]
        try:
            config = SVDVAEConfig(width=width, latent_channels=channels[0] if channels else 0)
        except ValueError as error:
            raise ValueError(f"{printable(file.path)}: {error}") from error
    config = with_overrides(config, file.path, overrides)
    if not newer and not any(name.startswith("quant_conv.") for name in state):
        # The original class has no quant convolution: diffusers' is the identity then.
        z = 2 * config.latent_channels
        state = {
            **state,
            "quant_conv.weight": np.eye(z, dtype=np.float32)[:, :, None, None],
            "quant_conv.bias": np.zeros(z, np.float32),
        }
    names = diffusers_names if newer else original_names
    return build(config, state, names, file.path, progress), ignored


def save(model: SVDVAE, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a model as a folder that diffusers' class loads.

    Args:
      model: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      ValueError: if the class has no place for the model's groups.
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    c = model.config
    if c.groups != 32:
        raise ValueError(f"groups is {c.groups}; a diffusers {CLASS_NAME} has 32.")
    config = {
        "_class_name": CLASS_NAME,
        **_REQUIRED,
        "block_out_channels": list(c.layers().encoder_widths),
        "latent_channels": c.latent_channels,
        "sample_size": 768,
        "scaling_factor": c.scaling_factor,
        "force_upcast": True,
    }
    if c.scale.measured:
        config |= sd_vae.diffusers_scale(c.scale)
    if c.decode_chunk is not None:
        logger.warning(
            "decode_chunk=%d is not written: diffusers' config has no place for it, and its "
            "decode_chunk_size is an argument; pass decode_chunk where the model is loaded",
            c.decode_chunk,
        )
    state = torch_state(model, lambda ours: diffusers_names(ours)[0], _axes)
    metadata, beside = {"format": "pt"}, {SCALE_FILE: None}
    write_folder(
        path, config, WEIGHTS_FILE, state, overwrite=overwrite, metadata=metadata, beside=beside
    )


def _axes(ours: str, shape: tuple[int, ...]) -> int:
    """Returns the number of axes of the kernel in diffusers' layout."""
    if re.search(r"attn_1\.(q|k|v|proj_out)\.", ours):
        return 2
    return 4 if shape[0] == 1 else 5
