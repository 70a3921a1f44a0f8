"""What `odvae summary` and `odvae decode` do with a dataset of latents."""

import re

import numpy as np
import pytest

from odvae_jax import ODVAE, TemporalTiling, decode_uint8
from odvae_jax.cli import main
from odvae_jax.data.video import inspect_video, read_frames
from odvae_jax.latents.description import PROBLEMS, problem_row
from odvae_jax.transcoding import encoder_digest
from tests.conftest import small_model
from tests.latents.making import BUCKETS, make_dataset
from tests.test_transcoding import grey


def run(capsys, *arguments, status=0):
    code = main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert code == status, printed.out + printed.err
    return printed.out, printed.err


@pytest.mark.parametrize("place", ["folder", "memory://summary/d"])
def test_the_summary_of_a_dataset_is_that_of_its_latents(place, tmp_path, capsys):
    place = tmp_path if place == "folder" else place
    made = make_dataset(place)
    out, _ = run(capsys, "summary", place)
    assert "12 records, moments in float32 of small" in out and "unfinished" not in out
    assert "2 videos left out: too short" in out
    hours = 7 * 17 / 8 / 3600
    assert f"17x16x24: 7 records of 7 entries, 119 frames, {hours:.2f} hours, " in out
    assert re.search(r"9x24x16: 5 records of 5 entries, 45 frames, .* MB", out)
    tables = out.split("channel")[1:]
    parts = [range(7), range(7, 12), range(12)]
    for table, entries in zip(tables, parts, strict=True):
        moments = np.concatenate([made[i].reshape(-1, 8) for i in entries]).astype(float)
        means, variances = moments[:, :4], np.exp(moments[:, 4:])
        for i, line in enumerate(table.splitlines()[1:5]):
            channel, mean, std, sampled = map(float, line.split())
            assert channel == i
            assert mean == pytest.approx(means[:, i].mean(), abs=1e-3)
            assert std == pytest.approx(means[:, i].std(), abs=1e-3)
            expected = np.sqrt(means[:, i].var() + variances[:, i].mean())
            assert sampled == pytest.approx(expected, abs=1e-3)


def test_the_summary_names_problems_and_says_what_is_unfinished(tmp_path, capsys):
    make_dataset(tmp_path, finished=False)
    rows = problem_row(3, "a.mp4", "was mended later") + problem_row(99, "b.mp4", "is broken")
    (tmp_path / PROBLEMS).write_bytes(rows + problem_row(None, "c.mp4", "cannot be read") + b"[\n")
    index = sorted(tmp_path.glob("*/*.index"))[0]
    index.write_bytes(index.read_bytes()[:50])
    out, error = run(capsys, "summary", tmp_path, status=1)
    assert "(unfinished)" in out
    assert "b.mp4: is broken" in error and "c.mp4: cannot be read" in error
    assert "a.mp4" not in error, "its entry is there"
    assert index.name in error and "line 4" in error and "4 problems" in error


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    small_model("v4").save_pretrained(path)
    return path


@pytest.fixture
def decodable(model, tmp_path):
    vae = ODVAE.from_pretrained(model)
    config = {**vae.config.to_dict()}
    more = {"model": str(model), "encoder": encoder_digest(vae)}
    path = tmp_path / "latents"
    # The same sizes as other tests' clips have, so that nothing new is compiled.
    buckets = {"9x24x40": 3, "5x24x40": 2}
    return vae, path, make_dataset(path, buckets=buckets, config=config, more=more)


def test_chosen_records_of_a_dataset_become_videos(decodable, tmp_path, capsys):
    vae, path, made = decodable
    out = tmp_path / "videos"
    said, _ = run(capsys, "decode", path, out, "--records=1,3-4", "--crf=1")
    assert "3 files, 19 frames" in said
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.mp4"))
    assert names == [
        "5x24x40/entry-00000003.mp4", "5x24x40/entry-00000004.mp4", "9x24x40/entry-00000001.mp4",
    ]  # fmt: skip
    info = inspect_video(out / names[2])
    assert (info.frames, info.height, info.width, info.fps) == (9, 24, 40, 8.0)
    frames = grey(read_frames(info, 0, 9))
    errors = {}
    for entry in (0, 1):
        decoded = decode_uint8(vae, made[entry][None, ..., :4], tiling=TemporalTiling(9))[0]
        errors[entry] = np.abs(frames - grey(decoded)).mean()
    assert errors[1] < 3 < errors[0]
    said, _ = run(capsys, "decode", path, out)
    assert "2 files, 18 frames" in said and "3 files were there already" in said


def test_a_damaged_record_is_named_and_the_others_are_decoded(decodable, tmp_path, capsys):
    _, path, _ = decodable
    shard = sorted(path.glob("9x24x40/*.array_record"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    _, error = run(capsys, "decode", path, tmp_path / "out", status=1)
    assert str(shard) in error
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 5 - error.count(f"{shard}, record")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--records=77"], "has no record of the entry 77"),
        (["--records=1,x"], "'x' is no number"),
        (["--records=5-3"], "has no record of the entry 5-3"),
    ],
    ids=str,
)
def test_records_that_cannot_be_chosen_are_refused(arguments, said, tmp_path, capsys):
    make_dataset(tmp_path / "d")
    _, error = run(capsys, "decode", tmp_path / "d", tmp_path / "out", *arguments, status=1)
    assert said in error and not (tmp_path / "out").exists()


def test_records_are_of_datasets_and_a_dataset_is_given_alone(tmp_path, capsys):
    make_dataset(tmp_path / "d", buckets=BUCKETS)
    words = ["decode", tmp_path / "d", tmp_path / "other", tmp_path / "out"]
    assert "as the one input" in run(capsys, *words, status=1)[1]
    words = ["decode", tmp_path / "other", tmp_path / "out", "--records=1"]
    assert "--records is of datasets" in run(capsys, *words, status=1)[1]
