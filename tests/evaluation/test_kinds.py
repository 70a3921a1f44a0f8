"""Models of every kind in one table, and reconstructions that come from outside."""

import functools
import json
import logging
import math
import re
import sys

import av
import jax
import numpy as np
import pytest
import skimage.metrics

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.baselines import MODELS, TATSConfig
from odvae_jax.baselines.base import parameter_counts
from odvae_jax.cli import main
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.measure import Meters
from odvae_jax.evaluation.models import contender, from_outside, load_contenders, rounded
from odvae_jax.evaluation.outside import Function, Reconstructions
from odvae_jax.evaluation.results import notes, table
from odvae_jax.evaluation.run import evaluate
from odvae_jax.parameters import abstract_model
from odvae_jax.pixels import to_uint8, to_unit_range
from tests.baselines.test_common import tiny
from tests.conftest import full, write_clip
from tests.evaluation.test_measure import Pooled
from tests.two_levels import CAUSAL, TWO_LEVELS

FRAMES, SIDE = 17, 16
TAKEN = {"tats": (16, 16, 16)}
# VCPR, and compression by values of 17×16×16: numbers per number, or bits per bit of codes.
COMPRESSION = {
    "vqgan": (1 * 2 * 2, 24 / 4 * 4),
    "svd_vae": (1 * 8 * 8, 3 / 4 * 64),
    "tats": (2 * 2 * 2, 24 / 4 * 8),
    "cv_vae": (4 * 8 * 8, 3 / 4 * 64 * 17 / 5),
    "ops_vae": (4 * 8 * 8, 3 / 4 * 64 * 17 / 5),
    "image": (1 * 2 * 2, 3 / 4 * 4),
    "od_vae": (2 * 2 * 2, 3 / 4 * 4 * 17 / 9),
}


@functools.cache
def model(name):
    if name in MODELS:
        return tiny(name)
    structure = {"image": TWO_LEVELS, "od_vae": CAUSAL}[name]
    return ODVAE(ODVAEConfig(structure=structure, width=8, groups=4, precision="highest"), rngs=0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i in range(2):
        write_clip(path / f"clip{i}.mp4", seed=i, frames=FRAMES, height=SIDE, width=SIDE)
    return path


class Folders(dict):
    """The models' folders by name, written when they are first needed."""

    def __init__(self, path):
        self.path = path

    def __missing__(self, name):
        model(name).save_pretrained(self.path / name)
        return self.setdefault(name, self.path / name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("models"))


def lossless(path, frames):
    """A file that keeps every value of RGB frames."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=12)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for array in frames:
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def scores(contenders, videos, **options):
    """The rows of an evaluation on one device."""
    size = {"frames": FRAMES, "size": SIDE, "limit": options.pop("limit", 0)}
    size["frames"] = options.pop("frames", FRAMES)
    clips = FixedClips(videos, **size)
    on = {"devices": jax.devices()[:1], "progress": False, "with_floor": False}
    return evaluate(contenders, clips, Meters(None, Pooled()), **on, **options)[0]


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize("kinds", [("vqgan", "tats", "image"), *full(tuple(COMPRESSION))])
def test_every_kind_of_model_stands_in_one_table(kinds, videos, folders, tmp_path, capsys, caplog):
    """The numbers are those of each model's own reconstructions."""
    models = [f"--ckpt={name}={folders[name]}" for name in kinds]
    size = [f"--data={videos}", f"--frames={FRAMES}", f"--size={SIDE}", "--clips=1", "--nofvd"]
    assert main(["eval", *models, *size, f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    read = {
        row["model"]: row for row in json.loads((tmp_path / "results.json").read_text())["models"]
    }
    blocks = [name for name in read if name.startswith("mean of")]
    sides = {"vqgan": "1×2×2", "image": "1×2×2", "svd_vae": "1×8×8"}
    sides |= {"tats": "2×2×2", "od_vae": "2×2×2", "cv_vae": "4×8×8", "ops_vae": "4×8×8"}
    assert blocks == [f"mean of {b} blocks" for b in sorted({sides[name] for name in kinds})]
    (original,) = [FixedClips(videos, frames=FRAMES, size=SIDE, limit=1).read(0).frames]
    for name in kinds:
        (vcpr, values), row = COMPRESSION[name], read[name]
        t, h, w = TAKEN.get(name, (FRAMES, SIDE, SIDE))
        assert row["vcpr"] == vcpr and row["measured"] == [t, h, w]
        assert row["by_values"] == pytest.approx(values)
        own = model(name)
        if name == "ops_vae":  # evaluation takes its clips whole
            own = tiny(name, micro_frames=None)
        part = original[:t, :h, :w]
        made = np.clip(own.reconstruct(to_unit_range(part[None])), -1, 1)[0]
        expected = [
            skimage.metrics.peak_signal_noise_ratio(a / 255, (b + 1) / 2, data_range=1)
            for a, b in zip(part, made, strict=True)
        ]
        np.testing.assert_allclose(row["by_frame"]["psnr"], expected, atol=1e-3)
    for text in (printed, caplog.text):
        said = "tats takes 16×16×16 of clips of 17×16×16, and is measured on that part"
        assert text.count(said) == 1
        assert text.count("OPS-VAE takes clips whole here") == ("ops_vae" in kinds)
    assert "bits of the 8-bit video per bit of the codes" in printed
    page = (tmp_path / "results.html").read_text()
    assert all(name in page for name in kinds) and "tats takes 16×16×16" in page


def test_parameters_are_counted_as_the_reference_does_and_of_the_autoencoder(videos, monkeypatch):
    models = [contender(name, "", model(name)) for name in ("tats", "image")]
    leaves = sum(math.prod(p.shape) for p in jax.tree.leaves(model("tats")))
    config = model("tats").config
    buffers = config.codes * config.code_channels
    buffers += sum(p.size for path, p in jax.tree_util.tree_leaves_with_path(model("tats"))
                   if "running" in jax.tree_util.keystr(path))  # fmt: skip
    assert models[0].parameters.autoencoder == leaves - buffers
    # What the reference counts beside the autoencoder is known of the released model alone.
    assert models[0].parameters.reference == leaves - buffers
    counted = parameter_counts(abstract_model(TATSConfig(dtype="bfloat16")))
    more = counted.reference - counted.autoencoder
    assert more == 28_540_546
    assert not any(
        "Parameters: as the model's" in n for n in notes(scores(models, videos, limit=1))
    )
    monkeypatch.setattr(TATSConfig, "training_parameters", property(lambda _: more))
    assert models[0].parameters.reference == leaves - buffers + more
    assert models[1].parameters.autoencoder == models[1].parameters.reference
    results = scores(models, videos, limit=1)
    titles, rows = table(results)
    assert titles[1:5] == ["VCPR", "by values", "parameters", "autoencoder"]
    assert rows[0][3] == f"{(more + leaves - buffers) / 1e6:.2f}M"
    assert any(line.startswith("Parameters: as the model's reference") for line in notes(results))


def test_a_model_that_takes_a_part_has_the_numbers_of_clips_of_that_size(videos, caplog):
    """The Fréchet distance, too: the originals are cut alike."""
    tats = contender("tats", "", model("tats"))
    with caplog.at_level(logging.WARNING):
        (cut,) = scores([tats], videos).rows
    assert caplog.text.count("tats takes 16×16×16 of clips of 17×16×16") == 1
    (whole,) = scores([tats], videos, frames=16, strict=True).rows
    assert cut.size == (16, 16, 16) and whole.size is None
    assert cut.scores.keys() == whole.scores.keys() == {"psnr", "ssim", "rfvd"}
    for name in cut.scores:
        assert cut.scores[name].mean == pytest.approx(whole.scores[name].mean, rel=1e-5)
    with pytest.raises(ValueError, match="tats: .*T must be a multiple of 2. The nearest is"):
        scores([tats], videos, strict=True)
    with pytest.raises(ValueError, match="TATS takes no part of a clip of 1 frame"):
        scores([tats], videos, frames=1)
    with pytest.raises(ValueError, match="tats is TATS, which takes clips whole.*--tiling"):
        scores([tats], videos, tiling=5)


def test_a_metric_that_only_the_part_is_too_short_for_is_missing_for_that_model(videos):
    models = [contender(name, "", model(name)) for name in ("tats", "image")]
    results = scores(models, videos, frames=9)
    assert "rfvd" not in results.rows[0].scores and "rfvd" in results.rows[1].scores
    assert "tats: rFVD is missing: needs clips of 9 frames." in notes(results)
    assert table(results)[1][0][-1] == "missing"


MODULE = """
import numpy as np
from odvae_jax import ODVAE
from odvae_jax.pixels import to_uint8, to_unit_range
vae = ODVAE.from_pretrained({folder!r}, precision="highest")

def through(clips):
    return np.asarray(to_uint8(vae.reconstruct(to_unit_range(clips))))

def flat(clips):
    clips[:] = 128  # its own copy
    return clips

def late(clips):
    return clips[:, 1:]

def real(clips):
    return clips / 255

def failing(clips):
    raise KeyError("no\\nsuch")

number = 3
"""


@pytest.fixture
def module(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "mine.py").write_text(MODULE.format(folder=str(folders["image"])))
    yield "mine"
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("own_log")
def test_what_comes_from_outside_has_the_numbers_of_the_models_rounded_reconstructions(
    videos, folders, module, tmp_path, capsys
):
    clips = FixedClips(videos, frames=FRAMES, size=SIDE)
    made = {}
    for clip in map(clips.read, range(2)):
        frames = np.asarray(to_uint8(model("image").reconstruct(to_unit_range(clip.frames[None]))))
        made[clip.name] = frames[0]
        stem = clip.name.rpartition("/")[2].removesuffix(".mp4")
        lossless(tmp_path / "made" / f"{stem}.mkv", frames[0])
    outside = [f"--reconstructions=files={tmp_path / 'made'}", f"--callable=code={module}:through"]
    size = [f"--data={videos}", f"--frames={FRAMES}", f"--size={SIDE}", "--nofvd", "--nofloor"]
    how = ["eval", f"--ckpt=model={folders['image']}", *outside, *size, "--eight-bit"]
    assert main([*how, f"--output={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} (8 bit)" in printed for name in ("model", "files", "code"))
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert all(row["eight_bit"] for row in rows)
    assert [(row["vcpr"], row["by_values"]) for row in rows[1:]] == [(None, None)] * 2
    for row in rows[1:]:
        for metric in ("psnr", "ssim"):
            a, b = (r["scores"][metric]["mean"] for r in (row, rows[0]))
            assert a == pytest.approx(b, rel=1e-6, abs=1e-6), (row["model"], metric)
    expected = [
        np.mean([skimage.metrics.peak_signal_noise_ratio(a, b) for a, b in zip(x, y, strict=True)])
        for x, y in ((clip.frames, made[clip.name]) for clip in map(clips.read, range(2)))
    ]
    assert rows[1]["scores"]["psnr"]["mean"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert main([*how, f"--output={tmp_path / 'out'}"]) == 0  # goes on, and measures nothing again
    assert capsys.readouterr().out == printed


def test_a_model_and_its_rounded_reconstructions_are_measured_apart(videos, tmp_path):
    exact = contender("image", "", model("image"))
    rows = [scores([c], videos, output=tmp_path, limit=1).rows[0] for c in (exact, rounded(exact))]
    assert rows[0].contender.title == "image" and rows[1].contender.title == "image (8 bit)"
    a, b = (row.scores["psnr"].mean for row in rows)
    assert a != b and a == pytest.approx(b, abs=0.05)


def at_fault(path, change):
    """A folder of reconstructions that are wrong in one way."""
    frames = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
    for i in range(2):
        lossless(path / f"clip{i}.mkv", frames)
    change(path, frames)
    return path


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda p, x: lossless(p / "clip1.mkv", x[:9]),
            r"clip1\.mkv has 9 frames of 16×16, expected 17 frames of 16×16",
        ),
        (
            lambda p, x: lossless(p / "clip1.mkv", x[:, :, :12]),
            r"clip1\.mkv has 17 frames of 16×12, expected 17 frames of 16×16",
        ),
        (lambda p, x: (p / "clip1.mkv").unlink(), r"holds no video called clip1"),
        (
            lambda p, x: lossless(p / "clip1.avi", x),
            r"clip1\.avi and .*clip1\.mkv may both be the reconstruction of .*clip1\.mp4",
        ),
        (lambda p, x: (p / "clip1.mkv").write_bytes(b"none"), r"clip1\.mkv cannot be read"),
        (
            lambda p, x: [(p / f"clip{i}.mkv").rename(p / f"other{i}.mkv") for i in range(2)],
            r"no video in .* has the name of a video of .*found other0.mkv.*expected clip0",
        ),
    ],
)
def test_reconstructions_that_do_not_fit_are_named(change, words, videos, tmp_path):
    folder = at_fault(tmp_path / "made", change)
    files = from_outside("files", str(folder), Reconstructions(str(folder)))
    with pytest.raises(ValueError, match=words):
        scores([files], videos)


def test_videos_without_a_reconstruction_are_said_before_anything_is_measured(
    videos, tmp_path, caplog
):
    folder = at_fault(tmp_path / "made", lambda *_: None)
    clips = FixedClips(videos, frames=FRAMES, size=SIDE)
    Reconstructions(str(folder)).check(clips)
    assert not caplog.records
    (folder / "clip1.mkv").unlink()
    Reconstructions(str(folder)).check(clips)
    said = rf"1 of 2 videos have no reconstruction in {folder}, .*first of them.*: .*clip1\.mp4"
    assert re.search(said, caplog.text)


def test_reconstructions_of_videos_of_one_name_are_told_apart_by_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        write_clip(tmp_path / "videos" / name / "x.mp4", frames=FRAMES, seed=ord(name))
    clips = FixedClips(tmp_path / "videos", frames=FRAMES, size=SIDE)
    for clip in map(clips.read, range(2)):
        folder = tmp_path / "made" / clip.name.split("/")[-2]
        folder.parent.mkdir(exist_ok=True)
        lossless(folder / "x.mkv", clip.frames)
    files = from_outside("files", "", Reconstructions(str(tmp_path / "made")))
    (row,) = scores([files], tmp_path / "videos").rows
    assert row.scores["psnr"].mean == 100  # the least error that is told apart
    (tmp_path / "made" / "b" / "x.mkv").unlink()
    files = from_outside("files", "", Reconstructions(str(tmp_path / "made")))
    with pytest.raises(
        ValueError, match=r"a/x.mkv may be the reconstruction of .* or of .*b/x.mp4"
    ):
        scores([files], tmp_path / "videos")


@pytest.mark.parametrize(
    "name, words",
    [
        ("mine:late", r"returned uint8 of shape \(2, 16.*expected uint8 of shape \(2, 17"),
        ("mine:real", r"mine:real returned float64 of shape .*; expected uint8"),
        ("mine:failing", r"mine:failing failed on clips of shape .*clip0.mp4.*KeyError: .*such"),
        ("mine:number", "is a int; expected a function"),
        ("mine:thruogh", "did you mean 'through'"),
        ("mine", "names no function: expected package.module:function"),
        ("theirs:f", "theirs.*is looked for on Python's path and in the current folder"),
    ],
)
def test_functions_that_cannot_be_measured_are_named(name, words, videos, module):
    with pytest.raises(ValueError, match=words) as error:
        clips = [FixedClips(videos, frames=FRAMES, size=SIDE).read(i) for i in range(2)]
        Function(name)(clips)
    assert "\n" not in str(error.value)


def test_a_function_may_write_into_its_clips_and_is_measured_anew_once_it_changes(
    videos, module, tmp_path
):
    flat = Function("mine:flat")
    models = [from_outside("flat", "mine:flat", flat), contender("image", "", model("image"))]
    both = [row.scores["psnr"].mean for row in scores(models, videos, limit=1).rows]
    alone = scores(models[1:], videos, limit=1).rows[0].scores["psnr"].mean
    assert both[1] == alone
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("128", "0"))
    sys.modules.pop("mine")
    assert Function("mine:flat").digest != flat.digest


def test_labels_are_unique_over_all_kinds(videos, folders, module, capsys):
    one = ["eval", f"--data={videos}", f"--frames={FRAMES}", f"--size={SIDE}", "--nofvd"]
    assert main([*one, f"--ckpt=x={folders['image']}", "--callable=x=mine:flat"]) == 1
    assert re.search(r"several models are called \['x'\]", capsys.readouterr().err)


def test_averaged_weights_are_asked_only_of_training_runs(folders):
    with pytest.raises(FileNotFoundError, match="holds no model that a training run has exported"):
        load_contenders([f"{folders['image']}@ema"])
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of a training run"):
        load_contenders([f"{folders['image']}@raw"])
