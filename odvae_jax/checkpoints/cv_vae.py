"""CV-VAE as its release has it: diffusers' layout of the class `CVVAEModel`.

Layers have the same names there as in this package, which are those of SD-VAE's original layout. A
bare file is told from that one by the attention over time, and by the missing quant convolutions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax.baselines.cv_vae import CVVAE, TIME_STRIDES, WIDTHS, CVVAEConfig
from odvae_jax.checkpoints.files import WeightFile
from odvae_jax.checkpoints.folders import CONFIG_FILE, SCALE_FILE, write_folder
from odvae_jax.checkpoints.layout import (
    Progress,
    build,
    check_halves,
    length_of,
    lightning_state,
    names_in,
    torch_leaf,
    torch_state,
)
from odvae_jax.checkpoints.native import with_overrides
from odvae_jax.checkpoints.scale_file import files_beside
from odvae_jax.files import printable

CLASS_NAME = "CVVAEModel"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FILES = (WEIGHTS_FILE, CONFIG_FILE, SCALE_FILE)
"""The files of a model, the weights first."""
_GROUPS = 32
_MARK, _FIRST = "decoder.mid.attn_1.q_t.weight", "encoder.conv_in.weight"
# What a CVVAEModel must have to be the released structure; the class's defaults are the same.
_REQUIRED = {
    "double_z": True,
    "in_channels": 3,
    "out_ch": 3,
    "ch_mult": list(WIDTHS),
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "use_3d_conv": True,
    "half_3d": True,
    "causal_encoder": True,
    "causal_decoder": False,
    "decoder_attn_type": "spatial-temporal-xformer",
    "time_n_compress": int(np.prod(TIME_STRIDES)),
    "spatial_n_compress": 2 ** len(TIME_STRIDES),
}
_ENCODER_ATTENTION = ("vanilla-xformers", "vanilla")  # the same function
# Fields of the config by our names, with the class's defaults.
_READ = {
    "width": ("ch", 128),
    "latent_channels": ("z_channels", 4),
    "scaling_factor": ("scaling_factor", 0.18215),
    "frames_at_a_time": ("en_de_n_frames_a_time", 16),
    "tile_side": ("tile_spatial_size", 576),
    "tile_overlap": ("tile_overlap_ratio", 0.2222),
}
# Fields that change neither the parameters nor the function.
_FREE = {
    "_class_name": CLASS_NAME,
    "dropout": 0.0,
    "force_upcast": True,
    "num_video_frames": None,
    "reshape_z_dim_to_4": False,
    "reshape_x_dim_to_4": False,
}
_KNOWN = (*_REQUIRED, *_FREE, "encoder_attn_type", "_diffusers_version", "_name_or_path")


def released_name(ours: str) -> str:
    """Returns the name in the released layout of a parameter with this package's name `ours`."""
    return ".".join(torch_leaf(ours))


def config_from_json(fields: Mapping[str, Any], source: Path) -> CVVAEConfig:
    """Returns the config of a CV-VAE from its `config.json`.

    Args:
      fields: the content of `config.json`; what is missing has the class's default.
      source: the path of `config.json`, for error messages.

    Raises:
      ValueError: if the structure is not the released one, or a field is not known. The message
        names the field.
    """
    for name, value in _REQUIRED.items():
        if fields.get(name, value) != value:
            raise ValueError(
                f"{source}: {name} is {fields[name]!r}; the released CV-VAE has {value!r}."
            )
    if fields.get("encoder_attn_type", "vanilla") not in _ENCODER_ATTENTION:
        raise ValueError(
            f"{source}: encoder_attn_type is {fields['encoder_attn_type']!r}; the released CV-VAE "
            f"has {_ENCODER_ATTENTION[0]!r}."
        )
    read = {theirs for theirs, _ in _READ.values()}
    if unknown := [name for name in fields if name not in read and name not in _KNOWN]:
        raise ValueError(
            f"{source}: {unknown[:4]} are not fields of the released {CLASS_NAME}; a later "
            "version's?"
        )
    return CVVAEConfig(
        groups=_GROUPS,
        **{ours: fields.get(theirs, value) for ours, (theirs, value) in _READ.items()},
    )


def is_released(file: WeightFile) -> bool:
    """Returns whether the names in a file are those of a CV-VAE, or of its encoder alone."""
    names = names_in(file)
    half = not any(isinstance(n, str) and n.startswith("decoder.") for n in names)
    return _MARK in names or (half and np.ndim(names.get(_FIRST)) == 5)


def load(
    file: WeightFile, config: CVVAEConfig | None = None, progress: Progress = iter, **overrides: Any
) -> tuple[CVVAE, list[str]]:
    """Loads the CV-VAE of a file of weights.

    Args:
      file: the opened file.
      config: the config of the `config.json` next to the file; None reads the sizes off shapes and
        takes the release's chunks and tiles.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape.

    Returns:
      The model, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of the model.
    """
    state, ignored = lightning_state(file, ())
    check_halves(state, "a CV-VAE", file.path)
    if config is None:
        ends = (_FIRST, "encoder.conv_out.weight")
        if missing := [name for name in ends if name not in state]:
            raise ValueError(
                f"{printable(file.path)} is not a whole CV-VAE: {missing} are missing."
            )
        width, moments = (length_of(state[name], name, file.path) for name in ends)
        config = CVVAEConfig(width=width, latent_channels=max(moments // 2, 1), groups=_GROUPS)
    config = with_overrides(config, file.path, overrides)
    return build(config, state, lambda n: (released_name(n),), file.path, progress), ignored


def save(vae: CVVAE, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a CV-VAE as a folder that its released implementation loads.

    Its config has no place for a scale of latents that was measured, which goes into a file of its
    own, `odvae_latents_scale.json`.

    Args:
      vae: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      ValueError: if the model is no CV-VAE, or has not the release's groups.
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    c = vae.config
    if not isinstance(c, CVVAEConfig):
        raise ValueError(f"the model is {c.name}; the layout cv-vae can hold CV-VAE alone.")
    if c.groups != _GROUPS:
        raise ValueError(
            f"groups is {c.groups}; the released implementation computes with {_GROUPS}, so the "
            "same weights would be another function there."
        )
    config = {
        **_FREE,
        **_REQUIRED,
        "encoder_attn_type": _ENCODER_ATTENTION[0],
        **{theirs: getattr(c, ours) for ours, (theirs, _) in _READ.items()},
    }
    state = torch_state(vae, released_name, _axes)
    beside = files_beside(WEIGHTS_FILE, c.scale, c.scaling_factor)
    metadata = {"format": "pt"}
    write_folder(
        path, config, WEIGHTS_FILE, state, overwrite=overwrite, metadata=metadata, beside=beside
    )


def _axes(ours: str, shape: tuple[int, ...]) -> int:
    """Returns the number of axes of the released kernel."""
    if re.search(r"attn_1\.\w+_t\.", ours):
        return 2
    return 4 if re.search(r"\.(conv2|attn_1\.\w+)\.", ours) else 5
