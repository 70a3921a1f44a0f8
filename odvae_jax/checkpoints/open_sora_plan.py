"""The released PyTorch OD-VAE: Open-Sora-Plan version 1.2's `CausalVAEModel` (July 2024).

Its layers have the same names as this package's. A 3D convolution is wrapped in a module of its
own, whose parameter is called `.conv`. Per-frame convolutions are 2D, with kernels of four axes.
The one exception is the decoder's upsampling at level 1, a wrapped 1×3×3 convolution.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from odvae_jax.checkpoints.scale_file import files_beside
from odvae_jax.config import LEVELS, STRUCTURES, Kind, ODVAEConfig
from odvae_jax.files import printable

CLASS_NAME = "CausalVAEModel"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FILES = (WEIGHTS_FILE, CONFIG_FILE, SCALE_FILE)
"""The files of a model, the weights first."""
HOLDABLE = ("v1", "v3", "v4")
"""The structures that its classes can hold; they cannot hold variant 2's mixed blocks."""
_FUNCTION = {"upsample": "linear", "norm": "clip", "time_upsample": "linear"}
_GROUPS = 32


def released_config(config: ODVAEConfig) -> dict[str, Any]:
    """Returns the `config.json` that describes a model with version 1.2's classes.

    Raises:
      ValueError: if these classes cannot hold the model or would compute another function. The
        message names the field.
    """
    for field in LEVELS:
        theirs, ours = (getattr(row, field) for row in (STRUCTURES["v4"], config.parts))
        if theirs != ours:
            raise ValueError(
                f"structure.{field} is {ours!r}; the released implementation can hold {theirs!r}."
            )
    if config.structure not in HOLDABLE:
        raise ValueError(
            f"structure is {config.name!r}; the released implementation can hold {list(HOLDABLE)}."
        )
    for name, value in {**_FUNCTION, "groups": _GROUPS}.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; the released implementation computes with "
                f"{value!r}, so the same weights would be another function there."
            )
    parts = config.parts

    def conv(kind: Kind) -> str:
        return {"2d": "Conv2d", "3d": "CausalConv3d"}[kind]

    def block(kind: Kind) -> str:
        return {"2d": "ResnetBlock2D", "3d": "ResnetBlock3D"}[kind]

    def down(kind: Kind, time: int) -> str:
        space_only = {"2d": "Downsample", "3d": "Spatial2x3DDownsample"}[kind]
        return "Spatial2xTime2x3DDownsample" if time == 2 else space_only

    levels = len(parts.width_multipliers)
    strides = parts.time_strides
    return {
        "_class_name": CLASS_NAME,
        "hidden_size": config.width,
        "z_channels": config.latent_channels,
        "embed_dim": config.latent_channels,
        "hidden_size_mult": list(parts.width_multipliers),
        "num_res_blocks": parts.encoder_blocks,
        "double_z": True,
        "dropout": 0.0,
        "resolution": 256,
        "attn_resolutions": [],
        "use_quant_layer": True,
        "q_conv": "CausalConv3d",
        "encoder_conv_in": conv(parts.encoder_in),
        "encoder_conv_out": conv(parts.ends),
        "encoder_attention": "AttnBlock3DFix",
        "encoder_mid_resnet": block(parts.middle),
        "encoder_resnet_blocks": [block(kind) for kind in parts.encoder_levels],
        "encoder_spatial_downsample": [
            *(down(kind, t) for kind, t in zip(parts.downsample, strides, strict=True)),
            "",
        ],
        "encoder_temporal_downsample": [""] * levels,
        "decoder_conv_in": conv(parts.ends),
        "decoder_conv_out": conv(parts.ends),
        "decoder_attention": "AttnBlock3DFix",
        "decoder_mid_resnet": block(parts.middle),
        "decoder_resnet_blocks": [block(kind) for kind in parts.decoder_levels],
        "decoder_spatial_upsample": [
            "",
            *("Spatial2xTime2x3DUpsample" if t == 2 else "SpatialUpsample2x" for t in strides),
        ],
        "decoder_temporal_upsample": [""] * levels,
    }


# Fields whose value changes neither the parameters nor the function of a model.
_FREE = (
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "dropout",
    "resolution",
    "lr",
    "loss_type",
    "loss_params",
    "in_channels",
    "out_channels",
)
# For these the class's default is what every variant has, so they may be missing.
_DEFAULTS = {"attn_resolutions": [], "double_z": True, "use_quant_layer": True}


def config_from_json(fields: Mapping[str, Any], source: Path) -> ODVAEConfig:
    """Returns the config of a released model from its `config.json`.

    Args:
      fields: the content of `config.json`.
      source: the path of `config.json`, for error messages.

    Raises:
      ValueError: if no variant has the structure, or if a field is unknown, or is missing and would
        take its class's default, which is not version 1.2's.
    """
    fields = {**_DEFAULTS, **fields}
    sizes = {
        "width": fields.get("hidden_size"),
        "latent_channels": fields.get("z_channels"),
    }
    for ours, theirs in (("width", "hidden_size"), ("latent_channels", "z_channels")):
        if not isinstance(sizes[ours], int):
            raise ValueError(f"{source}: {theirs} is {sizes[ours]!r}; expected a whole number.")
    closest = None
    for structure in HOLDABLE:
        config = ODVAEConfig(structure=structure, groups=_GROUPS, **sizes, **_FUNCTION)
        expected = {n: v for n, v in released_config(config).items() if n not in _FREE}
        missing = [n for n in expected if n not in fields]
        if missing:
            raise ValueError(
                f"{source}: {missing} are missing; they would take their class's defaults, which "
                "are not version 1.2's. Take them from version 1.2's config.json if that is what "
                "the weights are."
            )
        unknown = [n for n in fields if n not in expected and n not in _FREE]
        if unknown:
            raise ValueError(
                f"{source}: {unknown} are not fields of version 1.2's {CLASS_NAME}; "
                "a later version's?"
            )
        differing = [n for n, v in expected.items() if fields[n] != v]
        if not differing:
            return config
        if closest is None or len(differing) < len(closest[1]):
            closest = (structure, differing, expected)
    structure, differing, expected = closest
    raise ValueError(
        f"{source} is none of the variants {list(HOLDABLE)}; the closest, {structure}, differs in "
        + ", ".join(f"{n} ({fields[n]!r} there, {expected[n]!r} in {structure})" for n in differing)
    )


def released_name(ours: str, config: ODVAEConfig) -> str:
    """Returns the name in the released layout of a parameter with this package's name `ours`."""
    layer, leaf = torch_leaf(ours)
    is_norm = re.search(r"norm\w*$", layer)
    return f"{layer}.{leaf}" if is_norm or _is_2d(layer, config) else f"{layer}.conv.{leaf}"


def infer_config(state: Mapping[str, Any], source: Path) -> ODVAEConfig:
    """Returns the config of a file of weights without a `config.json`, from names and shapes.

    Weights whose convolutions fit no variant are taken for variant 4; `build` then says what
    differs.

    Args:
      state: the tensors by name.
      source: the file, for error messages.

    Raises:
      ValueError: if `conv_in` or `post_quant_conv` is missing.
    """
    name = next(
        (n for n in ("encoder.conv_in.weight", "encoder.conv_in.conv.weight") if n in state), None
    )
    latents = "post_quant_conv.conv.weight"
    if name is None or latents not in state:
        raise ValueError(
            f"{printable(source)} is not a whole OD-VAE: conv_in or post_quant_conv is missing."
        )
    sizes = {
        "width": length_of(state[name], name, source),
        "latent_channels": length_of(state[latents], latents, source),
    }
    for structure in HOLDABLE:
        config = ODVAEConfig(structure=structure, groups=_GROUPS, **sizes, **_FUNCTION)
        parts = config.parts
        probes = {
            "encoder.conv_in.kernel": parts.encoder_in,
            "decoder.up.0.block.0.conv1.kernel": parts.decoder_levels[0],
        }
        if all(released_name(n, config) in state for n in probes):
            return config
    return ODVAEConfig.variant(4, groups=_GROUPS, **sizes, **_FUNCTION)


def is_released(file: WeightFile) -> bool:
    """Returns whether the names in a file are those of a released OD-VAE."""
    return any(
        name.endswith(".conv.weight") for name in state_of(file)[0] if ".mid.attn_1." in name
    )


def load(
    file: WeightFile, config: ODVAEConfig | None = None, progress: Progress = iter, **overrides: Any
) -> tuple[ODVAE, list[str]]:
    """Loads the model of a file of weights or of a training checkpoint.

    EMA weights are preferred. The parameters of the training losses are ignored.

    Args:
      file: the opened file.
      config: the config of the `config.json` next to the file; None reads it off names and shapes.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape.

    Returns:
      The model, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of the model.
    """
    state, ignored = state_of(file)
    check_halves(state, "an OD-VAE", file.path)
    config = config or infer_config(state, file.path)
    model = with_overrides(config, file.path, overrides)
    vae = build(model, state, lambda n: (released_name(n, config),), file.path, progress)
    return vae, ignored


def save(vae: ODVAE, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a model as a folder that the released implementation loads strictly.

    Its config has no place for a scale of latents that was measured, which goes into a file of its
    own, `odvae_latents_scale.json`.

    Args:
      vae: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      ValueError: if the released implementation cannot hold the model or would compute another
        function. The message names the field.
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    config = released_config(vae.config)
    state = torch_state(
        vae,
        lambda ours: released_name(ours, vae.config),
        lambda ours, shape: 4 if _is_2d(torch_leaf(ours)[0], vae.config) else 5,
    )
    beside = files_beside(WEIGHTS_FILE, vae.config.scale, ODVAEConfig().scaling_factor)
    metadata = {"format": "pt"}
    write_folder(
        path, config, WEIGHTS_FILE, state, overwrite=overwrite, metadata=metadata, beside=beside
    )


def _is_2d(layer: str, config: ODVAEConfig) -> bool:
    """Whether the released model has a plain 2D convolution here."""
    parts = config.parts
    if layer == "encoder.conv_in":
        return parts.encoder_in == "2d"
    if match := re.match(r"(encoder\.down|decoder\.up)\.(\d)\.(block|downsample)", layer):
        where, level, what = match.groups()
        if what == "downsample":
            return parts.downsample[int(level)] == "2d"
        levels = parts.encoder_levels if where == "encoder.down" else parts.decoder_levels
        return levels[int(level)] == "2d"
    return False


def state_of(file: WeightFile) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the model's tensors, those of the EMA if there are any, and the names left out."""
    content, left_out = file.content, []
    for keys in (("ema_state_dict",), ("state_dict", "gen_model"), ("gen_model",), ("state_dict",)):
        inner: Any = content
        skipped = []
        for key in keys:
            skipped += others(inner, key) if isinstance(inner, Mapping) else []
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and len(inner):
            content, left_out = inner, skipped
            break
    state = tensors(content)
    left_out += others(content)
    if any(n.startswith("module.") for n in state):
        state = {n.removeprefix("module."): state[n] for n in state}
    losses = [n for n in state if n.startswith("loss.")]
    kept = {n: state[n] for n in state if not n.startswith("loss.")} if losses else state
    return kept, [*losses, *left_out]
