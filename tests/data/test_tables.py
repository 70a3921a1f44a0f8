"""Parquet files and Hugging Face datasets as sources."""

import contextlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.inspection import survey
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import Header, Sampling, open_source
from odvae_jax.data.video import VideoError
from tests.conftest import write_clip
from tests.data.agreement import agrees
from tests.data.encoding import encoded_columns

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
DATASETS = Path(__file__).parents[1] / "fixtures" / "datasets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables")
    for i in range(5):
        write_clip(path / f"clip{i}.mp4", frames=12 + i, seed=i)
    return path


def rows(folder, **columns):
    clips = sorted(folder.glob("clip*.mp4"))
    return {"caption": [f"é {i}" for i in range(len(clips))], **columns}, clips


def write(path, columns, groups=2):
    parquet.write_table(pyarrow.table(columns), path, row_group_size=groups)
    return path


@pytest.mark.parametrize("holds", ["bytes", "paths", "structures", "structures of paths"])
def test_the_videos_of_a_table_are_those_of_the_files(folder, tmp_path, holds):
    columns, clips = rows(folder, stars=[1.5, float("nan"), 2.0, 3.0, None], tags=[["a"]] * 5)
    content = [clip.read_bytes() for clip in clips]
    names = [clip.name for clip in clips]
    columns["video"] = {
        "bytes": content,
        "paths": names,
        "structures": [{"bytes": c, "path": n} for c, n in zip(content, names, strict=True)],
        "structures of paths": [{"bytes": None, "path": name} for name in names],
    }[holds]
    for clip in clips:
        shutil.copy(clip, tmp_path)
    source = open_source(f"parquet:{write(tmp_path / 'a.parquet', columns)}")
    files = open_source(folder)
    assert [source.header(i) for i in range(5)] == [files.header(i) for i in range(5)]
    for index in (4, 0, 3):
        expected = files.read(index, Sampling(5, 24), 2, lambda n: n - 1)
        np.testing.assert_array_equal(
            source.read(index, Sampling(5, 24), 2, lambda n: n - 1), expected
        )
    agrees(source, 1)
    assert source.columns(0) == {"caption": "é 0", "stars": 1.5, "tags": ["a"]}
    assert source.columns(1)["stars"] is source.columns(4)["stars"] is None
    assert source.name(3) == f"{tmp_path}/a.parquet, row 3"


def test_workers_draw_the_same_clips_from_a_folder_of_tables(folder, tmp_path):
    columns, clips = rows(folder)
    columns["video"] = [clip.read_bytes() for clip in clips]
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", columns)
    clips = RandomClips(f"parquet:{tmp_path}", frames=5, size=32)
    assert len(clips) == 10
    drawn = []
    for workers in (0, 2):
        with contextlib.closing(batches(clips, 2, workers=workers, threads=2)) as feed:
            drawn.append([batch.copy() for batch in itertools.islice(feed, 6)])
    np.testing.assert_array_equal(*drawn)
    assert not clips.skipped


def test_what_the_library_datasets_saved_is_read_without_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    train, test = (open_source(f"datasets:{DATASETS}/{split}") for split in ("train", "test"))
    assert [train.header(i) for i in range(len(train))] == [
        Header(6, 16, 24, 12.0),
        Header(7, 16, 24, 12.0),
    ]
    assert train.columns(1) == {"caption": "clip 1", "label": 1, "label_name": "b"}
    assert test.columns(0) == train.columns(1)
    clip = test.read(0, Sampling(7), 1, lambda n: 0)
    np.testing.assert_array_equal(clip, train.read(1, Sampling(7), 1, lambda n: 0))
    with pytest.raises(ValueError, match=r"holds the splits \['train', 'test'\]; name one, as in"):
        open_source(f"datasets:{DATASETS}")
    shutil.copytree(DATASETS / "train", tmp_path / "torn")
    (tmp_path / "torn" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 files are missing, data-00001.*save_to_d"):
        open_source(f"datasets:{tmp_path / 'torn'}")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a folder that"):
        open_source("datasets:nowhere")


def test_a_dataset_in_parquet_files_keeps_its_labels_and_knows_its_videos(folder, tmp_path):
    columns, clips = rows(folder, label=[0, 1, 2, 0, None], poster=[b"x"] * 5)
    columns["clip"] = [{"bytes": clip.read_bytes(), "path": None} for clip in clips]
    features = {"clip": {"_type": "Video"}, "poster": {"_type": "Image"}}
    features["label"] = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "data").mkdir()
    table = pyarrow.table(columns).replace_schema_metadata(noted)
    parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    source = open_source(f"datasets:{tmp_path}")
    labels = [source.columns(i) for i in range(5)]
    assert [c["label_name"] for c in labels] == ["cat", "dog", None, "cat", None]
    assert dict(survey(f"datasets:{tmp_path}").columns) == {
        "caption": 5, "label": 4, "label_name": 3,
    }  # fmt: skip
    pack_videos(f"datasets:{tmp_path}", tmp_path / "packed", short_side=16)
    assert [open_source(f"array_record:{tmp_path / 'packed'}").columns(i) for i in range(5)] == (
        labels
    )


def test_several_columns_that_may_hold_videos_need_a_name(folder, tmp_path, caplog):
    columns, clips = rows(folder)
    columns |= {name: [clip.read_bytes() for clip in clips] for name in ("left", "right")}
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ValueError, match=r"has 2 columns that may hold videos \(left, right\); na"):
        open_source(f"parquet:{path}")
    assert open_source(f"parquet:{path}:right").columns(0) == {"caption": "é 0"}
    assert "the columns ['left'] are left out" in caplog.text
    with pytest.raises(ValueError, match="has no column 'middle' of bytes, paths.*left .binary"):
        open_source(f"parquet:{path}:middle")
    with pytest.raises(ValueError, match="has 0 columns that may hold videos"):
        open_source(f"parquet:{write(tmp_path / 'b.parquet', {'n': [1], 'text': ['word']})}")


def test_rows_and_files_that_are_damaged_are_named_and_the_others_are_used(folder, tmp_path):
    columns, clips = rows(folder)
    columns["video"] = [b"nothing", None, *(clip.read_bytes() for clip in clips[2:])]
    path = write(tmp_path / "a.parquet", columns)
    content = path.read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    source = open_source(f"parquet:{tmp_path}")
    assert len(source) == 6 and source.header(3).frames == 15
    for index, words in {
        0: r"a\.parquet, row 0 cannot be read as a video",
        1: r"a\.parquet, row 1 holds no video in its column 'video'",
        5: r"b\.parquet cannot be read: ",
    }.items():
        for read in (source.header, source.rate, lambda i: list(source.blocks(i, 4))):
            with pytest.raises(VideoError, match=words):
                read(index)
    clips = RandomClips(f"parquet:{tmp_path}", frames=5, size=32)
    assert all(clips[i].shape == (5, 32, 32, 3) for i in range(12)) and len(clips.skipped) == 3
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"a.parquet cannot be read(.|\n)*b.parquet cannot be"):
        open_source(f"parquet:{tmp_path}")


def test_without_pyarrow_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"video": [b"x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'odvae_jax\[parquet\]'"):
        open_source(f"parquet:{path}")


def test_a_parquet_file_becomes_latents_with_its_columns(folder, tmp_path):
    columns, clips = rows(folder, stars=[1, 2, 3, 4, 5])
    columns["video"] = [clip.read_bytes() for clip in clips]
    source = f"parquet:{write(tmp_path / 'a.parquet', columns)}"
    found = encoded_columns(source, tmp_path / "d")
    assert found == {i: {"caption": f"é {i}", "stars": i + 1} for i in range(5)}
