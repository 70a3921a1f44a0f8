import jax.numpy as jnp
import numpy as np
import pytest
import skimage.metrics

from odvae_jax.metrics.psnr import psnr
from odvae_jax.metrics.ssim import ssim


def test_psnr_is_scikit_images_for_each_frame():
    rng = np.random.default_rng(0)
    a = rng.uniform(size=(2, 3, 16, 24, 3)).astype(np.float32)
    b = np.clip(a + rng.normal(scale=[[[[[0.01]]]], [[[[0.2]]]]], size=a.shape), 0, 1).astype(
        np.float32
    )
    expected = [
        [
            skimage.metrics.peak_signal_noise_ratio(x, y, data_range=1)
            for x, y in zip(p, q, strict=True)
        ]
        for p, q in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(b)), expected, atol=1e-4)


def test_equal_frames_count_as_100():
    a = jnp.full((1, 8, 8, 3), 0.3)
    assert psnr(a, a).tolist() == [100.0]
    assert float(psnr(a, a + 1e-4)[0]) == pytest.approx(80, abs=0.1)


@pytest.mark.parametrize("dtype", [">f4", "O"])
@pytest.mark.parametrize("measure", [psnr, ssim])
def test_numbers_that_jax_cannot_take_are_refused(measure, dtype, unchecked_types):
    good = np.zeros((1, 16, 16, 3), np.float32)
    odd = good.astype(dtype)
    for given, name in (((odd, good), "a"), ((good, odd), "b")):
        with pytest.raises(ValueError, match=f"{name} has dtype .*, which JAX cannot take"):
            measure(*given)
