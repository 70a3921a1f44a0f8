"""OPS-VAE against the released implementation's numbers, names and files."""

import functools
import json
import math

import huggingface_hub.constants
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import odvae_jax
from odvae_jax.baselines import OPSVAE, OPSVAEConfig
from odvae_jax.checkpoints import ops_vae
from odvae_jax.parameters import abstract_model, named_parameters, with_config
from tests.baselines.published import FIXTURES, description, state
from tests.conftest import full, random_video

READ = json.loads((FIXTURES / "ops_vae.json").read_text())
WEIGHTS = "model.safetensors"


def golden(case, name):
    """An array of the reference, channels last."""
    with np.load(FIXTURES / "ops_vae.npz") as file:
        return np.moveaxis(file[f"{case}_{name}"], 1, -1)


def released_state():
    """The recipe's weights, and the buffers as the config has them."""
    config, _ = description("ops_vae")
    buffers = {n: np.float32(config[n]).reshape(1, 4, 1, 1, 1) for n in READ["buffers"]}
    return state("ops_vae") | buffers


def write_released(folder, weights=None, **fields):
    """The released layout at width 32, as transformers writes it."""
    folder.mkdir()
    config = description("ops_vae")[0] | fields
    (folder / "config.json").write_text(json.dumps(config))
    save_file(released_state() if weights is None else weights, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("ops_vae") / "vae")


@functools.cache
def small(**fields):
    """A random model of width 8."""
    sizes = {"width": 8, "image_width": 8, "groups": 4}
    return OPSVAE(OPSVAEConfig(**sizes, precision="highest", **fields))


@pytest.mark.parametrize("case", ["long", *full("image", "clip", "whole")])
def test_it_computes_the_released_numbers(folder, case):
    micro_frames = READ["cases"][case]["micro_frame_size"]
    vae = odvae_jax.from_pretrained(folder, precision="highest", micro_frames=micro_frames)
    video = golden(case, "video")
    posterior = vae.encode(video)
    np.testing.assert_allclose(posterior.mean, golden(case, "latents"), atol=2e-5)
    logvar = np.clip(golden(case, "moments")[..., 4:], -30, 20)
    logvar -= 2 * np.log(np.float32(vae.config.deviation))
    np.testing.assert_allclose(posterior.logvar, logvar, atol=5e-5)
    reconstruction = vae.decode(posterior.mode(), frames=video.shape[1])
    np.testing.assert_allclose(reconstruction, golden(case, "reconstruction"), atol=1e-4)


@pytest.mark.parametrize("case", full("image", "clip", "long", "whole"))
def test_its_stages_compute_the_released_numbers(folder, case):
    micro_frames = READ["cases"][case]["micro_frame_size"]
    vae = odvae_jax.from_pretrained(folder, precision="highest", micro_frames=micro_frames)
    video = golden(case, "video")

    @jax.jit
    def stages(vae, video):
        spatial = vae.to_spatial(video)
        moments = vae.to_moments(spatial)
        return spatial, moments, vae.from_latents(moments[..., :4], video.shape[1])

    spatial, moments, decoded = stages(vae, video)
    np.testing.assert_allclose(spatial, golden(case, "spatial_latents"), atol=2e-6)
    np.testing.assert_allclose(moments, golden(case, "moments"), atol=5e-5)
    np.testing.assert_allclose(decoded, golden(case, "decoded_spatial_latents"), atol=5e-5)


def test_its_parts_have_the_released_numbers_of_parameters():
    shapes = named_parameters(abstract_model(OPSVAEConfig()))
    counts = {name: math.prod(p.shape) for name, p in shapes.items()}
    for part, count in {
        "spatial_vae.": 83_653_863,
        "temporal_vae.encoder.": 144_421_128,
        "temporal_vae.decoder.": 165_265_924,
    }.items():
        assert sum(n for name, n in counts.items() if name.startswith(part)) == count


def test_a_released_folder_goes_to_our_layout_and_back_bit_for_bit(folder, tmp_path):
    vae = odvae_jax.from_pretrained(folder)
    vae.save_pretrained(tmp_path / "ours")
    ours = OPSVAE.from_pretrained(tmp_path / "ours")
    assert ours.config == vae.config == OPSVAEConfig(width=32, image_width=32)
    ops_vae.save(ours, tmp_path / "theirs")
    before, after = (load_file(path / WEIGHTS) for path in (folder, tmp_path / "theirs"))
    assert before.keys() == after.keys() and len(before) == 517
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    written, read = json.loads((tmp_path / "theirs" / "config.json").read_text()), READ["config"]
    assert written == read
    assert odvae_jax.from_pretrained(tmp_path / "theirs").config == vae.config


def test_a_hub_id_is_loaded_from_the_offline_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--hpcai-tech--OpenSora-VAE-v1.2"
    (root / "snapshots").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    write_released(root / "snapshots" / ("0" * 40))
    vae = odvae_jax.from_pretrained("hpcai-tech/OpenSora-VAE-v1.2")
    assert vae.config == OPSVAEConfig(width=32, image_width=32)


def test_a_bare_file_and_the_released_type_are_known(folder, tmp_path):
    vae = odvae_jax.from_pretrained(folder / WEIGHTS)
    assert isinstance(vae, OPSVAE)
    temporal = {"type": "VAE_Temporal_SD", "from_pretrained": None}
    write_released(tmp_path / "vae", vae_temporal=temporal)
    assert odvae_jax.from_pretrained(tmp_path / "vae").config == vae.config
    (tmp_path / "vae" / "config.json").unlink()
    assert odvae_jax.from_pretrained(tmp_path / "vae").config == vae.config


def test_the_buffers_win_over_the_config(tmp_path):
    shift = np.float32([1, 2, 3, 4]).reshape(1, 4, 1, 1, 1)
    write_released(tmp_path / "vae", released_state() | {"shift": shift})
    config = odvae_jax.from_pretrained(tmp_path / "vae").config
    assert (config.shift, config.deviation) == ((1, 2, 3, 4), (3.85, 2.32, 2.33, 3.06))


def without(name):
    return lambda weights: {n: v for n, v in weights.items() if n != name}


@pytest.mark.parametrize(
    "change, words",
    [
        (without("shift"), r"not a whole OPS-VAE: \['shift'\] are missing"),
        (
            without("temporal_vae.decoder.conv_blocks.2.conv.bias"),
            r"OPS-VAE.*1 missing: temporal_vae\.decoder\.conv_blocks\.2\.conv\.bias \(256,\)",
        ),
        (
            lambda weights: weights | {"encoder.conv_in.weight": np.zeros((2, 2), np.float32)},
            r"1 unexpected: encoder\.conv_in\.weight",
        ),
        (
            lambda weights: weights | {"scale": np.ones(4, np.float32)},
            r"scale is \(4,\), expected \(1, 4, 1, 1, 1\)",
        ),
        (lambda weights: {"fc.weight": np.zeros((2, 2), np.float32)}, "not a whole OPS-VAE"),
    ],
    ids=["buffer", "missing", "mixed", "shape", "foreign"],
)
def test_loading_is_strict(tmp_path, change, words):
    write_released(tmp_path / "vae", change(released_state()))
    with pytest.raises(ValueError, match=words):
        odvae_jax.from_pretrained(tmp_path / "vae")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"cal_loss": True}, "cal_loss is True"),
        ({"vae_2d": {"type": "Other"}}, "vae_2d is {'type': 'Other'}"),
        (
            {"vae_temporal": {"type": "VAE_Temporal", "num_res_blocks": 2}},
            "vae_temporal.num_res_blocks is 2; OPS-VAE has 4",
        ),
        ({"micro_frame_size": 0}, "micro_frames=0 must be a positive integer"),
    ],
    ids=str,
)
def test_other_structures_are_refused_by_field(tmp_path, fields, words):
    write_released(tmp_path / "vae", {"a": np.zeros(1, np.float32)}, **fields)
    with pytest.raises(ValueError, match=words):
        odvae_jax.from_pretrained(tmp_path / "vae")


@pytest.mark.parametrize(
    "frames, cut, whole",
    [(1, 1, 1), (5, 2, 2), (17, 5, 5), (18, 6, 5), (25, 7, 7), (33, 9, 9), (81, 24, 21)],
)
def test_the_number_of_latent_frames(frames, cut, whole):
    assert OPSVAEConfig().latent_frames(frames) == cut
    assert OPSVAEConfig(micro_frames=None).latent_frames(frames) == whole


def test_the_decoder_must_be_told_the_number_of_frames():
    latents = np.zeros((1, 2, 2, 2, 4), np.float32)
    with pytest.raises(ValueError, match="OPS-VAE cannot tell .* pass frames="):
        small().decode(latents)
    with pytest.raises(ValueError, match="frames=9 does not fit 2 latent frames"):
        small().decode(latents, frames=9)
    assert OPSVAEConfig().taken(18, 20, 28) == (18, 16, 24)


@pytest.mark.full
def test_the_frames_that_the_image_model_takes_at_once_change_no_numbers():
    video = random_video(9, 16, 24)
    some, all_ = (with_config(small(), frames_at_a_time=n).reconstruct(video) for n in (4, None))
    np.testing.assert_allclose(some, all_, atol=1e-4)
