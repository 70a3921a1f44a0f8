"""The released layout, against the released implementation's names, shapes and numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from odvae_jax import ODVAE
from odvae_jax.checkpoints import open_sora_plan
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.parameters import named_parameters
from tests.conftest import small_model
from tests.released import golden, released_config, released_shapes, released_state

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Version 1.2's folder, at width 32."""
    path = tmp_path / "released"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(released_config()))
    save_file(released_state(), path / WEIGHTS)
    return path


def same_files(a: Path, b: Path):
    x, y = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    return x.keys() == y.keys() and all(np.array_equal(x[n], y[n]) for n in x)


def test_a_released_folder_gives_the_released_numbers_and_goes_back_bit_for_bit(folder, tmp_path):
    loaded = load_pretrained(folder, precision="highest")
    assert loaded.layout == "open-sora-plan"
    assert (loaded.vae.config.structure, loaded.vae.config.upsample) == ("v4", "linear")
    video, moments, reconstruction = golden("clip")
    np.testing.assert_allclose(loaded.vae.moments(video), moments, atol=2e-5, rtol=0)
    np.testing.assert_allclose(
        loaded.vae.decode(moments[..., :4]), reconstruction, atol=2e-5, rtol=0
    )
    open_sora_plan.save(loaded.vae, tmp_path / "again")
    assert same_files(folder, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config == released_config()


def test_an_exported_model_has_exactly_the_released_names_and_shapes(tmp_path):
    vae = small_model("v4", width=32, groups=32, upsample="linear")
    open_sora_plan.save(vae, tmp_path / "model")
    state = load_file(tmp_path / "model" / WEIGHTS)
    assert {n: v.shape for n, v in state.items()} == released_shapes()


@pytest.mark.parametrize("structure", open_sora_plan.HOLDABLE)
def test_every_model_that_can_be_held_comes_back_bit_for_bit(structure, tmp_path):
    vae = small_model(structure, width=32, groups=32, upsample="linear")
    open_sora_plan.save(vae, tmp_path / "model")
    again = ODVAE.from_pretrained(tmp_path / "model", precision="highest")
    assert again.config == vae.config
    bare = ODVAE.from_pretrained(tmp_path / "model" / WEIGHTS, precision="highest")
    assert bare.config == vae.config, "the variant is read off the names"
    ours = named_parameters(vae)
    for loaded in (again, bare):
        for name, value in named_parameters(loaded).items():
            np.testing.assert_array_equal(value, ours[name])
    open_sora_plan.save(again, tmp_path / "again")
    assert same_files(tmp_path / "model", tmp_path / "again")


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"upsample": "nearest"}, "upsample is 'nearest'.*'linear'"),
        ({"norm": "frame"}, "norm is 'frame'.*'clip'"),
        ({"time_upsample": "nearest"}, "time_upsample is 'nearest'.*'linear'"),
        ({"groups": 8}, "groups is 8.*32"),
        ({"structure": "v2"}, "structure is 'v2'.*'v1', 'v3', 'v4'"),
        ({"structure": "image"}, "structure is 'image'"),
    ],
    ids=str,
)
def test_what_would_be_another_function_there_is_not_exported(overrides, words, tmp_path):
    fields = {"structure": "v4", "width": 32, "groups": 32, "upsample": "linear", **overrides}
    with pytest.raises(ValueError, match=words):
        open_sora_plan.save(small_model(**fields), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s, old: {
            "ema_state_dict": {f"module.{n}": v for n, v in s.items()},
            "state_dict": old,
        },
        lambda s, old: {"ema_state_dict": {}, "state_dict": {"gen_model": s, "dics_model": old}},
        lambda s, old: {"ema_state_dict": s, "state_dict": {"gen_model": old}},
        lambda s, old: {"state_dict": s | {"loss.logvar": next(iter(old.values()))}},
        lambda s, old: s,
    ],
    ids=["ema", "no ema, generator", "ema before generator", "state dict with loss", "bare"],
)
def test_training_checkpoints_are_read_ema_first_and_before_the_safetensors(folder, wrap):
    torch = pytest.importorskip("torch")
    state = {n: torch.tensor(v) for n, v in released_state().items()}
    other = {n: v + 1 for n, v in state.items()}
    torch.save(wrap(state, other), folder / "checkpoint.ckpt")
    save_file({n: np.zeros_like(v) for n, v in released_state().items()}, folder / WEIGHTS)
    loaded = load_pretrained(folder)
    assert loaded.source.name == "checkpoint.ckpt"
    kernel = loaded.vae.post_quant_conv.kernel[...][0, 0, 0].T
    np.testing.assert_array_equal(
        kernel, released_state()["post_quant_conv.conv.weight"][:, :, 0, 0, 0]
    )


def rewrite_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {n: v for n, v in config.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"encoder_attention": "AttnBlock3D"}, "encoder_attention is AttnBlock3D.*mixes"),
        ({"decoder_resnet_blocks": None}, r"\['decoder_resnet_blocks'\] are missing.*defaults"),
        (
            {"decoder_spatial_upsample": ["", "SpatialUpsample2x", "SpatialUpsample2x", ""]},
            "decoder_spatial",
        ),
        ({"num_res_blocks": 3}, "closest, v4, differs in num_res_blocks"),
        ({"use_wavelets": True}, r"\['use_wavelets'\] are not fields"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"_class_name": "OtherModel"}, "config of 'OtherModel'; known are"),
    ],
    ids=str,
)
def test_configs_that_are_not_version_1_2s_are_refused(folder, fields, words):
    rewrite_config(folder, **fields)
    with pytest.raises(ValueError, match=words):
        ODVAE.from_pretrained(folder)


def test_weights_of_another_variant_or_width_are_refused(folder):
    rewrite_config(folder, encoder_conv_in="CausalConv3d")
    with pytest.raises(ValueError, match=r"none of the variants .* v4, differs in encoder_conv_in"):
        ODVAE.from_pretrained(folder)
    rewrite_config(folder, encoder_conv_in="Conv2d", hidden_size=64)
    with pytest.raises(ValueError, match=r"wrong shape.*another width"):
        ODVAE.from_pretrained(folder)
    vae = small_model("v1", width=32, groups=32, upsample="linear")
    config = open_sora_plan.released_config(vae.config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"encoder.conv_in.conv.weight \(32, 3, 3, 3, 3\).*another variant"
    ):
        ODVAE.from_pretrained(folder)


def test_two_checkpoints_in_one_folder_must_be_chosen_from(folder):
    for name in ("a.ckpt", "b.ckpt"):
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"\['a.ckpt', 'b.ckpt'\]: name the one wanted"):
        ODVAE.from_pretrained(folder)


def test_a_folder_without_weights_is_told_so(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="no weights in .*looked for"):
        ODVAE.from_pretrained(folder)
