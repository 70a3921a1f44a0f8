"""What all baselines do alike, at a width at which they compile quickly."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import odvae_jax
from odvae_jax import ODVAE, make_mesh
from odvae_jax.baselines import MODELS, model_class
from odvae_jax.baselines.base import parameter_counts
from odvae_jax.cli import main
from odvae_jax.parameters import abstract_model, named_parameters
from odvae_jax.sharding import clip_sharding
from tests.conftest import full, random_video

TINY = {
    "vqgan": {
        "width": 32,
        "width_multipliers": (1, 1),
        "blocks": 1,
        "attention_levels": (1,),
        "codes": 16,
        "code_channels": 8,
    },
    "svd_vae": {"width": 32},
    "tats": {"width": 8, "downsample": (2, 2, 2), "codes": 16, "code_channels": 8},
    "cv_vae": {"width": 32, "frames_at_a_time": 4},
    "ops_vae": {"width": 32, "image_width": 32, "micro_frames": 5},
}
# The frames of a clip that each takes.
FRAMES = {"vqgan": 3, "svd_vae": 3, "tats": 4, "cv_vae": 9, "ops_vae": 10}
# Table 1 of the paper, in full.
COUNTS = {
    "vqgan": 68_995_971,
    "svd_vae": 97_742_847,
    "tats": 52_192_773,
    "cv_vae": 182_446_475,
    "ops_vae": 393_341_007,
}
# How far float32 may be from float32, and bfloat16 from it in standard deviations. OPS-VAE is two
# networks in a row.
EXACT = {"ops_vae": 1e-4}
ROUGH = {"ops_vae": 0.1}


@functools.cache
def tiny(name, **fields):
    """A random model whose biases, norms and statistics are not trivial, made once."""
    cls = model_class(name)
    config = cls.config_class(**{"precision": "highest", **TINY[name], **fields})
    model = cls(config, rngs=0)

    def filled(p):
        return p + 0.1 * jax.random.uniform(jax.random.key(p.size), p.shape, p.dtype)

    return jax.tree.map(lambda p: filled(p) if p.ndim == 1 else p, model)


def clip(name, b=1, side=16):
    return random_video(FRAMES[name], side, side + 8, b)


def latents_of(name, b=1, t=2):
    """Latents or codes of the tiny model, drawn."""
    config = tiny(name).config
    side = 16 // config.space_compression
    rng = np.random.default_rng(3)
    if config.codes:
        return rng.integers(0, config.codes, (b, t, side, side), np.int32)
    return rng.standard_normal((b, t, side, side, config.latent_channels), np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_the_published_model_has_the_papers_number_of_parameters(name):
    counts = parameter_counts(abstract_model(model_class(name).config_class()))
    assert counts.reference == COUNTS[name]
    if name == "tats":  # the paper counts its discriminators, and not its codebook
        assert counts[1:] == (23_652_227, 16_384 * 256)
    else:
        assert counts[1:] == (counts.reference, 0)


def test_the_command_prints_the_counts_and_what_the_latents_are(capsys):
    assert main(["variants"]) == 0
    printed = capsys.readouterr().out
    for name in MODELS:
        config = model_class(name).config_class()
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{config.name} "))
        what = f"{config.codes} codes" if config.codes else f"{config.latent_channels} channels"
        assert what in line and f"{COUNTS[name]:,}" in line


@pytest.mark.parametrize("name", MODELS)
def test_shapes_that_a_model_does_not_take_are_refused_and_cut_by_taken(name):
    model = tiny(name)
    step, side = model.config.frame_step, model.config.space_compression
    frames, least = 2 * step + model.config.first_frames, model.config.first_frames or step
    video = random_video(frames + (step > 1), 2 * side + 1, 3 * side, 1)
    nearest = f"(1, {frames}, {2 * side}, {3 * side}, 3)"
    with pytest.raises(ValueError, match="H must be a multiple") as error:
        model.encode(video)
    assert nearest in str(error.value)
    assert model.config.taken(*video.shape[1:4]) == (frames, 2 * side, 3 * side)
    with pytest.raises(ValueError, match="needs at least"):
        model.config.taken(least - 1, side, side)
    with pytest.raises(ValueError, match=r"needs at least .* of"):
        model.config.taken(step, side, side - 1)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", MODELS)
def test_latents_that_are_not_the_models_are_refused(name):
    model, latents = tiny(name), latents_of(name)
    wrong = latents[..., :1].astype(np.int32) if model.config.codes is None else latents + 0.5
    with pytest.raises(ValueError, match="latents"):
        model.decode(wrong)
    with pytest.raises(ValueError, match="frames=99 does not fit"):
        model.decode(latents, frames=99)
    if model.config.codes:
        with pytest.raises(ValueError, match="codes 0 to 15: they are another model's"):
            model.decode(latents + 16)


@pytest.mark.parametrize("name", ["vqgan", "tats", *full("svd_vae", "cv_vae", "ops_vae")])
def test_it_runs_inside_a_callers_jit_and_compiles_once(name):
    model, video = tiny(name), clip(name)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(model, video):
        encoded = model.encode(video)
        return encoded.mode(), model.decode(encoded.mode(), frames=video.shape[1])

    latents, decoded = run(model, video)
    latents, decoded = run(model, video)
    assert latents.shape == model.config.latent_shape(video.shape)
    exact = EXACT.get(name, 2e-5)
    np.testing.assert_allclose(latents, model.encode(video).mode(), atol=exact)
    again = model.decode(latents, frames=video.shape[1])
    np.testing.assert_allclose(decoded, again, atol=exact)
    assert decoded.shape == video.shape and decoded.dtype == jnp.float32


@pytest.mark.parametrize("name", ["tats", *full("vqgan", "svd_vae", "cv_vae", "ops_vae")])
def test_in_bfloat16_it_is_close_to_float32(name):
    latents, frames = latents_of(name), 5 if name == "ops_vae" else None
    exact = tiny(name).decode(latents, frames=frames)
    rounded = tiny(name, dtype="bfloat16").decode(latents, frames=frames)
    assert rounded.dtype == jnp.float32
    deviation = float(jnp.std(exact))
    assert float(jnp.std(rounded - exact)) < ROUGH.get(name, 0.05) * deviation
    video = clip(name)
    exact, rounded = (tiny(name, dtype=d).encode(video).mode() for d in ("float32", "bfloat16"))
    if tiny(name).config.codes:
        assert float(jnp.mean(exact == rounded)) > 0.8
    else:
        assert float(jnp.std(rounded - exact)) < 0.05 * float(jnp.std(exact))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, *full(AxisType.Explicit)])
@pytest.mark.parametrize("name", ["vqgan", *full("svd_vae", "tats", "cv_vae", "ops_vae")])
def test_clips_spread_over_devices_give_the_same(name, axis_type):
    model, video = tiny(name), clip(name, b=2)
    mesh = make_mesh(2, devices=jax.devices()[:2], axis_type=axis_type)
    spread = jax.device_put(video, clip_sharding(mesh))
    encoded, decoded = model.encode(spread).mode(), model.reconstruct(spread)
    assert len(encoded.sharding.device_set) == len(decoded.sharding.device_set) == 2
    exact = EXACT.get(name, 2e-5)
    np.testing.assert_allclose(encoded, model.encode(video).mode(), atol=exact)
    np.testing.assert_allclose(decoded, model.reconstruct(video), atol=exact)


def same(a, b):
    a, b = named_parameters(a), named_parameters(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("name", ["vqgan", "tats", *full("svd_vae", "cv_vae", "ops_vae")])
def test_there_and_back_through_every_layout_to_the_bit(name, tmp_path, capsys):
    model = tiny(name)
    model.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model"] == name
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "b"), "--to=published"]) == 0
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c"), "--to=native"]) == 0
    assert "inflated    0" in capsys.readouterr().out
    for folder in ("ours", "b", "c"):
        loaded = model_class(name).from_pretrained(tmp_path / folder, precision="highest")
        assert loaded.config == model.config
        same(loaded, model)
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "b"), "--to=published"]) == 1
    options = ("--to=published", "--overwrite")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "b"), *options]) == 0
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "d"), "--to=diffusers"]) == 1
    assert "a baseline; an OD-VAE" in capsys.readouterr().err


def test_another_models_class_is_refused(tmp_path):
    tiny("vqgan").save_pretrained(tmp_path / "vqgan")
    assert isinstance(odvae_jax.from_pretrained(tmp_path / "vqgan"), model_class("vqgan"))
    with pytest.raises(ValueError, match="holds a VQGAN, not an ODVAE"):
        ODVAE.from_pretrained(tmp_path / "vqgan")
    with pytest.raises(ValueError, match="holds a VQGAN, not a TATS"):
        model_class("tats").from_pretrained(tmp_path / "vqgan")
    with pytest.raises(ValueError, match="odvae_jax's own layout: pass its folder"):
        odvae_jax.from_pretrained(tmp_path / "vqgan" / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be changed while loading"):
        odvae_jax.from_pretrained(tmp_path / "vqgan", codes=8)


@pytest.mark.parametrize(
    "name, fields, words",
    [
        ("vqgan", {"width": 48}, "width=48 is not a multiple of 32"),
        ("vqgan", {"width_multipliers": (1, 0)}, "width_multipliers=.* integers from 1 to 16"),
        ("vqgan", {"attention_levels": (4,)}, "attention_levels=.* 0 to 3"),
        ("vqgan", {"blocks": 300}, "blocks=300 is more than 256"),
        ("vqgan", {"width": 2**16}, "makes a layer of more than 65536"),
        ("svd_vae", {"decode_chunk": 0}, "decode_chunk=0 must be a positive integer"),
        ("svd_vae", {"width": 20}, "width=20 is not a multiple of groups=32"),
        ("svd_vae", {"latents_mean": (1.0,)}, "latents_mean and latents_std"),
        ("svd_vae", {"dtype": "float8"}, "dtype='float8'"),
        ("tats", {"downsample": (3, 8, 8)}, "downsample=.* powers of two"),
        ("tats", {"downsample": (4, 8, 4)}, "rows and columns alike"),
        ("tats", {"norm": "layer"}, "norm='layer' is not known"),
        ("tats", {"norms": "batch"}, "field 'norms' is not known; did you mean 'norm'"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_fields_that_no_model_can_have_are_refused_by_name(name, fields, words):
    with pytest.raises(ValueError, match=words):
        model_class(name).config_class.from_dict(fields)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("model", "vqgam", "model 'vqgam' is not known"),
        ("codes", -1, "codes=-1 must be a positive integer"),
        ("norms", 1, "model config field 'norms' is not known"),
        ("codes", None, r"fields \['codes'\] are missing"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_its_field(field, value, words, tmp_path):
    folder = tmp_path / "vqgan"
    tiny("vqgan").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config[field] = value
    if value is None:
        del config[field]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: .*{words}"):
        odvae_jax.from_pretrained(folder, verify=False)
