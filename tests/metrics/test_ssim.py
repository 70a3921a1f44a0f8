"""SSIM against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from odvae_jax.data.sources import resolve
from odvae_jax.data.video import inspect_video, read_frames
from odvae_jax.metrics.ssim import ssim


def test_ssim_is_scikit_image_s_on_real_frames():
    frames = read_frames(inspect_video(resolve("sample-clips")[0]), 10, 4, short_side=60) / 255.0
    a, b = frames[:2].astype(np.float32), frames[2:].astype(np.float32)
    expected = [
        structural_similarity(
            x,
            y,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert min(expected) < 0.99
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-4)
    np.testing.assert_allclose(ssim(a, a), 1.0, atol=1e-6)


def test_frames_smaller_than_the_window_are_refused():
    x = np.zeros((2, 8, 16, 3), np.float32)
    with pytest.raises(ValueError, match=r"8×16 are smaller .* 11×11"):
        ssim(x, x)
