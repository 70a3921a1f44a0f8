"""Measuring the scale of a model's latents: the command, and where the values go."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.checkpoints import open_sora_plan, sd_vae
from odvae_jax.checkpoints.pretrained import load_pretrained, write_scale
from odvae_jax.cli import main
from odvae_jax.data.clips import RandomClips
from odvae_jax.latents import Scale
from odvae_jax.transcoding import encoder_digest
from tests.conftest import small_model, write_clip
from tests.two_levels import CAUSAL

SCALE = Scale((-2.5, 0.0, 1.0, 0.3), (1.5, 0.25, 2.0, 0.01), 0.7)
CLIPS = ["--frames=5", "--size=16", "--clips=5", "--batch=2", "--seed=3"]


def tiny():
    return ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4, precision="highest"), rngs=0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i in range(2):
        write_clip(path / f"clip{i}.mp4", seed=i)
    return path


@pytest.fixture
def run(tmp_path):
    """The folder of a training run, with a file of somebody else beside the model's own."""
    tiny().save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "README.md").write_text("mine")
    return tmp_path / "run"


def content(folder):
    """Bytes of files and of tensors, which say more than arrays."""
    return {n: (v.dtype, v.tobytes()) for n, v in load_file(folder).items()}


def test_what_is_measured_is_the_mean_and_deviation_of_samples_of_the_clips(run, videos, capsys):
    weights = run / "model" / "model.safetensors"
    before, tensors = ODVAE.from_pretrained(run), content(weights)
    assert main(["calibrate", str(run), str(videos), *CLIPS]) == 0
    after = ODVAE.from_pretrained(run)  # compares the digests, that of the config too
    clips = RandomClips(videos, frames=5, size=16, seed=3)
    posteriors = [before.encode(np.float32(clips[i][None]) / 127.5 - 1) for i in range(5)]
    mean = np.concatenate([np.asarray(p.mean, np.float64).reshape(-1, 4) for p in posteriors])
    variance = np.exp([np.asarray(p.logvar, np.float64).reshape(-1, 4) for p in posteriors])
    std = np.sqrt(mean.var(0) + variance.reshape(-1, 4).mean(0))
    np.testing.assert_allclose(after.config.latents_mean, mean.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.config.latents_std, std, rtol=1e-4)
    together = np.sqrt(mean.var() + variance.mean())
    assert after.config.scaling_factor == pytest.approx(1 / together, rel=1e-4)
    assert content(weights) == tensors and encoder_digest(after) == encoder_digest(before)
    others = {"latents_mean": None, "latents_std": None, "scaling_factor": 0.18215}
    assert ODVAEConfig.from_dict(after.config.to_dict() | others) == before.config
    assert (run / "model" / "README.md").read_text() == "mine"
    assert sorted(p.name for p in run.iterdir()) == ["model"], "nothing is left beside it"
    said = capsys.readouterr().out
    assert f"{std[2]:.4f}" in said and str(run / "model") in said


def test_a_model_without_a_scale_and_clips_that_do_not_fit_change_nothing(run, videos, capsys):
    vae = ODVAE.from_pretrained(run)
    vae.quant_conv.kernel[...] = np.zeros(vae.quant_conv.kernel.shape)
    vae.quant_conv.bias[...] = np.array([0, 0, 0, 0, -40, -40, -40, -40], np.float32)
    shutil.rmtree(run / "model")
    vae.save_pretrained(run / "model")
    before = {p.name: p.read_bytes() for p in (run / "model").iterdir()}
    for words, said in (
        (CLIPS, "never change: 0 (always 0), 1"),
        (["--frames=6", "--size=16"], "T must be 2k + 1. The nearest is (1, 5, 16, 16, 3)"),
        (["--frames=501", "--size=16", "--clips=1"], "no usable video"),
    ):
        assert main(["calibrate", str(run), str(videos), *words]) == 1
        assert said in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (run / "model").iterdir()} == before


@pytest.mark.parametrize("model", ["small", "owner/name"])
def test_models_that_are_not_ones_own_are_not_written(model, videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", model, str(videos), *CLIPS]) == 1
    assert f"odvae convert {model} FOLDER" in capsys.readouterr().err


def test_a_model_that_is_mistyped_gets_the_nearest_name(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "smal", str(videos), *CLIPS]) == 2
    assert 'Did you mean "small"?' in capsys.readouterr().err


def image_model():
    return small_model("image")


def released():
    return small_model("v4", width=32, groups=32, upsample="linear")


FOREIGN = {
    "sd-vae": (image_model, sd_vae.save),
    "released": pytest.param(released, open_sora_plan.save, marks=pytest.mark.full),
}


@pytest.mark.parametrize("make, save", FOREIGN.values(), ids=FOREIGN)
def test_weights_of_other_layouts_get_a_file_beside_them(make, save, tmp_path):
    save(make(), tmp_path / "model")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    written = write_scale(load_pretrained(tmp_path / "model"), SCALE)
    assert written == tmp_path / "model" / "odvae_latents_scale.json"
    after = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    assert after.pop(written.name) and after == before
    for source in (tmp_path / "model", tmp_path / "model" / "diffusion_pytorch_model.safetensors"):
        assert load_pretrained(source).vae.config.scale == SCALE
    assert (
        ODVAE.from_pretrained(tmp_path / "model", scaling_factor=0.5).config.scaling_factor == 0.5
    )


def test_files_of_weights_in_one_folder_have_a_scale_each(tmp_path):
    state = load_file(_exported(tmp_path))
    for name in ("a", "b", "c"):
        save_file(state, tmp_path / f"{name}.safetensors")
    other = Scale(SCALE.mean, SCALE.std, 0.2)
    for name, scale in (("a", SCALE), ("b", other)):
        write_scale(load_pretrained(tmp_path / f"{name}.safetensors", groups=4), scale)
    read = [
        load_pretrained(tmp_path / f"{n}.safetensors", groups=4).vae.config.scale for n in "abc"
    ]
    assert read[:2] == [SCALE, other] and not read[2].measured


@pytest.mark.parametrize(
    "text, words",
    [
        ("{}", "holds no scale of latents"),
        ("[1", "is not JSON"),
        ('{"format": "odvae_jax latents scale 1", "weights": {"W": 3}}', "is damaged"),
        ('{"format": "odvae_jax latents scale 1", "weights": {"W": {"mean": 1}}}', "is damaged"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_named(text, words, tmp_path):
    path = _exported(tmp_path)
    (path.parent / "odvae_latents_scale.json").write_text(text.replace("W", path.name))
    with pytest.raises(ValueError, match=f"odvae_latents_scale.json {words}"):
        load_pretrained(path.parent)


def _exported(folder):
    sd_vae.save(image_model(), folder / "vae")
    return folder / "vae" / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    "make, to",
    [
        pytest.param(released, "open-sora-plan", marks=pytest.mark.full),
        (image_model, "diffusers"),
        pytest.param(image_model, "native", marks=pytest.mark.full),
    ],
)
def test_conversion_carries_the_scale_there_and_back(make, to, tmp_path):
    make().save_pretrained(tmp_path / "ours")
    write_scale(load_pretrained(tmp_path / "ours"), SCALE)
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert main(["convert", str(tmp_path / "ours"), there, f"--to={to}"]) == 0
    assert main(["convert", there, back]) == 0
    scale = ODVAE.from_pretrained(back).config.scale
    np.testing.assert_allclose(scale.mean + scale.std, SCALE.mean + SCALE.std, rtol=1e-12)
    assert scale.factor == SCALE.factor
    # A model that was not measured, over the one that was, does not inherit its scale.
    make().save_pretrained(tmp_path / "plain")
    assert main(["convert", str(tmp_path / "plain"), there, f"--to={to}", "--overwrite"]) == 0
    assert not ODVAE.from_pretrained(there).config.scale.measured


def test_diffusers_pipelines_normalise_as_we_do(tmp_path):
    image_model().save_pretrained(tmp_path / "ours")
    write_scale(load_pretrained(tmp_path / "ours"), SCALE)
    assert (
        main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to=diffusers"]) == 0
    )
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    z = np.random.default_rng(0).normal(size=(5, 4))
    mean, std = (np.array(config[name]) for name in ("latents_mean", "latents_std"))
    theirs = (z - mean) * config["scaling_factor"] / std  # what their pipelines invert
    np.testing.assert_allclose(theirs, SCALE.normalise(z), rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_tail_initialisation_keeps_the_scale_and_random_kernels_do_not(tmp_path):
    image_model().save_pretrained(tmp_path / "image")
    write_scale(load_pretrained(tmp_path / "image"), SCALE)
    for init, kept in (("tail", True), ("random", False)):
        words = [str(tmp_path / "image"), str(tmp_path / init), "--variant=4", f"--init={init}"]
        assert main(["convert", *words]) == 0
        assert ODVAE.from_pretrained(tmp_path / init).config.scale.measured == kept
