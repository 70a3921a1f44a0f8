"""Streaming against the whole clip."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import ODVAEConfig, Streaming, decode, decode_uint8, encode, encode_uint8
from odvae_jax.flops import count_flops
from odvae_jax.layers.carry import START, Carry
from odvae_jax.layers.causal_conv import CausalConv
from odvae_jax.parameters import abstract_model
from odvae_jax.tiling.live import LiveDecoder, LiveEncoder
from tests.conftest import full, random_video, small_model
from tests.two_levels import CAUSAL

FRAME = {"norm": "frame"}
UPSAMPLINGS = [("nearest", "linear"), ("linear", "linear"), ("nearest", "nearest")]
GRID = [("v4", "nearest", "linear", 8)]
GRID += [
    pytest.param(structure, space, time, chunk, marks=pytest.mark.full)
    for structure in ("v1", "v2", "v3", "v4")
    for space, time in UPSAMPLINGS
    for chunk in (4, 8, 32)
    if (structure, space, time, chunk) != GRID[0]
]


@pytest.fixture(autouse=True)
def few_programs(request):
    """Drops the full grid's programs: XLA's CPU backend crashes with too many in a process."""
    yield
    if "full" in request.keywords:
        jax.clear_caches()


@functools.cache
def whole(structure, space, time, length):
    vae = small_model(structure, **FRAME, upsample=space, time_upsample=time)
    video = random_video(length, 16, 24, b=2)
    posterior = vae.encode(video)
    return vae, video, posterior, vae.decode(posterior.mean)


@pytest.mark.parametrize("structure, space, time, chunk", GRID)
def test_streaming_is_the_whole_clip(structure, space, time, chunk):
    vae, video, posterior, frames = whole(structure, space, time, 69 if chunk == 32 else 29)
    streaming = Streaming(chunk)
    streamed = encode(vae, video, tiling=streaming)
    np.testing.assert_allclose(streamed.mean, posterior.mean, atol=2e-5)
    np.testing.assert_allclose(streamed.logvar, posterior.logvar, atol=2e-5)
    decoded = decode(vae, posterior.mean, tiling=streaming)
    assert decoded.shape == video.shape
    np.testing.assert_allclose(decoded, frames, atol=2e-5)


@pytest.mark.full
def test_chunks_one_by_one_give_the_frames_that_are_settled():
    """Of n + 1 latents 4n - 2 frames, then 4n of n, and 3 more in the end."""
    vae, video, posterior, frames = whole("v4", "nearest", "linear", 29)
    state, latents = START, []
    for start, stop in ((0, 9), (9, 13), (13, 29)):
        part, state = vae.encode_chunk(video[:, start:stop], state)
        latents.append(part.mean)
    np.testing.assert_allclose(np.concatenate(latents, 1), posterior.mean, atol=2e-5)
    state, parts = START, []
    for start, stop in ((0, 3), (3, 5), (5, 8)):
        part, state = vae.decode_chunk(posterior.mean[:, start:stop], state, final=stop == 8)
        parts.append(part)
    assert [p.shape[1] for p in parts] == [6, 8, 15]
    np.testing.assert_allclose(np.concatenate(parts, 1), frames, atol=2e-5)


@pytest.mark.parametrize("time", ["linear", *full("nearest")])
def test_live_frames_in_any_portions_are_the_whole_clip(time):
    vae, video, posterior, frames = whole("v4", "nearest", time, 29)
    encoder, decoder = LiveEncoder(vae), LiveDecoder(vae)
    for _ in range(2):  # after a flush it begins anew
        latents, shown, ready = [], [], []
        for portion in np.split(video, [1, 2, 3, 9, 10, 27], axis=1):
            part = encoder.push(portion)
            ready.append(0 if part is None else part.mean.shape[1])
            if part is not None:
                latents.append(part.mean)
                decoded = decoder.push(part.mean)
                shown += [] if decoded is None else [decoded]
        assert ready == [1, 0, 0, 2, 0, 4, 1] and encoder.flush() is None
        shown.append(decoder.flush())
        np.testing.assert_allclose(np.concatenate(latents, 1), posterior.mean, atol=2e-5)
        np.testing.assert_allclose(np.concatenate(shown, 1), frames, atol=2e-5)
    encoder.push(video[:, :3])
    padded = np.concatenate([video[:, :3], video[:, 2:3], video[:, 2:3]], axis=1)
    np.testing.assert_allclose(encoder.flush().mean, vae.encode(padded).mean[:, 1:], atol=2e-5)
    assert decoder.flush() is None


@pytest.mark.parametrize("remat", ["convolutions", *full("none", "blocks")])
def test_a_gradient_through_chunks_is_that_of_the_whole_clip(remat):
    vae = small_model(CAUSAL, **FRAME, remat=remat, upsample="linear")
    video = jnp.asarray(random_video(7, 4, 4))

    def in_chunks(vae):
        first, state = vae.encode_chunk(video[:, :5], START)
        second, _ = vae.encode_chunk(video[:, 5:], state)
        frames, state = vae.decode_chunk(first.mean, START, final=False)
        rest, _ = vae.decode_chunk(second.mean, state, final=True)
        return jnp.concatenate([frames, rest], axis=1)

    def gradient(run):
        return jax.jit(jax.grad(lambda vae: jnp.mean(jnp.sin(3 * run(vae)))))(vae)

    expected = gradient(lambda vae: vae.reconstruct(video))
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(gradient(in_chunks), expected, atol=1e-5 * largest, rtol=1e-3)


@pytest.mark.full
def test_uint8_entries_stream_alike():
    vae = whole("v4", "nearest", "linear", 29)[0]
    video = np.random.default_rng(0).integers(0, 256, (2, 29, 16, 24, 3), dtype=np.uint8)
    latents = encode_uint8(vae, video, tiling=Streaming(8)).mean
    np.testing.assert_allclose(latents, encode_uint8(vae, video).mean, atol=2e-5)
    frames = decode_uint8(vae, latents, tiling=Streaming(8)).astype(int)
    assert np.abs(frames - decode_uint8(vae, latents)).max() <= 1


def test_no_frame_is_computed_twice_and_the_state_does_not_grow():
    vae = abstract_model(ODVAEConfig.variant(4, **FRAME))
    streaming = Streaming(4)

    def both(tiling):
        return lambda vae, x: decode(vae, encode(vae, x, tiling=tiling).mean, tiling=tiling)

    video = jax.ShapeDtypeStruct((1, 65, 32, 32, 3), jnp.float32)
    assert count_flops(both(streaming), vae, video) < 1.05 * count_flops(both(None), vae, video)

    vae = small_model("v4", **FRAME)

    def shapes(lengths):
        state = START
        for n in lengths:
            chunk = jax.ShapeDtypeStruct((1, n, 16, 16, 3), jnp.float32)
            _, state = jax.eval_shape(vae.encode_chunk, chunk, state)
        return jax.tree.map(lambda a: a.shape, state)

    assert shapes([9]) == shapes([9, 8, 4, 16]) == shapes([33])


@pytest.mark.full
def test_the_program_s_size_does_not_depend_on_the_length():
    vae, streaming = small_model("v4", **FRAME), Streaming(4)

    def lines(length):
        both = jax.jit(
            lambda vae, x: decode(vae, encode(vae, x, tiling=streaming).mean, tiling=streaming)
        )
        return len(both.lower(vae, random_video(length, 16, 16)).as_text().splitlines())

    assert lines(17) == lines(101)


@pytest.mark.full
def test_in_bfloat16_streaming_differs_by_rounding_alone():
    vae = small_model("v4", **FRAME, dtype="bfloat16", precision="default")
    video = random_video(29, 32, 32)
    latents = vae.encode(video).mean
    streamed = encode(vae, video, tiling=Streaming(8)).mean
    assert np.sqrt(np.mean((streamed - latents) ** 2)) < 0.01 * np.std(latents)
    frames = vae.decode(latents)
    difference = decode(vae, latents, tiling=Streaming(8)) - frames
    assert np.sqrt(np.mean(difference**2)) < 0.01 * np.std(frames)


@pytest.mark.parametrize(
    "kt, d, strides",
    [(3, d, strides) for d in (24, 3) for strides in ((1, 1), (2, 2), (1, 2))] + [(1, 24, (1, 2))],
)
def test_a_convolution_in_chunks_is_that_of_the_clip(kt, d, strides):
    layer = CausalConv(
        5, d, (kt, 3), strides, config=small_model().config, rng=np.random.default_rng(0)
    )
    x = jax.random.normal(jax.random.key(0), (2, 9, 6, 8, 5))
    state, parts = START, []
    for start, stop in ((0, 1), (1, 3), (3, 9)):
        carry = Carry(state)
        parts.append(layer(x[:, start:stop], carry))
        state = carry.state
    np.testing.assert_allclose(np.concatenate(parts, 1), layer(x), atol=1e-5)


@pytest.mark.parametrize("chunk, nearest", [(0, 4), (6, 8), (33, 32), (-4, 4)])
def test_a_chunk_that_is_not_a_multiple_of_4_is_refused(chunk, nearest):
    vae, video = small_model("v4", **FRAME), random_video(9, 16, 16)
    with pytest.raises(ValueError, match=f"chunk of {chunk} frames.*nearest is {nearest}"):
        encode(vae, video, tiling=Streaming(chunk))


def test_norms_over_time_cannot_be_streamed(unchecked_types):
    vae, video = small_model("v4"), random_video(9, 16, 16)
    words = "norm='clip'.*use TemporalTiling"
    for call in (
        lambda: encode(vae, video, tiling=Streaming(4)),
        lambda: decode(vae, np.zeros((1, 3, 2, 2, 4), np.float32), tiling=Streaming(4)),
        lambda: vae.encode_chunk(video, START),
        lambda: LiveEncoder(vae),
        lambda: LiveDecoder(vae),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    vae = small_model("v4", **FRAME)
    with pytest.raises(ValueError, match=r"T must be 4k \+ 1"):
        vae.encode_chunk(video[:, :4], START)
    with pytest.raises(ValueError, match="dtype uint8; expected floating point"):
        vae.encode_chunk(video[:, :5].astype(np.uint8), START)
    with pytest.raises(ValueError, match="five axes"):
        LiveEncoder(vae).push(video[0, :5])
    _, state = vae.encode_chunk(video[:, :1], START)
    with pytest.raises(ValueError, match="chunk of 3 frames is not 4k"):
        vae.encode_chunk(video[:, :3], state)
