import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from odvae_jax import DiagonalGaussian


def test_moments_are_split_and_only_the_log_variance_is_clamped():
    moments = jnp.array([[-50.0, 50.0, -50.0, 50.0]]).reshape(1, 1, 1, 1, 4)
    posterior = DiagonalGaussian.from_moments(moments)
    assert posterior.mean.ravel().tolist() == [-50.0, 50.0]
    assert posterior.logvar.ravel().tolist() == [-30.0, 20.0]
    assert (posterior.mode() == posterior.mean).all()


def test_samples_have_the_posteriors_mean_and_deviation():
    shape = (1, 1, 200, 250, 2)
    posterior = DiagonalGaussian(jnp.full(shape, 2.0), jnp.full(shape, np.log(9.0)))
    samples = np.asarray(posterior.sample(jax.random.key(0))).ravel()
    assert scipy.stats.kstest(samples, scipy.stats.norm(2.0, 3.0).cdf).pvalue > 1e-3


def test_kl_is_the_integral_summed_over_each_clip():
    mean, logvar = 0.7, -0.4
    p = scipy.stats.norm(mean, np.exp(0.5 * logvar))
    q = scipy.stats.norm()
    integral, _ = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -10, 10)
    shape = (3, 2, 2, 2, 4)
    kl = DiagonalGaussian(jnp.full(shape, mean), jnp.full(shape, logvar)).kl()
    assert kl.shape == (3,)
    assert np.asarray(kl) == pytest.approx(integral * 32, rel=1e-5)
