"""Real files of many kinds, read as training reads them."""

import csv
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from PIL import Image

import odvae_jax.data.sources
from odvae_jax.data.clips import RandomClips
from odvae_jax.data.sources import SOURCES, TFDS, Files, Sampling, open_source, open_sources
from odvae_jax.data.video import (
    VideoError,
    VideoReader,
    inspect_video,
    read_frames,
    select_frames,
    to_rgb,
    write_video,
)
from tests.conftest import full, write_clip
from tests.data.agreement import agrees
from tests.data.encoding import encoded_columns

ROOT = Path(__file__).parents[2]
FRAMES, RATE = 48, 24
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
KINDS = {  # codec, pixel format, container
    "h264": ("libx264", "yuv420p", "mp4"),
    "h264_mkv": ("libx264", "yuv420p", "mkv"),
    "h264_ts": ("libx264", "yuv420p", "ts"),
    "h264_10bit": ("libx264", "yuv420p10le", "mp4"),
    "hevc": ("libx265", "yuv420p", "mp4"),
    "vp9": ("libvpx-vp9", "yuv420p", "webm"),
    "mpeg4": ("mpeg4", "yuv420p", "avi"),
    "mpeg2": ("mpeg2video", "yuv420p", "mpg"),
    "prores": ("prores_ks", "yuv422p10le", "mov"),
    "mjpeg": ("mjpeg", "yuvj420p", "avi"),
    "ffv1": ("ffv1", "yuv444p", "mkv"),
}
ALWAYS = ("h264", "h264_ts", "vp9")


def moving(count, height, width, seed=0):
    """Bars and noise that move, so that every frame differs from every other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    noise = rng.integers(0, 30, (height, width, 3))
    frames = [
        noise + np.stack([(x * 3 + 5 * t) % 160, (y * 4 + 7 * t) % 160, (x + y + 9 * t) % 160], -1)
        for t in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def write(path, frames, kind="h264", stamps=None, rotation=0):
    """`stamps`: time stamps in thousandths of a second, for a variable frame rate."""
    codec, pixels, _ = KINDS[kind]
    with av.open(str(path), "w") as container:
        quick = {"libx264": {"preset": "ultrafast", "bf": "2"}, "libx265": {"preset": "ultrafast"}}
        stream = container.add_stream(codec, rate=RATE, options=quick.get(codec, {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.gop_size = pixels, 12
        if rotation:
            stream.set_display_rotation(rotation)
        if stamps is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def whole(path):
    """Every frame from the beginning, and its time: an independent, plain PyAV loop."""
    with av.open(path) as container:
        decoded = list(container.decode(video=0))
    return [frame.time for frame in decoded], [
        frame.to_ndarray(format="rgb24", interpolation=EXACT) for frame in decoded
    ]


@pytest.mark.parametrize("kind", [*ALWAYS, *full(*(k for k in KINDS if k not in ALWAYS))])
def test_frames_are_those_of_a_full_decode_for_the_same_time_stamps(tmp_path, kind):
    path = write(tmp_path / f"clip.{KINDS[kind][2]}", moving(FRAMES, 48, 64), kind)
    times, frames = whole(path)
    assert len(frames) == FRAMES
    files = Files([(path, None, None)])
    with VideoReader(path) as video:
        start, rate = video.start, video.fps
    for first in (0, 1, 11, 12, 13, 25, FRAMES - 5):
        begun = []

        def where(places, first=first, begun=begun):
            begun.append(min(first, places - 1))
            return begun[-1]

        clip = files.read(0, Sampling(frames=5), 1, where)
        moment = start + begun[-1] / rate  # an MPEG program stream's header says too little
        expected = next(i for i, time in enumerate(times) if time >= moment - 0.5 / rate)
        assert expected == begun[-1] and (begun[-1] == first or kind == "mpeg2")
        np.testing.assert_array_equal(clip, np.stack(frames[expected : expected + 5]))
    if kind == "mpeg2":
        return  # few of its frames carry time stamps; FFmpeg guesses the others as it goes
    with VideoReader(path) as video:
        for moment in (times[3], times[20], times[-1]):
            time, frame = next((t, f) for t, f in video.frames_from(moment) if t >= moment - 1e-6)
            assert time == pytest.approx(moment)
            np.testing.assert_array_equal(to_rgb([frame])[0], frames[times.index(time)])


def test_variable_frame_rates_are_read_by_their_time_stamps(tmp_path):
    rng = np.random.default_rng(0)
    stamps = np.cumsum(np.concatenate([[0], rng.integers(10, 120, FRAMES - 1)])).tolist()
    path = write(tmp_path / "vfr.mkv", moving(FRAMES, 32, 32), "ffv1", stamps=stamps)
    times, frames = whole(path)
    np.testing.assert_allclose(np.diff(times), np.diff(stamps) / 1000, atol=0.0011)
    files = Files([(path, None, None)])
    start = []
    clip = files.read(0, Sampling(frames=6, fps=10.0), 1, lambda n: start.append(n // 3) or n // 3)
    moment = times[0] + start[0] / files.rate(0)
    shown = [max(i for i, t in enumerate(times) if t <= moment + k / 10 + 1e-6) for k in range(6)]
    np.testing.assert_array_equal(clip, np.stack([frames[i] for i in shown]))


def test_moments_show_the_latest_frame_that_has_begun():
    frames = [(0.0, "a"), (0.1, "b"), (0.9, "c"), (1.0, "d")]
    chosen = select_frames(frames, 0.0, 6, rate=5.0, fps=5.0)
    assert chosen == ["a", "b", "b", "b", "b", "d"]
    assert select_frames(frames, 0.0, 9, rate=5.0, fps=5.0) == ["a", *"bbbb", "d"]
    assert select_frames(frames, 0.06, 2, rate=10.0, stride=2) == ["b", "d"]


@pytest.mark.parametrize("rotation", [90, *full(180, -90)])
def test_turned_videos_are_turned_back(tmp_path, rotation):
    frames = moving(4, 32, 48)
    plain = whole(write(tmp_path / "plain.mp4", frames))[1]
    path = write(tmp_path / "turned.mp4", frames, rotation=rotation)
    clip = Files([(path, None, None)]).read(0, Sampling(frames=4), 1, lambda n: 0)
    np.testing.assert_array_equal(clip, np.rot90(plain, rotation // 90, axes=(1, 2)))
    scaled = Files([(path, None, None)]).read(0, Sampling(4, short_side=16), 1, lambda n: 0)
    assert scaled.shape == ((4, 16, 24, 3) if rotation == 180 else (4, 24, 16, 3))
    np.testing.assert_array_equal(read_frames(inspect_video(path), 0, 4), clip)


def test_odd_sizes_one_frame_and_strange_names(tmp_path):
    path = write(tmp_path / "a b é 😀.mkv", moving(1, 33, 47), "ffv1")
    clip = Files([(path, None, None)]).read(0, Sampling(1, short_side=17), 1, lambda n: n - 1)
    assert clip.shape == (1, 17, 24, 3)
    with pytest.raises(VideoError, match=r"😀.mkv has 1 frame; clips need 2"):
        Files([(path, None, None)]).read(0, Sampling(2), 1, lambda n: 0)


def test_colours_come_back_without_a_bias(tmp_path):
    colours = np.array([[200, 40, 90], [120, 120, 120], [20, 220, 130]], np.uint8)
    write_video(tmp_path / "clip.mp4", np.tile(colours.repeat(32, 0), (4, 64, 1, 1)), fps=24)
    clip = RandomClips(tmp_path, frames=2, size=64, crop="centre", flip=False)[0]
    error = clip[:, :, [4, 32, 60]].astype(int) - colours
    assert np.abs(error).max() <= 2 and abs(error.mean()) < 0.5


def test_shrinking_is_antialiased(tmp_path):
    checks = np.zeros((2, 64, 64, 3), np.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 255
    path = write(tmp_path / "checks.mkv", checks, "ffv1")
    clip = Files([(path, None, None)]).read(0, Sampling(2, short_side=16), 1, lambda n: 0)
    assert np.abs(clip[:, 2:-2, 2:-2].astype(int) - 127).max() < 12


@pytest.mark.parametrize("tenths", [5, *full(1, 2, 3, 4, 6, 7, 8, 9)])
def test_truncated_files_give_right_frames_or_a_fault(tmp_path, tenths):
    for name, kind in (("clip.mp4", "h264"), ("clip.ts", "h264_ts"), ("clip.mkv", "ffv1")):
        path = Path(write(tmp_path / f"whole_{name}", moving(FRAMES, 48, 64), kind))
        frames = whole(str(path))[1]
        cut = tmp_path / name
        cut.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10])
        good = 0
        for first in (0, 10, 20, 30, 40):
            try:
                files = Files([(str(cut), None, None)])
                clip = files.read(0, Sampling(frames=4), 1, lambda n, f=first: min(f, n - 1))
            except VideoError as error:
                assert name in str(error)
                continue
            good += 1
            assert any((clip == np.stack(frames[i : i + 4])).all() for i in range(FRAMES - 3))
        if name == "clip.mkv":
            assert good, "what is whole of it is used"


def test_files_that_hold_no_frames_are_faults(tmp_path):
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    write_clip(tmp_path / "good.mp4")
    clips = RandomClips(tmp_path, frames=5, size=32)
    for i in range(8):
        assert clips[i].shape == (5, 32, 32, 3)
    assert {Path(n).name for n in clips.skipped} == {"none.mp4", "text.mp4", "empty.mp4"}


def test_a_folder_of_images_gives_clips_of_one_frame(tmp_path):
    (tmp_path / "in").mkdir()
    for name, colour in (
        ("a.png", (200, 0, 0)),
        ("b.JPG", (0, 200, 0)),
        ("in/c.webp", (0, 0, 200)),
    ):
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    (tmp_path / "d.png").write_text("not an image")
    clips = RandomClips(f"images:{tmp_path}", frames=1, size=16)
    drawn = [clips[i] for i in range(12)]
    assert all(c.shape == (1, 16, 16, 3) for c in drawn)
    assert {int(c.mean((0, 1, 2)).argmax()) for c in drawn} == {0, 1, 2}
    assert [Path(n).name for n in clips.skipped] == ["d.png"]
    with pytest.raises(VideoError, match="is an image; clips need 5 frames"):
        open_source(f"images:{tmp_path}").read(0, Sampling(5), 1, lambda n: 0)


def test_pictures_are_turned_and_of_eight_bits(tmp_path):
    image = Image.fromarray(np.zeros((40, 80, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "b.png")
    source = open_source(f"images:{tmp_path}")
    turned, deep = (source.read(i, Sampling(1), 1, lambda n: 0)[0] for i in range(2))
    assert turned.shape == (80, 40, 3)
    np.testing.assert_array_equal(deep[..., 0], ramp >> 8)


def test_a_video_shorter_than_its_header_says_is_used_as_far_as_it_goes(tmp_path):
    path = Path(write(tmp_path / "whole.mkv", moving(FRAMES, 48, 64), "ffv1"))
    (tmp_path / "cut").mkdir()
    size = path.stat().st_size
    (tmp_path / "cut" / "clip.mkv").write_bytes(path.read_bytes()[: size * 6 // 10])
    clips = RandomClips(tmp_path / "cut", frames=5, size=48)
    assert all(clips[i].shape == (5, 48, 48, 3) for i in range(20)) and not clips.skipped


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_names_files_and_parts_of_them(tmp_path, kind):
    path = write(tmp_path / "clip.mp4", moving(FRAMES, 32, 32))
    rows = [
        {"path": "clip.mp4", "start": 0.5, "end": 1.0},
        {"path": "clip.mp4"},
        {"path": "no.mp4"},
    ]
    manifest = tmp_path / f"list.{kind}"
    with manifest.open("w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["path", "start", "end"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    source = open_source(manifest)
    places = []
    source.read(0, Sampling(4), 1, lambda n: places.append(n) or 0)
    source.read(1, Sampling(4), 1, lambda n: places.append(n) or 0)
    assert places == [12 - 3, FRAMES - 3]
    first = source.read(0, Sampling(4), 1, lambda n: 0)
    np.testing.assert_array_equal(first, np.stack(whole(path)[1][12:16]))
    with pytest.raises(VideoError, match=r"no.mp4.*No such file"):
        source.read(2, Sampling(4), 1, lambda n: 0)


def test_wrong_sources_are_refused_with_what_would_mend_them(tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("file,begin\nx.mp4,0\n")
    (tmp_path / "bad.csv").write_text("path,start\nx.mp4,soon\n")
    (tmp_path / "torn.jsonl").write_text('{"path": ')
    (tmp_path / "nan.jsonl").write_text('{"path": "x.mp4", "start": NaN}\n' * 2)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for text, words in {
        "folder:nowhere": "nowhere does not exist; expected a folder of videos, or one video",
        str(tmp_path / "empty"): "no video below .*: found 0 files, looked for",
        f"images:{tmp_path / 'empty'}": "no image below",
        str(
            tmp_path / "list.csv"
        ): r"expected a column path.*found \['file', 'begin'\].*path,start",
        str(tmp_path / "bad.csv"): "row 1 is .*soon.*numbers of seconds",
        str(tmp_path / "nan.jsonl"): r"row 1 is .*nan.*numbers of seconds(.|\n)*row 2 is .*nan",
        str(tmp_path / "torn.jsonl"): "torn.jsonl is not a manifest",
        f"array_record:{tmp_path / 'empty'}": "holds no .*array_record.*`odvae data pack SOURCE",
        "array_record:nowhere": "nowhere does not exist; write it with .*data pack SOURCE",
        "tfds:ucf101": "ucf101 does not exist; prepare it with `tfds build ucf101 --file_format",
        "tfds:empty": "holds 0 prepared datasets",
        "0.5*sample-clips; sample-clips": "'sample-clips' .* has no weight",
        "-1*sample-clips; 1*sample-clips": "has no weight; expected a positive number",
        "1*sample-clips; 0.00001*sample-clips": "share under 0.001",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            open_sources(text)


def test_a_mistyped_kind_gets_the_nearest_that_exists():
    for text, near in {"tdfs:ucf101": "tfds:", "image:A": "images:", "sample-clip": "sample-clips",
                       "arrayrecord:A": "array_record:"}.items():  # fmt: skip
        with pytest.raises(FileNotFoundError, match=f"{text} does not exist.*nearest.*'{near}'"):
            open_source(text)
    with pytest.raises(FileNotFoundError, match="folders does not exist; expected a folder of vid"):
        open_source("folders")  # a path, not a kind of source


def test_the_table_lists_every_source_file():
    helpers = {"__init__", "base", "containers", "images", "packed_format", "parsing", "records"}
    helpers |= {"options", "ucf101_classes"}
    files = {path.stem for path in Path(odvae_jax.data.sources.__file__).parent.glob("*.py")}
    listed = [opener.__module__.rsplit(".", 1) for opener in SOURCES.values()]
    assert {package for package, _ in listed} == {"odvae_jax.data.sources"}
    assert {name for _, name in listed} == files - helpers
    for key in SOURCES:
        assert f"\n    {key}" in odvae_jax.data.sources.__doc__, "the docstring lists every source"


def test_tfds_features_without_one_video_are_listed(tmp_path):
    split = {"name": "train", "shardLengths": ["1"]}
    info = {"name": "x", "fileFormat": "array_record", "splits": [split]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(FileNotFoundError, match=r"features.json does not exist; expected a prep"):
        TFDS(tmp_path)
    features = {
        "a": {"pythonClassName": "x.Video", "video": {}},
        "b": {"pythonClassName": "x.Text"},
    }
    for names, words in (("b", "expected one Video.*'b': 'Text'"), ("aa", "no Video feature 'c'")):
        kept = {"featuresDict": {"features": {n: features[n] for n in names}}}
        (tmp_path / "features.json").write_text(json.dumps(kept))
        with pytest.raises(ValueError, match=words):
            TFDS(tmp_path, feature="c" if names == "aa" else "")


def test_a_file_without_video_is_a_fault(tmp_path):
    path = str(tmp_path / "sound.mkv")
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(VideoError, match="sound.mkv holds no video stream"):
        Files([(path, None, None)]).read(0, Sampling(1), 1, lambda n: 0)


BUILDER = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Moving(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        video = tfds.features.Video(shape=(None, 24, 32, 3))
        label = tfds.features.ClassLabel(names=["a", "b"])
        words = tfds.features.Sequence(tfds.features.Text())
        features = {"video": video, "label": label, "caption": tfds.features.Text(), "ok": np.bool_}
        features |= {"about": {"words": words, "size": np.float32}}
        features["box"] = tfds.features.Tensor(shape=(3,), dtype=np.int64)
        features["picture"] = tfds.features.Image(shape=(4, 4, 3))
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            frames = np.zeros((6 + i, 24, 32, 3), np.uint8)
            frames += (20 * np.arange(6 + i) + i).astype(np.uint8)[:, None, None, None]
            about = {"words": ["x", "y"][: i % 3], "size": i / 2}
            others = {"caption": f"é {i}", "ok": i > 0, "about": about, "box": [i, 1, 2]}
            others["picture"] = np.zeros((4, 4, 3), np.uint8)
            yield i, {"video": frames, "label": i % 2, **others}

class Ucf101(tfds.core.GeneratorBasedBuilder):  # the real one downloads 6.5 GB
    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=n) for n in ("ucf101_1", "ucf101_1_256")]

    def _info(self):
        names = tfds.core.tfds_path("video/ucf101_labels.txt")
        label = tfds.features.ClassLabel(names_file=names)
        features = {"video": tfds.features.Video(shape=(None, None, None, 3)), "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(2), "test": self._generate_examples(1)}

    def _generate_examples(self, frames):
        for name in ("Hammering", "HammerThrow", "JumpingJack", "JumpRope", "YoYo"):
            yield name, {"video": np.zeros((frames, 24, 32, 3), np.uint8), "label": name}

for name in ("ucf101_1", "ucf101_1_256"):
    given = {"config": name, "file_format": "array_record"}
    Ucf101(data_dir=f"{sys.argv[1]}/array_record", **given).download_and_prepare()
for name in ("array_record", "tfrecord"):
    Moving(data_dir=f"{sys.argv[1]}/{name}", file_format=name).download_and_prepare()
"""
TRAINING = """
import sys
sys.modules["tensorflow"] = None  # importing it fails from here on
from odvae_jax.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def tfds_data(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    path = tmp_path_factory.mktemp("tfds")
    (path / "build.py").write_text(BUILDER)
    # TensorFlow in a process of its own.
    run = subprocess.run(
        [sys.executable, str(path / "build.py"), str(path)], capture_output=True, text=True
    )
    if "No module named 'tensorflow'" in run.stderr:
        pytest.skip("TensorFlow, which writes the dataset, is not installed")
    assert run.returncode == 0, run.stderr[-2000:]
    return path


def test_tfds_videos_are_read_without_tensorflow(tfds_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_data / "array_record"))
    source = open_source("tfds:moving")
    assert len(source) == 5
    lengths = []
    for i in range(5):
        clip = source.read(i, Sampling(3), 1, lambda n: lengths.append(n) or 1)
        assert clip.shape == (3, 24, 32, 3)
        np.testing.assert_array_equal(np.diff(clip[:, 0, 0, 0].astype(int)), [20, 20])
        assert (clip[0] == 20 + lengths[-1] + 2 - 6).all(), "frame 1 of this very example"
    assert sorted(lengths) == [4, 5, 6, 7, 8]
    agrees(source, 0)
    columns = {column["box"][0]: column for column in map(source.columns, range(5))}
    assert columns[0]["label_name"] == "a" and columns[0]["about/words"] == []
    assert columns[3] == {
        "label": 1, "label_name": "b", "caption": "é 3", "ok": True, "about/words": [],
        "about/size": 1.5, "box": [3, 1, 2],
    }  # fmt: skip
    assert columns[2]["about/words"] == ["x", "y"]
    with pytest.raises(ValueError, match=r"no split 'test'; there are \['train'\]"):
        open_source("tfds:moving:test")
    with pytest.raises(ValueError, match="tfrecord format; expected array_record.*tfds build mov"):
        open_source(f"tfds:{tfds_data}/tfrecord/moving")
    file = next((tfds_data / "array_record").rglob("*train*"))
    file.rename(file.with_suffix(".gone"))
    with pytest.raises(FileNotFoundError, match="1 of 1 file is missing.*tfds build moving"):
        open_source("tfds:moving")
    file.with_suffix(".gone").rename(file)


def test_training_on_tfds_never_imports_tensorflow(tfds_data, tmp_path):
    from tests.training.test_faults import arguments
    from tests.training.test_loop import lines, tiny

    fields = {"steps": 2, "data.holdout": 2, "validate_every": 0, "data.workers": 1}
    fields["batch_size"] = 4
    config = tiny(f"tfds:{tfds_data}/array_record/moving", **fields)
    given = arguments(config, tmp_path / "run")[2:]
    command = [sys.executable, "-c", TRAINING, *given]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert [r["step"] for r in lines(tmp_path / "run") if "loss" in r] == [1, 2]


def test_a_tfds_dataset_becomes_latents_with_its_columns(tfds_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_data / "array_record"))
    found = encoded_columns("tfds:moving", tmp_path / "d")
    source = open_source("tfds:moving")
    assert found == {i: source.columns(i) for i in range(5)}


def test_ucf101_from_tfds_has_the_labels_of_its_folder(tfds_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_data / "array_record"))
    expected = {34: "HammerThrow", 35: "Hammering", 46: "JumpRope", 47: "JumpingJack", 100: "YoYo"}
    for split, frames in (("train", 2), ("test", 1)):
        source = open_source(f"tfds:ucf101/ucf101_1:{split}")
        rows = [source.columns(i) for i in range(len(source))]
        assert len(rows) == 5 and all(row.keys() == {"label", "class"} for row in rows)
        assert {row["label"]: row["class"] for row in rows} == expected
        assert source.read(0, Sampling(frames), 1, lambda n: n - 1).shape == (frames, 24, 32, 3)
    with pytest.raises(
        ValueError, match=r"320×240 .* squashed to 256×256.*tfds build ucf101/ucf10"
    ):
        open_source("tfds:ucf101/ucf101_1_256/2.0.0:train")
