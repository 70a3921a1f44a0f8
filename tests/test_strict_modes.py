"""Under JAX's strict settings: no implicit broadcasting, no implicit transfer to the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import odvae_jax
from odvae_jax import (
    ODVAE,
    DiagonalGaussian,
    ODVAEConfig,
    SpatialTiling,
    Streaming,
    TemporalTiling,
    VideoSize,
    make_mesh,
)
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.metrics.psnr import psnr
from odvae_jax.metrics.ssim import ssim
from odvae_jax.parameters import with_config
from odvae_jax.tiling.live import LiveDecoder, LiveEncoder
from tests.conftest import on_a_gpu, random_video, small_model
from tests.two_levels import CAUSAL


@functools.cache
def causal(norm="frame"):
    config = ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm=norm, upsample="linear")
    return ODVAE(config, rngs=0)


TILINGS = {
    "whole": None,
    "groups": TemporalTiling(5),
    "chunks": Streaming(4),
    "tiles": SpatialTiling(8, 2),
    "groups and tiles": (TemporalTiling(5), SpatialTiling(8, 2)),
    "chunks and tiles": (Streaming(4), SpatialTiling(8, 2)),
}


def on_device(t=9, h=16, w=16):
    return jax.device_put(random_video(t, h, w))


def latents(vae, video):
    shape = vae.config.latent_shape(video.shape)
    return jax.device_put(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def bytes_of(video):
    return jax.device_put(((np.asarray(video) + 1) * 127).astype(np.uint8))


def calls(vae, tiling):
    """Every way in and out, as functions of the model and of arrays on the device."""
    video = on_device()
    z = latents(vae, video)
    return [
        (functools.partial(odvae_jax.encode, tiling=tiling), video),
        (functools.partial(odvae_jax.decode_uint8, tiling=tiling, size=VideoSize(3, 15, 16)), z),
        (
            functools.partial(odvae_jax.encode_uint8, tiling=tiling, pad=True),
            bytes_of(video[:, 1:]),
        ),
        (functools.partial(odvae_jax.decode, tiling=tiling), z),
    ]


def some(*chosen):
    """These in the quick set, all tilings in the full set."""
    return [t if t in chosen else pytest.param(t, marks=pytest.mark.full) for t in TILINGS]


@pytest.mark.parametrize("tiling", some("whole"))
def test_nothing_is_broadcast_by_rank(tiling):
    with jax.numpy_rank_promotion("raise"):
        for call, array in calls(causal(), TILINGS[tiling]):
            jax.eval_shape(call, causal(), array)


@pytest.mark.parametrize(
    "tiling, count", [("groups", 1), *(pytest.param(t, 4, marks=pytest.mark.full) for t in TILINGS)]
)
def test_nothing_is_sent_to_the_device_unasked(tiling, count):
    for call, array in calls(causal(), TILINGS[tiling])[:count]:
        with jax.transfer_guard("disallow"):
            found = call(causal(), array)
        jax.tree.map(np.testing.assert_array_equal, found, call(causal(), array))


@pytest.mark.full
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("structure", ["image", "v1", "v2", "v3", "v4"])
@pytest.mark.parametrize(
    "fields", [{}, {"norm": "frame", "upsample": "linear"}, {"dtype": "bfloat16"}]
)
def test_variants_and_their_gradients_broadcast_nothing_by_rank(
    monkeypatch, structure, fields, platform
):
    if platform == "gpu":
        on_a_gpu(monkeypatch)
    vae = small_model(structure, **fields)

    def loss(vae, video):
        return jnp.sum(odvae_jax.decode(vae, odvae_jax.encode(vae, video).mean) ** 2)

    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(jax.grad(loss), vae, on_device())


@pytest.mark.full
def test_on_a_mesh_nothing_is_sent_unasked():
    vae, mesh = causal(), make_mesh(2, devices=jax.devices()[:2])
    video = jnp.concatenate([on_device()] * 2)
    z = latents(vae, video)
    with jax.transfer_guard("disallow"):
        odvae_jax.encode(vae, video, mesh=mesh, tiling=TemporalTiling(5))
        odvae_jax.decode(vae, z, mesh=mesh)


@pytest.mark.full
def test_methods_and_live_clips():
    vae, video, key = causal(), on_device(), jax.random.key(0)
    first, rest, z = jax.device_put(video[:, :6]), jax.device_put(video[:, 6:]), latents(vae, video)
    with jax.transfer_guard("disallow"), jax.numpy_rank_promotion("raise"):
        posterior = vae.encode(video)
        vae.reconstruct(video)
        sample, kl = posterior.sample(key), posterior.kl()
        encoder, decoder = LiveEncoder(vae), LiveDecoder(vae)
        live = [encoder.push(first), encoder.push(rest), encoder.flush()]
        frames = [decoder.push(z), decoder.flush()]
    assert sample.shape == posterior.mean.shape and kl.shape == (1,)
    mean = jnp.concatenate([p.mean for p in live if p is not None], axis=1)
    np.testing.assert_allclose(mean, posterior.mean, atol=1e-4)
    assert sum(f.shape[1] for f in frames) == video.shape[1]


def test_metrics_and_posteriors():
    a, b = map(jax.device_put, (random_video(2, 32, 32), random_video(2, 32, 32, seed=1)))
    lpips, key = load_lpips("alex"), jax.random.key(0)
    moments = jax.device_put(np.ones((1, 2, 4, 4, 8), np.float32))
    with jax.transfer_guard("disallow"), jax.numpy_rank_promotion("raise"):
        values = [metric(a, b) for metric in (psnr, ssim, lpips)]
        posterior = DiagonalGaussian.from_moments(moments)
        sample, kl = posterior.sample(key), posterior.kl()
    assert all(v.shape == (1, 2) for v in values)
    assert sample.shape == (1, 2, 4, 4, 4) and kl.shape == (1,)


@pytest.mark.parametrize("measured", [True, False])
def test_latents_are_normalised_under_strict_settings_and_as_they_are_spread(measured):
    fields = {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (2.0,) * 4} if measured else {}
    vae = with_config(causal(), **fields)
    mesh = make_mesh(2, devices=jax.devices()[:2])
    mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 3)
    z = jnp.concatenate([latents(vae, on_device())] * 2).astype(jnp.bfloat16)
    spread = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    strict = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with jax.transfer_guard("disallow"), strict[0], strict[1]:
        found = vae.normalise(z)
        back = vae.denormalise(found)
        on_mesh = vae.denormalise(jax.jit(lambda vae, z: vae.normalise(z))(vae, spread))
    np.testing.assert_allclose(back, z.astype(np.float32), atol=1e-5)
    np.testing.assert_allclose(on_mesh, back, atol=1e-6)
    assert on_mesh.sharding.spec[0] == "data"
