import av
import numpy as np
import pytest

from odvae_jax.data.sources import resolve
from odvae_jax.data.video import VideoError, find_videos, inspect_video, read_frames, write_video
from tests.conftest import write_clip


@pytest.fixture(scope="module")
def real_clip():
    return next(path for path in resolve("sample-clips") if "bikes" in path)


def test_the_sample_clips_are_three_real_videos():
    infos = [inspect_video(path) for path in resolve("sample-clips")]
    assert [(i.frames, i.width, i.height) for i in infos] == [
        (132, 1280, 720),
        (250, 640, 272),
        (120, 176, 144),
    ]


def test_seeking_gives_the_frames_of_a_full_decode(real_clip):
    info = inspect_video(real_clip)
    full = read_frames(info, 0, info.frames, short_side=64)
    assert full.shape == (250, 64, 151, 3) and full.dtype == np.uint8
    for start in (0, 1, 57, 130, 245):
        np.testing.assert_array_equal(
            read_frames(info, start, 5, short_side=64), full[start : start + 5]
        )


CONTAINERS = {
    "mp4": "libx264",
    "mkv": "libx264",
    "ts": "libx264",
    "avi": "mpeg4",
    "mpg": "mpeg2video",
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_frames_are_the_ones_asked_for_in_every_container(tmp_path, container):
    path = str(tmp_path / f"clip.{container}")
    with av.open(path, "w") as output:
        stream = output.add_stream(CONTAINERS[container], rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size, stream.max_b_frames = 12, 2
        for i in range(60):  # frame i is as bright as its number says
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 4 * i, np.uint8), format="rgb24"
            )
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    info = inspect_video(path)
    assert info.frames == 60
    for start in (0, 1, 11, 12, 13, 30, 55):
        shown = read_frames(info, start, 5).mean((1, 2, 3)) / 4
        np.testing.assert_allclose(shown, np.arange(start, start + 5), atol=0.8)


def test_what_is_written_is_read_back(tmp_path):
    y, x = np.mgrid[:48, :64]
    frames = np.stack([np.stack([x * 3, y * 4, (x + y + 4 * t) * 2], -1) % 256 for t in range(6)])
    frames = (frames * 0.5 + 60).astype(np.uint8)
    write_video(tmp_path / "a b é.mp4", frames, fps=24)
    info = inspect_video(tmp_path / "a b é.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (6, 64, 48, 24.0)
    assert np.abs(read_frames(info, 0, 6).astype(int) - frames).mean() < 6


def test_videos_are_found_anywhere_below_a_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/one.MP4", "a/b/two.mkv", "a/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.split("/")[-1] for p in find_videos(tmp_path)] == ["two.mkv", "one.MP4"]


def test_paths_without_videos_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(ValueError, match=r"no video below .*: found 1 file, looked for .*\.mp4"):
        resolve(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        resolve(tmp_path / "nowhere")


def test_a_file_that_is_no_video_is_named(tmp_path):
    fake = tmp_path / "fake.mp4"
    fake.write_text("not a video")
    with pytest.raises(VideoError, match="fake.mp4 cannot be read as a video"):
        inspect_video(fake)
    fake.write_bytes(b"")
    with pytest.raises(VideoError, match="fake.mp4"):
        inspect_video(fake)


def test_frames_that_are_not_there_are_refused(tmp_path):
    info = inspect_video(write_clip(tmp_path / "clip.mp4", frames=8))
    with pytest.raises(VideoError, match="has 8 frames; 5 to 10 were asked for"):
        read_frames(info, 5, 5)
