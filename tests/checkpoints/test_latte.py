"""Released checkpoints of Latte, and denoisers in our own layout."""

import json
import re

import numpy as np
import pytest

import odvae_jax
from odvae_jax import ODVAE
from odvae_jax.checkpoints import latte
from odvae_jax.checkpoints.files import WeightFile, read_weight_file
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.checkpoints.torch_file import write_torch_file
from odvae_jax.cli import main
from odvae_jax.diffusion import Latte, LatteConfig, TrainedOn, positions
from odvae_jax.parameters import named_parameters
from odvae_jax.scale import Scale
from tests.conftest import full
from tests.diffusion.released import (
    FIXTURES,
    HEADS,
    golden,
    released_model,
    released_shapes,
    released_state,
)
from tests.diffusion.test_denoiser import TOLERANCE, call, small


def written(path, **states):
    write_torch_file(path, states)
    return path


def same(a, b):
    a, b = named_parameters(a), named_parameters(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("kind", ["cond", "uncond"])
def test_a_released_file_gives_the_released_numbers_and_goes_back_bit_for_bit(kind, tmp_path):
    state = released_state(kind)
    other = {n: v + 1 for n, v in state.items()}
    file = written(tmp_path / "0150000.pt", model=other, ema=state)
    loaded = load_pretrained(file, heads=HEADS, precision="highest")
    assert loaded.layout == "latte" and loaded.inert == ()
    assert set(loaded.ignored) == {"model", "pos_embed", "temp_embed"}
    config, about = loaded.vae.config, released_shapes(kind)
    assert config.classes == (7 if kind == "cond" else None) and config.depth == 4
    assert (config.rows, config.columns, config.channels) == (8, 8, 4)
    assert config.frames == about["temp_embed"][1] and config.process == "gaussian"
    labels = golden("cond_y") if kind == "cond" else None
    output = call(loaded.vae, golden(f"{kind}_x"), golden(f"{kind}_t"), labels)
    np.testing.assert_allclose(output, golden(f"{kind}_out"), atol=TOLERANCE, rtol=0)

    latte.save(loaded.vae, tmp_path / "again")
    again = read_weight_file(tmp_path / "again" / "latte.pt").content["ema"]
    assert {n: v.shape for n, v in again.items()} == about
    for name, value in state.items():
        if name.endswith("_embed"):
            np.testing.assert_allclose(again[name], value, atol=1e-6)
        else:
            np.testing.assert_array_equal(again[name], value)
    same(Latte.from_pretrained(tmp_path / "again", heads=HEADS), loaded.vae)
    with pytest.raises(FileExistsError):
        latte.save(loaded.vae, tmp_path / "again")
    latte.save(loaded.vae, tmp_path / "again", overwrite=True)


def test_what_is_written_is_what_pytorch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    latte.save(released_model("cond"), tmp_path / "model")
    found = torch.load(tmp_path / "model" / "latte.pt", weights_only=True)["ema"]
    expected = released_state("cond")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=1e-6)


def test_a_file_that_pytorch_wrote_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    state = {n: torch.tensor(v) for n, v in released_state("uncond").items()}
    torch.save({"model": state, "ema": {}}, tmp_path / "a.pt")  # no EMA
    same(Latte.from_pretrained(tmp_path / "a.pt", heads=HEADS), released_model("uncond"))


@pytest.mark.parametrize("prefix", ["module.", *full("_orig_mod.")])
def test_prefixes_of_wrappers_are_taken_off(prefix, tmp_path):
    state = {prefix + n: v for n, v in released_state("uncond").items()}
    file = written(tmp_path / "a.pt", model=state)
    same(Latte.from_pretrained(file, heads=HEADS), released_model("uncond"))


def test_our_own_layout_comes_back_bit_for_bit_and_says_what_it_is(tmp_path):
    model = small(process="flow")
    model.save_pretrained(tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    assert fields["format"] == "odvae_jax" and fields["model"] == "latte"
    assert fields["process"] == "flow" and fields["classes"] == 3
    loaded = odvae_jax.from_pretrained(tmp_path / "model")
    assert isinstance(loaded, Latte) and loaded.config == model.config
    same(loaded, model)
    computed = Latte.from_pretrained(tmp_path / "model", dtype="bfloat16", remat="blocks")
    assert (computed.config.dtype, computed.config.remat) == ("bfloat16", "blocks")
    with pytest.raises(ValueError, match=r"\['frames'\] cannot be changed.*'remat'"):
        Latte.from_pretrained(tmp_path / "model", frames=4)


def test_a_denoiser_is_no_autoencoder_and_an_autoencoder_no_denoiser(tmp_path):
    small().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a Latte, not an ODVAE"):
        ODVAE.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds an ODVAE, not a Latte"):
        Latte.from_pretrained("small")


@pytest.mark.parametrize("command", ["encode", "reconstruct", "eval"])
def test_commands_that_need_an_autoencoder_refuse_a_denoiser_in_a_line(command, tmp_path, capsys):
    small().save_pretrained(tmp_path / "latte")
    where = {
        "encode": ["sample-clips", str(tmp_path / "out")],
        "reconstruct": ["sample-clips", str(tmp_path / "out")],
        "eval": ["--data=sample-clips", f"--output={tmp_path / 'out'}", "--nofvd"],
    }
    assert main([command, *where[command], f"--ckpt={tmp_path / 'latte'}"]) == 1
    assert "holds a Latte, a denoiser" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("unchecked_types")
def test_our_own_files_that_are_damaged_or_incomplete_are_refused(tmp_path):
    path = tmp_path / "model"
    small().save_pretrained(path)
    fields = json.loads((path / "config.json").read_text())
    for changed, words in (
        ({"depth": 4}, "does not fit.*missing"),
        ({"process": "edm"}, "process='edm'"),
        ({"frames": 5}, "is not the config that .* was written with"),
    ):
        (path / "config.json").write_text(json.dumps(fields | changed))
        with pytest.raises(ValueError, match=words):
            Latte.from_pretrained(path)
    del fields["classes"]
    (path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"\['classes'\] are missing"):
        Latte.from_pretrained(path)


def changed(**fields):
    """The released state with other tensors; None takes one away."""
    state = released_state("cond") | {n.replace("__", "."): v for n, v in fields.items()}
    return {n: v for n, v in state.items() if v is not None}


ZEROS = np.zeros
TURNED = positions.of_places(4, 4, 64).reshape(4, 4, 64).swapaxes(0, 1).reshape(1, 16, 64)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"final_layer__linear__bias": None}, r"1 missing: final_layer.linear.bias \(32,\)"),
        ({"blocks__1__norm__weight": ZEROS(64)}, "1 unexpected: blocks.1.norm.weight"),
        (
            {"blocks__0__attn__qkv__bias": ZEROS(64, np.float32)},
            r"wrong shape: blocks.0.attn.qkv.bias is \(64,\), expected \(192,\)",
        ),
        ({"temp_embed": None}, "not a whole Latte: temp_embed is missing"),
        ({"pos_embed": TURNED}, "pos_embed is not Latte's fixed embedding"),
        ({"pos_embed": ZEROS((1, 15, 64), np.float32)}, "15 tokens, which are no square"),
        (
            {"final_layer__linear__weight": ZEROS((16, 64), np.float32)},
            "has 16 rows; expected 32, for a network with a learned variance",
        ),
        ({"x_embedder__proj__bias": np.full(64, np.nan, np.float32)}, "not finite: x_embedder"),
        ({"x_embedder__proj__bias": ZEROS(64, np.int64)}, "is of int64; weights are floating"),
        ({"text_embedding_projection__1__bias": ZEROS(64, np.float32)}, "is a Latte for text"),
    ],
)
def test_files_that_are_no_whole_latte_are_refused_by_name(fields, words):
    file = WeightFile(FIXTURES / "latte.json", {"ema": changed(**fields)})
    with pytest.raises(ValueError, match=words):
        latte.load(file, heads=HEADS)


def test_a_width_of_no_size_needs_the_number_of_heads(tmp_path):
    file = written(tmp_path / "a.pt", ema=released_state("cond"))
    with pytest.raises(ValueError, match="width 64, which no size of Latte has.*pass heads="):
        Latte.from_pretrained(file)
    with pytest.raises(ValueError, match="width=64 must be a multiple of heads=5"):
        Latte.from_pretrained(file, heads=5)


def test_what_would_be_another_model_there_is_not_written(tmp_path):
    for fields, words in (
        ({"process": "flow"}, "process is 'flow'"),
        ({"columns": 8}, "rows are 4 and columns 8"),
    ):
        with pytest.raises(ValueError, match=words):
            latte.save(small(**fields), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_command_converts_a_released_file_to_ours_and_back(tmp_path, own_log):
    config = LatteConfig(depth=2, width=384, heads=6, frames=2, rows=2, columns=2, classes=2)
    model = Latte(config)
    latte.save(model, tmp_path / "released")
    main(["convert", str(tmp_path / "released" / "latte.pt"), str(tmp_path / "ours")])
    same(Latte.from_pretrained(tmp_path / "ours"), model)
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "again"), "--to", "published"])
    files = [(tmp_path / name / "latte.pt").read_bytes() for name in ("released", "again")]
    assert files[0] == files[1]


def test_what_the_published_layout_cannot_hold_of_a_training_is_said(tmp_path, caplog):
    latte.save(small(), tmp_path / "plain")
    assert not caplog.records
    record = TrainedOn("runs/v4", "0a", Scale((0.5,) * 4, (2.0,) * 4, 0.5), 5, 12.0, tuple("abc"))
    latte.save(small(trained_on=record), tmp_path / "model")
    said = r"no place for .* runs/v4, to be named with --vae, .*factor 0\.5, with a mean .*5 frames"
    assert re.search(said, caplog.text)
