"""Files and datasets of latents of the baselines with continuous latents."""

import functools

import numpy as np
import pytest

from odvae_jax import VideoSize, decode, encode_uint8
from odvae_jax.baselines import MODELS, model_class
from odvae_jax.cli import main
from odvae_jax.data.video import inspect_video, read_frames
from odvae_jax.latents import LatentDataset, LatentsError, LatentsFile
from odvae_jax.latents.schema import BASELINES, in_time
from odvae_jax.pixels import to_uint8
from odvae_jax.transcoding.digest import described
from tests.conftest import full, write_clip
from tests.latents.making import make_dataset
from tests.test_transcoding import grey

TINY = {
    "svd_vae": {},
    "cv_vae": {"frames_at_a_time": 8},
    "ops_vae": {"image_width": 8, "micro_frames": 5},
}
# The frames of the clips, and those that the model encodes with what is padded.
FRAMES, PADDED = 10, {"svd_vae": 10, "cv_vae": 13, "ops_vae": 10}
HEIGHT, WIDTH = 14, 20
EXACT = 2e-5


@functools.cache
def tiny(name):
    cls = model_class(name)
    config = cls.config_class(width=8, groups=4, precision="highest", **TINY[name])
    return cls(config, rngs=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder that a model is saved in, by its name."""

    @functools.cache
    def save(name):
        path = tmp_path_factory.mktemp("model") / name
        tiny(name).save_pretrained(path)
        return path

    return save


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    for i in range(2):
        write_clip(path / f"clip{i}.mp4", FRAMES, HEIGHT, WIDTH, seed=i)
    return path


def run(capsys, *arguments, status=0):
    code = main([*map(str, arguments)])
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert code == status, said
    return said


def frames_of(path):
    info = inspect_video(path)
    return read_frames(info, 0, info.frames)


def padded_video(clips, name, number=0):
    """What a model is given of a clip: float32 in [-1, 1], with edges repeated."""
    video = frames_of(clips / f"clip{number}.mp4")
    more = (PADDED[name] - FRAMES, -HEIGHT % 8, -WIDTH % 8)
    padded = np.pad(video, [*((0, n) for n in more), (0, 0)], mode="edge")
    return np.float32(padded[None]) / 127.5 - 1


@pytest.mark.parametrize("name", ["ops_vae", *full("svd_vae", "cv_vae")])
def test_latents_and_videos_of_files_are_those_of_the_model_itself(
    name, saved, clips, tmp_path, capsys
):
    words = ["encode", clips / "clip0.mp4", tmp_path / "a.safetensors", "--ckpt", saved(name)]
    run(capsys, *words)
    assert "1 file was there already" in run(capsys, *words)
    file, model = LatentsFile(tmp_path / "a.safetensors"), tiny(name)
    mean = np.asarray(model.encode(padded_video(clips, name)).mean)
    np.testing.assert_allclose(file.read(), mean[0], atol=EXACT)
    info = file.info
    assert (info.frames, info.height, info.width) == (FRAMES, HEIGHT, WIDTH)
    assert info.time_compression == model.config.time_compression
    assert (info.config["model"], info.tiling) == (name, {})
    said = run(capsys, "summary", tmp_path)
    assert f"{mean[..., 0].mean():.4f}" in said and "1 file, 10 frames" in said

    run(capsys, "decode", tmp_path / "a.safetensors", tmp_path / "a.mp4", "--crf=0")
    decoded = to_uint8(model.decode(mean, frames=PADDED[name]))[0, :FRAMES, :HEIGHT, :WIDTH]
    found = frames_of(tmp_path / "a.mp4")
    assert found.shape == decoded.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.abs(grey(found) - grey(np.asarray(decoded))).mean() < 3

    other = saved("cv_vae" if name == "svd_vae" else "svd_vae")
    words = ["decode", tmp_path / "a.safetensors", tmp_path / "b.mp4", "--ckpt", other]
    said = run(capsys, *words, status=1)
    assert f"holds latents of another model: of {saved(name)} ({name}, width 8" in said

    said = run(capsys, "reconstruct", clips / "clip0.mp4", tmp_path / "r.mp4", "--ckpt",
               saved(name))  # fmt: skip
    video = frames_of(clips / "clip0.mp4").astype(float)
    error = np.mean((np.asarray(decoded, float) - video) ** 2, axis=(1, 2, 3))
    psnr = np.mean(10 * np.log10(255**2 / error))
    assert f"PSNR {psnr:.2f} dB" in said and frames_of(tmp_path / "r.mp4").shape[2] == 2 * WIDTH


@pytest.mark.parametrize(
    "cut", [["--frames=10"], *full([])], ids=lambda cut: "clips" if cut else "whole videos"
)
@pytest.mark.parametrize("name", ["svd_vae", *full("cv_vae", "ops_vae")])
def test_records_of_a_dataset_are_the_model_s_latents_and_decode(
    name, cut, saved, clips, tmp_path, capsys
):
    dest, words = tmp_path / "d", ["--to=shards", "--workers=0", "--content=moments", *cut]
    said = run(capsys, "encode", clips, dest, "--ckpt", saved(name), *words, "--dry-run")
    config = tiny(name).config
    count = config.latent_frames(PADDED[name]) * 2 * 3 * 8 * 4 * 2  # bytes of both
    assert "2 clips" in said and "1 program" in said and f"{count / 1e9:.6f} GB" in said
    run(capsys, "encode", clips, dest, "--ckpt", saved(name), *words)
    dataset = LatentDataset(dest)
    assert dataset.finished and len(dataset) == 2
    for number, item in enumerate(dataset):
        posterior = tiny(name).encode(padded_video(clips, name, number))
        expected = np.concatenate([posterior.mean, posterior.logvar], axis=-1)[0]
        np.testing.assert_allclose(item["latents"], expected, atol=EXACT)
        assert item["frames"][0, 0] == 0 and item["frames"][-1, 1] == FRAMES - 1
    run(capsys, "decode", dest, tmp_path / "out", "--records=1")
    (path,) = (tmp_path / "out").rglob("*.mp4")
    assert frames_of(path).shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert "2 records" in run(capsys, "summary", dest)


@pytest.mark.parametrize("name", BASELINES)
def test_latents_say_of_a_model_what_it_says_of_itself(name):
    for config in (tiny(name).config, model_class(name).config_class()):
        found = in_time(described(config))
        assert (config.time_compression, config.space_compression) == BASELINES[name]
        for frames in range(1, 60):
            if config.clip_size(frames, 8, 8)[0] == frames:
                assert found.latent_frames(frames) == config.latent_frames(frames)


def test_every_model_with_continuous_latents_is_known_to_latents():
    configs = [model_class(name).config_class for name in MODELS]
    assert {c.model for c in configs if c.latent_channels} == BASELINES.keys()


def dataset_of(place, name, lengths, **fields):
    config = {**described(tiny(name).config), **fields}
    more = {"tiling": {}}
    buckets = {f"{max(lengths)}x16x24": len(lengths)}
    return make_dataset(place, buckets=buckets, config=config, lengths=lengths, more=more)


@pytest.mark.parametrize("name", BASELINES)
def test_latent_frames_share_the_frames_of_a_clip_out_in_their_order(name, tmp_path):
    lengths = [1, 2, 4, 5, 6, 7, 11, 13, 15, 16]
    dataset_of(tmp_path, name, lengths)
    for item, length in zip(LatentDataset(tmp_path), lengths, strict=True):
        shared = [n for first, last in item["frames"] for n in range(first, last + 1)]
        assert shared == list(range(length))
    eleven = LatentDataset(tmp_path)[6]["frames"].tolist()
    assert (
        eleven
        == {
            "svd_vae": [[n, n] for n in range(11)],
            "cv_vae": [[0, 0], [1, 4], [5, 8], [9, 10]],
            # Micro clips of 5, 5 and 1 frames; groups of 4 are counted from the end of each.
            "ops_vae": [[0, 0], [1, 4], [5, 5], [6, 9], [10, 10]],
        }[name]
    )


@pytest.mark.full
@pytest.mark.parametrize("name", BASELINES)
def test_latents_computed_by_two_devices_are_those_of_one(name, saved, clips, tmp_path, capsys):
    for rows in (1, 2):
        run(capsys, "encode", clips / "clip0.mp4", tmp_path / f"{rows}.safetensors",
            "--ckpt", saved(name), "--size=32", f"--rows={rows}")  # fmt: skip
        words = [tmp_path / f"{rows}.safetensors", tmp_path / f"{rows}.mp4", f"--rows={rows}"]
        run(capsys, "decode", *words)
    one, two = (LatentsFile(tmp_path / f"{rows}.safetensors").read() for rows in (1, 2))
    np.testing.assert_allclose(two, one, atol=1e-4)
    one, two = (frames_of(tmp_path / f"{rows}.mp4").astype(int) for rows in (1, 2))
    assert np.abs(two - one).mean() < 1


@pytest.mark.full
def test_windows_of_whole_micro_clips_decode_to_their_frames(clips, tmp_path):
    model = tiny("ops_vae")
    latents = np.asarray(model.encode(padded_video(clips, "ops_vae")).mean)
    whole = np.asarray(model.decode(latents, frames=FRAMES))
    dataset_of(tmp_path, "ops_vae", [FRAMES])
    windows = LatentDataset(tmp_path, window=2)
    assert len(windows) == 2
    for item in windows:
        first, last = item["frames"][0, 0], item["frames"][-1, 1]
        window = latents[:, item["first"] : item["first"] + 2]
        decoded = model.decode(window, frames=int(last - first + 1))
        np.testing.assert_allclose(decoded, whole[:, first : last + 1], atol=1e-4)


@pytest.mark.full
def test_windows_of_whole_chunks_decode_to_all_frames_of_the_clip_but_their_first(clips):
    model = tiny("cv_vae")
    latents = np.asarray(model.encode(padded_video(clips, "cv_vae")).mean)
    whole = np.asarray(model.decode(latents))
    for first, count in ((2, 2), (1, 3)):  # chunks are of 3 latent frames, or what is left
        found = np.abs(
            np.asarray(model.decode(latents[:, first : first + count])) - whole[:, 4 * first :]
        )
        assert (found[:, 1:].max() < 1e-4) == (first == 2)
        assert found[:, :1].max() > 1e-3


@pytest.mark.parametrize(
    ("micro", "given", "said"),
    [
        (5, {"window": 3}, "take multiples of 2 latent frames"),
        (5, {"window": 2, "stride": 1}, "take multiples of 2 latent frames"),
        (None, {"window": 2}, "leave out window"),
    ],
    ids=str,
)
def test_windows_of_a_part_of_a_micro_clip_are_refused(micro, given, said, tmp_path):
    dataset_of(tmp_path, "ops_vae", [13, 13], micro_frames=micro)
    assert len(LatentDataset(tmp_path)) == 2
    with pytest.raises(LatentsError, match=said):
        LatentDataset(tmp_path, **given)


def test_ops_vae_is_told_the_number_of_frames_by_the_size():
    model = tiny("ops_vae")
    video = np.random.default_rng(0).integers(0, 256, (1, FRAMES, 16, 24, 3), np.uint8)
    posterior = encode_uint8(model, video[:, :, :HEIGHT, :WIDTH], pad=True)
    assert posterior.size == VideoSize(FRAMES, HEIGHT, WIDTH)
    decoded = decode(model, posterior.mean, size=posterior.size)
    expected = model.decode(posterior.mean, frames=FRAMES)[:, :, :HEIGHT, :WIDTH]
    np.testing.assert_allclose(decoded, expected, atol=EXACT)
    with pytest.raises(ValueError, match="give its size, a VideoSize"):
        decode(model, posterior.mean)


@pytest.mark.parametrize("name", ["vqgan", "tats"])
@pytest.mark.parametrize(
    "words",
    [
        ["encode", "CLIPS", "OUT"],
        ["encode", "CLIPS", "OUT", "--to=shards"],
        ["encode", "CLIPS", "OUT", "--to=shards", "--dry-run"],
        ["reconstruct", "CLIPS", "OUT"],
        ["calibrate", "CLIPS"],
    ],
    ids=str,
)
def test_models_with_codes_are_refused_with_one_line(name, words, clips, tmp_path, capsys):
    from tests.baselines.test_common import tiny as tiny_of_any

    model, out = tmp_path / "m", tmp_path / "out"
    tiny_of_any(name).save_pretrained(model)
    words = [{"CLIPS": clips, "OUT": out}.get(w, w) for w in words]
    given = [model] if words[0] == "calibrate" else ["--ckpt", model]
    said = run(capsys, words[0], *given, *words[1:], status=1)
    assert "encodes clips to codes, each one of 16 numbers, not to continuous latents" in said
    assert not out.exists()


@pytest.mark.parametrize("option", ["--tiling=9", "--tiling=auto", "--streaming=8", "--tile=64"])
@pytest.mark.parametrize("to", [[], ["--to=shards"]], ids=["files", "shards"])
def test_tilings_of_baselines_are_refused_before_any_work(
    option, to, saved, clips, tmp_path, capsys
):
    given = ["--ckpt", saved("ops_vae"), option, *to]
    said = run(capsys, "encode", clips, tmp_path / "out", *given, status=1)
    assert "OPS-VAE takes clips whole" in said and "leave out the tiling" in said
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("dataset.json"))


def test_the_scale_of_a_baseline_is_measured_and_written(saved, clips, tmp_path, capsys):
    from odvae_jax import from_pretrained
    from odvae_jax.transcoding import encoder_digest

    model, path = tiny("svd_vae"), tmp_path / "m"
    model.save_pretrained(path)
    words = ["--frames=2", "--size=8", "--clips=2"]
    said = run(capsys, "calibrate", path, clips, *words)
    after = from_pretrained(path)
    assert after.config.scale.measured and "written into" in said
    assert encoder_digest(after) == encoder_digest(model)
