"""Files of latents: what they say of themselves is checked in full, and their data by digests."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.cli import main
from odvae_jax.config import STRUCTURES
from odvae_jax.latents import LatentsError, LatentsFile, LatentsInfo, LatentsWriter, Scale
from odvae_jax.latents import files as latents_module
from odvae_jax.latents import schema as latents_schema
from tests.conftest import write_clip
from tests.two_levels import CAUSAL

BEFORE = Path(__file__).parent / "fixtures" / "before" / "clip0.safetensors"
FRAMES, HEIGHT, WIDTH = 8, 15, 16  # odd ones, so that frames and rows are padded


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A file of latents, written by the command."""
    folder = tmp_path_factory.mktemp("latents")
    ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4), rngs=0).save_pretrained(folder / "m")
    write_clip(folder / "v.mp4", frames=FRAMES, height=16, width=16)
    assert main(["encode", str(folder / "v.mp4"), str(folder / "v.safetensors"),
                 f"--ckpt={folder / 'm'}", "--size=15"]) == 0  # fmt: skip
    return folder / "v.safetensors"


def parts_of(path):
    """Metadata and arrays of a file as an older version would have written them: no digests."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    arrays.pop("digests")
    return {n: v for n, v in metadata.items() if not n.startswith("digest")}, arrays


# Anything but a whole number, a number, a text, an object or a list.
ANYTHING = ["null", "true", "[]", "{}", '""', '"text"', "0", "-1", "1.5", "1e999", "NaN"]
ANYTHING += [
    "-Infinity",
    str(10**30),
    "{",
    "",
    "[" * 5000,
    '"\ud800"'.encode("unicode-escape").decode(),
]
CAN_BE = {
    "source": {'"text"', ANYTHING[-1]},
    "model": {'"text"', ANYTHING[-1]},
    "problem": {'""', '"text"', ANYTHING[-1]},
    "scaling_factor": {"1.5", str(10**30)},
    "fps": {"1.5", str(10**30)},
    "seed": {"null"},
    "columns": {"{}"},
    "place": {"null"},
}
OF_ONE = {
    "encoder": ['"0123"', '"da4b70f62565bffg"', '"da4b70f62565bff0"', '"DA4B70F62565BFFA"'],
    "content": ['"moments"', '"sample"', '"Mean"', '"digests"'],
    "frames": ["7", "10", "9.0", "16", "1", "2147483648"],
    "height": ["14", "17", "0", "16"],
    "width": ["14", "17", "-15", "13", "15.0", "16"],
    "dtype": ['"float64"', '"Float32"', '"bf16"'],
    "store": ['"float16"', '"bfloat16"', '"float64"'],
    "seed": ["0", "3", '"0"'],
    "tiling": [
        '{"TemporalTiling": {}}', '{"TemporalTiling": {"group": "33"}}',
        '{"TemporalTiling": {"group": 0}}', '{"TemporalTiling": {"group": 33, "chunk": 32}}',
        '{"TemporalTiling": {"group": 34}}', '{"TemporalTiling": {"group": true}}',
        '{"Streaming": {"chunk": 32}}', '{"SpatialTiling": {"tile": 64, "overlap": 0}}',
        '{"TemporalTiling": {"group": 33}, "SpatialTiling": {"tile": 64, "overlap": 64}}',
        '{"TemporalTiling": {"group": 33}, "SpatialTiling": {"tile": 63, "overlap": 0}}',
        '{"TemporalTiling": {"group": 33}, "Streaming": {"chunk": 32}}', '{"os": {"system": 1}}',
    ],
    "prepared": ['{"short_side": 15}', '{"short_side": 15, "size": 16}', '{"short_side": null, '
        '"size": 0}', '{"short_side": "15", "size": null}', '{"short_side": 1, "size": 15, "x": 1}',
        '{"short_side": null, "size": null, "cover": [8, 8]}',
        '{"short_side": null, "size": null, "cover": 15}',
    ],
    "place": [
        '{"video": 0}', '{"video": -1, "start": 0, "stride": 1, "mirrored": false}',
        '{"video": 0, "start": 0, "stride": 0, "mirrored": false}',
        '{"video": 0, "start": 0, "stride": 1, "mirrored": 0}',
    ],
}  # fmt: skip
INSIDE = {
    "config": {
        "structure": ["v4", "v5", None, 4, {}, {"time_strides": [2]}],
        "width": [0, -8, "8", 8.0, None, 16],
        "latent_channels": [0, 3, 5, "4", None, True, 10**12],
        "groups": [0, 3, None, 2],
        "norm": ["frame", "batch", 1],
        "dtype": ["float8", 1],
        "latents_mean": [[0.0] * 4, [0.0] * 3, "text", [1e999] * 4, 1.0],  # without deviations
        "latents_std": [[1.0] * 4],
        "unknown": [1],
    },
    "statistics": {
        "count": [0, -1, 1.0, "640", True, None, 639, 10**20],
        "mean": [[], [0.0], [0.0] * 5, ["a"] * 4, [None] * 4, [1e999] * 4, 1.0, None, [1e9] * 4],
        "square": [[-1.0] * 4, [float("nan")] * 4, [0.0] * 3, {}],
        "variance": [[-1.0] * 4, [1e999] * 4, "none", [[0.0] * 4] * 4],
        "unknown": [1],
    },
}


def damaged(path):
    """Pairs of a name and the metadata and arrays of a file that cannot be true."""
    metadata, arrays = parts_of(path)
    for name in metadata:
        values = [v for v in ANYTHING if v not in CAN_BE.get(name, ())] + OF_ONE.get(name, [])
        for i, value in enumerate(values):
            yield f"{name} {i}", {**metadata, name: value}, arrays
        if name not in ("problem", "columns", "place"):
            yield f"{name} missing", {n: v for n, v in metadata.items() if n != name}, arrays
    for name, fields in INSIDE.items():
        whole = json.loads(metadata[name])
        for field, values in fields.items():
            for i, value in enumerate(values):
                changed = {**metadata, name: json.dumps({**whole, field: value})}
                yield f"{name}.{field} {i}", changed, arrays
            lacking = {n: v for n, v in whole.items() if n != field}
            needed = name == "statistics" or field in ("structure", "width", "latent_channels")
            if needed and lacking != whole:
                yield f"{name}.{field} missing", {**metadata, name: json.dumps(lacking)}, arrays
    yield "unknown field", {**metadata, "colour": '"blue"'}, arrays
    mean = arrays["mean"]
    bad = mean.copy()
    bad[1, 2, 3, 0] = np.nan
    for name, changed in {
        "one frame less": mean[:-1], "one row less": mean[:, 1:], "one column more":
        np.concatenate([mean, mean[:, :, :1]], axis=2), "a channel less": mean[..., :3],
        "moments": np.concatenate([mean, mean], axis=-1), "no frames": mean[:0],
        "rank 5": mean[None], "rank 1": mean.ravel(), "a number": np.float32(1.0).reshape(()),
        "float16": mean.astype(np.float16), "float64": mean.astype(np.float64),
        "whole numbers": mean.astype(np.int32), "not finite": bad,
    }.items():  # fmt: skip
        yield f"array: {name}", metadata, {"mean": np.ascontiguousarray(changed)}
    yield "array: none", metadata, {}
    yield "array: another", metadata, {"sample": mean}
    yield "array: two", metadata, {"mean": mean, "other": mean}


def test_none_of_what_cannot_be_true_is_decoded_and_each_is_named(encoded, tmp_path, capsys):
    folder = tmp_path / "latents"
    folder.mkdir()
    metadata, arrays = parts_of(encoded)
    save_file(arrays, folder / "good.safetensors", metadata)
    names = []
    for number, (name, changed, held) in enumerate(damaged(encoded)):
        names.append(f"{number:03} {name.replace('/', ' ')}.safetensors")
        save_file(held, folder / names[-1], changed)
    assert len(names) > 250
    capsys.readouterr()
    model = encoded.with_name("m")
    assert main(["decode", str(folder), str(tmp_path / "out"), f"--ckpt={model}"]) == 1
    said = capsys.readouterr()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.mp4"]
    lines = said.err.splitlines()
    unnamed = [name for name in names if sum(name in line for line in lines) != 1]
    assert not unnamed, unnamed
    assert f"{len(names)} files with problems" in lines[-1]
    # Most are refused by whoever opens the file, without a model.
    opened = [name for name in names if opens(folder / name)]
    needs_the_model = ("config.", "tiling ", "encoder ", "array: not finite")
    assert all(any(part in name for part in needs_the_model) for name in opened), opened


def opens(path):
    try:
        LatentsFile(path)
        return True
    except LatentsError as error:
        assert "\n" not in str(error) and path.name in str(error)
        return False


def test_a_file_of_the_second_format_is_read_and_its_model_says_the_compression(encoded, tmp_path):
    metadata, arrays = parts_of(encoded)
    assert metadata.pop("time_compression") == "2"
    metadata["format"] = "odvae_jax latents 2"
    save_file(arrays, tmp_path / "a.safetensors", metadata)
    file = LatentsFile(tmp_path / "a.safetensors")
    assert file.info == LatentsFile(encoded).info and file.info.time_compression == 2
    np.testing.assert_array_equal(file.read(), arrays["mean"])


def test_a_file_normalises_as_the_model_did_that_made_it():
    info = LatentsFile(BEFORE).info
    assert info.scale == Scale(None, None, 0.18215)
    measured = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5] * 4}
    info = dataclasses.replace(info, config=info.config | measured)
    z = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(info.scale.normalise(z), (z - [1, 2, 3, 4]) * 2)


def info_of(shape, dtype="float32", content="mean", **changes):
    """What a file says whose array has this shape: latents of v4, of whole frames."""
    t, h, w, channels = shape
    info = LatentsFile(BEFORE).info
    c = channels // (2 if content == "moments" else 1)
    sums = {"count": t * h * w, "mean": [0.0] * c, "square": [1.0] * c, "variance": [1.0] * c}
    return dataclasses.replace(
        info, frames=4 * t - 3, height=8 * h, width=8 * w, statistics=sums, content=content,
        store=dtype, prepared={"short_side": None, "size": None},
        config={**info.config, "latent_channels": c}, **changes,
    )  # fmt: skip


def written(path, array, *, in_parts_of=3, dtype="float32", content="mean", **changes):
    writer = LatentsWriter(path, dtype=dtype, content=content)
    try:
        for start in range(0, len(array), in_parts_of):
            writer.write(array[start : start + in_parts_of])
        writer.finish(info_of(array.shape, dtype, content, **changes))
    finally:
        writer.close()
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """A digest per two latent frames of [., 4, 5, 4] in float32, as of some MB in real files."""
    monkeypatch.setattr(latents_module, "_BLOCK_BYTES", 2 * 4 * 5 * 4 * 4)


def test_every_flipped_bit_is_found_by_a_read_of_its_place_and_by_no_other(small_blocks, tmp_path):
    array = np.random.default_rng(0).standard_normal((7, 4, 5, 4)).astype(np.float32)
    path = written(tmp_path / "a.safetensors", array)
    whole = path.read_bytes()
    np.testing.assert_array_equal(LatentsFile(path).read(), array)
    begins = 8 + int.from_bytes(whole[:8], "little")
    assert whole[begins:].startswith(array.tobytes())
    for frame in range(7):
        place = begins + frame * 320 + 37 * frame
        flipped = tmp_path / "flipped.safetensors"
        flipped.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        for start in range(7):
            for stop in range(start + 1, 8):
                file = LatentsFile(flipped)
                touched = {i // 2 for i in range(start, stop)}
                if frame // 2 in touched:
                    with pytest.raises(LatentsError, match="flipped.safetensors is damaged: its"):
                        file.read(start, stop)
                else:
                    np.testing.assert_array_equal(file.read(start, stop), array[start:stop])
        assert LatentsFile(flipped, verify=False).read().shape == array.shape
    flipped.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # a digest
    assert not opens(flipped)


def test_every_flipped_bit_of_the_metadata_is_found(small_blocks, tmp_path):
    path = written(tmp_path / "a.safetensors", np.ones((3, 4, 5, 4), np.float32))
    whole = path.read_bytes()
    flipped, opened = tmp_path / "flipped.safetensors", []
    ends = whole.rindex(b"}", 0, 8 + 16384) + 1
    for place in range(8, ends, 11):
        flipped.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if opens(flipped):
            opened.append((place, whole[place - 20 : place + 1]))
    assert not opened


def test_reads_in_any_order_give_what_was_written(small_blocks, tmp_path):
    rng = np.random.default_rng(0)
    array = rng.standard_normal((9, 4, 5, 8)).astype(np.float32)
    for parts in (1, 2, 5, 9):
        path = written(tmp_path / "a.safetensors", array, in_parts_of=parts, content="moments")
        file = LatentsFile(path)
        for start, stop in rng.integers(0, 10, (40, 2)).tolist():
            np.testing.assert_array_equal(file.read(start, stop), array[start:stop, ..., :4])
            np.testing.assert_array_equal(file.read_logvar(start, stop), array[start:stop, ..., 4:])
        np.testing.assert_array_equal(file.read(-2), array[-2:, ..., :4])
        blocks = list(file.blocks(3))
        assert [len(block) for block in blocks] == [4, 3, 2]
        np.testing.assert_array_equal(np.concatenate(blocks), array[..., :4])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_that_are_not_finite_in_the_file_s_dtype_are_not_written(dtype, tmp_path):
    for value in (np.nan, np.inf, *([] if dtype != "float16" else [1e5])):
        array = np.ones((3, 4, 5, 4), np.float32)
        array[2, 1, 1, 1] = value
        with pytest.raises(LatentsError, match=f"1 of 240 values .* not finite as {dtype}"):
            written(tmp_path / "a.safetensors", array, dtype=dtype)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [{"fps": 0.0}, {"fps": float("nan")}, {"source": ""}, {"model": "x" * 20_000}, {"seed": 1}],
    ids=["no rate", "a rate that is no number", "no source", "too long", "a seed of no sample"],
)
def test_a_file_that_cannot_be_true_does_not_get_its_name(changes, tmp_path):
    with pytest.raises(LatentsError):
        written(tmp_path / "a.safetensors", np.ones((3, 4, 5, 4), np.float32), **changes)
    assert not list(tmp_path.iterdir())


def test_a_file_of_nothing_does_not_get_its_name(tmp_path):
    writer = LatentsWriter(tmp_path / "a.safetensors")
    with pytest.raises(LatentsError, match="no latents"):
        writer.finish(info_of((3, 4, 5, 4)))
    writer.close()
    assert not list(tmp_path.iterdir())


def test_files_of_before_without_digests_are_read_and_it_is_said_once(caplog):
    latents_module._say_once_that_digests_are_missing.cache_clear()
    with caplog.at_level(logging.WARNING, "odvae_jax"):
        for _ in range(3):
            file = LatentsFile(BEFORE)
            assert not file.has_digests and file.read(1, 3).shape == (2, 4, 4, 4)
    assert len([r for r in caplog.records if "without digests" in r.message]) == 1


def test_the_compressions_of_named_models_are_those_of_the_table():
    table = {n: (row.time_compression, row.space_compression) for n, row in STRUCTURES.items()}
    assert table == latents_schema.COMPRESSIONS


def test_every_field_has_its_check():
    assert latents_schema._SCHEMA.keys() == {f.name for f in dataclasses.fields(LatentsInfo)}
