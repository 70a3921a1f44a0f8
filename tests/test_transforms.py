"""`encode` and `decode` inside other people's programs: jit, grad, vmap, scan, sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from odvae_jax import decode, encode
from tests.conftest import full, random_video, small_model

# Variant 2 has every kind of convolution and norm.
vae_and_video = functools.lru_cache(
    lambda: (small_model("v2"), jnp.asarray(random_video(5, 32, 16, b=4)))
)


def mean(vae, video):
    return encode(vae, video).mean


def loss(vae, video):
    return jnp.mean((decode(vae, mean(vae, video)) - video) ** 2)


@functools.lru_cache(maxsize=1)
def expected():
    vae, video = vae_and_video()
    latents = mean(vae, video)
    return latents, decode(vae, latents), jax.jit(jax.grad(loss))(vae, video)


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=0)


def test_vmap_and_scan_over_clips():
    vae, video = vae_and_video()
    latents, *_ = expected()
    one = lambda clip: mean(vae, clip[None])[0]  # noqa: E731
    assert_close(jax.jit(jax.vmap(one))(video), latents, 1e-5)
    scanned = jax.jit(lambda v: jax.lax.scan(lambda carry, clip: (carry, one(clip)), 0, v)[1])(
        video
    )
    assert_close(scanned, latents, 1e-5)


def test_gradient_is_that_of_the_finite_difference():
    vae, video = vae_and_video()
    gradient = expected()[2]
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    direction = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape) * 1e-3, vae)
    along = sum(
        jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )
    moved = [
        loss(jax.tree.map(lambda p, d, s=s: p + s * d, vae, direction), video) for s in (1, -1)
    ]
    assert float(along) == pytest.approx(float(moved[0] - moved[1]) / 2, rel=0.02)


@pytest.mark.parametrize("kind", [AxisType.Auto, *full(AxisType.Explicit)], ids=str)
def test_sharding_over_clips_and_height_changes_nothing(kind):
    vae, video = vae_and_video()
    latents, reconstruction, gradient = expected()
    mesh = jax.make_mesh(
        (2, 2), ("data", "height"), axis_types=(kind, kind), devices=jax.devices()[:4]
    )
    spread = jax.device_put(video, NamedSharding(mesh, P("data", None, "height")))
    with jax.set_mesh(mesh):
        ours = mean(vae, spread)
        assert_close(ours, latents, 1e-5)
        assert ours.sharding.shard_shape(ours.shape)[::2] == (2, 2, 4), "spread as the video is"
        assert_close(decode(vae, ours), reconstruction, 1e-4)
        assert_close(jax.jit(jax.grad(loss))(vae, spread), gradient, 1e-5)
    if kind == AxisType.Auto:
        assert_close(mean(vae, spread), latents, 1e-5)


def test_explicit_axes_without_a_mesh_in_context():
    vae, video = vae_and_video()
    mesh = jax.make_mesh((2, 2), ("data", "height"), devices=jax.devices()[:4])
    spread = jax.device_put(video, NamedSharding(mesh, P("data", None, "height")))
    assert_close(mean(vae, spread), expected()[0], 1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_rows_spread_too_thin_are_refused_for_xla_computes_them_wrong(kind):
    vae, video = vae_and_video()
    mesh = jax.make_mesh(
        (2, 2), ("data", "height"), axis_types=(kind, kind), devices=jax.devices()[:4]
    )
    spread = NamedSharding(mesh, P("data", None, "height"))
    narrow = jax.device_put(video[:, :, :16], spread)
    with pytest.raises(
        ValueError, match="8 of its 16 rows on each .* over fewer devices, 1 at most"
    ):
        encode(vae, narrow)
    latents = jax.device_put(np.zeros((4, 2, 2, 2, 4), np.float32), spread)
    with pytest.raises(ValueError, match="latents has 1 of its 2 rows"):
        decode(vae, latents)
    alone = jax.make_mesh((2,), ("height",), axis_types=(kind,), devices=jax.devices()[:2])
    rows = NamedSharding(alone, P(None, None, "height"))  # of nothing but rows they may be
    one = video[:1, :, :16]
    assert_close(mean(vae, jax.device_put(one, rows)), mean(vae, one), 1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, *full(AxisType.Explicit)], ids=str)
def test_shard_map_gives_the_same_gradient(kind):
    vae, video = vae_and_video()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
    placed = jax.device_put(video, NamedSharding(mesh, P("data")))
    parameters = jax.device_put(vae, NamedSharding(mesh, P()))
    over_clips = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")))
    with jax.set_mesh(mesh):
        total = over_clips(lambda m, v: jax.lax.pmean(loss(m, v), "data"), out_specs=P())
        assert_close(jax.jit(jax.grad(total))(parameters, placed), expected()[2], 1e-5)
