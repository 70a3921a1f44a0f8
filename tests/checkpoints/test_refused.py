"""Models that are known and not held here: the error says which one a file holds."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import odvae_jax
from odvae_jax.checkpoints import sd_vae
from odvae_jax.checkpoints.torch_file import write_torch_file
from tests.baselines.published import state
from tests.conftest import small_model
from tests.released import released_config, released_state

ONE_0 = {
    "encoder_conv_in": "CausalConv3d",
    "encoder_attention": "AttnBlock3D",
    "decoder_attention": "AttnBlock3D",
    "encoder_spatial_downsample": ["SpatialDownsample2x"] * 3 + [""],
    "encoder_temporal_downsample": ["TimeDownsample2x", "TimeDownsample2x", "", ""],
    "decoder_temporal_upsample": ["", "", "TimeUpsample2x", "TimeUpsample2x"],
}
ONE_1 = {
    "encoder_spatial_downsample": ["Downsample"] * 3 + [""],
    "encoder_temporal_downsample": ["", "TimeDownsampleRes2x", "TimeDownsampleRes2x", ""],
    "decoder_spatial_upsample": ["", *["SpatialUpsample2x"] * 3],
    "decoder_temporal_upsample": ["", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x"],
}
WF_VAE = {"_class_name": "WFVAEModel", "latent_dim": 16, "base_channels": 192}


@pytest.mark.parametrize(
    "fields, words",
    [
        (ONE_0, "encoder_attention is AttnBlock3D.*this is Open-Sora-Plan 1.0's autoencoder"),
        (
            ONE_0 | {"encoder_attention": "AttnBlock3DFix", "decoder_attention": "AttnBlock3DFix"},
            r"this is Open-Sora-Plan 1\.0's.*apart from space \(TimeDownsample2x\)",
        ),
        (ONE_1, r"this is Open-Sora-Plan 1\.1's.*apart from space \(TimeDownsampleRes2x\)"),
        (WF_VAE, "this is WF-VAE.*, 16 latent channels"),
        ({"_class_name": "CVVAESD3Model"}, "CV-VAE for Stable Diffusion 3, 16 latent channels"),
    ],
    ids=["1.0", "1.0 with the later attention", "1.1", "WF-VAE", "CV-VAE for SD3"],
)
def test_a_config_of_another_version_is_called_by_its_name(tmp_path, fields, words):
    (tmp_path / "config.json").write_text(json.dumps(released_config() | fields))
    with pytest.raises(ValueError, match=rf"config\.json: .*{words}"):
        odvae_jax.from_pretrained(tmp_path)


def zeros(**shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def wf_vae(channels):
    return zeros(
        **{
            "encoder.down1.0.weight": (16, 24, 3, 3),
            "encoder.mid.1.q.conv.weight": (64, 64, 1, 1, 1),
            "decoder.conv_in.conv.weight": (64, channels, 3, 3, 3),
            "decoder.connect_l1.1.weight": (12, 8, 3, 3),
        }
    )


def one_0():
    """Version 1.2's names with space resampled by 1×3×3 kernels."""
    changed = {
        name.replace("0.downsample.conv.", "0.downsample.conv.conv."): value
        for name, value in released_state().items()
    }
    name = "encoder.down.0.downsample.conv.conv.weight"
    return changed | {name: changed[name][:, :, None]}


def one_1():
    return released_state() | zeros(**{"encoder.down.1.time_downsample.mix_factor": (1,)})


@pytest.mark.parametrize(
    "state, words",
    [
        (lambda: wf_vae(8), "this is WF-VAE.*, 8 latent channels"),
        (lambda: wf_vae(32), "this is WF-VAE.*, 32 latent channels"),
        (one_0, r"this is Open-Sora-Plan 1\.0's autoencoder.*\(32, 32, 1, 3, 3\)"),
        (one_1, r"this is Open-Sora-Plan 1\.1's autoencoder.*mix_factor"),
    ],
    ids=["WF-VAE of 8 channels", "WF-VAE of 32 channels", "1.0", "1.1"],
)
@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "ema.ckpt"])
def test_a_bare_file_of_another_version_is_called_by_its_name(tmp_path, state, words, kind):
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file({n: np.ascontiguousarray(v) for n, v in state().items()}, path)
    else:
        write_torch_file(path, {"ema_state_dict": state()} if "ema" in kind else state())
    with pytest.raises(ValueError, match=rf"{path.name}: {words}"):
        odvae_jax.from_pretrained(path)


def under_diffusers_names(channels, inner=""):
    """The first layers of a video autoencoder that has diffusers' names."""
    return zeros(
        **{
            f"encoder.conv_in{inner}.weight": (16, 3, 3, 3, 3),
            f"encoder.down_blocks.0.resnets.0.conv1{inner}.weight": (16, 16, 3, 3, 3),
            f"decoder.conv_in{inner}.weight": (32, channels, 3, 3, 3),
        }
    )


@pytest.mark.parametrize(
    "channels, inner, words",
    [
        (16, "", "this is likely the CV-VAE for Stable Diffusion 3, 16.*CVVAEModel.*vae3d_v1-1"),
        (16, ".conv", "this is a video autoencoder of 16 latent channels under diffusers' names"),
        (4, "", "this is a video autoencoder of 4 latent channels under diffusers' names"),
    ],
    ids=["CV-VAE for SD3", "CogVideoX", "another"],
)
def test_video_models_under_the_names_of_an_image_model_are_told_from_it(
    channels, inner, words, tmp_path
):
    save_file(under_diffusers_names(channels, inner), tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=rf"vae\.safetensors: {words}"):
        odvae_jax.from_pretrained(tmp_path / "vae.safetensors")


HALF = {
    "cv_vae": ("encoder.", "decoder."),
    "svd_vae": ("decoder.",),
    "vqgan": ("encoder.", "decoder."),
    "tats": ("encoder.", "decoder."),
}
HALVES = [(model, begins) for model, both in HALF.items() for begins in both]
NAMES = {"cv_vae": "a CV-VAE", "svd_vae": "an SVD-VAE", "vqgan": "a VQGAN", "tats": "a TATS"}


@pytest.mark.parametrize("model, begins", HALVES)
def test_half_of_an_autoencoder_is_called_so(model, begins, tmp_path):
    both = ("encoder.", "decoder.")
    weights = {
        n: v for n, v in state(model).items() if n.startswith(begins) or not n.startswith(both)
    }
    save_file(weights, tmp_path / "half.safetensors")
    words = (
        rf"half\.safetensors holds the {begins[:-1]} of {NAMES[model]}.* alone: take the file that"
    )
    with pytest.raises(ValueError, match=words):
        odvae_jax.from_pretrained(tmp_path / "half.safetensors")


@pytest.mark.parametrize("begins", ["encoder.", "decoder."])
@pytest.mark.parametrize("kind", ["OD-VAE", "SD-VAE"])
def test_half_of_an_od_vae_or_an_sd_vae_is_called_so(kind, begins, tmp_path):
    if kind == "OD-VAE":
        weights = released_state()
    else:
        sd_vae.save(small_model("image"), tmp_path / "sd")
        weights = load_file(tmp_path / "sd" / "diffusion_pytorch_model.safetensors")
    half = {n: v for n, v in weights.items() if n.startswith(begins)}
    save_file(half, tmp_path / "half.safetensors")
    words = (
        f"holds the {begins[:-1]} of {'an OD-VAE' if kind == 'OD-VAE' else 'an autoencoder'} alone"
    )
    if (kind, begins) == ("SD-VAE", "encoder."):
        words = "is not a whole SD-VAE: .*post_quant_conv.*, and it has no decoder"
    with pytest.raises(ValueError, match=words):
        odvae_jax.from_pretrained(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    "begins, bare, words",
    [
        ("spatial_vae.module.", "module.", "the image model of an OPS-VAE alone.*temporal model"),
        ("temporal_vae.", "", "the temporal model of an OPS-VAE alone.*image model, too"),
    ],
    ids=["image", "temporal"],
)
def test_one_of_the_two_models_of_an_ops_vae_is_called_so(begins, bare, words, tmp_path):
    half = {n: v for n, v in state("ops_vae").items() if n.startswith(begins)}
    for prefix in (begins, bare):
        weights = {prefix + n.removeprefix(begins): v for n, v in half.items()}
        save_file(weights, tmp_path / "half.safetensors")
        with pytest.raises(ValueError, match=rf"half\.safetensors holds {words}"):
            odvae_jax.from_pretrained(tmp_path / "half.safetensors")
