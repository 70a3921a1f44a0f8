import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import odvae_jax
from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.layers.carry import START
from odvae_jax.tiling.live import LiveDecoder, LiveEncoder
from tests.conftest import SMALL, full, random_video, small_model
from tests.released import golden, released_model

released = functools.lru_cache(released_model)


@pytest.mark.parametrize("case", ["image", "clip", *full("tall")])
def test_released_outputs_are_reproduced(case):
    video, moments, reconstruction = golden(case)
    np.testing.assert_allclose(released().moments(video), moments, atol=2e-5, rtol=0)
    mean = released().encode(video).mode()
    np.testing.assert_allclose(mean, moments[..., :4], atol=2e-5, rtol=0)
    np.testing.assert_allclose(released().decode(mean), reconstruction, atol=2e-5, rtol=0)


@pytest.mark.parametrize("structure, t", [("v4", 5), ("image", 3)])
def test_shapes_and_dtypes(structure, t):
    vae = small_model(structure, dtype="bfloat16")
    posterior = vae.encode(random_video(t, 16, 24, b=2))
    assert posterior.mean.shape == (2, (t - 1) // vae.config.time_compression + 1, 2, 3, 4)
    assert posterior.mean.shape == vae.config.latent_shape((2, t, 16, 24, 3))
    assert posterior.mean.dtype == posterior.logvar.dtype == jnp.float32
    rounded = posterior.mean.astype(jnp.bfloat16).astype(jnp.float32)
    assert (rounded != posterior.mean).any(), "the posterior is computed in float32"
    video = vae.decode(posterior.mode())
    assert video.shape == (2, t, 16, 24, 3)
    assert video.dtype == jnp.float32


def test_bfloat16_is_float32_within_its_rounding():
    video = random_video(5, 16, 24, b=2)
    exact, rounded = small_model(), small_model(dtype="bfloat16")
    mean = exact.encode(video).mean
    error = rounded.encode(video).mean - mean
    assert 0 < jnp.sqrt(jnp.mean(error**2)) < 0.03 * jnp.sqrt(jnp.mean(mean**2))


def test_functions_are_the_methods_and_uint8_is_scaled_rounded_and_clipped():
    vae = small_model()
    frames = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 24, 3), np.uint8)
    video = frames.astype(np.float32) / 127.5 - 1
    mean = vae.encode(video).mean
    np.testing.assert_array_equal(odvae_jax.encode(vae, video).mean, mean)
    np.testing.assert_allclose(odvae_jax.encode_uint8(vae, frames).mean, mean, atol=1e-5)
    decoded = odvae_jax.decode(vae, 3 * mean)
    assert decoded.min() < -1 and decoded.max() > 1, "the test must reach both clips"
    expected = np.clip(np.round((np.asarray(decoded) + 1) * 127.5), 0, 255)
    frames = odvae_jax.decode_uint8(vae, 3 * mean)
    assert frames.dtype == jnp.uint8
    assert np.abs(np.asarray(frames, int) - expected).max() <= 1  # 1 where rounding meets a half
    assert np.mean(np.asarray(frames, int) != expected) < 1e-3


def test_a_new_clip_of_the_same_shape_compiles_nothing(monkeypatch):
    for name in ("to_moments", "to_video"):
        once = chex.assert_max_traces(getattr(ODVAE, name), n=1)
        monkeypatch.setattr(ODVAE, name, once)
    vae = small_model("image", seed=3)  # that no other test has compiled
    for seed in range(3):
        vae.reconstruct(random_video(2, 16, 24, b=2, seed=seed))
    with pytest.raises(AssertionError):
        vae.encode(random_video(3, 16, 24, b=2))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "video, words",
    [
        (
            np.zeros((1, 10, 16, 16, 3), np.float32),
            ["(1, 10, 16, 16, 3)", "4k + 1", "(1, 9, 16, 16, 3)"],
        ),
        (np.zeros((1, 9, 130, 16, 3), np.float32), ["H must be", "(1, 9, 128, 16, 3)"]),
        (np.zeros((1, 9, 16, 3, 3), np.float32), ["W must be", "(1, 9, 16, 8, 3)"]),
        (np.zeros((1, 9, 16, 16, 4), np.float32), ["3 channels", "(1, 9, 16, 16, 3)"]),
        (np.zeros((1, 0, 16, 16, 3), np.float32), ["4k + 1", "(1, 1, 16, 16, 3)"]),
        (np.zeros((0, 1, 16, 16, 3), np.float32), ["B must be", "(1, 1, 16, 16, 3)"]),
        (np.zeros((1, 3, 9, 16, 16), np.float32), ["3 channels", "axes swapped?"]),
        (np.zeros((1, 9, 3, 16, 16), np.float32), ["3 channels", "axes swapped?"]),
        (np.zeros((9, 16, 16, 3), np.float32), ["(9, 16, 16, 3)", "five axes"]),
        ([[0.5]], ["builtins.list", "array"]),
        (np.zeros((1, 9, 16, 16, 3), np.uint8), ["uint8", "encode_uint8"]),
    ],
)
def test_impossible_videos_are_refused_before_compiling(monkeypatch, video, words):
    monkeypatch.setattr(ODVAE, "to_moments", chex.assert_max_traces(ODVAE.to_moments, n=0))
    with pytest.raises(ValueError) as error:
        odvae_jax.encode(small_model(), video)
    assert "video" in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.usefixtures("unchecked_types")
def test_uint8_entries_refuse_what_the_float_ones_do():
    with pytest.raises(ValueError, match="float32; encode_uint8 takes uint8"):
        odvae_jax.encode_uint8(small_model(), np.zeros((1, 9, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match=r"nearest is \(1, 9, 16, 16, 3\)"):
        odvae_jax.encode_uint8(small_model(), np.zeros((1, 8, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="five axes"):
        odvae_jax.encode_uint8(small_model(), np.zeros((16, 16, 3), np.uint8))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "latents, words",
    [
        (np.zeros((1, 3, 2, 2, 8), np.float32), ["(1, 3, 2, 2, 8)", "(1, 3, 2, 2, 4)"]),
        (np.zeros((3, 2, 2, 4), np.float32), ["(3, 2, 2, 4)", "[B, t, h, w, 4]"]),
        (np.zeros((1, 0, 2, 2, 4), np.float32), ["(1, 1, 2, 2, 4)"]),
        (np.zeros((1, 3, 2, 2, 4), np.int32), ["int32", "floating"]),
    ],
)
@pytest.mark.parametrize("decode", [odvae_jax.decode, odvae_jax.decode_uint8])
def test_impossible_latents_are_refused(decode, latents, words):
    with pytest.raises(ValueError) as error:
        decode(small_model(), latents)
    assert "latents" in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.usefixtures("unchecked_types")
def test_unknown_rngs_are_refused():
    with pytest.raises(ValueError, match=r"expected nnx\.Rngs, a seed or None"):
        ODVAE(ODVAEConfig.variant(4, **SMALL), rngs="0")


def test_a_model_is_made_from_a_config_and_a_seed():
    config = ODVAEConfig.variant(4, **SMALL)
    a, b, c = (ODVAE(config, rngs=seed).quant_conv.kernel[...] for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


@pytest.mark.usefixtures("unchecked_types")
def test_a_model_needs_a_config():
    with pytest.raises(ValueError, match=r"ODVAEConfig.variant\(4\)"):
        ODVAE({"width": 8})


ODD_ARRAYS = {
    "big-endian": (lambda x: x.astype(x.dtype.newbyteorder(">")), "byte order.*astype"),
    "objects": (lambda x: x.astype(object), r"dtype \|O, which JAX cannot take"),
    "text": (lambda x: x.astype(str), "which JAX cannot take"),
    "long double": (lambda x: x.astype(np.longdouble), "which JAX cannot take"),
    "masked": (lambda x: np.ma.masked_array(x, x > 0.5), "masked array.*filled"),
    "structured": (lambda x: np.zeros(x.shape, [("a", "f4")]), "which JAX cannot take"),
    "bool": (lambda x: x > 0, "dtype bool"),
    "complex": (lambda x: x.astype(np.complex64), "dtype complex64"),
    "a list": (lambda x: x.tolist(), "builtins.list; expected a JAX or NumPy array"),
    "no rows": (lambda x: x[:, :, :0], "nearest"),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("make, words", ODD_ARRAYS.values(), ids=ODD_ARRAYS)
def test_arrays_that_jax_cannot_take_are_refused_by_every_way_in(make, words):
    vae = small_model(norm="frame")
    video = make(random_video(5, 16, 16))
    latents = make(np.ones((1, 2, 2, 2, 4), np.float32))
    ways = [
        *(functools.partial(call, video) for call in (vae.encode, vae.moments, vae.reconstruct)),
        lambda: odvae_jax.encode(vae, video),
        lambda: odvae_jax.encode(vae, video, tiling=odvae_jax.Streaming(4)),
        lambda: vae.encode_chunk(video, START),
        lambda: vae.decode(latents),
        lambda: odvae_jax.decode(vae, latents, tiling=odvae_jax.TemporalTiling(5)),
        lambda: odvae_jax.decode_uint8(vae, latents),
        lambda: vae.decode_chunk(latents, START, final=True),
        lambda: LiveDecoder(vae).push(latents),
    ]
    if "nearest" not in words:
        ways.append(lambda: LiveEncoder(vae).push(video))
    for way in ways:
        with pytest.raises(ValueError, match=words) as error:
            way()
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("number", [0, -1, 1.5, 2.0, True, "3", None, float("nan"), [1]])
def test_impossible_sizes_and_numbers_are_refused(number):
    for make, words in (
        (lambda: odvae_jax.VideoSize(number, 8, 8), "VideoSize.frames=.*at least 1"),
        (lambda: odvae_jax.VideoSize(8, 8, number), "VideoSize.width=.*at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    if number in (0, -1):
        return
    for make, words in (
        (lambda: odvae_jax.TemporalTiling(number), "group=.*expected a whole number of frames"),
        (lambda: odvae_jax.Streaming(number), "chunk=.*expected a whole number of frames"),
        (lambda: odvae_jax.SpatialTiling(number), "tile=.*expected a whole number of pixels"),
        (lambda: odvae_jax.SpatialTiling(16, number), "overlap=.*expected a whole number of"),
        (lambda: odvae_jax.make_mesh(number), "data=.*expected a whole number of devices"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


@pytest.mark.usefixtures("unchecked_types")
def test_integers_of_numpy_are_taken_and_other_sizes_are_refused():
    size = odvae_jax.VideoSize(np.int64(3), np.uint8(8), 8)
    assert size == odvae_jax.VideoSize(3, 8, 8) and type(size.frames) is int
    assert odvae_jax.Streaming(np.int32(4)) == odvae_jax.Streaming(4)
    with pytest.raises(ValueError, match="expected a VideoSize"):
        odvae_jax.decode(small_model(), np.ones((1, 2, 2, 2, 4), np.float32), size=(3, 8, 8))
