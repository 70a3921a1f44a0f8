"""Models that were damaged or edited after they were written, and exports that were killed."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import odvae_jax
from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.checkpoints import open_sora_plan, sd_vae
from odvae_jax.cli import main
from odvae_jax.parameters import named_parameters
from tests.conftest import small_model
from tests.two_levels import CAUSAL

CONFIG = ODVAEConfig(structure=CAUSAL, width=8, groups=4)
NATIVE, FOREIGN = "model.safetensors", "diffusion_pytorch_model.safetensors"


def tiny(seed=0, **fields):
    return ODVAE(ODVAEConfig(**{**CONFIG.to_dict(), "structure": CAUSAL, **fields}), rngs=seed)


def image_model():
    return small_model("image")


def released():
    return small_model("v4", width=32, groups=32, upsample="linear")


LAYOUTS = {
    "native": (tiny, ODVAE.save_pretrained, NATIVE),
    "sd-vae": (image_model, sd_vae.save, FOREIGN),
    "open-sora-plan": pytest.param(released, open_sora_plan.save, FOREIGN, marks=pytest.mark.full),
}
layouts = pytest.mark.parametrize("make, save, weights", LAYOUTS.values(), ids=LAYOUTS)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def start_of_data(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@layouts
def test_a_flipped_bit_is_found_and_the_tensor_named(tmp_path, make, save, weights):
    save(make(), tmp_path / "model")
    path = tmp_path / "model" / weights
    whole = path.read_bytes()
    header = json.loads(whole[8 : start_of_data(path)])
    names = {n: entry["data_offsets"] for n, entry in header.items() if n != "__metadata__"}
    odvae_jax.from_pretrained(tmp_path / "model")
    for name, (begin, end) in [min(names.items()), max(names.items())]:
        flip(path, start_of_data(path) + (begin + end) // 2)
        with pytest.raises(ValueError, match=f"{weights} is damaged.*1 of .*{name}.*verify=False"):
            odvae_jax.from_pretrained(tmp_path / "model")
        path.write_bytes(whole)
    odvae_jax.from_pretrained(tmp_path / "model", verify=True)


@layouts
def test_a_config_that_was_edited_is_found_unless_it_is_asked_not_to(
    tmp_path, make, save, weights, capsys
):
    save(make(), tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    fields = json.loads(config.read_text())
    changed = {"scaling_factor": 0.5} if "scaling_factor" in fields else {"resolution": 512}
    config.write_text(json.dumps(fields | changed))
    with pytest.raises(ValueError, match=f"config.json is not the config that {weights}"):
        odvae_jax.from_pretrained(tmp_path / "model")
    vae = odvae_jax.from_pretrained(tmp_path / "model", verify=False)
    assert changed.get("scaling_factor", vae.config.scaling_factor) == vae.config.scaling_factor
    config.write_text(json.dumps(fields))  # only laid out otherwise
    ODVAE.from_pretrained(tmp_path / "model")
    config.write_text(json.dumps(fields | changed))
    arguments = ["convert", str(tmp_path / "model"), str(tmp_path / "again")]
    assert main(arguments) == 1 and "--no-verify" in capsys.readouterr().err
    assert main([*arguments, "--no-verify"]) == 0
    odvae_jax.from_pretrained(tmp_path / "again")


def test_digests_are_those_of_the_bytes_of_each_tensor(tmp_path):
    from hashlib import blake2b

    vae = tiny(param_dtype="bfloat16")
    vae.save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / NATIVE, "numpy") as file:
        recorded = json.loads(file.metadata()["digests"])["tensors"]
    assert recorded == {
        name: blake2b(np.asarray(value).tobytes(), digest_size=16).hexdigest()
        for name, value in named_parameters(vae).items()
    }


def test_the_same_model_is_written_in_the_same_bytes(tmp_path):
    written = set()
    for i in range(8):  # the library writes the metadata in a random order
        tiny().save_pretrained(tmp_path / str(i))
        written.add((tmp_path / str(i) / NATIVE).read_bytes())
    assert len(written) == 1


def test_a_model_without_digests_is_loaded_and_the_log_says_so(tmp_path, caplog):
    tiny().save_pretrained(tmp_path / "model")
    save_file(load_file(tmp_path / "model" / NATIVE), tmp_path / "model" / NATIVE, {"format": "x"})
    with caplog.at_level(logging.INFO, "odvae_jax"):
        ODVAE.from_pretrained(tmp_path / "model")
    assert "model.safetensors has no digests" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "odvae_jax"):
        ODVAE.from_pretrained("small")
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("digests", ["", "[]", "{}", "[" * 9999, '{"config": 1, "tensors": 2}'])
def test_damaged_digests_are_refused_in_one_line(tmp_path, digests):
    tiny().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / NATIVE
    save_file(load_file(path), path, {"format": "odvae_jax", "digests": digests})
    with pytest.raises(ValueError, match="the digests in its header are damaged"):
        ODVAE.from_pretrained(tmp_path / "model")


def test_a_flipped_bit_in_the_name_of_the_digests_does_not_switch_them_off(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / NATIVE
    content = path.read_bytes()
    at = content.index(b'"digests"') + 1
    for place in range(at, at + len("digests")):
        for bit in (0, 1):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=r"its header is damaged.*'digests' is expected"):
                ODVAE.from_pretrained(tmp_path / "model")


@layouts
def test_values_that_are_not_finite_are_counted_and_named(tmp_path, make, save, weights, capsys):
    vae = make()
    kernel = np.array(vae.decoder.conv_out.kernel[...])
    kernel.flat[[1, 5]] = np.nan, -np.inf
    vae = jax.tree.map(lambda p: p, vae)
    vae.decoder.conv_out.kernel.set_value(kernel)
    save(vae, tmp_path / "model")  # a run that diverged is exported all the same
    words = (
        rf"{weights} holds values that are not finite: decoder.conv_out.\S+ \(2 of {kernel.size}\)"
    )
    with pytest.raises(ValueError, match=words):
        odvae_jax.from_pretrained(tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "again")]) == 1
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "again").exists()


def test_a_dtype_that_is_too_small_is_named(tmp_path):
    vae = tiny()
    vae.quant_conv.kernel.set_value(vae.quant_conv.kernel[...] + 1e6)
    vae.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not finite: quant_conv.kernel.*param_dtype"):
        ODVAE.from_pretrained(tmp_path / "model", param_dtype="float16")


WRITER = """
import os, pathlib, signal, sys, time
import numpy as np
from odvae_jax.checkpoints import folders
from odvae_jax.files import BusyError
path, how, number = sys.argv[1], sys.argv[2], int(sys.argv[3])

def write(number):
    config, arrays = {"number": number}, {"w": np.full(5, number, np.float32)}
    folders.write_folder(path, config, "model.safetensors", arrays, overwrite=True, metadata={})

if how == "waits":
    def wait(arrays, file, **_):
        file.write_bytes(b"half")
        print("ready", flush=True)
        sys.stdin.readline()
        save(arrays, file, **_)
    folders.save_file, save = wait, folders.save_file
if how == "is killed while it replaces":
    def once(*arguments):
        replace(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace, replace = once, os.replace
for i in range(30 if how == "repeats" else 1):
    write(number + i)
"""


@contextlib.contextmanager
def writer(path, how, number=1):
    """A process that writes a folder of a model."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, path, how, str(number)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes, text=True) as process:
        if how == "waits":
            assert process.stdout.readline() == "ready\n"
        yield process


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("name", ["model", "a" * 255, "[x]*?"])
def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path, name):
    with writer(tmp_path / name, "waits") as process:
        assert len(names(tmp_path)) == 1
        process.kill()
    assert len(names(tmp_path)) == 1 and names(tmp_path) != [name]
    (tmp_path / f".{name[:9]}.mine").mkdir()
    (tmp_path / f".{name[:9]}.abcdefgh").mkdir()
    (tmp_path / f".{name[:9]}.abcdefgh" / "notes.txt").write_text("mine")
    tiny().save_pretrained(tmp_path / name)
    assert len(names(tmp_path)) == 3, "others' folders stay"
    assert (tmp_path / f".{name[:9]}.abcdefgh" / "notes.txt").read_text() == "mine"


def test_what_a_living_process_writes_is_left_to_it(tmp_path):
    with writer(tmp_path / "model", "waits") as process:
        before = names(tmp_path)
        tiny().save_pretrained(tmp_path / "model")
        assert names(tmp_path) == sorted([*before, "model"])
        process.communicate("go on\n")
    assert process.returncode == 0 and names(tmp_path) == ["model"]
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"number": 1}
    assert load_file(tmp_path / "model" / NATIVE)["w"].tolist() == [1] * 5


def test_an_export_that_was_killed_while_it_replaced_another_is_found(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text()
    with writer(tmp_path / "model", "is killed while it replaces") as process:
        process.wait()
    assert (tmp_path / "model" / "config.json").read_text() != config, "the test needs a torn one"
    with pytest.raises(ValueError, match=r"config.json"):
        ODVAE.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config.replace("0.18215", "0.5"))  # as if
    with pytest.raises(ValueError, match=r"config.json is not the config .* killed"):
        ODVAE.from_pretrained(tmp_path / "model")
    tiny(1).save_pretrained(tmp_path / "model", overwrite=True)
    ODVAE.from_pretrained(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_two_exports_into_one_folder_leave_one_of_them_whole(tmp_path):
    with (
        writer(tmp_path / "model", "repeats", 0) as a,
        writer(tmp_path / "model", "repeats", 1000) as b,
    ):
        assert a.wait() == b.wait() == 0
    number = json.loads((tmp_path / "model" / "config.json").read_text())["number"]
    assert load_file(tmp_path / "model" / NATIVE)["w"].tolist() == [number] * 5
    assert names(tmp_path) == ["model"]


JUNK = [None, True, -1, 0, 2**70, 1e308, "", "x" * 9999, [], {}, [[]], [10**9] * 3, {"a": [{}]}]
BROKEN = {
    "empty": b"",
    "cut": b'{"format": "odvae_jax", "wid',
    "a list": b"[1]",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 10**6,
    "deep objects": b'{"a":' * 10**5,
    "deep but whole": b'{"a":' * 500 + b"1" + b"}" * 500,
    "a giant number": b'{"width": ' + b"9" * 10**5 + b"}",
    "not a number": b'{"format": "odvae_jax", "scaling_factor": NaN}',
    "infinite": b'{"format": "odvae_jax", "scaling_factor": Infinity}',
    "large": b" " * (17 * 2**20) + b"{}",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_config_is_refused_in_one_line(tmp_path, case):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    tiny().save_pretrained(folder)
    (folder / "config.json").write_bytes(BROKEN[case])
    started = time.process_time()
    with pytest.raises(ValueError, match=r"caf\\xe9/config.json") as error:
        ODVAE.from_pretrained(folder)
    assert str(error.value).isprintable() and len(str(error.value)) < 700
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "layout, some",
    [
        ("native", JUNK[2:7:4]),
        ("sd-vae", JUNK),
        *(
            pytest.param(layout, JUNK, marks=pytest.mark.full)
            for layout in ("native", "open-sora-plan")
        ),
    ],
)
def test_a_config_of_any_content_is_refused_in_one_line(tmp_path, layout, some):
    if layout == "native":
        fields = {"format": "odvae_jax", **CONFIG.to_dict()}
        places = [*((name,) for name in fields), *(("structure", n) for n in fields["structure"])]
    else:
        image = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16, 32, 32]}
        image |= {"latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.2}
        released = open_sora_plan.released_config(ODVAEConfig.variant(4, upsample="linear"))
        fields = image if layout == "sd-vae" else released
        places = [(name,) for name in fields]
    (tmp_path / "model").mkdir()
    for name in (NATIVE, FOREIGN):
        save_file({"w": np.zeros(3, np.float32)}, tmp_path / "model" / name)
    for place in places:
        for junk in some:
            broken = json.loads(json.dumps(fields))
            inner = broken["structure"] if len(place) > 1 else broken
            inner[place[-1]] = junk
            (tmp_path / "model" / "config.json").write_text(json.dumps(broken))
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                ODVAE.from_pretrained(tmp_path / "model")
            assert str(error.value).isprintable() and len(str(error.value)) < 2500, (place, junk)


def test_paths_that_are_no_utf8_links_and_folders_that_cannot_be_read(tmp_path, capsys):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    vae = tiny()
    vae.save_pretrained(odd)
    (tmp_path / "link").symlink_to(odd)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (odd, tmp_path / "link"):
        ODVAE.from_pretrained(path)
    ODVAE.save_pretrained(vae, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and names(odd) == ["config.json", NATIVE]
    with pytest.raises(OSError, match="circle"):
        ODVAE.from_pretrained(tmp_path / "circle")
    with pytest.raises(OSError, match="circle"):
        vae.save_pretrained(tmp_path / "circle")
    (odd / NATIVE).unlink()
    (odd / NATIVE).mkdir()
    with pytest.raises(FileNotFoundError, match=r"caf\\xe9/model.safetensors does not exist"):
        ODVAE.from_pretrained(odd)
    assert main(["convert", str(odd), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].isprintable()
