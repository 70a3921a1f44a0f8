"""`odvae sample`: videos of a denoiser that depend on the seed and their number alone."""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax.cli import main
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.diffusion import Latte, LatteConfig, TrainedOn, process_of, sample
from odvae_jax.latents import LatentsFile, Scale
from odvae_jax.parameters import named_parameters, with_parameters
from odvae_jax.transcoding import encoder_digest
from odvae_jax.transcoding.samples import SampleSettings, decode_sample, sample_files
from tests.training.denoisers import CLASSES, save_autoencoder

SCALE = Scale((0.1, -0.2, 0.0, 0.3), (0.5, 0.4, 0.6, 0.5), 0.2)


def random_denoiser(config, seed=0):
    """Every parameter of it is random, so that its output is not zero."""
    model, rng = Latte(config), np.random.default_rng(seed)
    noisy = {
        name: jnp.asarray(value + 0.1 * rng.standard_normal(value.shape), value.dtype)
        for name, value in named_parameters(model).items()
    }
    return with_parameters(model, noisy)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of an autoencoder and of a denoiser that names it."""
    folder = tmp_path_factory.mktemp("models")
    vae = save_autoencoder(folder / "vae")
    record = TrainedOn(str(folder / "vae"), encoder_digest(vae), SCALE, 5, 12.0, CLASSES)
    config = LatteConfig(
        depth=2, width=16, heads=2, frames=3, rows=8, columns=8, classes=3, process="flow",
        precision="highest", trained_on=record,
    )  # fmt: skip
    model = random_denoiser(config)
    model.save_pretrained(folder / "denoiser")
    return folder, vae, model


def run(models, output, *options, count=3):
    return main(
        [
            "sample",
            f"--ckpt={models[0] / 'denoiser'}",
            f"--output={output}",
            f"--count={count}",
            "--steps=2",
            *options,
        ]
    )


def frames(path):
    source = open_source(str(path))
    assert source.rate(0) == 12.0
    return np.stack(source.read(0, Sampling(5), 1, lambda n: 0))


def test_samples_are_those_of_the_function_decoded_and_listed_with_their_classes(
    models, tmp_path, capsys
):
    _, vae, model = models
    assert run(models, tmp_path / "s", "--latents", "--classes=owls,0", "--guidance=3") == 0
    assert "3 samples; 0 were there already" in capsys.readouterr().out
    numbers, labels = np.arange(3), np.array([2, 0, 2])
    sampler = process_of(model.config).sampler("euler", 2)
    key = jax.random.key(0)
    z = sample(model, sampler, numbers, key=key, labels=labels, guidance=3.0)
    expected = SCALE.denormalise(np.asarray(z))
    with (tmp_path / "s" / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["000000.mp4", "000001.mp4", "000002.mp4"]
    assert [(row["label"], row["class"]) for row in rows] == [
        ("2", "owls"), ("0", "cats"), ("2", "owls")
    ]  # fmt: skip
    for number, latents in enumerate(expected):
        file = LatentsFile(tmp_path / "s" / "latents" / f"{number:06d}.safetensors")
        np.testing.assert_allclose(file.read(), latents, atol=1e-5 * np.abs(latents).max())
        video = vae.decode(latents[None])[0]
        decoded = decode_sample(vae, latents, frames=5)
        levels = np.clip(np.asarray(video + 1) * 127.5, 0, 255)
        np.testing.assert_allclose(decoded, levels, atol=1)
    assert main(["decode", str(tmp_path / "s" / "latents"), str(tmp_path / "decoded")]) == 0
    again, first = (frames(tmp_path / n / "000001.mp4") for n in ("decoded", "s"))
    np.testing.assert_array_equal(again, first)


def test_a_sample_alone_in_a_batch_and_on_eight_devices_is_the_same(models, tmp_path):
    """To 1e-5 of the largest latent."""
    _, vae, model = models
    settings = SampleSettings(steps=2, guidance=3.0, classes=(0, 1, 2), latents=True)

    def latents(name, devices=1, **given):
        sample_files(
            model, vae, "m", tmp_path / name, 3, dataclasses.replace(settings, **given),
            devices=jax.devices()[:devices], bar=False,
        )  # fmt: skip
        files = sorted((tmp_path / name / "latents").iterdir())
        return np.stack([LatentsFile(path).read() for path in files])

    together, alone, eight = latents("a"), latents("b", batch=1), latents("c", 8)
    for found in (alone, eight):
        np.testing.assert_allclose(found, together, atol=1e-5 * np.abs(together).max(), rtol=0)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_the_same_command_goes_on_and_a_larger_count_adds(models, tmp_path, capsys):
    assert run(models, tmp_path / "s", count=2) == 0
    first = (tmp_path / "s" / "000000.mp4").read_bytes()
    stamp = (tmp_path / "s" / "000000.mp4").stat().st_mtime_ns
    (tmp_path / "s" / "000001.mp4").write_bytes(first[: len(first) // 2])  # a torn one
    capsys.readouterr()
    assert run(models, tmp_path / "s", "--shard=1/2", count=4) == 0
    assert "2 samples; 0 were there already" in capsys.readouterr().out
    assert run(models, tmp_path / "s", count=4) == 0
    assert "1 sample; 3 were there already" in capsys.readouterr().out
    assert (tmp_path / "s" / "000000.mp4").stat().st_mtime_ns == stamp
    assert run(models, tmp_path / "whole", count=4) == 0
    for number in range(4):
        parts, whole = (frames(tmp_path / n / f"{number:06d}.mp4") for n in ("s", "whole"))
        assert np.abs(parts.astype(int) - whole).max() <= 1
    assert len((tmp_path / "s" / "samples.csv").read_text().splitlines()) == 5


def test_a_folder_of_other_settings_or_of_other_files_is_refused(models, tmp_path, capsys):
    assert run(models, tmp_path / "s", count=1) == 0
    for options, words in (
        (["--seed=1"], "seed: 0 there, 1 now"),
        (["--guidance=2"], "guidance: 7.0 there, 2.0 now"),
        (["--classes=1"], "classes: [0, 1, 2] there, [1] now"),
        (["--sampler=heun"], "sampler: 'euler' there, 'heun' now"),
    ):
        assert run(models, tmp_path / "s", *options, count=1) == 1
        said = capsys.readouterr().err
        assert "made otherwise" in said and words in said
    (tmp_path / "begun").mkdir()  # by a process that was killed
    (tmp_path / "begun" / ".samples.json.99.part").write_text("{")
    assert run(models, tmp_path / "begun", "--classes=1,none", count=1) == 0
    settings = json.loads((tmp_path / "begun" / "samples.json").read_text())
    assert settings["guidance"] == 7  # of the sample that has a class
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert run(models, tmp_path / "other") == 1
    assert "holds other files than samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"interval": (5, 1), "guidance": 2}, "the smaller one first"),
        ({"crf": 60}, "crf=60: expected 0 to 51"),
        ({"batch": 0}, "batch=0: expected at least 1"),
        ({"interval": (0.5, 2), "guidance": 2}, "interval=0.5, 2: expected times from 0 to 1"),
    ],
)
def test_impossible_settings_claim_no_folder(models, tmp_path, fields, words):
    folder, vae, model = models
    settings = SampleSettings(sampler="euler", steps=2, classes=(0,), **fields)
    with pytest.raises(ValueError, match=words):
        sample_files(model, vae, str(folder / "vae"), tmp_path / "s", 1, settings)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--classes=owl"],
            "'owl' is not known. Did you mean \"owls\"? There are cats, dogs, owls",
        ),
        (["--classes=3"], "'3' is not known"),
        (["--sampler=ddpm"], "sampler 'ddpm' is not known here; there are ['euler', 'heun']"),
        (["--tiling=4"], "a group of 4 frames is not 2k + 1"),
        (["--guidance=nan"], "guidance=nan"),
        (["--interval=0.1,0.9", "--guidance=1"], "guidance=1 is none"),
        (["--interval=100,900"], "interval=100, 900: expected times from 0 to 1, in the sampler's"),
        (["--interval=-1,0.5"], "expected times from 0 to 1"),
        (["--interval=0.6,0.9"], "none of the 2 steps begins in it"),
        (["--crf=60"], "60"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_the_folder_is_made(
    models, tmp_path, capsys, options, words
):
    assert run(models, tmp_path / "s", *options) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_another_autoencoder_and_one_that_is_not_here_are_refused(models, tmp_path, capsys):
    save_autoencoder(tmp_path / "other", seed=1)
    assert run(models, tmp_path / "s", f"--vae={tmp_path / 'other'}") == 1
    assert "the denoiser was trained on latents of" in capsys.readouterr().err
    shutil.copytree(models[0] / "denoiser", tmp_path / "moved")
    path = tmp_path / "moved" / "config.json"
    config = json.loads(path.read_text())
    for name, words in (("someone/model", "is not on this machine"), (None, "does not say which")):
        if name is None:
            del config["trained_on"]
        else:
            config["trained_on"]["vae"] = name
        path.write_text(json.dumps(config))
        given = ["sample", f"--ckpt={tmp_path / 'moved'}", f"--output={tmp_path / 's'}"]
        assert main([*given, "--no-verify"]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_samples_that_are_not_finite_are_named_and_the_others_are_made(models, tmp_path, capsys):
    _, vae, model = models
    parameters = named_parameters(model)
    (name,) = (n for n in parameters if n.endswith("conditioning.labels"))
    parameters[name] = parameters[name].at[1].set(3e38)  # it overflows
    broken = with_parameters(model, parameters)
    broken.save_pretrained(tmp_path / "broken")
    made = tmp_path / "s"
    command = ["sample", f"--ckpt={tmp_path / 'broken'}", f"--output={made}", "--count=5"]
    assert main([*command, "--steps=2", "--guidance=2", "--latents", "--no-verify"]) == 1
    out, err = capsys.readouterr()
    assert "3 samples; 0 were there already" in out
    for number in range(5):
        is_broken = number % 3 == 1
        assert (f"{number:06d}.mp4: its latents are not finite" in err) == is_broken
        assert (made / f"{number:06d}.mp4").exists() != is_broken
    assert sorted(p.name for p in (made / "latents").iterdir()) == [
        "000000.safetensors", "000002.safetensors", "000003.safetensors"
    ]  # fmt: skip
    listed = (made / "samples.csv").read_text()
    assert "000000.mp4" in listed and "000001.mp4" not in listed
    settings = SampleSettings(steps=2, guidance=2, classes=(0, 1, 2))
    whole = tmp_path / "whole"
    assert not sample_files(model, vae, "m", whole, 1, settings, bar=False).problems
    np.testing.assert_array_equal(frames(whole / "000000.mp4"), frames(made / "000000.mp4"))


def test_the_word_none_is_refused_where_a_class_is_called_so(models, tmp_path, capsys):
    shutil.copytree(models[0] / "denoiser", tmp_path / "named")
    path = tmp_path / "named" / "config.json"
    config = json.loads(path.read_text())
    config["trained_on"]["classes"] = ["cats", "dogs", "none"]
    path.write_text(json.dumps(config))
    given = ["sample", f"--ckpt={tmp_path / 'named'}", "--no-verify", "--count=2", "--steps=2"]
    assert main([*given, f"--output={tmp_path / 's'}", "--classes=0,none"]) == 1
    assert "write 2 for the class, or -1 for no class." in capsys.readouterr().err
    assert main([*given, f"--output={tmp_path / 's'}", "--classes=2,-1"]) == 0
    assert json.loads((tmp_path / "s" / "samples.json").read_text())["classes"] == [2, 3]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"classes": ["cats"]}, "trained_on names 1 class, and classes=3"),
        ({"fps": 0}, "fps=0"),
        ({"frames": "five"}, "frames"),
        ({"scale": None}, "a scale is None"),
        ({"speed": 1}, "expected the fields"),
    ],
)
def test_a_config_that_says_what_cannot_be_of_its_training_is_refused(models, fields, words):
    given = models[2].config.to_dict()
    with pytest.raises(Exception, match=words):
        LatteConfig.from_dict({**given, "trained_on": {**given["trained_on"], **fields}})
