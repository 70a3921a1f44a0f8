"""Cover pictures, HDR, and time stamps that go backwards, are missing or come twice."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from odvae_jax.data.clips import RandomClips
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.sources import Files, Sampling, open_source
from odvae_jax.data.video import (
    FrameBlocks,
    VideoError,
    VideoReader,
    inspect_video,
    read_frames,
)
from tests.conftest import write_clip
from tests.data.odd_videos import (
    write_hdr,
    write_stamped,
    write_stamped_as_stored,
    write_with_b_frames,
    write_with_cover,
)

ROOT = Path(__file__).parents[2]


def numbers(frames):
    """Which frames these are, for frames as bright as their number says."""
    return np.round(np.asarray(frames).mean((1, 2, 3)) / 4).astype(int).tolist()


def every_way(path, tmp_path):
    """All frames of a file, as each part of the library reads them."""
    path, files = str(path), Files([(str(path), None, None)])
    count = inspect_video(path).frames
    kept = open_source(path, in_memory=True)
    pack_videos(path, tmp_path / "packed", kind="raw", short_side=32)
    packed = open_source(f"array_record:{tmp_path / 'packed'}")
    whole = Sampling(frames=count)
    return {
        "clips": numbers(files.read(0, whole, 1, lambda n: 0)),
        "in memory": numbers(kept.read(0, whole, 1, lambda n: 0)),
        "evaluation": numbers(read_frames(inspect_video(path), 0, count)),
        "transcoding": numbers(np.concatenate(list(FrameBlocks(path, 4)))),
        "packing": numbers(packed.read(0, whole, 1, lambda n: 0)),
    }


def test_a_cover_picture_as_first_stream_is_not_the_video(tmp_path):
    path = write_with_cover(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        assert [stream.width for stream in container.streams.video] == [64, 32], "the cover first"
    info = inspect_video(path)
    assert (info.frames, info.width, info.height) == (8, 32, 32)
    for way, shown in every_way(path, tmp_path).items():
        assert shown == list(range(8)), way
    only = write_with_cover(tmp_path / "only.mp4", video=False)
    for read in (inspect_video, lambda p: Files([(str(p), None, None)]).rate(0)):
        with pytest.raises(VideoError, match=r"only.mp4 holds no video stream, only a picture"):
            read(only)


@pytest.mark.parametrize(
    "sides, default, read",
    [((16, 48), None, 48), ((48, 16), 1, 16), ((2256, 16), 1, 2256)],
    ids=["the largest", "the default", "one larger by over 5 million pixels"],
)
def test_of_several_videos_in_a_file_the_largest_or_the_default_is_read(
    tmp_path, sides, default, read
):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        for place, side in enumerate(sides):
            stream = container.add_stream("ffv1", rate=10)
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv444p"
            stream.disposition = Disposition.default if place == default else 0
        for i in range(3 if max(sides) < 100 else 1):
            for stream in container.streams.video:
                array = np.full((stream.height, stream.width, 3), 9, np.uint8)
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                frame.pts = i
                container.mux(stream.encode(frame))
        for stream in container.streams.video:
            container.mux(stream.encode())
    assert inspect_video(tmp_path / "clip.mkv").width == read
    with VideoReader(str(tmp_path / "clip.mkv")) as video:
        assert next(video.frames_from(None))[1].width == read


STAMPS = {  # the time stamps of the frames of a file, and the order in which they are shown
    "backwards": ([0, 300, 100, 200, 400, 700, 500, 600], [0, 2, 3, 1, 4, 6, 7, 5]),
    "twice": ([0, 100, 100, 300, 500, 500, 600, 700], [0, 1, 2, 3, 4, 5, 6, 7]),
}


@pytest.mark.parametrize("kind", STAMPS)
@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_frames_are_shown_in_the_order_of_their_time_stamps(tmp_path, kind, container):
    stamps, order = STAMPS[kind]
    path = write_stamped(tmp_path / f"clip.{container}", stamps)
    with av.open(str(path)) as file:
        assert [round(1000 * f.time) for f in file.decode(video=0)] == stamps, "as it was made"
    for way, shown in every_way(path, tmp_path).items():
        assert shown == order, way
    files = Files([(str(path), None, None)])
    for first in range(5):
        clip = numbers(read_frames(inspect_video(path), first, 3))
        assert clip == order[first : first + 3]
    # Frames between moments: what is on show at 0.25 s and 0.45 s.
    chosen = files.read(0, Sampling(frames=2, fps=5.0), 1, lambda n: 0)
    at = sorted(range(8), key=lambda i: stamps[i])
    shown = [max((i for i in at if stamps[i] <= 1000 * t), key=lambda i: (stamps[i], i))
             for t in (0.0, 0.2)]  # fmt: skip
    assert numbers(chosen) == shown


@pytest.mark.parametrize("container", ["mp4", pytest.param("mkv", marks=pytest.mark.full)])
def test_frames_stay_in_the_decoders_order_where_the_time_stamps_are_those_of_storage(
    tmp_path, monkeypatch, container
):
    count = 40
    good = write_with_b_frames(tmp_path / f"good.{container}", count)
    path = write_stamped_as_stored(tmp_path / f"clip.{container}", good)
    with av.open(str(path)) as file:
        decoded = list(file.decode(video=0))
    assert [f.pts for f in decoded] != sorted(f.pts for f in decoded), "as it was made"
    assert numbers([f.to_ndarray(format="rgb24") for f in decoded]) == list(range(count))
    for name in (good, path):
        for way, shown in every_way(name, tmp_path / name.stem).items():
            assert shown == list(range(count)), (name, way)
    openings = []
    opened = av.open
    monkeypatch.setattr("av.open", lambda *a, **k: openings.append(a) or opened(*a, **k))
    files = Files([(str(path), None, None)])
    for first in (0, 5, 12, 22, 33):
        clip = list(range(first, first + 5))
        assert numbers(files.read(0, Sampling(5), 1, lambda n, at=first: at)) == clip
        assert numbers(read_frames(inspect_video(path), first, 5)) == clip
    assert len(openings) <= 3 * 5 + 4, "the middle is found by its time, without a second reading"


def test_what_could_be_decoded_before_a_damaged_place_is_shown(tmp_path):
    path = write_stamped(tmp_path / "clip.mkv", [100 * i for i in range(24)], broken=20)
    blocks = FrameBlocks(path, 4)
    assert numbers(np.concatenate(list(blocks))) == list(range(20))
    assert "20 frames could be read before" in blocks.problem


def test_a_video_whose_time_starts_anew_is_named_and_the_others_are_used(tmp_path):
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "good.mp4", height=32, width=32)
    stamps = [2000 + 100 * i for i in range(30)] + [100 * i for i in range(30)]
    path = write_stamped(tmp_path / "in" / "anew.mkv", stamps)
    clips = RandomClips(tmp_path / "in", frames=50, size=32)
    with pytest.raises(VideoError):  # the other is too short
        clips[0]
    with pytest.raises(VideoError, match=r"anew.mkv has time stamps that go backwards, from \d"):
        Files([(str(path), None, None)]).read(0, Sampling(50), 1, lambda n: 0)
    blocks = FrameBlocks(path, 8)
    assert sum(map(len, blocks)) >= 8 and "go backwards" in blocks.problem
    packing = pack_videos(str(tmp_path / "in"), tmp_path / "packed", short_side=32)
    assert ["go backwards" in reason for reason in packing.unusable.values()] == [True]


def test_a_video_without_time_stamps_is_named(tmp_path):
    path = tmp_path / "clip.h264"  # a bare stream
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.gop_size = 4
        for i in range(12):
            array = np.full((32, 32, 3), 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    for read in (inspect_video, lambda p: Files([(str(p), None, None)]).rate(0)):
        with pytest.raises(VideoError, match=r"clip.h264 holds no frames with time stamps"):
            read(path)


HDR = """
import logging, sys
from odvae_jax.data.clips import RandomClips, batches
logging.basicConfig(format="%(message)s", stream=sys.stdout)
feed = batches(RandomClips(sys.argv[1], frames=2, size=32), 3, workers=int(sys.argv[2]), threads=1)
for _ in range(3):
    next(feed)
feed.close()
"""


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.full)])
def test_hdr_is_warned_of_once_in_a_run(tmp_path, workers):
    for i, transfer in enumerate((16, 18, 16)):
        write_hdr(tmp_path / f"{i}.mp4", transfer)
    command = [sys.executable, "-c", HDR, str(tmp_path), workers]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in (run.stdout + run.stderr).splitlines() if "HDR" in line]
    assert ".mp4 is an HDR video (" in line and "without tone mapping" in line
    assert "convert such videos to SDR first" in line
