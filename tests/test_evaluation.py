from pathlib import Path

import numpy as np
import pytest
import skimage.metrics
from PIL import Image

from odvae_jax import ODVAE
from odvae_jax.data.sources import resolve
from odvae_jax.data.video import inspect_video, read_frames
from odvae_jax.evaluation import block_mean, evaluate, save_pictures
from tests.conftest import small_model, write_clip


def test_each_clip_is_scaled_cropped_and_measured(videos, tmp_path):
    results = list(evaluate(small_model(), videos, frames=5, size=24, start=-5))
    assert [r.path.split("/")[-1] for r in results] == ["clip0.mp4", "clip1.mp4"]
    for r in results:
        frames = read_frames(inspect_video(r.path), 19, 5, short_side=24)
        np.testing.assert_array_equal(r.original, frames[:, :, 4:28])
        # The reconstruction here is rounded to uint8, the measured one is not.
        measured = np.mean(
            [
                skimage.metrics.peak_signal_noise_ratio(a, b)
                for a, b in zip(r.original, r.reconstruction, strict=True)
            ]
        )
        assert r.psnr == pytest.approx(measured, abs=0.02)
    paths = save_pictures(results, tmp_path / "out")
    assert [p.name for p in paths] == ["clip0.mp4", "clip1.mp4", "frames.png"]
    side_by_side = inspect_video(paths[0])
    assert (side_by_side.frames, side_by_side.width, side_by_side.height) == (5, 48, 24)
    assert Image.open(paths[-1]).size == (4 * 24, 2 * (2 * 24 + 8))


def test_the_trained_model_reconstructs_what_it_has_not_seen():
    vae = ODVAE.from_pretrained(Path(__file__).parents[1] / "models" / "small")
    path = next(path for path in resolve("sample-clips") if "carphone" in path)
    (result,) = evaluate(vae, path, frames=9, size=64, start=-9)
    assert result.psnr > result.block_mean_psnr + 4


def test_block_mean_averages_what_one_latent_stands_for():
    clip = np.random.default_rng(0).uniform(size=(9, 16, 24, 3))
    blocks = block_mean(clip, 4)
    np.testing.assert_allclose(blocks[0, 3, 9], clip[0, :8, 8:16].mean((0, 1)))
    np.testing.assert_allclose(blocks[5, 8, 0], clip[5:9, 8:, :8].mean((0, 1, 2)))
    np.testing.assert_allclose(block_mean(clip, 1)[5, 8, 0], clip[5, 8:, :8].mean((0, 1)))


def test_files_that_are_no_videos_or_too_short_are_refused_by_name(videos, tmp_path):
    write_clip(tmp_path / "good.mp4")
    with pytest.raises(ValueError, match="good.mp4 has 24 frames; 29 from frame 0"):
        next(evaluate(small_model(), tmp_path, frames=29, size=16))
    (tmp_path / "fake.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="fake.mp4 cannot be read as a video"):
        next(evaluate(small_model(), tmp_path, frames=5, size=16))
    with pytest.raises(ValueError, match=r"\(1, 6, 16, 16, 3\).*nearest is \(1, 5, 16, 16, 3\)"):
        next(evaluate(small_model(), videos, frames=6, size=16))
