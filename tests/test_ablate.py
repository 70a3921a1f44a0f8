"""The ablations of Figure 4 and Table 4 as one run."""

import json
import types

import jax
import pytest
from PIL import Image

import odvae_jax.ablate as module
from configs.ablation import get_config
from odvae_jax import ODVAE
from odvae_jax.ablate import ablate, arms
from odvae_jax.files import BusyError
from tests.conftest import small_model


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr("jax.devices", lambda *_: first)
    monkeypatch.setattr("jax.local_devices", lambda *_: first)


def tiny(videos, **fields):
    """A run of one step each, on 16×16."""
    config = get_config()
    config.update_from_flattened_dict(
        {
            "model.width": 8,
            "model.groups": 4,
            "model.dtype": "float32",
            "data.path": str(videos),
            "data.frames": 5,
            "data.size": 16,
            "data.short_side": 16,
            "data.holdout": 9,
            "data.threads": 1,
            "batch_size": 1,
            "steps": 2,
            "log_every": 1,
            "validate_every": 1,
            "validation_clips": 1,
            "loss.perceptual_weight": 0.0,
            "ablation.variants": (4,),
            "ablation.initialisations": ("tail",),
            "ablation.image_steps": 1,
            "ablation.image_batch_size": 1,
            "ablation.frames": 9,
            "ablation.tiling": 5,
            "ablation.fvd": False,
            **fields,
        }
    )
    return config


def test_the_paper_s_comparisons_are_six_trainings():
    names = [arm.name for arm in arms(get_config())]
    assert names == ["v1-tail", "v2-tail", "v3-tail", "v4-tail", "v4-average", "v4-random"]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"ablation.variants": (4, 5)}, r"\['v5'\] are no variants; there are 1 to 4"),
        ({"ablation.initialisations": ("head",)}, r"\['head'\] are not known; there are \['tail'"),
        ({"data.frames": 6}, "data.frames=6 is not 4k"),
        ({"data.path": "nowhere"}, "nowhere does not exist"),
        ({"ablation.tiling": 6}, "a group of 6 frames is not 4k"),
        ({"ablation.frames": 8}, r"T must be 4k \+ 1"),
        ({"ablation.frames": 33}, "no video of .* holds a clip of config.ablation.frames=33: .*24"),
        ({"validate_every": 0}, "config.validate_every=0"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_is_trained(fields, words, videos, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        ablate(tiny(videos, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("inits", [("tail",), ("tail", "average")], ids=str)
def test_one_command_trains_measures_and_compares_and_goes_on(
    inits, videos, tmp_path, monkeypatch, capsys
):
    names = [f"v4-{method}" for method in inits]
    image, init = tmp_path / "image2d", None
    if len(inits) == 1:  # else it trains a 2D model of its own first
        small_model("image").save_pretrained(image)
        init = str(image)
    config = tiny(videos, **{"ablation.initialisations": inits})
    whole, tiled = ablate(config, tmp_path / "run", init=init)
    printed = capsys.readouterr().out
    assert [row.contender.label for row in whole.rows][:-1] == names
    assert (whole.settings["tiling"], tiled.settings["tiling"]) == (None, 5)
    assert "2 steps each." in printed and "groups of 5 frames" in printed
    for row, other in zip(whole.rows, tiled.rows, strict=True):
        line = next(x for x in printed.splitlines() if x.startswith(row.contender.label))
        for score in (row.scores["psnr"], other.scores["psnr"]):
            assert f"{score.mean:.2f}" in line
    curves = json.loads((tmp_path / "run" / "ablation.json").read_text())["curves"]
    assert {name: [p["step"] for p in points] for name, points in curves.items()} == {
        name: [1, 2] for name in names
    }
    assert Image.open(tmp_path / "run" / "ablation.png").size[1] == 7 * 120
    assert (tmp_path / "run" / "image").exists() == (init is None)
    trained = ODVAE.from_pretrained(tmp_path / "run" / names[0])
    assert (trained.config.structure, trained.config.width) == ("v4", 8)

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", never)
    ablate(config, tmp_path / "run", init=init)
    assert capsys.readouterr().out == printed
    with pytest.raises(ValueError, match="optimizer.learning_rate"):
        ablate(tiny(videos, **{"optimizer.learning_rate": 0.5}), tmp_path / "run", init=init)
    with pytest.raises(ValueError, match="holds ablations with {'steps': 2"):
        ablate(tiny(videos, steps=3), tmp_path / "run", init=init)


def test_one_that_was_told_to_stop_begins_no_other(videos, tmp_path, monkeypatch):
    """Nor is a model that was not trained to its end the start of others."""
    config = tiny(videos, **{"ablation.initialisations": ("tail", "average")})
    trained = []

    def stopped(config, folder):
        trained.append(folder.name)
        folder.mkdir(exist_ok=True)
        return types.SimpleNamespace(step=config.steps - (len(trained) == stops_at))

    monkeypatch.setattr(module, "train", stopped)
    stops_at = 1
    with pytest.raises(InterruptedError, match="image stopped after step 0; the same command"):
        ablate(config, tmp_path / "run")
    stops_at = 3
    with pytest.raises(InterruptedError, match="v4-tail stopped after step 1"):
        ablate(config, tmp_path / "run")
    assert trained == ["image", "image", "v4-tail"]
    with pytest.raises(ValueError, match="holds ablations with .*'image_steps': 1"):
        ablate(tiny(videos, **{"ablation.image_steps": 2}), tmp_path / "run")


def test_two_ablations_cannot_share_a_folder_and_cut_settings_are_written_anew(
    videos, tmp_path, monkeypatch, caplog
):
    config = tiny(videos)

    def while_another_begins(config, folder):
        (tmp_path / "run" / "settings.json").write_text('{"ste')
        with pytest.raises(BusyError, match="run is in use by another run, process"):
            ablate(tiny(videos), tmp_path / "run")
        return types.SimpleNamespace(step=0)

    monkeypatch.setattr(module, "train", while_another_begins)
    for _ in range(2):
        with pytest.raises(InterruptedError, match="image stopped after step 0"):
            ablate(config, tmp_path / "run")
    assert "settings.json is damaged" in caplog.text
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["settings.json"]
