"""Models that are known and not held here, and errors that name them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax.files import one_line, printable

_TIME_FIELDS = ("encoder_temporal_downsample", "decoder_temporal_upsample")
_HELD = "Of Open-Sora-Plan, version 1.2's autoencoder is supported"
_CV_VAE = "CVVAEModel, which is in the repository's folders vae3d and vae3d_v1-1"
_SD3_CHANNELS = 16
_WF_VAE = "WF-VAE, the autoencoder of Open-Sora-Plan 1.3 and later"


def check_config(fields: Mapping[str, Any], source: Path) -> None:
    """Checks that a `config.json` is not that of a model that is known and not held here.

    Args:
      fields: the content of `config.json`.
      source: the path of `config.json`, for error messages.

    Raises:
      ValueError: if it is. The message says which model it is.
    """
    name, kind = printable(source), fields.get("_class_name")
    if kind == "WFVAEModel":
        channels = fields.get("latent_dim")
        raise ValueError(f"{name}: this is {_wf_vae(channels)}.")
    if kind == "CVVAESD3Model":
        raise ValueError(
            f"{name}: this is the CV-VAE for Stable Diffusion 3, {_SD3_CHANNELS} latent channels: "
            f"another network than {_CV_VAE}."
        )
    if kind != "CausalVAEModel":
        return
    for field in ("encoder_attention", "decoder_attention"):
        if fields.get(field) == "AttnBlock3D":
            raise ValueError(
                f"{name}: {field} is AttnBlock3D, which mixes frames and channels by a known "
                f"mistake: this is Open-Sora-Plan 1.0's autoencoder. {_HELD} (AttnBlock3DFix)."
            )
    layers = [layer for field in _TIME_FIELDS for layer in _listed(fields.get(field)) if layer]
    if layers:
        version = "1.1" if any("Res" in str(layer) for layer in layers) else "1.0"
        raise ValueError(
            f"{name}: this is Open-Sora-Plan {version}'s autoencoder, which resamples time apart "
            f"from space ({one_line(Exception(layers[0]), 60)}). {_HELD}."
        )


def _listed(value):
    return value if isinstance(value, list) else []


def check_names(state: Mapping[str, Any], source: Path) -> None:
    """Checks that weights are not those of a model that is known and not held here.

    Args:
      state: the tensors by name.
      source: the file, for error messages.

    Raises:
      ValueError: if they are. The message says which model it is.
    """
    name = printable(source)
    if any(n.startswith(("encoder.down1.", "decoder.connect_l1.")) for n in state):
        ends = ("decoder.conv_in.conv.weight", "decoder.conv_in.weight")
        channels = [size for n in ends if n in state for size in np.shape(state[n])[1:2]]
        raise ValueError(f"{name}: this is {_wf_vae(channels[0] if channels else None)}.")
    _check_3d_of_diffusers(state, name)
    resampling = [n for n in state if ".time_downsample." in n or ".time_upsample." in n]
    if resampling:
        raise ValueError(
            f"{name}: this is Open-Sora-Plan 1.1's autoencoder, which resamples time apart from "
            f"space ({one_line(Exception(resampling[0]), 100)}). {_HELD}."
        )
    for n in state:
        if n.startswith("encoder.down.") and n.endswith(".downsample.conv.conv.weight"):
            shape = np.shape(state[n])
            if shape[2:3] == (1,):
                raise ValueError(
                    f"{name}: this is Open-Sora-Plan 1.0's autoencoder, which resamples time apart "
                    f"from space ({n} is {shape}). {_HELD}."
                )


def _check_3d_of_diffusers(state: Mapping[str, Any], name: str) -> None:
    """Refuses video models that have diffusers' names of an image autoencoder."""
    if not any(n.startswith("encoder.down_blocks.") for n in state):
        return
    first, last = (
        next((n for n in (f"{part}.weight", f"{part}.conv.weight") if n in state), None)
        for part in ("encoder.conv_in", "decoder.conv_in")
    )
    if first is None or np.ndim(state[first]) != 5:
        return
    channels = np.shape(state[last])[1:2] if last else ()
    if channels == (_SD3_CHANNELS,) and first == "encoder.conv_in.weight":
        raise ValueError(
            f"{name}: this is likely the CV-VAE for Stable Diffusion 3, {_SD3_CHANNELS} latent "
            f"channels, for its kernels reach over time and have diffusers' names: another network "
            f"than {_CV_VAE}."
        )
    of = f" of {channels[0]} latent channels" if channels else ""
    raise ValueError(
        f"{name}: this is a video autoencoder{of} under diffusers' names ({first} is "
        f"{np.shape(state[first])}), such as that of CogVideoX or HunyuanVideo, which is not "
        "supported."
    )


def _wf_vae(channels: Any) -> str:
    latent = f", {channels} latent channels" if isinstance(channels, int) else ""
    return f"{_WF_VAE}{latent}: another network, built on wavelets, which is not supported"
