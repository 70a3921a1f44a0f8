"""Files that an earlier version of this package wrote are read by today's (fixtures/before)."""

import json
import shutil
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from odvae_jax import ODVAE
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.latents import LatentsFile
from odvae_jax.training.config import check_continues, default_config, flat
from odvae_jax.training.fields import filled
from odvae_jax.training.loop import train
from odvae_jax.training.tasks.autoencoder import Autoencoder
from odvae_jax.transcoding import encoder_digest
from tests.training.test_loop import timeless

ROOT = Path(__file__).parents[1]
BEFORE = ROOT / "tests" / "fixtures" / "before"
EXPECTED = np.load(BEFORE / "expected.npz")


@pytest.fixture(scope="module")
def model():
    return ODVAE.from_pretrained(BEFORE / "model", precision="highest")


def test_a_saved_model_computes_what_it_did(model):
    assert (model.config.structure, model.config.param_dtype) == ("v4", "bfloat16")
    assert (model.config.width, model.config.groups, model.config.norm) == (8, 4, "frame")
    video = np.random.default_rng(0).uniform(-1, 1, (1, 9, 32, 32, 3)).astype(np.float32)
    posterior = model.encode(video)
    np.testing.assert_allclose(posterior.mean, EXPECTED["mean"], atol=2e-5)
    np.testing.assert_allclose(posterior.logvar, EXPECTED["logvar"], atol=2e-5)
    decoded = model.decode(posterior.mean)[:, :, ::4, ::4]
    np.testing.assert_allclose(decoded, EXPECTED["decoded"], atol=2e-5)


def test_a_saved_model_is_saved_alike(model, tmp_path):
    model = ODVAE.from_pretrained(BEFORE / "model")
    model.save_pretrained(tmp_path / "again")
    before, now = (
        json.loads((d / "config.json").read_text()) for d in (BEFORE / "model", tmp_path / "again")
    )
    assert before.items() <= now.items()
    weights = [
        without_metadata(d / "model.safetensors") for d in (BEFORE / "model", tmp_path / "again")
    ]
    assert weights[0] == weights[1]


def without_metadata(path):
    """The tensors' names, dtypes, shapes and places, and all bytes after them."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    assert header.pop("__metadata__")["format"] == "odvae_jax"
    return list(header.items()), content[end:]


def test_a_file_of_latents_says_and_decodes_to_what_it_did(model):
    file = LatentsFile(BEFORE / "clip0.safetensors")
    info = file.info
    assert info.source == "clip0.mp4"
    assert info.model.endswith("tests/fixtures/before/model")
    assert (info.content, info.store, info.dtype) == ("moments", "float32", "float32")
    assert (info.frames, info.height, info.width, info.fps) == (13, 32, 32, 12)
    assert info.encoder == encoder_digest(model)
    assert info.prepared == {"short_side": 32, "size": 32} and info.tiling == {
        "Streaming": {"chunk": 32}
    }
    assert (info.scaling_factor, info.seed, info.problem) == (0.18215, None, "")
    np.testing.assert_array_equal(file.read(), EXPECTED["latents"])
    assert file.read_logvar().shape == file.read().shape == (4, 4, 4, 4)
    assert info.statistics["count"] == 4 * 4 * 4
    decoded = model.decode(file.read()[None])[:, :, ::4, ::4]
    np.testing.assert_allclose(decoded, EXPECTED["latents_decoded"], atol=2e-5)


@pytest.mark.parametrize("kind, levels", [("raw", 0), ("h264", 1)])
def test_a_packed_file_is_read_as_it_was(kind, levels):
    source = open_source(f"array_record:{BEFORE / f'packed-{kind}'}")
    assert len(source) == 2
    clip = np.asarray(source.read(1, Sampling(5, 24), 2, lambda n: n - 1))
    expected = EXPECTED[f"packed_{kind}"]
    assert clip.dtype == np.uint8 and clip.shape == expected.shape == (5, 24, 36, 3)
    np.testing.assert_allclose(clip.astype(int), expected.astype(int), atol=levels)


def run_of_before(**changes):
    """The config that the same command gives today: today's defaults, and the run's fields."""
    config = default_config()
    begun = flat(json.loads((BEFORE / "run" / "config.json").read_text()))
    config.update_from_flattened_dict({**begun, **changes})
    return config


def test_a_run_goes_on_to_the_losses_that_it_had(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the path of its data begins here
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    state = train(run_of_before(steps=4), tmp_path / "run", devices=jax.devices()[:1])
    assert int(state.step) == 4
    expected = [json.loads(line) for line in (BEFORE / "continued.jsonl").read_text().splitlines()]
    got = timeless(tmp_path / "run")
    assert [r["step"] for r in got] == [1, 2, 3, 4]
    for record, before in zip(got[2:], expected, strict=True):
        since = {f"{name}_per_value" for name in ("loss", "nll", "reconstruction", "kl")}
        assert record.keys() == before.keys() | since
        for name in ("loss", "nll", "reconstruction", "kl", "discriminator"):
            np.testing.assert_allclose(record[name], before[name], rtol=1e-4, err_msg=name)


def test_a_field_that_an_old_config_lacks_has_its_default():
    begun = json.loads((BEFORE / "run" / "config.json").read_text())
    assert "task" not in begun and "terms" not in begun["loss"]
    del begun["optimizer"]["clip_norm"], begun["model"]["precision"]
    config = run_of_before()
    config.model.precision = "default"
    check_continues(begun, config, "there")
    # As the config of a new run, too.
    full = filled(ml_collections.ConfigDict(begun))
    assert (full.task, full.loss.terms, full.optimizer.clip_norm) == ("autoencoder", (), 0.0)
    assert full.model.precision == "default" and full.model.width == 8
    assert full.ema_warmup is False and full.data.short_side_max == 0
    for changes, words in (
        ({"ema_warmup": True}, "ema_warmup: False there, True now"),
        ({"optimizer.clip_norm": 1.0}, "optimizer.clip_norm: 0.0 there, 1.0 now"),
        ({"model.precision": "high"}, "model.precision: 'default' there, 'high' now"),
        (
            {"loss.terms": (("own:one", 1.0),)},
            r"loss.terms: \[\] there, \[\['own:one', 1.0\]\]",
        ),
    ):
        config = run_of_before(**{"model.precision": "default", **changes})
        with pytest.raises(ValueError, match=words):
            check_continues(begun, config, "there")


class Another(Autoencoder):
    """A task that is not the one of before."""


def test_a_run_is_not_continued_as_another_task_whatever_is_asked_for():
    begun = json.loads((BEFORE / "run" / "config.json").read_text())
    config = run_of_before(task="tests.test_before:Another", continue_with_changes=True)
    with pytest.raises(ValueError, match="task: 'autoencoder' there, 'tests.test_before:Another'"):
        check_continues(begun, config, "there")
