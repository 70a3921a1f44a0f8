"""Videos that URLs name."""

import contextlib
import itertools
import json
import sys
import time

import fsspec
import numpy as np
import pytest
from PIL import Image

from odvae_jax.data import once
from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.inspection import survey
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import Header, Sampling, open_source
from odvae_jax.data.video import TimeLimitError, VideoError, inspect_video, read_frames
from tests import s3
from tests.conftest import write_clip
from tests.data.agreement import agrees
from tests.data.test_sources import moving, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    (path / "below").mkdir()
    for i in range(4):
        write_clip(path / "below" / f"clip {i}.mp4", frames=16 + i, seed=i)
    (path / "fake.mp4").write_text("not a video")
    (path / "notes.txt").write_text("notes")
    rows = [{"path": "below/clip 0.mp4", "start": 0.5, "caption": "é"}, {"path": "no.mp4"}]
    (path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def upload(folder, url):
    system, path = fsspec.core.url_to_fs(url)
    system.put(f"{folder}/", path, recursive=True)
    return url


@pytest.fixture(scope="module")
def memory(folder):
    url = upload(folder, "memory://urls/videos")
    yield url
    fsspec.filesystem("memory").rm("/urls", recursive=True)


@pytest.fixture(scope="module")
def bucket(folder):
    with s3.server() as url:
        yield upload(folder, f"{url}/some/videos")


@pytest.fixture(params=["memory", "bucket"])
def place(request):
    return request.getfixturevalue(request.param)


def test_videos_that_a_url_names_are_those_of_the_folder(folder, place):
    far, near = open_source(place), open_source(f"folder:{folder}")
    assert [far.name(i) for i in range(5)] == [
        near.name(i).replace(str(folder), place) for i in range(5)
    ]
    assert [far.bytes_behind(i) for i in range(5)] == [near.bytes_behind(i) for i in range(5)]
    for index in range(4):
        assert far.header(index) == near.header(index)
        clips = [s.read(index, Sampling(4, 24), 2, lambda n: n - 1) for s in (far, near)]
        np.testing.assert_array_equal(*clips)
    agrees(far, 1)
    one = f"{place}/below/clip 2.mp4"
    np.testing.assert_array_equal(
        read_frames(inspect_video(one), 3, 4),
        near.read(2, Sampling(4), 1, lambda n: 3),
    )
    assert len(open_source(one)) == 1
    agrees(open_source(one, in_memory=True), 0)


def test_manifests_may_lie_at_urls_and_name_urls(folder, place, tmp_path):
    far, near = (open_source(f"{where}/list.jsonl") for where in (place, folder))
    assert far.header(0) == near.header(0) and far.columns(0) == {"caption": "é"}
    with pytest.raises(VideoError, match=r"no\.mp4 cannot be read as a video: No such file or dir"):
        far.header(1)
    (tmp_path / "list.csv").write_text(f"path,label\n{place}/below/clip 1.mp4,cat\n")
    source = open_source(tmp_path / "list.csv")
    assert source.header(0).frames == 17 and source.columns(0) == {"label": "cat"}


def test_tables_and_pictures_may_lie_at_urls(folder, place, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    clips = sorted((folder / "below").iterdir())
    columns = {"video": [clip.read_bytes() for clip in clips], "caption": list("abcd")}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    Image.fromarray(moving(1, 24, 32)[0]).save(tmp_path / "a.png")
    tables = upload(tmp_path, f"{place}-tables")
    for text in (f"parquet:{tables}", f"datasets:{tables}", f"parquet:{tables}/a.parquet:video"):
        source = open_source(text)
        assert source.header(2).frames == 18 and source.columns(3)["caption"] == "d"
        assert source.bytes_behind(0) == (tmp_path / "a.parquet").stat().st_size
    picture = open_source(f"images:{tables}")
    assert picture.header(0) == Header(1, 24, 32, 1.0)
    frame = picture.read(0, Sampling(1), 1, lambda n: 0)
    np.testing.assert_array_equal(frame, moving(1, 24, 32))


def test_what_is_wrong_at_a_url_is_said_as_for_a_path(place):
    source = open_source(place)
    for read in (source.header, source.rate, lambda i: list(source.blocks(i, 4))):
        with pytest.raises(VideoError, match=r"videos/fake\.mp4 cannot be read as a video: .*Inva"):
            read(4)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a folder"):
        open_source(f"{place}/nowhere")
    system, path = fsspec.core.url_to_fs(f"{place}-notes/a.txt")
    system.pipe_file(path, b"notes")
    with pytest.raises(ValueError, match=r"no video below .*notes: found 1 file, looked for"):
        open_source(f"{place}-notes")


def test_workers_read_the_same_clips_from_s3(bucket, folder):
    clips = RandomClips(bucket, frames=5, size=32)
    drawn = []
    for workers in (0, 2):
        with contextlib.closing(batches(clips, 2, workers=workers, threads=2)) as feed:
            drawn.append([batch.copy() for batch in itertools.islice(feed, 6)])
    np.testing.assert_array_equal(*drawn)
    near = RandomClips(folder, frames=5, size=32)
    np.testing.assert_array_equal(np.concatenate(drawn[0]), [near[i] for i in range(12)])
    assert list(clips.skipped) == [f"{bucket}/fake.mp4"]


def test_what_lies_in_memory_is_read_in_this_process_and_that_is_said(
    memory, caplog, monkeypatch, tmp_path
):
    monkeypatch.setattr(once, "_said", set())
    clips = RandomClips(memory, frames=5, size=32)
    with contextlib.closing(batches(clips, 2, workers=3)) as feed:
        assert next(feed).shape == (2, 5, 32, 32, 3)
    (message,) = [r.getMessage() for r in caplog.records if "memory://" in r.getMessage()
                  and r.name == once.__name__]  # fmt: skip
    assert "none of the 3 workers" in message
    assert survey(memory, workers=2).usable == 4
    assert len(pack_videos(memory, tmp_path / "packed", workers=2).unusable) == 1


def test_a_clip_of_a_long_video_is_read_by_ranges(bucket, tmp_path, monkeypatch):
    import s3fs

    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 160, 3), np.uint8)
    path = write(tmp_path / "long.mkv", noise, "ffv1")
    system, name = fsspec.core.url_to_fs(f"{bucket}-long/long.mkv")
    system.put_file(path, name)
    fetched = []
    fetch = s3fs.core.S3File._fetch_range
    monkeypatch.setattr(
        s3fs.core.S3File,
        "_fetch_range",
        lambda self, start, end: fetched.append(end - start) or fetch(self, start, end),
    )
    source = open_source(f"{bucket}-long/long.mkv")
    clip = source.read(0, Sampling(2), 1, lambda n: 60)
    np.testing.assert_array_equal(clip, open_source(path).read(0, Sampling(2), 1, lambda n: 60))
    size = source.bytes_behind(0)
    assert size > 6e6 and sum(fetched) < size / 2


def test_a_far_read_that_blocks_is_given_up(memory, monkeypatch):
    source = open_source(f"{memory}/below/clip 0.mp4", timeout=0.2)
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "cat_file", lambda *a, **k: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"memory://urls/videos/below/clip 0\.mp4 was not rea"):
        source.header(0)
    assert time.monotonic() - began < 2


def test_drivers_and_protocols_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        FileNotFoundError, match=r"gs://bucket/videos .*driver for gs://.*'odvae_jax\[gs\]'"
    ):
        open_source("gs://bucket/videos")
    with pytest.raises(ValueError, match="nix://a/b cannot be read: .*nix.*such as s3://"):
        open_source("nix://a/b")


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(FileNotFoundError, match="s3://elsewhere/videos does not exist; expected"):
        open_source("s3://elsewhere/videos")
