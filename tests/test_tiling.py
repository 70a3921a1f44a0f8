"""Tiling in time and space against parts by hand, and spreading over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from odvae_jax import (
    SpatialTiling,
    Streaming,
    TemporalTiling,
    VideoSize,
    decode,
    decode_uint8,
    encode,
    encode_uint8,
    make_mesh,
)
from odvae_jax.pixels import to_uint8, to_unit_range
from odvae_jax.sharding import clip_sharding, replicated
from odvae_jax.tiling import from_host
from tests.conftest import full, random_video, small_model

CASES = [(1, 5), (21, 9)]
LENGTHS = (1, 5, 33, 34, 65, 97, 129)
GRID = [(t, g) for t in LENGTHS for g in (5, 17, 33) if (t, g) != (1, 5)]
CASES += [pytest.param(t, g, marks=pytest.mark.full) for t, g in GRID]


def groups(length, stride):
    """First and last + 1 of each group by the paper's rule, written out."""
    first, cut = 0, []
    while first == 0 or first < length - 1:
        cut.append((first, min(first + stride + 1, length)))
        first += stride
    return cut


def by_hand(run, x, stride):
    parts = [run(x[:, a:b]) for a, b in groups(x.shape[1], stride)]
    return np.concatenate([p[:, min(i, 1) :] for i, p in enumerate(parts)], axis=1)


@pytest.mark.parametrize("length, group", CASES)
def test_tiling_is_each_group_by_hand(length, group):
    """Called eagerly; a length that is not 4k + 1 with its last frame repeated."""
    vae, tiling = small_model(), TemporalTiling(group)
    video = random_video(length, 16, 16, b=2)
    posterior = encode(vae, video, tiling=tiling, pad=True)
    padded = np.concatenate([video, *[video[:, -1:]] * (-(length - 1) % 4)], axis=1)
    for name in ("mean", "logvar"):
        expected = by_hand(lambda v, n=name: getattr(vae.encode(v), n), padded, group - 1)
        np.testing.assert_allclose(getattr(posterior, name), expected, atol=1e-5)
    latents = posterior.mean
    frames = decode(vae, latents, tiling=tiling)
    assert frames.shape == padded.shape
    np.testing.assert_allclose(frames, by_hand(vae.decode, latents, (group - 1) // 4), atol=1e-5)
    cut = decode(vae, latents, tiling=tiling, size=posterior.size)
    np.testing.assert_array_equal(cut, frames[:, :length])


@pytest.mark.parametrize("tiling", [TemporalTiling(5), *full(Streaming(8))], ids=repr)
def test_inside_jit_it_is_the_same(tiling):
    vae = small_model(norm="frame" if isinstance(tiling, Streaming) else "clip")
    video = random_video(13, 16, 16)
    eager = encode(vae, video, tiling=tiling).mean
    traced = jax.jit(lambda vae, x: encode(vae, x, tiling=tiling).mean)(vae, video)
    np.testing.assert_allclose(traced, eager, atol=1e-5)
    frames = jax.jit(lambda vae, z: decode(vae, z, tiling=tiling))(vae, eager)
    np.testing.assert_allclose(frames, decode(vae, eager, tiling=tiling), atol=1e-5)


def test_uint8_entries_tile_alike():
    vae, tiling = small_model(), TemporalTiling(5)
    video = np.random.default_rng(0).integers(0, 256, (1, 13, 16, 16, 3), dtype=np.uint8)
    latents = encode_uint8(vae, video, tiling=tiling).mean
    expected = encode(vae, np.asarray(to_unit_range(video)), tiling=tiling).mean
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    frames = decode_uint8(vae, latents, tiling=tiling)
    np.testing.assert_array_equal(frames, to_uint8(decode(vae, latents, tiling=tiling)))


def test_numpy_stays_on_the_host_and_jax_on_the_device():
    vae, tiling = small_model(), TemporalTiling(5)
    video = random_video(9, 16, 16)
    for array, kind in ((video, np.ndarray), (jnp.asarray(video), jax.Array)):
        posterior = encode(vae, array, tiling=tiling)
        assert isinstance(posterior.mean, kind) and isinstance(posterior.logvar, kind)
        assert isinstance(decode(vae, posterior.mean, tiling=tiling), kind)
        assert posterior.sample(jax.random.key(0)).shape == (1, 3, 2, 2, 4)


def test_a_group_is_compiled_once_for_clips_of_all_lengths():
    """Counts the programs that are made, whatever they do."""
    vae, tiling = small_model(), TemporalTiling(5)

    def both(length):
        return decode(vae, encode(vae, random_video(length, 16, 16), tiling=tiling).mean,
                      tiling=tiling)  # fmt: skip

    both(9)
    sizes = [f._cache_size() for f in (from_host._encode_part, from_host._decode_part)]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for length in (13, 41, 101):
        assert both(length).shape[1] == length
    assert not compiled
    both(12 + 5)
    assert sizes == [f._cache_size() for f in (from_host._encode_part, from_host._decode_part)]
    jax.jit(lambda x: x + 17.0)(np.ones(3))
    assert compiled, "the listener hears"


@pytest.mark.full
def test_an_image_model_s_frames_do_not_know_of_groups():
    vae = small_model("image")
    video = random_video(14, 16, 16)
    tiled = encode(vae, video, tiling=TemporalTiling(5)).mean
    np.testing.assert_allclose(tiled, vae.encode(video).mean, atol=1e-5)
    np.testing.assert_allclose(
        decode(vae, tiled, tiling=TemporalTiling(5)), vae.decode(tiled), atol=1e-5
    )


def test_the_program_s_size_does_not_depend_on_the_length():
    vae, tiling = small_model(), TemporalTiling(5)

    def size(length):
        both = jax.jit(
            lambda vae, x: decode(vae, encode(vae, x, tiling=tiling).mean, tiling=tiling)
        )
        return len(both.lower(vae, random_video(length, 16, 16)).as_text().splitlines())

    assert size(13) == size(101)


def blended(run, x, tile, stride, scale):
    """Square tiles at multiples of `stride`, blended linearly, written out (one clip of one frame).

    `scale` is of output to input.
    """
    height, width = (round(s * scale) for s in x.shape[2:4])
    total, weight = 0.0, 0.0
    for top in range(0, x.shape[2] - tile + 1, stride):
        for left in range(0, x.shape[3] - tile + 1, stride):
            y = np.asarray(run(x[:, :, top : top + tile, left : left + tile]))
            side, shared = round(tile * scale), round((tile - stride) * scale)
            ramp = np.minimum((np.arange(side) + 0.5) / shared, 1)
            ones = np.ones(side)
            up = ones if top == 0 else ramp
            down = ones if top + tile == x.shape[2] else ramp[::-1]
            rise = ones if left == 0 else ramp
            fall = ones if left + tile == x.shape[3] else ramp[::-1]
            w = ((up * down)[:, None] * (rise * fall))[:, :, None]
            place = np.s_[:, :, round(top * scale) :][:2]
            canvas = np.zeros((*y.shape[:2], height, width, y.shape[4]))
            mask = np.zeros((height, width, 1))
            rows = slice(round(top * scale), round(top * scale) + side)
            columns = slice(round(left * scale), round(left * scale) + side)
            canvas[(*place, rows, columns)] = y * w
            mask[rows, columns] = w
            total, weight = total + canvas, weight + mask
    return total / weight


def test_spatial_tiles_are_blended_linearly():
    vae, tiling = small_model(), SpatialTiling(32, 8)
    video = random_video(1, 56, 80)  # 2 by 3 tiles, every 24 pixels
    latents = encode(vae, video, tiling=tiling).mean
    expected = blended(lambda v: vae.encode(v).mean, video, 32, 24, 1 / 8)
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    frames = decode(vae, latents, tiling=tiling)
    np.testing.assert_allclose(frames, blended(vae.decode, latents, 4, 3, 8), atol=1e-5)


def test_one_tile_is_the_whole_and_all_frames_are_covered():
    vae, video = small_model(), random_video(5, 24, 40)
    latents = vae.encode(video).mean
    for tiling in (SpatialTiling(40, 8), SpatialTiling(256)):
        np.testing.assert_array_equal(encode(vae, video, tiling=tiling).mean, latents)
    constant = encode(vae, np.zeros_like(video), tiling=SpatialTiling(16, 8))
    assert np.isfinite(constant.mean).all() and constant.mean.shape == latents.shape


@pytest.mark.parametrize("time", [TemporalTiling(5), *full(Streaming(4))], ids=repr)
def test_tiles_in_time_and_space_combine(time):
    vae = small_model(norm="frame" if isinstance(time, Streaming) else "clip")
    video = random_video(9, 16, 24)
    space = SpatialTiling(16, 8)
    tiles = [video[:, :, :, :16], video[:, :, :, 8:]]
    left, right = (encode(vae, tile, tiling=time).mean for tile in tiles)
    expected = np.concatenate([left[..., :1, :], (left[..., 1:, :] + right[..., :1, :]) / 2,
                               right[..., 1:, :]], axis=3)  # fmt: skip
    ours = encode(vae, video, tiling=(time, space)).mean
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    frames = decode(vae, ours, tiling=(space, time))
    assert frames.shape == video.shape
    first = decode(vae, ours[..., :2, :], tiling=time)
    np.testing.assert_allclose(frames[..., :8, :], first[..., :8, :], atol=1e-5)


def test_tiles_and_groups_inside_shard_map_and_of_constants_inside_jit():
    vae, video = small_model(), random_video(9, 16, 24, b=2)
    tiling = (TemporalTiling(5), SpatialTiling(16, 8))
    expected = encode(vae, video, tiling=tiling).mean
    axes = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:2]}
    mesh = jax.make_mesh((2,), ("data",), **axes)
    spec = jax.sharding.PartitionSpec
    run = jax.shard_map(
        lambda vae, video: encode(vae, video, tiling=tiling).mean,
        mesh=mesh,
        in_specs=(spec(), spec("data")),
        out_specs=spec("data"),
    )
    np.testing.assert_allclose(jax.jit(run)(vae, video), expected, atol=1e-5)
    constants = jax.jit(lambda: encode(vae, video, tiling=tiling).mean)
    np.testing.assert_allclose(constants(), expected, atol=1e-5)


def test_odd_sizes_are_padded_and_come_back():
    vae = small_model()
    video = random_video(6, 26, 13, b=2)
    posterior = encode(vae, video, pad=True)
    assert posterior.size == VideoSize(6, 26, 13) and posterior.mean.shape == (2, 3, 4, 2, 4)
    padded = np.pad(video, ((0, 0), (0, 3), (0, 6), (0, 3), (0, 0)), mode="edge")
    np.testing.assert_array_equal(posterior.mean, vae.encode(padded).mean)
    frames = jax.jit(lambda v, p: decode(v, p.mode(), size=p.size))(vae, posterior)
    whole = vae.decode(posterior.mean)
    np.testing.assert_allclose(frames, whole[:, :6, :26, :13], atol=1e-5)
    traced = jax.eval_shape(lambda v, x: encode(v, x, pad=True), vae, video)
    assert (traced.mean.shape, traced.size) == (posterior.mean.shape, posterior.size)
    with pytest.raises(ValueError, match=r"fewer than VideoSize\(frames=6, height=40"):
        decode(vae, posterior.mean, size=VideoSize(6, 40, 13))


MESHES = [{"data": 1, "height": 8}, {"data": 2, "height": 4}, {"data": 2, "fsdp": 4}]


@pytest.mark.full
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_rows_over_eight_devices_give_one_device_s_result(axes, kind):
    vae, video = small_model(), random_video(9, 128, 16, b=8 if "fsdp" in axes else 2)
    mesh = make_mesh(**axes, axis_type=kind)
    whole = vae.encode(video).mean
    latents = encode(vae, video, mesh=mesh).mean
    np.testing.assert_allclose(latents, whole, atol=2e-5)
    assert latents.sharding.shard_shape(latents.shape)[2] == 16 // axes.get("height", 1)
    frames = decode(vae, latents, mesh=mesh)
    np.testing.assert_allclose(frames, vae.decode(whole), atol=2e-5)
    if axes != MESHES[0]:
        return
    tiling = TemporalTiling(5)
    tiled = encode(vae, video, tiling=tiling).mean
    np.testing.assert_allclose(encode(vae, video, tiling=tiling, mesh=mesh).mean, tiled, atol=2e-5)
    placed = jax.device_put((vae, video), (replicated(mesh), clip_sharding(mesh)))
    ours = encode(*placed, tiling=tiling).mean  # where the arguments lie already
    np.testing.assert_allclose(ours, tiled, atol=2e-5)
    with jax.set_mesh(mesh):
        traced = jax.jit(lambda v, x: encode(v, x, tiling=tiling, mesh=mesh).mean)(*placed)
    np.testing.assert_allclose(traced, tiled, atol=2e-5)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: TemporalTiling(1), "a group of 1 frame.*nearest is 5"),
        (lambda: TemporalTiling(6), "a group of 6 frames.*nearest is 5"),
        (lambda: TemporalTiling(32), "a group of 32 frames.*nearest is 33"),
        (lambda: TemporalTiling(0), "a group of 0 frames.*nearest is 5"),
        (lambda: SpatialTiling(100), "tile=100 is not a multiple of 8.*nearest is 96"),
        (lambda: SpatialTiling(256, 60), "overlap=60 is not a multiple of 8.*nearest is 64"),
        (lambda: SpatialTiling(64, -8), "overlap=-8.*nearest is 0"),
        (lambda: TemporalTiling("33"), "group='33'.: expected a whole number of frames"),
        (lambda: TemporalTiling(5.0), "group=5.0.: expected a whole number"),
        (lambda: SpatialTiling(None), "tile=None.: expected a whole number of pixels"),
        (lambda: SpatialTiling(64, 64), "overlap=64 is not less than tile=64.*such as 16"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_impossible_tilings_are_refused(make, words):
    vae = small_model()
    for function, x in ((encode, random_video(5, 8, 8)), (decode, np.ones((1, 2, 1, 1, 4), "f"))):
        with pytest.raises(ValueError, match=words):
            function(vae, x, tiling=make())


def test_what_cannot_be_tiled_or_spread_is_refused(unchecked_types):
    vae, video = small_model(), random_video(12, 16, 16)
    latents = np.zeros((1, 3, 2, 2, 4), np.float32)
    space = SpatialTiling(8, 0)
    rows = make_mesh(data=1, height=8)
    for call, words in (
        (lambda: encode(vae, video, tiling=TemporalTiling(5)), r"T must be 4k \+ 1"),
        (lambda: decode(vae, latents[..., :3], tiling=TemporalTiling(5)), "this model decodes"),
        (lambda: encode(vae, video[:, :9], tiling=(space, space)), "one in time and one in space"),
        (lambda: encode(vae, video[:, :9], tiling=33), "expected TemporalTiling, Streaming or"),
        (
            lambda: encode(vae, video[:, :9], mesh=rows),
            "16 rows.*multiple of 64; the nearest is 64",
        ),
        (lambda: decode(vae, latents, mesh=rows), "latents has 2 rows.*the nearest is 8"),
        (lambda: encode(vae, video[:, :9], mesh=make_mesh()), "1 clips.*the nearest is 8"),
        (lambda: encode(vae, video[:, :9], mesh=jax.make_mesh((8,), ("x",))), "the axes .'x'."),
        (lambda: decode(vae, latents, tiling=space, mesh=rows), "either tiled or spread"),
        (
            lambda: encode(vae, random_video(5, 32, 16, b=2), mesh=make_mesh(data=2, height=4)),
            "8 of its 32 rows on each device; at least 16",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
