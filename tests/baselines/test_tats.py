"""TATS's autoencoder against the reference's numbers, and its published files."""

import argparse
import functools

import jax
import numpy as np
import pytest

import odvae_jax
from odvae_jax.baselines import TATS, TATSConfig
from odvae_jax.checkpoints import tats
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.checkpoints.torch_file import write_torch_file
from tests.baselines import published
from tests.conftest import full, random_video

TRAINING = {
    "image_discriminator.model0.0.weight": np.ones((4, 3, 4, 4), np.float32),
    "video_discriminator.model0.0.weight": np.ones((4, 3, 4, 4, 4), np.float32),
    "perceptual_model.net.slice1.0.weight": np.ones((4, 3, 3, 3), np.float32),
}


def write(path, change=None, without=(), **fields):
    """A checkpoint as it is published, at small width; `without=("hyper_parameters",)` lacks it."""
    state = published.state("tats")
    if change:
        change(state)
    settings = {**published.description("tats")[0], "gpus": 8, "data_path": "/data", **fields}
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "1.5.4",
        "state_dict": {**state, **TRAINING},
        "hparams_name": "args",
        "hyper_parameters": {"args": argparse.Namespace(**settings)},
    }
    write_torch_file(path, {n: v for n, v in content.items() if n not in without})
    return path


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("tats") / "ucf.ckpt")
    return TATS.from_pretrained(path, precision="highest")


def group_norm(state):
    for name in [n for n in state if ".running_" in n or n.endswith(".num_batches_tracked")]:
        del state[name]


@functools.cache
def with_group_norm(path):
    write(path, group_norm, norm_type="group")
    return TATS.from_pretrained(path, precision="highest")


@pytest.mark.parametrize("case", ["short", *full("clip", "group_norm")])
def test_it_is_the_reference_s_function(released, case, tmp_path):
    model = released
    if case == "group_norm":
        model = with_group_norm(tmp_path / "group.ckpt")
        assert model.config.norm == "group"
    (video,) = published.golden("tats", "short" if case == "short" else "clip", "video")
    names = ("features", "codes", "reconstruction")
    features, codes, reconstruction = published.golden("tats", case, *names)
    video = 2 * video  # the reference's values are within 0.5
    np.testing.assert_allclose(jax.jit(TATS.features)(model, video), features, atol=1e-5)
    np.testing.assert_array_equal(model.encode(video).mode(), codes)
    np.testing.assert_allclose(model.decode(codes) / 2, reconstruction, atol=5e-5)


def test_settings_come_from_the_namespace_of_the_checkpoint(tmp_path):
    loaded = load_pretrained(write(tmp_path / "ucf.ckpt"))
    assert loaded.layout == "tats" and loaded.inert == ()
    assert loaded.vae.config == TATSConfig(width=16, codes=64, code_channels=32)
    ignored = {*TRAINING, "codebook.N", "codebook.z_avg"}
    assert ignored | {"encoder.final_block.0.num_batches_tracked"} <= set(loaded.ignored)
    slower = odvae_jax.from_pretrained(write(tmp_path / "b.ckpt", downsample=[2, 8, 8]))
    assert slower.config.time_compression == 2


def test_a_checkpoint_without_settings_needs_to_be_told_the_time_compression(tmp_path):
    path = write(tmp_path / "bare.ckpt", without=("hyper_parameters",))
    with pytest.raises(ValueError, match=r"bare\.ckpt .*pass downsample=\(4, 8, 8\)"):
        odvae_jax.from_pretrained(path)
    told = odvae_jax.from_pretrained(path, downsample=(4, 8, 8))
    assert told.config == TATSConfig(width=16, codes=64, code_channels=32)


def test_what_is_written_back_is_read_by_pytorch(released, tmp_path):
    torch = pytest.importorskip("torch")
    tats.save(released, tmp_path / "back")
    content = torch.load(tmp_path / "back" / "tats.ckpt", weights_only=False)
    expected, state = published.state("tats"), content["state_dict"]
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if name not in ("codebook.N", "codebook.z_avg"):  # counts of training, which are not kept
            np.testing.assert_array_equal(state[name].numpy(), value, err_msg=name)
    settings = vars(content["hyper_parameters"]["args"])
    config, _ = published.description("tats")
    same = ("n_hiddens", "n_codes", "embedding_dim", "norm_type", "image_channels", "padding_type")
    assert {n: settings[n] for n in same} == {n: config[n] for n in same}
    assert list(settings["downsample"]) == config["downsample"]


def test_a_checkpoint_that_pytorch_wrote_is_the_same_model(released, tmp_path):
    torch = pytest.importorskip("torch")
    state = {n: torch.from_numpy(np.array(v)) for n, v in published.state("tats").items()}
    arguments = argparse.Namespace(**published.description("tats")[0], path=tmp_path)
    content = {"state_dict": state, "hyper_parameters": {"args": arguments}}
    torch.save(content, tmp_path / "a.ckpt")
    loaded = load_pretrained(tmp_path / "a.ckpt", precision="highest")
    assert loaded.inert == ("pathlib.PosixPath",)  # an object of its own, which is left alone
    np.testing.assert_array_equal(loaded.vae.codebook.embeddings, released.codebook.embeddings)
    assert loaded.vae.config == released.config


def cut(state):
    del state["decoder.conv_blocks.1.res2.conv1.conv.bias"]


def other_width(state):
    state["pre_vq_conv.conv.weight"] = state["pre_vq_conv.conv.weight"][:, :64]


def codebook_of_another(state):
    state["codebook.embeddings"] = state["codebook.embeddings"][:, :16]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "change, fields, words",
    [
        (cut, {}, "1 missing: decoder.conv_blocks.1.res2.conv1.conv.bias"),
        (other_width, {}, "wrong shape: pre_vq_conv.conv.weight is .*expected"),
        (codebook_of_another, {}, "wrong shape: codebook.embeddings is"),
        (None, {"norm_type": "group"}, "unexpected: encoder.*running_mean"),
        (None, {"padding_type": "constant"}, "padding_type is 'constant'; only 'replicate'"),
        (None, {"downsample": (4, 6, 6)}, "downsample=.* must be three powers of two"),
        (None, {"norm_type": [[[1]]]}, "norm_type in its hyper_parameters is neither a number"),
        (None, {"n_codes": "many"}, "codes='many' must be a positive integer"),
    ],
)
def test_files_of_another_model_are_refused_with_the_reason(change, fields, words, tmp_path):
    with pytest.raises(ValueError, match=rf"ucf\.ckpt.*{words}"):
        odvae_jax.from_pretrained(write(tmp_path / "ucf.ckpt", change, **fields))


def test_codes_depend_on_their_neighbourhood_alone(released):
    # Latent frame j sees the frames 4j - 32 to 4j + 31.
    video = random_video(48, 16, 16)
    changed = video.copy()
    changed[:, 44:] = 0
    features = jax.jit(TATS.features)
    a, b = features(released, video), features(released, changed)
    np.testing.assert_allclose(a[:, :3], b[:, :3], atol=1e-6)
    assert np.abs(np.asarray(a - b))[:, 4].max() > 0
