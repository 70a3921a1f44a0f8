"""`tiling="auto"`: what is chosen, that it is what runs, and what is said about it."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import (
    ODVAE,
    AutoTiling,
    ODVAEConfig,
    SpatialTiling,
    Streaming,
    TemporalTiling,
    compilation,
    decode,
    decode_uint8,
    encode,
    encode_uint8,
    inference,
    make_mesh,
)
from odvae_jax.cli import main
from odvae_jax.compilation import bytes_needed
from odvae_jax.latents import LatentsFile
from odvae_jax.tiling import choose, needs
from odvae_jax.tiling.auto import forget
from odvae_jax.transcoding import computation
from tests.conftest import full, random_video, write_clip
from tests.two_levels import CAUSAL

SIDE = 32


@functools.cache
def model(norm="clip"):
    return ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm=norm), rngs=0)


def pixels(frames, height=SIDE, width=SIDE):
    values = np.random.default_rng(0).integers(0, 256, (1, frames, height, width, 3))
    return values.astype(np.uint8)


@functools.cache
def whole_needs(frames, norm="clip"):
    """The bytes that a whole clip needs, by a program that knows nothing of tilings."""
    program = jax.jit(lambda vae, x: encode_uint8(vae, x).mean)
    shape = jax.ShapeDtypeStruct((1, frames, SIDE, SIDE, 3), jnp.uint8)
    return bytes_needed(program.lower(model(norm), shape).compile())


@pytest.fixture(autouse=True)
def nothing_known():
    """Each test finds out for itself."""
    forget()


@pytest.fixture
def compiled():
    """One item for each program that is compiled meanwhile."""
    events, on = [], [True]
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: events.append(event) if on and "backend_compile" in event else None
    )
    yield events
    on.clear()


def chosen(frames, memory, norm="clip", height=SIDE, width=SIDE):
    shape = (1, frames, height, width, 3)
    return choose(model(norm), shape, encodes=True, memory=memory)


def test_the_largest_clip_that_fits_is_whole_and_the_next_larger_is_not():
    memory = int(whole_needs(41) / 0.9 * 1.03)  # three percent for what that program leaves out
    lengths = range(35, 51, 2)
    whole = [frames for frames in lengths if not chosen(frames, memory)]
    assert whole == [frames for frames in lengths if frames <= 41]
    assert chosen(43, memory) == (TemporalTiling(33),)


def test_what_other_arrays_take_on_a_device_is_not_there(monkeypatch):
    """The model itself is counted once, although it is on the device already."""
    needed = whole_needs(41)
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(model()))
    for others, whole in ((0, True), (needed // 5, False)):
        stats = int(needed / 0.9 * 1.03), own + others
        monkeypatch.setattr(compilation, "memory_of", lambda device, stats=stats: stats)
        assert (chosen(41, None) == ()) == whole


@pytest.mark.parametrize("norm", ["frame", *full("clip")])
def test_less_memory_gives_smaller_parts_and_at_last_tiles(norm):
    """Groups for a model with norms over the clip, chunks for one that can be streamed."""
    made = Streaming if norm == "frame" else lambda step: TemporalTiling(step + 1)
    needs = whole_needs(129, norm)
    shrinking = [chosen(129, int(needs * share), norm) for share in (1.3, 0.7, 0.38, 0.2)]
    assert shrinking == [(), *((made(step),) for step in (64, 32, 16))]
    tiles = [chosen(129, int(needs * share), norm, 64, 64) for share in (0.35, 0.06)]
    assert tiles == [(made(16), SpatialTiling(tile, tile // 4)) for tile in (32, 16)]


@pytest.mark.parametrize("norm", ["clip", *full("frame")])
def test_what_is_chosen_is_what_runs(norm):
    vae, video = model(norm), random_video(41, SIDE, SIDE)
    small, large = (AutoTiling(int(whole_needs(41, norm) * share)) for share in (0.7, 2))
    whole = encode(vae, video, tiling=large)
    np.testing.assert_allclose(whole.mean, vae.encode(video).mean, atol=1e-5)
    parts = (Streaming(16),) if norm == "frame" else (TemporalTiling(17),)
    tiled = encode(vae, video, tiling=small)
    expected = encode(vae, video, tiling=parts)
    np.testing.assert_array_equal(tiled.mean, expected.mean)
    if norm == "frame":  # exact
        np.testing.assert_allclose(tiled.mean, whole.mean, atol=1e-5)
    else:
        assert np.abs(tiled.mean - whole.mean).max() > 1e-3
    frames = decode(vae, whole.mean, tiling=AutoTiling(2 * large.memory))
    np.testing.assert_allclose(frames, vae.decode(whole.mean), atol=1e-5)
    tiled = decode_uint8(vae, whole.mean, tiling=small)
    parts = choose(vae, whole.mean.shape, encodes=False, memory=small.memory)
    expected = decode_uint8(vae, whole.mean, tiling=parts)
    np.testing.assert_array_equal(tiled, expected)
    assert parts


def test_the_result_is_where_the_clip_was_whatever_is_chosen():
    vae, memory = model(), whole_needs(41)
    for share in (0.7, 3):
        for array, kind in ((pixels(39), np.ndarray), (jnp.asarray(pixels(39)), jax.Array)):
            tiling = AutoTiling(int(memory * share))
            posterior = encode_uint8(vae, array, tiling=tiling, pad=True)
            assert isinstance(posterior.mean, kind)
            frames = decode_uint8(vae, posterior.mean, tiling=tiling, size=posterior.size)
            assert isinstance(frames, kind) and frames.shape == array.shape


def test_two_short_clips_and_two_candidates_at_most_are_compiled_once(compiled):
    vae, memory = model(), int(whole_needs(65) * 0.8)
    compiled.clear()
    first = choose(vae, (1, 65, 24, SIDE, 3), encodes=True, memory=memory // 2)
    assert first and len(compiled) <= 4
    compiled.clear()
    assert choose(vae, (1, 65, 24, SIDE, 3), encodes=True, memory=memory // 2) == first
    assert not compiled
    assert choose(vae, (1, 97, 24, SIDE, 3), encodes=True, memory=memory // 2) == first
    assert not compiled, "the same group, of another clip of this frame size"
    before = encode_uint8(vae, pixels(65, 24), tiling=AutoTiling(memory // 2)).mean
    compiled.clear()
    again = encode_uint8(vae, pixels(65, 24), tiling=AutoTiling(memory // 2)).mean
    assert not compiled
    np.testing.assert_array_equal(again, before)


def test_what_was_compiled_to_choose_is_what_runs(compiled):
    vae, video = model(), pixels(33, 16, 16)
    jnp.asarray(video)  # which compiles, too
    choose(vae, video.shape, encodes=True, memory=10**9)
    assert compiled
    compiled.clear()
    encode_uint8(vae, video, tiling=AutoTiling(10**9))
    assert not compiled


@pytest.mark.parametrize("norm", ["clip", "frame"])
def test_the_log_says_the_choice_both_figures_and_whether_the_numbers_change(norm, caplog):
    caplog.set_level(logging.INFO, "odvae_jax")
    memory = int(whole_needs(41, norm) * 0.7)
    for _ in range(2):
        chosen(41, memory, norm)
    (line,) = [record for record in caplog.records if "auto" in record.name]
    said = line.getMessage()
    assert "encode 1×41×32×32" in said
    needed, room = map(float, re.search(r"needs ([\d.e-]+) of ([\d.e-]+) GB", said).groups())
    assert needed <= room and room == pytest.approx(0.9 * memory / 1e9, rel=0.01)
    if norm == "clip":
        assert "TemporalTiling(group=17)" in said and "norms over the clip" in said
        assert line.levelno == logging.WARNING
    else:
        assert "Streaming(chunk=16)" in said and "numbers" not in said
        assert line.levelno == logging.INFO


def out_of_memory_for(monkeypatch, refused, caller=inference):
    """The device's memory does not suffice for such tilings in time; returns what was tried."""
    tried, blocks = [], caller.encode_blocks

    def encode_blocks(vae, parts, time, *given, **how):
        tried.append(time)
        if refused(time):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return blocks(vae, parts, time, *given, **how)

    monkeypatch.setattr(caller, "encode_blocks", encode_blocks)
    return tried


def test_where_the_memory_does_not_suffice_all_the_same_the_next_smaller_way_is_taken(
    monkeypatch, caplog
):
    vae, video = model(), pixels(41)
    expected = encode_uint8(vae, video, tiling=TemporalTiling(17)).mean
    tried = out_of_memory_for(monkeypatch, lambda time: time.group > 17)
    ours = encode_uint8(vae, video, tiling=AutoTiling(10**9)).mean
    np.testing.assert_array_equal(ours, expected)
    assert [time.group for time in tried] == [41, 33, 17]
    said = [record.getMessage() for record in caplog.records if "all the same" in record.msg]
    assert len(said) == 2 and "whole" in said[0] and "group=33" in said[1]
    tried.clear()
    encode_uint8(vae, video, tiling=AutoTiling(10**9))
    assert [time.group for time in tried] == [17], "what did not fit is not tried again"


def test_where_nothing_suffices_the_error_says_what_to_do(monkeypatch):
    out_of_memory_for(monkeypatch, lambda time: True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as raised:
        encode_uint8(model(), pixels(17), tiling=AutoTiling(10**9))
    assert "smaller frames" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    "side, most, expected",
    [
        (SIDE, 48 * SIDE**2, (TemporalTiling(33),)),
        pytest.param(
            64, 16 * 64**2, (TemporalTiling(17), SpatialTiling(32, 8)), marks=pytest.mark.full
        ),
    ],
)
def test_what_cannot_even_be_compiled_is_not_chosen(monkeypatch, side, most, expected):
    """Neither a long clip, nor any clip of whole frames; there is memory enough otherwise."""
    lower = needs.lower_part

    def lower_part(vae, x, state, final, space, **how):
        if x.shape[1] * (x.shape[2] * x.shape[3] if space is None else space.tile**2) > most:
            raise jax.errors.JaxRuntimeError("INTERNAL: Autotuning failed for HLO: %conv")
        return lower(vae, x, state, final, space, **how)

    monkeypatch.setattr(needs, "lower_part", lower_part)
    assert chosen(49, 10**9, height=side, width=side) == expected


def test_a_memory_that_is_too_small_for_anything_gives_the_smallest_parts(caplog):
    assert chosen(41, 1000) == (TemporalTiling(17), SpatialTiling(16, 4))
    assert "the least there is" in caplog.text


def test_rows_over_devices_need_less_on_each_and_are_not_tiled():
    """The whole clip does not fit on one device, but over two."""
    vae, mesh = model(), make_mesh(1, 1, 2, devices=jax.devices()[:2])
    memory, shape = int(whole_needs(33) * 0.95), (1, 33, SIDE, SIDE, 3)
    assert choose(vae, shape, encodes=True, memory=memory) != ()
    assert choose(vae, shape, encodes=True, memory=memory, mesh=mesh) == ()
    assert choose(vae, shape, encodes=True, memory=1000, mesh=mesh) == (TemporalTiling(17),)
    video = pixels(33)
    ours = encode_uint8(vae, video, tiling=AutoTiling(memory), mesh=mesh).mean
    np.testing.assert_allclose(ours, encode_uint8(vae, video).mean, atol=2e-5)


def test_nothing_is_sent_to_the_device_unasked():
    vae, video = model(), jax.device_put(random_video(17, 16, 16))
    with jax.transfer_guard("disallow"):
        found = encode(vae, video, tiling=AutoTiling(10**9)).mean
    np.testing.assert_allclose(found, vae.encode(video).mean, atol=1e-5)


@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_chosen_is_refused_with_advice():
    vae, video = model(), random_video(5, 16, 16)
    latents = vae.encode(video).mean
    tiling = AutoTiling(10**9)
    for call, words in (
        (lambda: jax.jit(lambda x: encode(vae, x, tiling="auto").mean)(video), "choose.vae, shape"),
        (lambda: jax.jit(lambda z: decode(vae, z, tiling=tiling))(latents), "under|inside of jit"),
        (lambda: encode(vae, video, tiling="auto"), r"does not say how much.*memory=BYTES"),
        (lambda: decode(vae, latents, tiling="auto"), r"does not say how much.*memory=BYTES"),
        (lambda: encode(vae, video, tiling="Auto"), 'or "auto"'),
        (lambda: encode(vae, video, tiling=(tiling, SpatialTiling())), 'or "auto"'),
        (lambda: AutoTiling(0), "whole number of bytes, at least 1"),
        (lambda: AutoTiling("8GB"), "whole number of bytes"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with videos of 49 and 9 frames, and the folder of a model."""
    path = tmp_path_factory.mktemp("saved")
    (path / "clips").mkdir()
    for name, frames in (("long", 49), ("short", 9)):
        write_clip(path / f"clips/{name}.mp4", frames=frames, height=SIDE, width=SIDE)
    model().save_pretrained(path / "model")
    return path


def command(capsys, work, *words, status=0):
    """The command in this process; what it printed."""
    given = [work, *map(str, words)]
    code = main(given)
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert code == status, said
    return said


def files_in(folder):
    return {path.stem: LatentsFile(path) for path in folder.glob("*.safetensors")}


@pytest.mark.usefixtures("own_log")
def test_encode_chooses_once_and_later_runs_over_the_same_place_keep_to_it(saved, tmp_path, capsys):
    with_model = ("--ckpt", saved / "model", "--tiling=auto")
    memory = whole_needs(49) / 1e9
    out = tmp_path / "latents"
    words = (saved / "clips", out, *with_model)
    said = command(capsys, "encode", *words, f"--memory={memory * 0.7:f}", "--shard=1/2")
    assert "tiling: TemporalTiling(group=17)" in said, "for the long video of the other part"
    made = {"TemporalTiling": {"group": 17}}
    assert {name: file.info.tiling for name, file in files_in(out).items()} == {"short": made}
    said = command(capsys, "encode", *words, f"--memory={memory * 9:f}")
    assert "group=17" in said and "1 file was there already" in said
    assert files_in(out)["long"].info.tiling == made
    write_clip(tmp_path / "other.mp4", frames=5, height=SIDE, width=SIDE)
    command(capsys, "encode", tmp_path / "other.mp4", out, *with_model, f"--memory={memory * 9:f}")
    assert files_in(out)["other"].info.tiling == made, "of a run over other videos, too"
    said = command(capsys, "decode", out, tmp_path / "videos", "--ckpt", saved / "model",
                   "--tiling=auto", f"--memory={memory * 0.7:f}")  # fmt: skip
    assert "3 files, 63 frames" in said


@pytest.mark.usefixtures("own_log")
def test_encode_takes_videos_whole_that_fit(saved, tmp_path, capsys):
    command(capsys, "encode", saved / "clips", tmp_path, "--ckpt", saved / "model",
            "--tiling=auto", f"--memory={whole_needs(49) * 2 / 1e9:f}")  # fmt: skip
    file = files_in(tmp_path)["long"]
    assert file.info.tiling["TemporalTiling"]["group"] >= 49
    again = tmp_path / "groups"
    command(capsys, "encode", saved / "clips", again, "--ckpt", saved / "model", "--tiling=49")
    np.testing.assert_allclose(file.read(), files_in(again)["long"].read(), atol=1e-5)


@pytest.mark.usefixtures("own_log")
def test_encode_tries_its_choice_before_the_first_file_is_written(
    saved, tmp_path, capsys, monkeypatch
):
    tried = out_of_memory_for(monkeypatch, lambda time: time.group > 17, caller=computation)
    said = command(capsys, "encode", saved / "clips", tmp_path, "--ckpt", saved / "model",
                   "--tiling=auto", "--memory=1")  # fmt: skip
    assert "2 files" in said and tried[0].group >= 49
    assert {
        file.info.tiling["TemporalTiling"]["group"] for file in files_in(tmp_path).values()
    } == {17}


@pytest.mark.usefixtures("own_log")
def test_options_that_do_not_go_together_are_refused(saved, tmp_path, capsys):
    words = (saved / "clips", tmp_path, "--ckpt", saved / "model")
    for options, status, said in (
        (["--tiling=auto"], 1, "does not say how much memory"),
        (["--tiling=auto", "--tile=64"], 1, "leave out --streaming and --tile"),
        (["--memory=4"], 1, "--memory is for --tiling=auto"),
        (["--tiling=auto", "--memory=0"], 2, "no number of gigabytes above 0"),
        (["--tiling=all"], 2, "'all' is no whole number"),
    ):
        assert said in command(capsys, "encode", *words, *options, status=status)
    assert not any(tmp_path.iterdir())
