"""Finding models by path and hub id, and the command that converts them."""

import functools
import json
import os
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import odvae_jax
from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.checkpoints import cv_vae, open_sora_plan, ops_vae, sd_vae, tats
from odvae_jax.checkpoints.files import read_weight_file
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.checkpoints.torch_file import write_torch_file
from odvae_jax.cli import main
from odvae_jax.evaluation.models import load_contenders
from odvae_jax.evaluation.table1 import load_listed, read_list
from odvae_jax.latents import LatentsFile
from odvae_jax.parameters import named_parameters, with_config
from tests.baselines.test_common import tiny
from tests.conftest import small_model, write_clip
from tests.two_levels import CAUSAL

CAUSAL_MODEL = ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4), rngs=0)


def assert_same_parameters(a, b):
    a, b = named_parameters(a), named_parameters(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def cached_repository(cache, name, files):
    """A repository as the hub's cache keeps it, with a branch and a tag at one commit."""
    root = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 39 + "1"
    files(root / "snapshots" / commit)
    (root / "refs").mkdir()
    for ref in ("main", "v2"):
        (root / "refs" / ref).write_text(commit)


@pytest.mark.parametrize(
    "source, words",
    [
        ("someone/model", r"hf://someone/model/vae\. HF_HUB_OFFLINE is set"),
        ("hf://someone/model@v2", r"someone/model@v2 is no local .*hf://someone/model@v2/vae\."),
        ("hf://someone/other/vae", "someone/other/vae is no local path.*HF_HUB_OFFLINE is set"),
        ("hf://someone/model@pr%2F1/vae", "someone/model@pr%2F1/vae is no local path"),
        ("hf://someone", "hf://someone is no place on the hub: expected hf://OWNER/NAME"),
        ("hf://someone/model/../vae", "is no place on the hub"),
        ("hf://someone/model@", "is no place on the hub"),
    ],
)
def test_what_is_not_on_the_hub_is_said_with_the_place_and_why(source, words, offline_hub):
    cached_repository(
        offline_hub, "someone/model", lambda p: CAUSAL_MODEL.save_pretrained(p / "vae")
    )
    with pytest.raises((FileNotFoundError, ValueError), match=words) as error:
        load_pretrained(source)
    assert "\n" not in str(error.value)


def test_a_subfolder_and_a_revision_of_the_hub_are_part_of_the_name_in_every_command(
    offline_hub, tmp_path, capsys
):
    cached_repository(
        offline_hub, "someone/model", lambda p: CAUSAL_MODEL.save_pretrained(p / "vae")
    )
    name = "hf://someone/model@v2/vae"
    for source in (name, "hf://someone/model/vae"):
        assert_same_parameters(odvae_jax.from_pretrained(source), CAUSAL_MODEL)
    with pytest.raises(ValueError, match="@v2/vae has a revision, and revision='main' is given"):
        odvae_jax.from_pretrained(name, revision="main")
    same = odvae_jax.from_pretrained("hf://someone/model@v2", subfolder="vae")
    assert_same_parameters(same, CAUSAL_MODEL)
    compared = load_contenders([name, f"mine={name}"])
    assert [c.source for c in compared] == [name, name] and compared[1].label == "mine"
    listed, absent = load_listed(read_list(f"Mine={name}"))
    assert [c.source for c in listed] == [name] and "Mine" not in absent
    assert convert(capsys, name, tmp_path / "copy")[0] == 0
    assert_same_parameters(ODVAE.from_pretrained(tmp_path / "copy"), CAUSAL_MODEL)
    write_clip(tmp_path / "clip.mp4", frames=5, height=16, width=16)
    encode = ["encode", str(tmp_path / "clip.mp4"), str(tmp_path / "z.safetensors")]
    assert main([*encode, f"--ckpt={name}"]) == 0
    assert LatentsFile(tmp_path / "z.safetensors").info.model == name


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_weights_that_are_spread_over_files_of_either_kind_are_read(
    ending, where, offline_hub, tmp_path
):
    vae = small_model("image")

    def files(folder):
        sd_vae.save(vae, folder)
        (whole,) = folder.glob("*.safetensors")
        weights, name = load_file(whole), f"diffusion_pytorch_model{ending}"
        whole.unlink()
        homes = {n: name.replace(".", f"-0000{i % 2}.") for i, n in enumerate(weights)}
        for file in {*homes.values()}:
            part = {n: v for n, v in weights.items() if homes[n] == file}
            (save_file if ending == ".safetensors" else pickled)(part, folder / file)
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": homes}))

    cached_repository(offline_hub, "someone/model", lambda path: files(path))
    (snapshot,) = (offline_hub / "models--someone--model" / "snapshots").iterdir()
    loaded = load_pretrained("someone/model" if where == "hub" else snapshot)
    assert loaded.source.name == f"diffusion_pytorch_model{ending}.index.json"
    assert_same_parameters(loaded.vae, vae)
    if where == "folder":  # without its config, too
        (snapshot / "config.json").unlink()
        assert_same_parameters(load_pretrained(snapshot, groups=4).vae, vae)


def pickled(state, path):
    write_torch_file(path, state)


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize(
    "layout, fields",
    [
        ("native", {}),
        ("open-sora-plan", {"width": 32, "groups": 32, "upsample": "linear"}),
        ("sd-vae", {"structure": "image"}),
    ],
)
def test_a_hub_id_is_loaded_from_the_offline_cache(layout, fields, offline_hub):
    vae = small_model(**fields)
    save = {
        "native": ODVAE.save_pretrained,
        "open-sora-plan": open_sora_plan.save,
        "sd-vae": sd_vae.save,
    }
    cached_repository(offline_hub, "someone/model", lambda path: save[layout](vae, path / "vae"))
    loaded = load_pretrained("someone/model", subfolder="vae", revision="v2")
    assert loaded.layout == layout
    assert_same_parameters(loaded.vae, vae)
    with pytest.raises(FileNotFoundError, match=r'someone/model is no local path.*subfolder="vae"'):
        load_pretrained("someone/model")
    with pytest.raises(FileNotFoundError, match=r"someone/model@v9/vae is no local path"):
        load_pretrained("someone/model", subfolder="vae", revision="v9")


def test_a_released_checkpoint_on_the_hub_is_preferred(offline_hub):
    torch = pytest.importorskip("torch")
    vae = small_model(width=32, groups=32, upsample="linear")

    def files(path):
        open_sora_plan.save(vae, path / "vae")
        state = {
            open_sora_plan.released_name(n, vae.config): torch.tensor(np.asarray(v) * 2)
            for n, v in named_parameters(vae).items()
            if not n.endswith("kernel")
        }
        torch.save({"ema_state_dict": state}, path / "vae" / "checkpoint.ckpt")

    cached_repository(offline_hub, "someone/model", files)
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt does not hold .* missing"):
        load_pretrained("someone/model", subfolder="vae")


def test_a_local_folder_with_its_autoencoder_in_vae(tmp_path):
    small_model().save_pretrained(tmp_path / "pipeline" / "vae")
    with pytest.raises(FileNotFoundError, match='pass subfolder="vae"'):
        ODVAE.from_pretrained(tmp_path / "pipeline")
    assert_same_parameters(
        ODVAE.from_pretrained(tmp_path / "pipeline", subfolder="vae"), small_model()
    )


def test_a_subfolder_that_is_not_there_and_files_to_choose_from_are_named(tmp_path):
    small_model().save_pretrained(tmp_path / "pipeline" / "vae")
    with pytest.raises(FileNotFoundError, match=r"pipeline/vea does not exist \(found: \['vae'\]"):
        ODVAE.from_pretrained(tmp_path / "pipeline", subfolder="vea")
    for name in ("a.ckpt", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="several files of weights, .*'a.ckpt', 'b.pth'.*name the"):
        ODVAE.from_pretrained(tmp_path)


def test_dtypes_are_chosen_on_the_same_call(tmp_path):
    sd_vae.save(small_model("image"), tmp_path / "vae")
    vae = ODVAE.from_pretrained(tmp_path / "vae", dtype="bfloat16", param_dtype="bfloat16")
    assert vae.config.dtype == vae.config.param_dtype == "bfloat16"
    assert vae.quant_conv.kernel[...].dtype == "bfloat16"


def lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncated(path):
    save_file({"w": np.zeros(1000, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(path):
    path.write_bytes(b"\x80\x02X\x05\x00\x00\x00hello.")


@pytest.mark.parametrize(
    "name, spoil, words",
    [
        ("a.safetensors", lfs_pointer, "Git LFS pointer.*git lfs pull"),
        ("a.ckpt", lfs_pointer, "Git LFS pointer"),
        ("a.safetensors", truncated, "truncated or not a safetensors file"),
        ("a.ckpt", lambda path: path.write_text("<html>"), "truncated or not a pickle"),
        ("a.ckpt", no_weights, "a pickle, but of a str, not of weights"),
    ],
)
def test_files_that_hold_no_weights_are_refused_with_the_reason(tmp_path, name, spoil, words):
    spoil(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}.*{words}"):
        ODVAE.from_pretrained(tmp_path / name)


def convert(capsys, *arguments):
    """The command's exit status, and what it wrote to stdout and to stderr."""
    status = main(["convert", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_inflates_converts_and_counts(tmp_path, capsys):
    image = small_model("image", width=32, groups=32)
    sd_vae.save(image, tmp_path / "sd")
    options = ("--variant", 4, "--init", "tail", "--upsample", "linear", "--to", "open-sora-plan")
    status, printed, bar = convert(capsys, tmp_path / "sd", tmp_path / "released", *options)
    assert status == 0 and "parameter" in bar, bar
    vae = ODVAE.from_pretrained(tmp_path / "released")
    assert (vae.config.structure, vae.config.upsample) == ("v4", "linear")
    kernel = vae.decoder.conv_in.kernel[...]
    assert not kernel[:2].any()
    np.testing.assert_array_equal(kernel[2:], image.decoder.conv_in.kernel[...])
    counted = {line.split()[0]: int(line.split()[1]) for line in printed.splitlines()[2:5]}
    lengths = [p.shape[0] for n, p in named_parameters(vae).items() if n.endswith(".kernel")]
    assert counted == {
        "taken": len(named_parameters(vae)) - lengths.count(3),
        "inflated": lengths.count(3),
        "random": 0,
    }
    status, _, errors = convert(capsys, tmp_path / "released", tmp_path / "released")
    assert status == 1 and "exists already" in errors
    status, _, errors = convert(capsys, tmp_path / "released", tmp_path / "native", "--to=native")
    assert status == 0, errors
    assert_same_parameters(ODVAE.from_pretrained(tmp_path / "native"), vae)


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    small_model("v4").save_pretrained(tmp_path / "v4")
    for arguments, words in (
        ((tmp_path / "nowhere", tmp_path / "out"), "nowhere does not exist"),
        ((tmp_path / "v4", tmp_path / "out", "--to", "open-sora-plan"), "upsample is 'nearest'"),
        ((tmp_path / "v4", tmp_path / "out", "--variant", 4), "'v4'; expected an image model"),
    ):
        status, _, errors = convert(capsys, *arguments)
        assert status > 0 and errors.splitlines()[-1].startswith("odvae convert: ")
        assert words in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("source", ["", None, 4])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(ValueError, match="the model's source is .*expected a folder"):
        ODVAE.from_pretrained(source)


def test_of_a_run_with_several_exports_the_newest_is_loaded(tmp_path, caplog):
    """A run writes beside `model` while that holds other files."""

    config = ODVAEConfig(structure=CAUSAL, width=8, groups=4)
    kernels = {}

    def save(name, seed):
        vae = ODVAE(config, rngs=seed)
        kernels[seed] = np.asarray(vae.encoder.conv_in.kernel)
        vae.save_pretrained(tmp_path / name, overwrite=True)

    def loaded():
        kernel = np.asarray(load_pretrained(tmp_path).vae.encoder.conv_in.kernel)
        return [seed for seed, expected in kernels.items() if (expected == kernel).all()]

    save("model", 0)
    assert loaded() == [0] and not caplog.records
    (tmp_path / "model/notes.txt").write_text("of the user")
    save("model-90", 1)
    save("model-100", 2)
    os.utime(tmp_path / "model-100/model.safetensors", (0, 0))  # as after a copy
    (tmp_path / "model-final").mkdir()
    (tmp_path / "model-200").mkdir()  # holds no model
    assert loaded() == [2]
    assert "holds several models of the run; the newest is taken, model-100" in caplog.text
    (tmp_path / "model/notes.txt").unlink()
    save("model", 3)  # the run went on
    assert loaded() == [3]
    shutil.rmtree(tmp_path / "model")
    assert loaded() == [2]


def test_the_command_speaks_of_options_where_a_file_needs_or_refuses_them(tmp_path, capsys):
    model = tiny("tats")
    tats.save(model, tmp_path / "whole")
    state = dict(read_weight_file(tmp_path / "whole" / "tats.ckpt").content["state_dict"])
    write_torch_file(tmp_path / "bare.ckpt", {"state_dict": state})
    model.save_pretrained(tmp_path / "native")
    sd = small_model("image", width=8, groups=4)
    sd_vae_state(sd, tmp_path / "sd.safetensors")
    for arguments, words in (
        (["bare.ckpt"], "or in the shell odvae convert with --downsample=4,8,8."),
        (["bare.ckpt", "--downsample=2,2"], "--downsample: '2,2' is not three numbers, as in 4,8"),
        (["whole", "--downsample=2,2,2"], "--downsample: .* holds TATS, whose file decides that"),
        (["native", "--norm=frame"], "--norm: .* holds TATS, whose file decides that"),
        (
            ["native", "--upsample=linear", "--time-upsample=linear"],
            "--upsample, --time-upsample: .* holds TATS, which has no such setting",
        ),
        (["native", "--upsample=cubic"], "argument --upsample: invalid choice: 'cubic'"),
        (["native", "--heads=4"], "--heads: .* holds TATS, which has no such setting; leave"),
        (["sd.safetensors"], "or in the shell odvae convert with --groups."),
    ):
        status, _, errors = convert(
            capsys, tmp_path / arguments[0], tmp_path / "out", *arguments[1:]
        )
        assert status > 0 and not (tmp_path / "out").exists()
        assert re.search(rf"^odvae convert: .*{words}", errors.replace("--help", ""), re.MULTILINE)
    for name, option, expected in (
        ("bare.ckpt", "--downsample=2,2,2", model),
        ("sd.safetensors", "--groups=4", sd),
    ):
        status, _, errors = convert(capsys, tmp_path / name, tmp_path / name.split(".")[0], option)
        assert status == 0, errors
        loaded = odvae_jax.from_pretrained(tmp_path / name.split(".")[0])
        assert_same_parameters(loaded, expected)


def sd_vae_state(model, path):
    """The weights of an image model alone, without its config."""
    sd_vae.save(model, path.parent / "folder")
    shutil.copy(path.parent / "folder" / "diffusion_pytorch_model.safetensors", path)


@pytest.mark.parametrize("kind", ["od_vae", "cv_vae", "ops_vae"])
def test_a_factor_of_one_s_own_survives_the_published_layout(kind, tmp_path):
    layout = {"od_vae": open_sora_plan, "cv_vae": cv_vae, "ops_vae": ops_vae}[kind]
    released = functools.partial(small_model, width=32, groups=32, upsample="linear")
    model = released() if kind == "od_vae" else tiny(kind)
    layout.save(model, tmp_path / "usual")
    assert not (tmp_path / "usual" / "odvae_latents_scale.json").exists()
    layout.save(with_config(model, scaling_factor=0.5), tmp_path / "model")
    assert load_pretrained(tmp_path / "model").vae.config.scaling_factor == 0.5
