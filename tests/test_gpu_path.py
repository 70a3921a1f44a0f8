"""What a GPU runs, here: pairs of frames, and in bfloat16 the kernels, in interpret mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import lowering
from odvae_jax.layers.carry import START, Carry
from odvae_jax.lowering import norm_kernels
from tests.conftest import full, random_video, small_model


def reconstructed(vae, video):
    moments = vae.encoder(video)
    return moments, vae.decoder(moments[..., : vae.config.latent_channels])


def loss(vae, video):
    return jnp.mean(jnp.abs(reconstructed(vae, video)[1] - video))


@pytest.mark.full
def test_a_float32_model_and_its_gradient_are_the_same(monkeypatch, gpu):
    vae, video = small_model("v2", upsample="linear"), jnp.asarray(random_video(5, 16, 24, b=2))

    def everything(vae, video):
        return *reconstructed(vae, video), jax.grad(loss)(vae, video)

    ours = jax.jit(lambda *a: everything(*a))(vae, video)
    monkeypatch.setattr(lowering, "by_platform", jax.lax.platform_dependent)
    expected = jax.jit(lambda *a: everything(*a))(vae, video)
    assert not gpu, "the kernels are for 16 bits"
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1, float(jnp.abs(b).max())))


def three_ways(function, monkeypatch, gpu):
    """Of a bfloat16 model on a GPU, by the plain path, and of the float32 model by that."""
    exact = small_model(upsample="linear")
    vae, video = small_model(upsample="linear", dtype="bfloat16"), random_video(5, 32, 32)
    ours = jax.jit(lambda *a: function(*a))(vae, video)
    assert len(gpu) == 3, "statistics, norms of their own, and norms of pairs"
    monkeypatch.setattr(lowering, "by_platform", jax.lax.platform_dependent)
    monkeypatch.setattr(norm_kernels, "_devices_can", lambda: False)
    return ours, *(jax.jit(lambda *a: function(*a))(model, video) for model in (vae, exact))


def test_a_bfloat16_model_is_as_near_to_float32_as_by_the_plain_path(monkeypatch, gpu):
    for fast, slow, true in zip(*three_ways(reconstructed, monkeypatch, gpu), strict=True):
        errors = [float(jnp.sqrt(jnp.mean((a - true) ** 2))) for a in (fast, slow)]
        assert errors[0] < 1.6 * errors[1]
        assert errors[1] < 0.1 * float(jnp.std(true))


@pytest.mark.full
def test_so_is_a_bfloat16_model_s_gradient(monkeypatch, gpu):
    fast, slow, true = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
        for gradient in three_ways(jax.grad(loss), monkeypatch, gpu)
    )
    errors = [np.linalg.norm(g - true) for g in (fast, slow)]
    assert errors[0] < 1.6 * errors[1]
    assert errors[1] < 0.1 * np.linalg.norm(true)


@pytest.mark.parametrize("dtype", ["float32", *full("bfloat16")])
def test_chunks_are_the_whole_clip(gpu, dtype):
    vae = small_model(norm="frame", time_upsample="nearest", dtype=dtype)
    video = jnp.asarray(random_video(13, 16, 16))

    def in_chunks(vae, video):
        state, parts = START, []
        for start, stop in ((0, 5), (5, 9), (9, 13)):
            carry = Carry(state)
            parts.append(vae.encoder(video[:, start:stop], carry))
            state = carry.state
        return jnp.concatenate(parts, axis=1)

    whole = jax.jit(lambda vae, video: vae.encoder(video))(vae, video)
    chunks = jax.jit(in_chunks)(vae, video)
    assert len(gpu) == (3 if dtype == "bfloat16" else 0)
    assert float(jnp.std(whole)) > 0.2
    np.testing.assert_allclose(chunks, whole, atol=2**-6 if dtype == "bfloat16" else 1e-4)
