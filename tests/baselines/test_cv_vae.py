"""CV-VAE against the released implementation's numbers, names and files."""

import functools
import json
import math

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import odvae_jax
from odvae_jax.baselines import CVVAE, CVVAEConfig
from odvae_jax.checkpoints import cv_vae
from odvae_jax.parameters import abstract_model, named_parameters
from tests.baselines.published import FIXTURES, description, state
from tests.conftest import full, random_video

CASES = json.loads((FIXTURES / "cv_vae.json").read_text())["cases"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def golden(case, name):
    """An array of the reference, channels last."""
    with np.load(FIXTURES / "cv_vae.npz") as file:
        return np.moveaxis(file[f"{case}_{name}"], 1, -1)


def write_released(folder, weights=None, **fields):
    """The released layout at width 32, as diffusers writes it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(description("cv_vae")[0] | fields))
    save_file(state("cv_vae") if weights is None else weights, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("cv_vae") / "vae3d")


@functools.cache
def small(**fields):
    """A random model of width 8."""
    return CVVAE(CVVAEConfig(width=8, groups=4, precision="highest", **fields))


@pytest.mark.parametrize("case", ["long", *full("image", "clip", "tiled")])
def test_it_computes_the_released_numbers(folder, case):
    names = {"tile_spatial_size": "tile_side", "tile_overlap_ratio": "tile_overlap"}
    fields = {ours: CASES[case][theirs] for theirs, ours in names.items() if theirs in CASES[case]}
    vae = odvae_jax.from_pretrained(folder, precision="highest", **fields)
    posterior = vae.encode(golden(case, "video"))
    mean, logvar = np.split(golden(case, "moments"), 2, axis=-1)
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-5)
    np.testing.assert_allclose(posterior.logvar, np.clip(logvar, -30, 20), atol=1e-5)
    video = vae.decode(posterior.mode())
    np.testing.assert_allclose(video, golden(case, "reconstruction"), atol=3e-5)


def test_the_encoder_has_the_released_number_of_parameters():
    shapes = named_parameters(abstract_model(CVVAEConfig()))
    counts = {name: math.prod(p.shape) for name, p in shapes.items()}
    assert sum(n for name, n in counts.items() if name.startswith("encoder.")) == 68_748_936


def test_a_released_folder_goes_to_our_layout_and_back_bit_for_bit(folder, tmp_path):
    vae = odvae_jax.from_pretrained(folder)
    vae.save_pretrained(tmp_path / "ours")
    ours = CVVAE.from_pretrained(tmp_path / "ours")
    assert ours.config == vae.config == CVVAEConfig(width=32)
    cv_vae.save(ours, tmp_path / "theirs")
    before, after = (load_file(path / WEIGHTS) for path in (folder, tmp_path / "theirs"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config == description("cv_vae")[0]


def test_a_bare_file_is_known_by_its_names(folder):
    vae = odvae_jax.from_pretrained(folder / WEIGHTS)
    assert isinstance(vae, CVVAE) and vae.config == CVVAEConfig(width=32)


def spread(folder):
    """Spreads the weights of a folder over two files, as diffusers writes large models."""
    weights = load_file(folder / WEIGHTS)
    files = [WEIGHTS.replace(".", f"-0000{i}-of-00002.") for i in (1, 2)]
    homes = {name: files[i % 2] for i, name in enumerate(weights)}
    for file in files:
        save_file({n: v for n, v in weights.items() if homes[n] == file}, folder / file)
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
    return index, files


def test_weights_that_are_spread_over_files_are_read_by_their_index(folder, tmp_path):
    write_released(tmp_path / "vae3d")
    index, files = spread(tmp_path / "vae3d")
    chex.assert_trees_all_equal(
        odvae_jax.from_pretrained(tmp_path / "vae3d"), odvae_jax.from_pretrained(folder)
    )
    whole = json.loads(index.read_text())
    name = next(iter(whole["weight_map"]))
    for change, words in (
        ({}, "has no weight_map"),
        ({name: "../other.safetensors"}, "names ../other.safetensors; expected"),
        ({name: files[1]}, rf"lists .*{name}.* in files that do not hold"),
        ({name: None}, "expected safetensors files beside it"),
    ):
        changed = whole["weight_map"] | change if change else {}
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=rf"index\.json .*{words}"):
            odvae_jax.from_pretrained(tmp_path / "vae3d")
    del whole["weight_map"][name]
    index.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=rf"does not list .*{name}"):
        odvae_jax.from_pretrained(tmp_path / "vae3d")
    (tmp_path / "vae3d" / files[0]).unlink()
    with pytest.raises(FileNotFoundError, match=files[0]):
        odvae_jax.from_pretrained(tmp_path / "vae3d")


def without(name):
    return lambda weights: {n: v for n, v in weights.items() if n != name}


@pytest.mark.parametrize(
    "change, words",
    [
        (without("decoder.norm_out.bias"), r"CV-VAE.*1 missing: decoder\.norm_out\.bias \(32,\)"),
        (
            lambda weights: weights | {"quant_conv.bias": np.zeros(8, np.float32)},
            r"1 unexpected: quant_conv\.bias \(8,\)",
        ),
        (
            lambda weights: weights | {"encoder.norm_out.bias": np.zeros(3, np.float32)},
            r"encoder\.norm_out\.bias is \(3,\), expected \(128,\)",
        ),
        (
            lambda weights: weights | {"encoder.norm_out.bias": np.full(128, np.nan, np.float32)},
            r"not finite: encoder\.norm_out\.bias",
        ),
        (lambda weights: {"fc.weight": np.zeros((2, 2), np.float32)}, "another kind of model"),
    ],
    ids=["missing", "mixed", "shape", "not finite", "foreign"],
)
def test_loading_is_strict(tmp_path, change, words):
    write_released(tmp_path / "vae3d", change(state("cv_vae")))
    with pytest.raises(ValueError, match=words):
        odvae_jax.from_pretrained(tmp_path / "vae3d")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"causal_decoder": True}, "causal_decoder is True; the released CV-VAE has False"),
        ({"ch_mult": [1, 2, 4]}, r"ch_mult is \[1, 2, 4\]"),
        ({"encoder_attn_type": "none"}, "encoder_attn_type is 'none'"),
        ({"use_wavelets": 1}, r"\['use_wavelets'\] are not fields"),
        ({"tile_overlap_ratio": 0.3}, "config.json: tile_side=576.*every 403 rows.*multiple of 8"),
        ({"en_de_n_frames_a_time": 6}, "frames_at_a_time=6 must be a multiple of 4"),
    ],
    ids=str,
)
def test_other_structures_are_refused_by_field(tmp_path, fields, words):
    write_released(tmp_path / "vae3d", {"a": np.zeros(1, np.float32)}, **fields)
    with pytest.raises(ValueError, match=words):
        odvae_jax.from_pretrained(tmp_path / "vae3d")


def test_another_number_of_groups_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="groups is 4"):
        cv_vae.save(small(), tmp_path / "vae3d")


def test_what_it_takes_of_a_clip():
    config = CVVAEConfig()
    assert config.taken(20, 20, 28) == (17, 16, 24)
    assert config.taken(1, 8, 8) == (1, 8, 8)
    assert config.latent_shape((2, 25, 256, 256, 3)) == (2, 7, 32, 32, 4)
    with pytest.raises(ValueError, match=r"T must be 4k \+ 1.*nearest is \(1, 17, 16, 16, 3\)"):
        small().encode(random_video(18, 16, 16))
    with pytest.raises(ValueError, match="frames=6 does not fit 2 latent frames"):
        small().decode(np.zeros((1, 2, 2, 2, 4), np.float32), frames=6)


@pytest.mark.parametrize(
    "fields",
    [{"frames_at_a_time": 4}, *full({"tile_side": 32, "tile_overlap": 0.25})],
    ids=str,
)
def test_clips_spread_over_devices_under_jit_are_the_same(fields):
    vae = small(**fields)
    video = random_video(9, 16, 40, b=2)
    alone = vae.reconstruct(video)
    mesh = odvae_jax.make_mesh(2, devices=jax.devices()[:2])
    spread = jax.device_put(video, jax.NamedSharding(mesh, jax.P("data")))
    together = jax.jit(lambda vae, video: vae.reconstruct(video))(vae, spread)
    assert len(together.sharding.device_set) == 2
    np.testing.assert_allclose(together, alone, atol=1e-5)
