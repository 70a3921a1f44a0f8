"""VQGAN against the reference's numbers, and its published files."""

import jax
import numpy as np
import pytest
import yaml

import odvae_jax
from odvae_jax.baselines import VQGAN, VQGANConfig
from odvae_jax.checkpoints import vqgan
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.checkpoints.torch_file import write_torch_file
from tests.baselines import published
from tests.baselines.test_common import tiny
from tests.conftest import full, random_video

LOSS = {
    "loss.discriminator.main.0.weight": np.ones((4, 3, 4, 4), np.float32),
    "loss.perceptual_loss.lin0.model.1.weight": np.ones((1, 8, 1, 1), np.float32),
}


def write(folder, change=None, config=None):
    """The files as they are published, at small width."""
    (folder / "ckpts").mkdir(parents=True)
    (folder / "configs").mkdir()
    state = published.state("vqgan")
    if change:
        change(state)
    content = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": {**state, **LOSS},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 4.5e-6, "params": [0, 1]}]}],
    }
    write_torch_file(folder / "ckpts" / "last.ckpt", content)
    if config is not None:
        (folder / "configs" / "model.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    config, _ = published.description("vqgan")
    folder = write(tmp_path_factory.mktemp("vqgan") / "f8", config=config)
    return VQGAN.from_pretrained(folder, precision="highest")


@pytest.mark.parametrize("case", ["clip", *full("image")])
def test_it_is_the_reference_s_function(released, case):
    names = ("video", "features", "logits", "codes", "reconstruction")
    video, features, logits, codes, reconstruction = published.golden("vqgan", case, *names)
    found = jax.jit(VQGAN.features)(released, video)
    np.testing.assert_allclose(found, features, atol=1e-5)
    np.testing.assert_allclose(released.quantize.logits(found), logits, atol=1e-5)
    np.testing.assert_array_equal(released.encode(video).mode(), codes)
    np.testing.assert_allclose(released.decode(codes), reconstruction, atol=5e-5)


def test_the_published_files_are_recognised_and_read_with_and_without_their_yaml(tmp_path):
    config, shapes = published.description("vqgan")
    write(tmp_path / "whole", config=config)
    write(tmp_path / "bare")
    loaded = load_pretrained(tmp_path / "whole")
    assert loaded.layout == "vqgan" and set(loaded.ignored) >= set(LOSS) | {"epoch"}
    assert loaded.vae.config == VQGANConfig(width=32, codes=128, code_channels=16)
    for path in (tmp_path / "bare", tmp_path / "bare" / "ckpts" / "last.ckpt"):
        assert odvae_jax.from_pretrained(path).config == loaded.vae.config
    back = tmp_path / "back"
    vqgan.save(loaded.vae, back)
    torch = pytest.importorskip("torch")
    state = torch.load(back / "last.ckpt", weights_only=True)["state_dict"]
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes
    for name, value in published.state("vqgan").items():
        np.testing.assert_array_equal(state[name].numpy(), value, err_msg=name)
    written = yaml.safe_load((back / "model.yaml").read_text())["model"]["params"]
    ours, theirs = written["ddconfig"], config["model"]["params"]["ddconfig"]
    assert ours == theirs


def without(name):
    return lambda state: state.pop(name)


def nearest_neighbour(state):
    state["quantize.embedding.weight"] = state.pop("quantize.embed.weight")
    del state["quantize.proj.weight"], state["quantize.proj.bias"]


def mixed(state):
    for name in [n for n in state if n.startswith("decoder.")]:
        if state[name].ndim == 4:
            state[name] = state[name][:, :8]


def more(state):
    state["decoder.extra.weight"] = np.ones((3,), np.float32)


@pytest.mark.parametrize(
    "change, words",
    [
        (without("encoder.mid.attn_1.q.bias"), "1 missing: encoder.mid.attn_1.q.bias"),
        (without("encoder.conv_in.weight"), "not a whole VQGAN: .*encoder.conv_in.weight"),
        (nearest_neighbour, "VQModel, whose quantiser takes the nearest code. Only GumbelVQ"),
        (mixed, "wrong shape: decoder.conv_in.weight is .*expected .*Likely it is of another"),
        (more, "1 unexpected: decoder.extra.weight"),
    ],
)
def test_files_of_another_model_are_refused_with_the_reason(change, words, tmp_path):
    with pytest.raises(ValueError, match=rf"last\.ckpt .*{words}"):
        odvae_jax.from_pretrained(write(tmp_path / "f8", change))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "change, words",
    [
        ({"target": "taming.models.vqgan.VQModel"}, "VQModel'.*nearest code"),
        ({"double_z": True}, "ddconfig.double_z is True; a GumbelVQ has False"),
        ({"embed_dim": 8}, "ddconfig.z_channels is 16; a GumbelVQ has 8"),
        ({"ch": "wide"}, "width='wide'"),
        ({"remap": "some.npy"}, "remap='some.npy' is not supported"),
        ({"attention": "linear"}, r"fields \['attention'\], which are not known"),
    ],
)
def test_a_yaml_of_another_model_is_refused_with_its_field(change, words, tmp_path):
    config, _ = published.description("vqgan")
    params = config["model"]["params"]
    for name, value in change.items():
        place = {"target": config["model"], "embed_dim": params, "remap": params}
        place.get(name, params["ddconfig"])[name] = value
    with pytest.raises(ValueError, match=rf"model\.yaml: .*{words}"):
        odvae_jax.from_pretrained(write(tmp_path / "f8", config=config))


def test_a_yaml_with_aliases_is_refused_before_it_is_expanded(tmp_path):
    lines = ["a: &a0 [x, x]"] + [f"b{i}: &a{i + 1} [*a{i}, *a{i}]" for i in range(40)]
    folder = write(tmp_path / "f8")
    text = "\n".join([*lines, "model: {target: *a40, params: {ddconfig: {}}}"])
    (folder / "configs" / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"model\.yaml is not yaml of plain data: .*aliases"):
        odvae_jax.from_pretrained(folder)


def test_sampled_codes_follow_the_softmax_of_the_logits_and_the_key():
    model = tiny("vqgan")
    video = np.repeat(random_video(1, 4, 4), 200, axis=1)
    logits = np.asarray(model.quantize.logits(jax.jit(VQGAN.features)(model, video[:, :1])))
    drawn, again, other = (
        np.asarray(model.sample(video, jax.random.key(seed)).mode()) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != other).any()
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = np.bincount(drawn.ravel(), minlength=16) / drawn.size
    np.testing.assert_allclose(found, expected.mean((0, 1, 2, 3)), atol=0.05)
