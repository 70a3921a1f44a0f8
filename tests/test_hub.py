"""Models written to the hub and read from it again, and the cards that they get."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import pytest
from flax import nnx
from huggingface_hub import ModelCard

import odvae_jax
from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.baselines import model_class
from odvae_jax.cli import main
from odvae_jax.diffusion import Latte, LatteConfig
from odvae_jax.diffusion.config import TrainedOn
from odvae_jax.evaluation.card import MARK, model_card
from odvae_jax.scale import Scale
from tests import hub as stand_in
from tests.conftest import write_clip
from tests.two_levels import CAUSAL

ROOT = Path(__file__).parents[1]
FILES = {"config.json", "model.safetensors", "README.md"}


def autoencoder(seed=0, **fields):
    return ODVAE(
        ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm="frame", **fields), rngs=seed
    )


def denoiser():
    record = TrainedOn("small", "0123", Scale((0.0,), (1.0,), 1.0), 5, 12.0, ("cats", "dogs"))
    return Latte(
        LatteConfig(
            depth=2, width=16, heads=2, frames=3, rows=4, columns=4, classes=2, trained_on=record
        )
    )


def baseline():
    cls = model_class("vqgan")
    fields = {"width": 32, "width_multipliers": (1, 1), "blocks": 1, "attention_levels": (1,)}
    return cls(cls.config_class(**fields, codes=16, code_channels=8), rngs=0)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with stand_in.server() as running:
        stand_in.found_at(running.url, tmp_path / "hub", monkeypatch)
        yield running


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A model in a folder, and the folder with what `odvae eval` has measured of it."""
    path = tmp_path_factory.mktemp("measured")
    autoencoder(latents_mean=(0.5,) * 4, latents_std=(2.0,) * 4).save_pretrained(path / "model")
    (path / "my secret folder").mkdir()
    for i in range(2):
        write_clip(path / "my secret folder" / f"{i}.mp4", 5, 32, 32, seed=i)
    words = ["eval", f"--ckpt=mine={path / 'model'}", f"--data={path / 'my secret folder'}"]
    words += ["--frames=5", "--size=32", "--nofvd", f"--output={path / 'out'}"]
    assert main(words) == 0
    return path / "model", path / "out"


@pytest.mark.parametrize("make", [autoencoder, denoiser, baseline])
def test_a_model_that_was_pushed_comes_back_equal_to_the_bit(hub, make):
    model = make()
    address = model.push_to_hub("owner/model", message="the first")
    assert address.startswith(f"{hub.url}/owner/model/commit/")
    files = hub.repositories["owner/model"]["main"]
    assert files.keys() == FILES | {".gitattributes"} and hub.messages == ["the first"]
    again = odvae_jax.from_pretrained("owner/model")
    assert type(again) is type(model) and again.config == model.config
    chex.assert_trees_all_equal(nnx.state(again, nnx.Param), nnx.state(model, nnx.Param))


def test_all_files_arrive_in_one_commit_the_weights_as_a_large_file(hub):
    autoencoder().push_to_hub("owner/model")
    ways = [path for method, path in hub.calls if method in ("POST", "PUT")]
    assert sum("/commit/" in path for path in ways) == 1
    weights = hub.repositories["owner/model"]["main"]["model.safetensors"]
    assert weights in hub.large.values()


@pytest.mark.full
def test_the_command_pushes_to_what_hf_endpoint_names_and_another_process_reads_it(tmp_path):
    model = autoencoder(seed=3)
    model.save_pretrained(tmp_path / "model")
    code = (
        "import sys, odvae_jax; m = odvae_jax.from_pretrained('owner/model', revision='v1'); "
        "m.save_pretrained(sys.argv[1])"
    )
    with stand_in.server() as running:
        environment = os.environ | {
            "HF_ENDPOINT": running.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "writes",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        push = ["-m", "odvae_jax", "push", str(tmp_path / "model"), "owner/model", "--revision=v1"]
        for words in (push, ["-c", code, str(tmp_path / "again")]):
            done = subprocess.run(
                [sys.executable, *words],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            printed = done.stdout
        assert not printed and running.repositories["owner/model"].keys() == {"main", "v1"}
    for name in ("config.json", "model.safetensors"):
        before, after = (tmp_path / folder / name for folder in ("model", "again"))
        assert before.read_bytes() == after.read_bytes()


def test_a_revision_is_a_branch_and_the_main_one_stays(hub):
    first, second = autoencoder(0), autoencoder(1)
    first.push_to_hub("owner/model")
    second.push_to_hub("owner/model", revision="try")
    second.push_to_hub("owner/model", revision="try")  # the same again is no error
    for revision, model in ((None, first), ("main", first), ("try", second)):
        again = odvae_jax.from_pretrained("owner/model", revision=revision)
        chex.assert_trees_all_equal(nnx.state(again, nnx.Param), nnx.state(model, nnx.Param))


def test_a_private_repository_is_written_and_checked_with_the_given_token(
    hub, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    for _ in range(2):  # the second time what it holds is looked at
        autoencoder().push_to_hub("owner/model", private=True, token="writes")
    assert hub.private == {"owner/model"}
    with pytest.raises(FileNotFoundError, match="owner/model"):
        odvae_jax.from_pretrained("owner/model")
    monkeypatch.setenv("HF_TOKEN", "reads")
    odvae_jax.from_pretrained("owner/model")


def test_a_card_has_the_hub_s_metadata_and_every_field_of_the_config(measured):
    folder, results = measured
    model = odvae_jax.from_pretrained(folder)
    card = ModelCard(model_card(model, "owner/a_b", results=results, license="mit"))
    assert card.data.license == "mit" and card.data.library_name == "odvae_jax"
    assert {"jax", "video", "autoencoder"} <= set(card.data.tags)
    assert card.text.strip().startswith(MARK) and "# a\\_b" in card.text
    fields = json.loads((folder / "config.json").read_text())
    cells = dict(re.findall(r"^\| (\S+) \| (.*) \|$", card.text.replace("\\", ""), re.MULTILINE))
    assert cells["width"] == "8" and cells["norm"] == "frame"
    assert cells["latents_std"] == "2, 2, 2, 2"
    for name in fields.keys() - {"format", "structure"}:
        assert name in cells
    assert 'from_pretrained("owner/a_b")' in card.text


def test_a_card_has_what_odvae_eval_has_measured_and_no_place_of_this_machine(measured):
    folder, results = measured
    model = odvae_jax.from_pretrained(folder)
    card = model_card(model, "owner/name", results=results / "results.json")
    read = json.loads((results / "results.json").read_text())
    mine, floor = read["models"]
    (row,) = (line for line in card.splitlines() if line.startswith("| name |"))
    for metric, digits in (("psnr", 2), ("ssim", 4), ("lpips", 4)):
        score = mine["scores"][metric]
        assert f"{score['mean']:.{digits}f} ({score['low']:.{digits}f}–" in row
    assert f"| {floor['model']} |" in card
    assert "2 clips of 5 frames of 32×32" in card and "`my secret folder`" in card
    assert str(results.parent) not in card and "mine" not in card


def test_results_are_found_whatever_dtype_the_model_is_loaded_in(measured):
    folder, results = measured
    model = odvae_jax.from_pretrained(folder, dtype="bfloat16")
    assert "| name | float32 |" in model_card(model, "owner/name", results=results)


def test_results_of_another_model_are_refused_and_named(measured):
    _, results = measured
    with pytest.raises(ValueError, match="no results of this model, but of mine"):
        model_card(autoencoder(seed=9), "owner/name", results=results)


def test_a_denoiser_s_card_names_its_autoencoder_and_its_samples_metrics(tmp_path):
    score = {"metric": "fvd", "reals": 256, "generated": 256, "value": 812.345, "deviation": None}
    split = {"metric": "is10", "reals": 0, "generated": 512, "value": 3.2, "deviation": 0.25}
    one = {"label": "guided", "frames": 17, "width": 64, "height": 64, "generated": {"clips": 512}}
    one["scores"] = [score, split]
    fields = {"real": {"data": "folder:/home/me/videos"}, "sets": [one]}
    (tmp_path / "results.json").write_text(json.dumps(fields))
    card = model_card(denoiser(), "owner/name", results=tmp_path)
    assert "diffusion" in ModelCard(card).data.tags and "0123" in card
    assert "odvae sample --ckpt=owner/name" in card and "cats, dogs" in card
    assert "| FVD, all frames ↓ | 256 | 256 | 812.35 |" in card or "812.34 |" in card
    assert "3.20 ± 0.25" in card and "`videos`" in card and "/home/me" not in card


def trained_with(vae):
    config = denoiser().config
    return Latte(
        dataclasses.replace(config, trained_on=dataclasses.replace(config.trained_on, vae=vae))
    )


PLACES = ["/home/me/secret/my-vae", "~/secret/my-vae", "../secret/my-vae", "here/secret/my-vae"]


@pytest.mark.parametrize("place", [*PLACES, "secret/my-vae"])
def test_what_is_pushed_says_nothing_of_where_files_lie_on_the_machine_that_made_it(
    hub, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "my-vae").mkdir(parents=True)
    model = trained_with(place)
    model.push_to_hub("owner/model")
    files = hub.repositories["owner/model"]["main"]
    assert not any(folder in text for text in files.values() for folder in (b"secret", b"home/me"))
    card = files["README.md"].decode()
    assert "`my-vae`" in card and "0123" in card
    # Nobody else has that path, so the command says that the autoencoder has to be named.
    assert "odvae sample --ckpt=owner/model --output=SAMPLES --count=8 --vae=AUTOENCODER" in card
    again = odvae_jax.from_pretrained("owner/model")
    record = dataclasses.replace(model.config.trained_on, vae="my-vae")
    assert again.config == dataclasses.replace(model.config, trained_on=record)
    chex.assert_trees_all_equal(nnx.state(again, nnx.Param), nnx.state(model, nnx.Param))
    assert model.config.trained_on.vae == place  # the user's own model stays as it is


@pytest.mark.parametrize("name", ["small", "owner/name", "hf://owner/name@v1/vae"])
def test_an_autoencoder_that_others_have_keeps_its_name_where_a_denoiser_is_pushed(hub, name):
    model = trained_with(name)
    model.push_to_hub("owner/model")
    assert odvae_jax.from_pretrained("owner/model").config == model.config
    card = hub.repositories["owner/model"]["main"]["README.md"].decode()
    assert f"`{name}`" in card and "--vae=" not in card


def test_a_card_that_somebody_has_taken_over_stays_and_one_that_was_made_is_made_anew(hub, caplog):
    model = autoencoder()
    model.push_to_hub("owner/model")
    model.push_to_hub("owner/model", license="mit")
    files = hub.repositories["owner/model"]["main"]
    assert b"license: mit" in files["README.md"]
    own = files["README.md"].replace(MARK.encode(), b"My own words.")
    hub.repositories["owner/model"]["main"] = files | {"README.md": own, "notes.txt": b"mine"}
    again = autoencoder(1)
    again.push_to_hub("owner/model")
    files = hub.repositories["owner/model"]["main"]
    assert files["README.md"] == own and files["notes.txt"] == b"mine"
    assert "README.md of its own, which stays" in caplog.text
    found = odvae_jax.from_pretrained("owner/model")
    chex.assert_trees_all_equal(nnx.state(found, nnx.Param), nnx.state(again, nnx.Param))


def test_a_repository_with_a_model_of_another_layout_is_not_written_over(hub):
    other = {"main": {"config.json": b'{"_class_name": "AutoencoderKL"}'}}
    hub.repositories["owner/model"] = other
    with pytest.raises(ValueError, match="another layout"):
        autoencoder().push_to_hub("owner/model")
    assert other["main"].keys() == {"config.json"}


ERRORS = {
    "no token": (["owner/model"], None, "HF_TOKEN"),
    "unknown token": (["owner/model"], "nobody", "hf auth login"),
    "token that reads": (["owner/model"], "reads", "may not write"),
    "another's name": (["another/model"], "writes", "owner that is you"),
    "no id": (["model"], "writes", "expected owner/name"),
    "no results": (["owner/model", "--results=nowhere"], "writes", "nowhere does not exist"),
    "no numbers": (["owner/model", "--results=other.json"], "writes", "no results of"),
    "cut results": (["owner/model", "--results=cut.json"], "writes", "cut short"),
    "licence": (["owner/model", "--license=mine"], "writes", '"license" must be one of'),
}


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize("words, token, said", ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    words, token, said, hub, tmp_path, monkeypatch, capsys
):
    stand_in.found_at(hub.url, tmp_path / "hub", monkeypatch, token)
    monkeypatch.chdir(tmp_path)
    Path("cut.json").write_text('{"settings": ')
    Path("other.json").write_text('{"sets": []}')
    autoencoder().save_pretrained("saved")
    assert main(["push", "saved", *words]) == 1
    printed = capsys.readouterr()
    assert said in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
    held = [branches["main"] for branches in hub.repositories.values()]
    assert all(files.keys() <= {".gitattributes"} for files in held)


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_it_is_said_in_one_line(offline, tmp_path, monkeypatch, capsys):
    with stand_in.server() as ended:
        url = ended.url
    stand_in.found_at(url, tmp_path / "hub", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    autoencoder().save_pretrained(tmp_path / "saved")
    assert main(["push", str(tmp_path / "saved"), "owner/model"]) == 1
    printed = capsys.readouterr().err
    assert "owner/model could not be written on the hub" in printed
    assert len(printed.splitlines()) == 1


def test_a_dry_run_prints_the_card_and_asks_nobody(hub, tmp_path, capsys):
    autoencoder().save_pretrained(tmp_path / "saved")
    assert main(["push", str(tmp_path / "saved"), "owner/model", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("---\nlibrary_name: odvae_jax\n") and not hub.calls
