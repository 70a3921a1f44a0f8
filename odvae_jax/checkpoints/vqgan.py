"""The published VQGAN: taming-transformers' `GumbelVQ`, a Lightning checkpoint and a yaml config.

Layers have the same names there as in this package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from odvae_jax.baselines.vqgan import VQGAN, VQGANConfig
from odvae_jax.checkpoints.files import WeightFile
from odvae_jax.checkpoints.folders import write_files
from odvae_jax.checkpoints.layout import (
    Progress,
    build,
    check_halves,
    length_of,
    lightning_state,
    torch_leaf,
    torch_state,
)
from odvae_jax.checkpoints.native import with_overrides
from odvae_jax.checkpoints.torch_file import write_torch_file
from odvae_jax.files import one_line, printable

CLASS_NAME = None
"""It has no `config.json`."""
FILES = ("last.ckpt", "model.yaml")
"""The files of a model, the weights first."""
_TARGET = "taming.models.vqgan.GumbelVQ"
_YAML_BYTES = 2**20
_MOST_LEVELS = 8
_IGNORED = ("loss.",)  # discriminator and perceptual network
_REQUIRED = {"double_z": False, "in_channels": 3, "out_ch": 3}
_FREE = ("dropout", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution")
_OTHER_QUANTISER = (
    "it is a VQModel, whose quantiser takes the nearest code. Only GumbelVQ is supported, of which "
    "vqgan_gumbel_f8 is the published one with 8192 codes."
)


def released_name(ours: str) -> str:
    """Returns the name in the published file of a parameter with this package's name."""
    return "quantize.embed.weight" if ours == "quantize.embed" else ".".join(torch_leaf(ours))


def is_released(file: WeightFile) -> bool:
    """Returns whether the names in a file are those of a VQGAN, with any quantiser."""
    return any(name.startswith("quantize.") for name in lightning_state(file, _IGNORED)[0])


def config_from_yaml(fields: Mapping[str, Any], source: Path) -> VQGANConfig:
    """Returns the config of a published model from the content of its `model.yaml`.

    Args:
      fields: the content of the file.
      source: the path of the file, for error messages.

    Raises:
      ValueError: if it is another model's. The message names the field.
    """
    name = printable(source)
    model = fields.get("model") if isinstance(fields, Mapping) else None
    params = model.get("params") if isinstance(model, Mapping) else None
    network = params.get("ddconfig") if isinstance(params, Mapping) else None
    if not isinstance(network, Mapping):
        raise ValueError(f"{name} has no model.params.ddconfig, as a VQGAN's config has.")
    target = str(model.get("target"))
    if target.split(".")[-1] != _TARGET.split(".")[-1]:
        other = _OTHER_QUANTISER if target.endswith("VQModel") else f"expected {_TARGET}."
        raise ValueError(f"{name}: model.target is {target!r:.100}: {other}")
    if params.get("remap") is not None:
        raise ValueError(f"{name}: remap={params['remap']!r:.100} is not supported.")
    needed = {**_REQUIRED, "z_channels": params.get("embed_dim")}
    for field, value in needed.items():
        if network.get(field, value) != value:
            raise ValueError(
                f"{name}: ddconfig.{field} is {network[field]!r:.100}; a GumbelVQ has {value!r}."
            )
    if unknown := [field for field in network if field not in (*needed, *_FREE)]:
        raise ValueError(f"{name}: ddconfig has the fields {unknown[:4]}, which are not known.")
    try:
        return VQGANConfig(
            width=network["ch"],
            width_multipliers=tuple(network["ch_mult"]),
            blocks=network["num_res_blocks"],
            attention_levels=tuple(
                i
                for i, _ in zip(range(_MOST_LEVELS), network["ch_mult"], strict=False)
                if network["resolution"] // 2**i in network["attn_resolutions"]
            ),
            codes=params["n_embed"],
            code_channels=params["embed_dim"],
        )
    except (KeyError, TypeError, ValueError) as error:  # a yaml may hold anything
        lacks = f"lacks {error}" if isinstance(error, KeyError) else one_line(error, 300)
        raise ValueError(f"{name}: {lacks}") from error


def infer_config(state: Mapping[str, Any], source: Path) -> VQGANConfig:
    """Returns the config of a file of weights without a yaml, from names and shapes.

    Args:
      state: the tensors by name.
      source: the file, for error messages.

    Raises:
      ValueError: if the names are not a whole VQGAN's, or the shapes are no VQGAN's.
    """
    ends = ("encoder.conv_in.weight", "quantize.embed.weight", "quantize.proj.weight")
    levels = {int(m[1]) for n in state if (m := re.match(r"encoder\.down\.(\d)\.block\.0\.", n))}
    firsts = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(len(levels) or 1)]
    if missing := [name for name in (*ends, *firsts) if name not in state]:
        raise ValueError(f"{printable(source)} is not a whole VQGAN: {missing[:4]} are missing.")
    width, codes, _ = (length_of(state[name], name, source) for name in ends)
    blocks = {m[1] for n in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", n))}
    attention = {int(m[1]) for n in state if (m := re.match(r"encoder\.down\.(\d)\.attn\.", n))}
    widths = [length_of(state[name], name, source) for name in firsts]
    try:
        return VQGANConfig(
            width=width,
            width_multipliers=tuple(w // max(width, 1) for w in widths),
            blocks=len(blocks),
            attention_levels=tuple(sorted(attention)),
            codes=codes,
            code_channels=state["quantize.embed.weight"].shape[-1],
        )
    except ValueError as error:
        raise ValueError(f"{printable(source)}: {error}") from error


def load(
    file: WeightFile,
    config: VQGANConfig | None = None,
    progress: Progress = iter,
    **overrides: Any,
) -> tuple[VQGAN, list[str]]:
    """Loads the model of a checkpoint. Names that begin with `loss.` are ignored.

    Args:
      file: the opened file.
      config: the config; None takes that of the yaml beside the file (`model.yaml` there or in
        `../configs`), or reads it off names and shapes if there is none.
      progress: wraps the loop over parameters, for example in a progress bar.
      **overrides: config fields to change that change no parameter's shape.

    Returns:
      The model, and the names in the file that were ignored on purpose.

    Raises:
      ValueError: if the parameters are not exactly those of a VQGAN with a Gumbel quantiser.
    """
    state, ignored = lightning_state(file, _IGNORED)
    if "quantize.embedding.weight" in state:
        raise ValueError(f"{printable(file.path)} is not read: {_OTHER_QUANTISER}")
    check_halves(state, "a VQGAN", file.path)
    config = config or _config_beside(file.path) or infer_config(state, file.path)
    config = with_overrides(config, file.path, overrides)
    return build(config, state, lambda n: (released_name(n),), file.path, progress), ignored


def _config_beside(weights: Path) -> VQGANConfig | None:
    """The config of the yaml that is published with a file of weights, if it is there."""
    folder = weights.parent
    for path in (folder / FILES[1], folder.parent / "configs" / FILES[1]):
        if path.is_file():
            return config_from_yaml(read_yaml(path), path)
    return None


def read_yaml(path: Path) -> Any:
    """Reads plain data from a yaml file.

    Raises:
      ValueError: if the file is no yaml of plain data without aliases, or is larger than 1 MB.
    """
    if (size := path.stat().st_size) > _YAML_BYTES:
        raise ValueError(
            f"{printable(path)} has {size:,} bytes; expected a config of at most {_YAML_BYTES:,}."
        )
    try:
        text = path.read_text(encoding="utf-8")
        # A few aliases of aliases can stand for more data than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("it has aliases, which no config needs")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{printable(path)} is not yaml of plain data: {one_line(error, 200)}"
        ) from error


def save(model: VQGAN, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a model as a folder with `last.ckpt` and `model.yaml`, as taming-transformers has it.

    Args:
      model: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    c = model.config
    state = torch_state(model, released_name, lambda ours, shape: 4)
    resolution = 256
    network = {
        "double_z": False,
        "z_channels": c.code_channels,
        "resolution": resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": c.width,
        "ch_mult": list(c.width_multipliers),
        "num_res_blocks": c.blocks,
        "attn_resolutions": [resolution // 2**i for i in c.attention_levels],
        "dropout": 0.0,
    }
    params = {
        "embed_dim": c.code_channels,
        "n_embed": c.codes,
        "kl_weight": 1e-8,
        "ddconfig": network,
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
    }
    text = yaml.safe_dump({"model": {"target": _TARGET, "params": params}}, sort_keys=False)

    def weights(file: Path) -> None:
        write_torch_file(file, {"state_dict": state})

    write_files(path, dict(zip(FILES, (weights, text), strict=True)), overwrite=overwrite)
