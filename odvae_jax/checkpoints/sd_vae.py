"""SD-VAE, the 2D ancestor, in its two layouts: diffusers' AutoencoderKL and the original one.

The two count decoder levels in opposite directions: diffusers' `up_blocks.0` is the original's
`up.3`. In diffusers, attention has newer and older names (`to_q`, `query`), and weights of two or
four axes. Autoencoders of the same plan load too, of any number of latent channels, and without the
quant convolutions: those of Stable Diffusion XL, Stable Diffusion 3 and FLUX.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.files import WeightFile, others, tensors
from odvae_jax.checkpoints.folders import CONFIG_FILE, SCALE_FILE, write_folder
from odvae_jax.checkpoints.layout import (
    Progress,
    build,
    check_halves,
    length_of,
    torch_leaf,
    torch_state,
)
from odvae_jax.checkpoints.native import with_overrides
from odvae_jax.config import MOST_CHANNELS, STRUCTURES, ODVAEConfig, Structure
from odvae_jax.files import printable
from odvae_jax.scale import Scale

logger = logging.getLogger(__name__)

CLASS_NAME = "AutoencoderKL"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FILES = (WEIGHTS_FILE, CONFIG_FILE, SCALE_FILE)
"""The files of a model, the weights first."""
_LATENTS = "decoder.conv_in.weight"
_PREFIX = "first_stage_model."
_FOREIGN = ("loss.", "model.", "model_ema.", "cond_stage_model.")
_ROW = STRUCTURES["image"]
_WITHOUT_QUANT = dataclasses.replace(_ROW, quant=False)
_TOP = len(_ROW.width_multipliers) - 1
_ATTENTION = {
    "norm": ("group_norm",),
    "q": ("to_q", "query"),
    "k": ("to_k", "key"),
    "v": ("to_v", "value"),
    "proj_out": ("to_out.0", "proj_attn"),
}
# What an AutoencoderKL must have to be SD-VAE's architecture; widths and sizes are read.
_REQUIRED = {
    "down_block_types": ["DownEncoderBlock2D"] * (_TOP + 1),
    "up_block_types": ["UpDecoderBlock2D"] * (_TOP + 1),
    "layers_per_block": _ROW.encoder_blocks,
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "mid_block_add_attention": True,
}

_QUANT = ("use_quant_conv", "use_post_quant_conv")


def diffusers_names(ours: str) -> tuple[str, ...]:
    """Returns the names that a parameter may have in diffusers' layout, the newest one first."""
    layer, leaf = torch_leaf(ours)
    layer = re.sub(r"^encoder\.down\.(\d)", r"encoder.down_blocks.\1", layer)
    layer = re.sub(r"^decoder\.up\.(\d)", lambda m: f"decoder.up_blocks.{_TOP - int(m[1])}", layer)
    layer = re.sub(r"(_blocks\.\d)\.block\.", r"\1.resnets.", layer)
    layer = layer.replace(".downsample.", ".downsamplers.0.").replace(
        ".upsample.", ".upsamplers.0."
    )
    layer = layer.replace(".nin_shortcut", ".conv_shortcut").replace(".norm_out", ".conv_norm_out")
    layer = re.sub(r"\.mid\.block_(\d)", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", layer)
    if match := re.fullmatch(r"(\w+)\.mid\.attn_1\.(\w+)", layer):
        part, which = match.groups()
        return tuple(f"{part}.mid_block.attentions.0.{name}.{leaf}" for name in _ATTENTION[which])
    return (f"{layer}.{leaf}",)


def original_names(ours: str) -> tuple[str, ...]:
    """Returns the one name that a parameter has in the original layout.

    Layers have the same names there as in this package.
    """
    return (".".join(torch_leaf(ours)),)


def width_of(
    fields: Mapping[str, Any], required: Mapping[str, Any], model: str, source: Path
) -> int:
    """Returns the width of level 0 that a diffusers `config.json` says, after a check of others.

    Args:
      fields: the content of `config.json`.
      required: the values that fields must have if they are there.
      model: what messages call the model, "SD-VAE" or "SVD-VAE".
      source: the path of `config.json`, for error messages.

    Raises:
      ValueError: if a field is another, or widths are not in SD-VAE's ratio. The message names it.
    """
    for name, value in required.items():
        if name in fields and fields[name] != value:
            raise ValueError(
                f"{source}: {name} is {fields[name]!r}; an {model} has {value!r}. "
                f"`odvae eval --callable` measures any other autoencoder."
            )
    widths = fields.get("block_out_channels")
    first = widths[0] if isinstance(widths, list) and widths else None
    if not isinstance(first, int) or widths != [first * m for m in _ROW.width_multipliers]:
        raise ValueError(
            f"{source}: block_out_channels is {widths}; an {model}'s are in the ratio "
            f"{_ROW.width_multipliers}. `odvae eval --callable` measures any other autoencoder."
        )
    return first


def config_from_json(fields: Mapping[str, Any], source: Path) -> ODVAEConfig:
    """Returns the config of a diffusers SD-VAE from its `config.json`.

    Args:
      fields: the content of `config.json`.
      source: the path of `config.json`, for error messages.

    Raises:
      ValueError: if the architecture is not that of SD-VAE. The message names the field.
    """
    first = width_of(fields, _REQUIRED, "SD-VAE", source)
    quant, post_quant = (fields.get(name, True) for name in _QUANT)
    if not isinstance(quant, bool) or quant != post_quant:
        raise ValueError(
            f"{source}: {_QUANT[0]} is {quant!r} and {_QUANT[1]} is {post_quant!r}; both are true "
            "or both are false here."
        )
    return ODVAEConfig(
        structure=_ROW if quant else _WITHOUT_QUANT,
        width=first,
        latent_channels=fields.get("latent_channels", 4),
        groups=fields.get("norm_num_groups", 32),
        **scale_of(fields),
    )


def is_released(file: WeightFile) -> bool:
    """Returns whether the names in a file are an SD-VAE's; it takes what nobody else knows."""
    return True


def load(
    file: WeightFile, config: ODVAEConfig | None = None, progress: Progress = iter, **overrides: Any
) -> tuple[ODVAE, list[str]]:
    """Loads the image model of a weight file.

    Args:
      file: the opened file, of either layout. In a whole Stable Diffusion checkpoint everything but
        `first_stage_model.` is ignored; in an autoencoder's training file its `loss.` is ignored.
      config: the config of the `config.json` next to the file; None reads width and latent channels
        off the shapes.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape.

    Returns:
      The model, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of an SD-VAE.
    """
    state, ignored = state_of(file)
    if not any(n.startswith("encoder.") for n in state):
        check_halves(state, "an autoencoder", file.path)
        begins = sorted({n.split(".")[0] for n in [*state, *ignored]})[:6]
        cause = (
            "A Stable Diffusion file without its VAE?"
            if any(n.startswith(("model.", "cond_stage_model.")) for n in ignored)
            else "Another kind of model?"
        )
        raise ValueError(
            f"{printable(file.path)} holds no autoencoder: its names begin with {begins}. {cause}"
        )
    newer = any(n.startswith("encoder.down_blocks.") for n in state)
    if config is None:
        quant = any(n.startswith(("quant_conv.", "post_quant_conv.")) for n in state)
        quant = quant or "decoder.conv_in.weight" not in state
        ends = ("encoder.conv_in.weight", "post_quant_conv.weight" if quant else _LATENTS)
        if missing := [name for name in ends if name not in state]:
            raise ValueError(
                f"{printable(file.path)} is not a whole SD-VAE: {missing} are missing"
                + (", and it has no decoder." if _LATENTS not in state else ".")
            )
        width, latent_channels = (length_of(state[name], name, file.path) for name in ends)
        if not quant:
            latent_channels = np.shape(state[_LATENTS])[1:2][0]
        groups = overrides.pop("groups", None if width % 32 else 32)
        if groups is None:
            raise ValueError(
                f"{printable(file.path)} has width {width}, which 32 groups do not divide, and no "
                "config.json beside it that says how many there are: pass groups=, or in the shell "
                "odvae convert with --groups."
            )
        row = _ROW if quant else _WITHOUT_QUANT
        sizes = {"width": width, "latent_channels": latent_channels, "groups": groups}
        config = ODVAEConfig(structure=row, **sizes)
        logger.info("%s: assuming %d groups and scaling_factor 0.18215", file.path, groups)
    config = with_overrides(config, file.path, overrides)
    names = diffusers_names if newer else original_names
    return build(config, state, names, file.path, progress), ignored


def save(vae: ODVAE, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes an image model as a folder that diffusers' `AutoencoderKL.from_pretrained` loads.

    Args:
      vae: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      ValueError: if it is a video model.
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    c = vae.config
    if c.structure in STRUCTURES and c.structure != "image":
        raise ValueError(
            f"structure is {c.name!r}: only an image model is a diffusers AutoencoderKL."
        )
    for field in dataclasses.fields(Structure):
        row = _ROW if c.parts.quant else _WITHOUT_QUANT
        theirs, ours = (getattr(row, field.name) for row in (row, c.parts))
        if theirs != ours:
            raise ValueError(
                f"structure.{field.name} is {ours!r}; a diffusers AutoencoderKL has {theirs!r}."
            )
    config = {
        "_class_name": CLASS_NAME,
        **_REQUIRED,
        **dict.fromkeys(_QUANT, c.parts.quant),
        "block_out_channels": list(c.encoder_widths),
        "latent_channels": c.latent_channels,
        "norm_num_groups": c.groups,
        "sample_size": 256,
        "scaling_factor": c.scaling_factor,
    }
    state = torch_state(
        vae,
        lambda ours: diffusers_names(ours)[0],
        lambda ours, shape: 2 if re.search(r"attn_1\.(q|k|v|proj_out)\.", ours) else 4,
    )
    if c.scale.measured:
        config |= diffusers_scale(c.scale)
    metadata, beside = {"format": "pt"}, {SCALE_FILE: None}
    write_folder(
        path, config, WEIGHTS_FILE, state, overwrite=overwrite, metadata=metadata, beside=beside
    )


def diffusers_scale(scale: Scale) -> dict[str, Any]:
    """Returns the fields in which diffusers keeps a measured scale.

    Its pipelines normalise as (z - latents_mean) * scaling_factor / latents_std, or, if they know
    no mean, as z * scaling_factor. So its deviation is ours times the factor. One mean and one
    deviation of all channels stand there as Stable Diffusion 3 has them, as (z - shift_factor) *
    scaling_factor.
    """
    if {*scale.std} == {1 / scale.factor} and len({*scale.mean}) == 1:
        return {"shift_factor": scale.mean[0]}
    return {
        "latents_mean": list(scale.mean),
        "latents_std": [std * scale.factor for std in scale.std],
        "scaling_factor": scale.factor,
    }


def scale_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of our config for the scale in diffusers' config.

    It is the inverse of `diffusers_scale`.

    Raises:
      ValueError: if the config holds no scale that can be.
    """
    factor = fields.get("scaling_factor", 0.18215)
    mean, std = (fields.get(name) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:  # diffusers uses both or none
        shift = fields.get("shift_factor")
        if shift is None:
            return {"scaling_factor": factor}
        channels = fields.get("latent_channels", 4)
        if channels not in range(1, MOST_CHANNELS + 1):
            raise ValueError(f"latent_channels={channels!r:.100} must be a positive integer.")
        mean, std = [shift] * int(channels), [1.0] * int(channels)
    stated = Scale.from_dict({"mean": mean, "std": std, "factor": factor})
    return {
        "scaling_factor": factor,
        "latents_mean": stated.mean,
        "latents_std": tuple(value / stated.factor for value in stated.std),
    }


def state_of(file: WeightFile) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the autoencoder's tensors, without their names' prefix, and the names left out."""
    content = file.content
    inner = content.get("state_dict")
    nested = isinstance(inner, Mapping)
    left_out = others(content, "state_dict") if nested else []
    content = inner if nested else content
    state = tensors(content)
    left_out += others(content)
    if any(n.startswith(_PREFIX) for n in state):
        kept = {n.removeprefix(_PREFIX): state[n] for n in state if n.startswith(_PREFIX)}
        return kept, [*(n for n in state if not n.startswith(_PREFIX)), *left_out]
    foreign = [n for n in state if n.startswith(_FOREIGN)]
    kept = {n: state[n] for n in state if not n.startswith(_FOREIGN)} if foreign else state
    return kept, [*foreign, *left_out]
