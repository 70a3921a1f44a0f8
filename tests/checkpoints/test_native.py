import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import ODVAE
from odvae_jax.parameters import named_parameters
from tests.conftest import random_video, small_model


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, param_dtype):
    vae = jax.tree.map(lambda p: p.astype(param_dtype), small_model(param_dtype=param_dtype))
    vae.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"], "no temporary folder is left"
    loaded = ODVAE.from_pretrained(tmp_path / "model")
    assert loaded.config == vae.config
    ours, theirs = named_parameters(vae), named_parameters(loaded)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert theirs[name].dtype == param_dtype
        np.testing.assert_array_equal(
            np.asarray(ours[name], np.float32), np.asarray(theirs[name], np.float32)
        )
    modes = {p.stat().st_mode for p in (tmp_path / "model").iterdir()}
    assert len(modes) == 1, "the weights can be read by whoever can read the config"


def test_precision_and_switches_can_be_changed_while_loading(tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    vae = ODVAE.from_pretrained(tmp_path / "model", dtype=jnp.bfloat16, param_dtype="bfloat16")
    assert vae.config.dtype == vae.config.param_dtype == "bfloat16"
    assert vae.quant_conv.kernel[...].dtype == jnp.bfloat16
    linear = ODVAE.from_pretrained(tmp_path / "model", upsample="linear")
    z = random_video(2, 2, 3)[..., [0, 1, 2, 0]]
    assert np.abs(linear.decode(z) - small_model().decode(z)).max() > 1e-3
    with pytest.raises(ValueError, match="width.*cannot be changed"):
        ODVAE.from_pretrained(tmp_path / "model", width=16)
    with pytest.raises(ValueError, match="'upsampel' is not known; did you mean 'upsample'"):
        ODVAE.from_pretrained(tmp_path / "model", upsampel="linear")


def test_nothing_is_overwritten_untold(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        small_model().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="other files.*notes.txt"):
        small_model().save_pretrained(tmp_path / "model", overwrite=True)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    (tmp_path / "model" / "notes.txt").unlink()
    small_model(seed=1).save_pretrained(tmp_path / "model")
    small_model().save_pretrained(tmp_path / "model", overwrite=True)
    kernel = ODVAE.from_pretrained(tmp_path / "model").quant_conv.kernel[...]
    np.testing.assert_array_equal(kernel, small_model().quant_conv.kernel[...])
    assert ODVAE.from_pretrained(tmp_path / "model").config == small_model().config


def break_config(folder):
    (folder / "config.json").write_text("{")


def forget_format(folder):
    (folder / "config.json").write_text('{"width": 8}')


def add_field(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"depth": 3}))


def widen(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"width": 16}))


def change_variant(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"structure": "v1"}))


def forget_groups(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["groups"]
    (folder / "config.json").write_text(json.dumps(config))


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (break_config, ["config.json", "not JSON"]),
        (forget_format, ["config.json", "config of None; known are"]),
        (forget_groups, ["config.json", "['groups'] are missing"]),
        (add_field, ["config.json", "'depth' is not known"]),
        (widen, ["model.safetensors", "wrong shape", "(3, 3, 3, 16, 3)"]),
        (change_variant, ["model.safetensors", "encoder.conv_in.kernel is (1, 3, 3, 3, 8)"]),
        (truncate, ["model.safetensors", "truncated or not a safetensors file"]),
    ],
)
def test_spoilt_folders_are_refused_by_name(tmp_path, spoil, words):
    small_model().save_pretrained(tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(ValueError) as error:
        ODVAE.from_pretrained(tmp_path / "model")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ODVAE.from_pretrained(tmp_path / "nowhere")
    small_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors does not exist.*config.json"):
        ODVAE.from_pretrained(tmp_path / "model")
