"""What a source says of a video without reading it, and whole videos in blocks, of every source."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import Header, Sampling, Source, open_source
from odvae_jax.data.video import VideoError, centre_crop
from tests.conftest import write_clip
from tests.data.agreement import agrees
from tests.data.test_sources import moving, write


class Own(Source):
    """A source with the methods that it must have, and no other."""

    def __len__(self):
        return 1

    def name(self, index):
        return "own"

    def rate(self, index):
        return 12.0

    def frames(self, index, sampling, stride, where):
        stride = stride if sampling.fps is None else round(12 / sampling.fps)
        first = where(20 - (sampling.frames - 1) * stride)
        frames = moving(20, 48, 64)[first::stride][: sampling.frames]
        if sampling.short_side or sampling.cover:  # the tests ask for one half
            frames = frames[:, ::2, ::2]
        return list(centre_crop(frames, *sampling.cover) if sampling.cover else frames)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One source of every kind, by its name; the first video of each has 48×64 pixels."""
    path = tmp_path_factory.mktemp("headers")
    (path / "videos").mkdir()
    write_clip(path / "videos" / "clip.mp4", frames=20)
    rows = [{"path": "videos/clip.mp4", "start": 0.5, "end": 1.25, "caption": "é, ü", "stars": 4}]
    with (path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    rows[0] |= {"tags": ["a", {"b": None}], "score": float("nan")}
    (path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "pictures").mkdir()
    Image.fromarray(moving(1, 48, 64)[0]).save(path / "pictures" / "a.png")
    opened = {"folder": str(path / "videos"), "images": f"images:{path / 'pictures'}"}
    opened |= {name: str(path / f"list.{name}") for name in ("csv", "jsonl")}
    for kind in ("raw", "h264"):
        pack_videos(str(path / "list.jsonl"), path / kind, kind=kind, short_side=48)
        opened[kind] = f"array_record:{path / kind}"
    return {name: open_source(text) for name, text in opened.items()} | {"own": Own()}


@pytest.mark.parametrize(
    ("kind", "header"),
    {
        "folder": Header(20, 48, 64, 12.0),
        "csv": Header(9, 48, 64, 12.0),
        "jsonl": Header(9, 48, 64, 12.0),
        "raw": Header(9, 48, 64, 12.0),
        "h264": Header(9, 48, 64, 12.0),
        "images": Header(1, 48, 64, 1.0),
        "own": Header(20, 48, 64, 12.0),
    }.items(),
)
def test_headers_places_blocks_and_covers_agree_with_the_frames(sources, kind, header):
    assert sources[kind].header(0) == header
    agrees(sources[kind], 0)


def test_a_video_in_memory_is_scaled_as_each_read_asks(sources, tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=20)
    agrees(open_source(tmp_path, in_memory=True), 0)


def test_columns_travel_from_a_manifest_into_packed_records(sources):
    assert sources["folder"].columns(0) == sources["images"].columns(0) == {}
    assert sources["csv"].columns(0) == {"caption": "é, ü", "stars": "4"}
    expected = {"caption": "é, ü", "stars": 4, "tags": ["a", {"b": None}], "score": None}
    for kind in ("jsonl", "raw", "h264"):
        assert sources[kind].columns(0) == expected
        json.dumps(sources[kind].columns(0), allow_nan=False)


@pytest.mark.parametrize("rotation", [90, 180])
def test_headers_and_covers_are_those_of_turned_frames(tmp_path, rotation):
    path = write(tmp_path / "turned.mp4", moving(6, 32, 48), rotation=rotation)
    source = open_source(path)
    sides = (48, 32) if rotation == 90 else (32, 48)
    assert source.header(0) == Header(6, *sides, 24.0)
    clip = source.read(0, Sampling(6, cover=(24, 12)), 1, lambda n: 0)
    factor = 2 if rotation == 90 else 4 / 3  # the least size that covers is 24×16, or 24×36
    scaled = source.read(0, Sampling(6, short_side=round(32 / factor)), 1, lambda n: 0)
    np.testing.assert_array_equal(clip, centre_crop(scaled, 24, 12))


def test_a_turned_picture_has_the_header_of_the_turned_one(tmp_path):
    image = Image.fromarray(moving(1, 32, 48)[0])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    source = open_source(f"images:{tmp_path}")
    assert source.header(0) == Header(1, 48, 32, 1.0)
    assert source.read(0, Sampling(1, cover=(20, 20)), 1, lambda n: 0).shape == (1, 20, 20, 3)


@pytest.mark.parametrize("part", [(None, 0.77), (0.53, 1.05), (0.26, None), (0.5, 9.0)])
def test_parts_that_begin_and_end_between_frames_have_as_many_as_their_header_says(tmp_path, part):
    write_clip(tmp_path / "clip.mp4", frames=20)
    row = {"path": "clip.mp4", "start": part[0], "end": part[1]}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    agrees(open_source(tmp_path / "list.jsonl"), 0)


def test_what_cannot_be_read_has_neither_header_nor_places(sources, tmp_path):
    (tmp_path / "fake.mp4").write_text("not a video")
    source = open_source(tmp_path)
    for read in (
        lambda: source.header(0),
        lambda: source.places(0, Sampling(1), 1),
        lambda: list(source.blocks(0, 4)),
    ):
        with pytest.raises(VideoError, match=r"fake\.mp4 cannot be read as a video"):
            read()
    with pytest.raises(
        VideoError, match="20 frames, 2 of them held out; clips need 19.* hold out fewer"
    ):
        sources["folder"].places(0, Sampling(19, holdout=2), 1)
    with pytest.raises(VideoError, match="is an image; clips need 2 frames"):
        sources["images"].places(0, Sampling(2), 1)
    (tmp_path / "list.csv").write_text("path,start\nfake.mp4,\nfake.mp4,soon\n")
    with pytest.raises(VideoError, match="row 2 is .*soon"):
        open_source(tmp_path / "list.csv").columns(1)


def test_a_video_that_ends_before_its_header_says_so_in_blocks(tmp_path):
    whole = Path(write(tmp_path / "whole.mkv", moving(48, 48, 64), "ffv1"))
    content = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 6 // 10])
    (tmp_path / "list.csv").write_text("path,start,end\ncut.mkv,0.1,0.5\ncut.mkv,0.1,1.9\n")
    source = open_source(tmp_path / "list.csv")
    problems = []
    for index in range(2):
        blocks = source.blocks(index, 4)
        assert sum(len(block) for block in blocks) == blocks.frames > 5
        problems.append(blocks.problem)
    assert not problems[0] and "ends after" in problems[1]


def test_two_ways_to_scale_are_refused():
    with pytest.raises(ValueError, match="short_side=16 and cover=.*expected one"):
        Sampling(1, short_side=16, cover=(8, 8))
