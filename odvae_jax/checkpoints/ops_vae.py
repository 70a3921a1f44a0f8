"""OPS-VAE as its release has it: transformers' layout of the class `VideoAutoencoderPipeline`.

The weights hold both models: the image model in diffusers' layout of an SD-VAE, and the temporal
one. `config.json` has no widths, which are read off the shapes. The shift and the scale of latents
stand in the weights as buffers, which are taken rather than those in `config.json`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax.baselines.ops_vae import BLOCKS, HALVED, OPSVAE, WIDTHS, OPSVAEConfig
from odvae_jax.checkpoints import sd_vae
from odvae_jax.checkpoints.files import WeightFile
from odvae_jax.checkpoints.folders import CONFIG_FILE, SCALE_FILE, write_folder
from odvae_jax.checkpoints.layout import (
    Progress,
    build,
    length_of,
    lightning_state,
    names_in,
    torch_leaf,
    torch_state,
)
from odvae_jax.checkpoints.native import with_overrides
from odvae_jax.checkpoints.scale_file import files_beside
from odvae_jax.files import printable

CLASS_NAME = "VideoAutoencoderPipeline"
WEIGHTS_FILE = "model.safetensors"
FILES = (WEIGHTS_FILE, CONFIG_FILE, SCALE_FILE)
"""The files of a model, the weights first."""
_IMAGE, _TEMPORAL = "spatial_vae.module.", "temporal_vae."
# How names of the image model and of the temporal one begin in a file of its own.
_BARE = ("module.encoder.down_blocks.", "encoder.block_res_blocks.", "decoder.block_res_blocks.")
_IMAGE_TYPE = "VideoAutoencoderKL"
_RELEASED_TYPE, _PLAIN_TYPE = "VAE_Temporal_SD", "VAE_Temporal"
_BUFFERS = {"shift": "shift", "scale": "deviation"}
# What a temporal model that states its structure must have; its widths are read off the shapes.
_REQUIRED = {
    "num_res_blocks": BLOCKS,
    "channel_multipliers": list(WIDTHS),
    "temporal_downsample": [i in HALVED for i in range(len(WIDTHS) - 1)],
}
_SIZES = ("in_out_channels", "latent_embed_dim", "embed_dim")


def released_names(ours: str) -> tuple[str, ...]:
    """Returns the names that a parameter may have in the released layout, the newest one first."""
    if ours.startswith("spatial_vae."):
        inner = sd_vae.diffusers_names(ours.removeprefix("spatial_vae."))
        return tuple(_IMAGE + name for name in inner)
    layer, leaf = torch_leaf(ours)
    layer = re.sub(r"\.(?:down|up)\.(\d)\.block\.", r".block_res_blocks.\1.", layer)
    layer = layer.replace(".rest.block.", ".res_blocks.")
    layer = re.sub(r"\.down\.(\d)\.resample", r".conv_blocks.\1", layer)
    # Number i of the decoder follows level i + 1.
    layer = re.sub(r"\.up\.(\d)\.resample\.conv", lambda m: f".conv_blocks.{int(m[1]) - 1}", layer)
    layer = layer.replace(".norm_out", ".norm1")
    layer = layer.replace("encoder.conv_out", "encoder.conv2")
    layer = layer.replace("decoder.conv_in", "decoder.conv1")
    return (f"{layer}.{leaf}" if re.search(r"norm\d$", layer) else f"{layer}.conv.{leaf}",)


def config_from_json(fields: Mapping[str, Any], source: Path) -> OPSVAEConfig:
    """Returns the config of an OPS-VAE from its `config.json`, with the release's widths.

    Args:
      fields: the content of `config.json`.
      source: the path of `config.json`, for error messages.

    Raises:
      ValueError: if the structure is not the released one. The message names the field.
    """
    image, temporal = (fields.get(name, {}) for name in ("vae_2d", "vae_temporal"))
    for name, part, types in (
        ("vae_2d", image, (_IMAGE_TYPE,)),
        ("vae_temporal", temporal, (_RELEASED_TYPE, _PLAIN_TYPE)),
    ):
        if not isinstance(part, dict) or part.get("type", types[0]) not in types:
            raise ValueError(f"{source}: {name} is {part!r:.200}; expected the type {types[0]!r}.")
    if fields.get("cal_loss"):
        raise ValueError(
            f"{source}: cal_loss is {fields['cal_loss']!r}, which is for training: latents would "
            "be neither shifted nor scaled. The released model has false."
        )
    channels = temporal.get(_SIZES[0], 4)
    for name, value in {**_REQUIRED, **dict.fromkeys(_SIZES, channels)}.items():
        if temporal.get(name, value) != value:
            raise ValueError(
                f"{source}: vae_temporal.{name} is {temporal[name]!r}; OPS-VAE has {value!r}."
            )
    default = OPSVAEConfig()
    return OPSVAEConfig(
        latent_channels=channels,
        micro_frames=fields.get("micro_frame_size", default.micro_frames),
        frames_at_a_time=image.get("micro_batch_size", default.frames_at_a_time),
        **{
            ours: _as_tuple(fields.get(theirs, getattr(default, ours)))
            for theirs, ours in _BUFFERS.items()
        },
    )


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def is_released(file: WeightFile) -> bool:
    """Returns whether the names in a file are those of an OPS-VAE, or of one of its two models."""
    parts = (_IMAGE, _TEMPORAL, *_BARE)
    return any(isinstance(name, str) and name.startswith(parts) for name in names_in(file))


def load(
    file: WeightFile,
    config: OPSVAEConfig | None = None,
    progress: Progress = iter,
    **overrides: Any,
) -> tuple[OPSVAE, list[str]]:
    """Loads the OPS-VAE of a file of weights.

    Args:
      file: the opened file.
      config: the config of the `config.json` next to the file; None takes the release's micro
        clips. Widths are those of the shapes in any case.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape.

    Returns:
      The model, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of the model.
    """
    state, ignored = lightning_state(file, ())
    _check_parts(state, file.path)
    config = config or OPSVAEConfig()
    ends = tuple(f"{part}encoder.conv_in{layer}.weight" for part, layer in _ENDS)
    missing = [name for name in (*ends, *_BUFFERS) if name not in state]
    if missing:
        raise ValueError(f"{printable(file.path)} is not a whole OPS-VAE: {missing} are missing.")
    image_width, width = (length_of(state[name], name, file.path) for name in ends)
    buffers = {
        ours: _per_channel(state[theirs], theirs, config.latent_channels, file.path)
        for theirs, ours in _BUFFERS.items()
    }
    config = dataclasses.replace(config, image_width=image_width, width=width, **buffers)
    config = with_overrides(config, file.path, overrides)
    state = {name: state[name] for name in state if name not in _BUFFERS}
    return build(config, state, released_names, file.path, progress), ignored


def _check_parts(state: Mapping[str, Any], source: Path) -> None:
    """Refuses one of the two models without the other."""
    models = {"image": (_IMAGE, _BARE[0]), "temporal": (_TEMPORAL, *_BARE[1:])}
    held = [name for name, begins in models.items() if any(n.startswith(begins) for n in state)]
    if len(held) == 1:
        (other,) = models.keys() - held
        raise ValueError(
            f"{printable(source)} holds the {held[0]} model of an OPS-VAE alone: take the file "
            f"that holds the {other} model, too ({WEIGHTS_FILE} of hpcai-tech/OpenSora-VAE-v1.2)."
        )


_ENDS = ((_IMAGE, ""), (_TEMPORAL, ".conv"))


def _per_channel(buffer: np.ndarray, name: str, channels: int, source: Path) -> tuple[float, ...]:
    """Returns the numbers of a buffer; each is the shortest decimal that float32 rounds to it."""
    if np.shape(buffer) != (1, channels, 1, 1, 1):
        raise ValueError(
            f"{printable(source)}: {name} is {np.shape(buffer)}, expected {(1, channels, 1, 1, 1)}."
        )
    return tuple(float(str(np.float32(value))) for value in np.ravel(buffer))


def save(vae: OPSVAE, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes an OPS-VAE as a folder that its released implementation loads.

    That implementation takes the widths of the image model from a config on the hub, and those of
    the temporal model from its type; a model of other widths can only be read here. A scale of
    latents that was measured goes into a file of its own, `odvae_latents_scale.json`.

    Args:
      vae: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      ValueError: if the model is no OPS-VAE, or has not the release's groups.
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    c = vae.config
    if not isinstance(c, OPSVAEConfig):
        raise ValueError(f"the model is {c.name}; the layout ops-vae can hold OPS-VAE alone.")
    groups = OPSVAEConfig().groups
    if c.groups != groups:
        raise ValueError(
            f"groups is {c.groups}; the released implementation computes with {groups}, so the "
            "same weights would be another function there."
        )
    state = torch_state(vae, lambda ours: released_names(ours)[0], _axes)
    for theirs, ours in _BUFFERS.items():
        state[theirs] = np.asarray(getattr(c, ours), np.float32).reshape(1, -1, 1, 1, 1)
    beside = files_beside(WEIGHTS_FILE, c.scale, OPSVAEConfig().scaling_factor)
    metadata = {"format": "pt"}
    write_folder(
        path,
        _config_of(c),
        WEIGHTS_FILE,
        state,
        overwrite=overwrite,
        metadata=metadata,
        beside=beside,
    )


def _config_of(c: OPSVAEConfig) -> dict[str, Any]:
    """Returns the `config.json` that the released implementation reads."""
    temporal: dict[str, Any] = {"type": _RELEASED_TYPE, "from_pretrained": None}
    if (c.width, c.latent_channels) != (OPSVAEConfig().width, OPSVAEConfig().latent_channels):
        sizes = dict.fromkeys(_SIZES, c.latent_channels)
        temporal = {"type": _PLAIN_TYPE, **sizes, "filters": c.width, **_REQUIRED}
    return {
        "architectures": [CLASS_NAME],
        "model_type": CLASS_NAME,
        "cal_loss": False,
        "freeze_vae_2d": False,
        "from_pretrained": None,
        "micro_frame_size": c.micro_frames,
        **{theirs: list(getattr(c, ours)) for theirs, ours in _BUFFERS.items()},
        "vae_2d": {
            "type": _IMAGE_TYPE,
            "from_pretrained": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers",
            "subfolder": "vae",
            "micro_batch_size": c.frames_at_a_time,
        },
        "vae_temporal": temporal,
    }


def _axes(ours: str, shape: tuple[int, ...]) -> int:
    """Returns the number of axes of the released kernel."""
    if ours.startswith("temporal_vae."):
        return 5
    return 2 if re.search(r"attn_1\.(q|k|v|proj_out)\.", ours) else 4
