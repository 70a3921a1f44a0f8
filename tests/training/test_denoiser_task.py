"""The denoiser as a task of the one loop."""

import contextlib
import functools
import json
import re
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odvae_jax.cli.configs import load_config
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.data.video import VideoError, VideoReader, inspect_video
from odvae_jax.diffusion import GaussianProcess, Latte, LatteConfig, TrainedOn
from odvae_jax.latents import LatentDataset, Scale
from odvae_jax.parameters import named_parameters, with_parameters
from odvae_jax.training import loop
from odvae_jax.training.denoiser_data import open_data
from odvae_jax.training.denoising import (
    apply_gradients,
    denoiser_config,
    denoiser_model_config,
    initial_state,
    normalised_latents,
)
from odvae_jax.training.fields import check
from odvae_jax.training.tasks import denoiser
from odvae_jax.transcoding import encoder_digest
from tests.conftest import full
from tests.diffusion.released import ABOUT, golden, released_model
from tests.latents.test_baselines import tiny as baseline
from tests.training.denoisers import CLASSES, save_autoencoder, tiny, write_latents, write_manifest
from tests.training.test_faults import finished, start, wait_until
from tests.training.test_loop import lines, timeless
from tests.training.test_mesh import free_port


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "m"
    return save_autoencoder(path), path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def latents(vae, manifest, tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents") / "d", *vae, manifest)


def train(config, workdir, count=1):
    return loop.train(config, workdir, devices=jax.devices()[:count])


def test_a_run_goes_on_to_the_same_bits_and_leaves_a_denoiser_that_says_what_it_is_of(
    latents, vae, tmp_path, monkeypatch
):
    fields = {"data.holdout": 2, "validate_every": 2, "samples.guidance": 2.0, "vae": str(vae[1])}
    whole = train(tiny(latents, **fields), tmp_path / "whole")
    assert int(whole.step) == 4 and int(whole.skipped) == 0
    make = denoiser.denoiser_step
    monkeypatch.setattr(denoiser, "denoiser_step", lambda *a: chex.assert_max_traces(make(*a), n=1))
    for steps in (2, 4):
        chex.clear_trace_counter()
        parts = train(tiny(latents, steps=steps, **fields), tmp_path / "parts")
    chex.assert_trees_all_equal(parts, whole)
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")

    records = lines(tmp_path / "whole")
    named = {"loss", "mse", "vb", "gradient_norm", "learning_rate", "clips_per_second"}
    assert named <= records[0].keys()
    measured = [r for r in records if "validation_loss" in r]
    assert [r["step"] for r in measured] == [2, 4] and "validation_loss_raw" in measured[0]
    events = EventAccumulator(str(tmp_path / "whole" / "tensorboard")).Reload()
    assert len(events.Images("samples")) == 2
    with VideoReader(str(tmp_path / "whole" / "samples" / "sample_3-00000004.mp4")) as video:
        assert video.fps == 12.0

    model = Latte.from_pretrained(tmp_path / "whole")
    chex.assert_trees_all_equal(named_parameters(model), whole.ema)
    dataset = LatentDataset(latents)
    expected = TrainedOn(str(vae[1]), encoder_digest(vae[0]), dataset.scale, 5, 12.0, CLASSES)
    assert model.config.trained_on == expected
    model.save_pretrained(tmp_path / "again")
    assert Latte.from_pretrained(tmp_path / "again").config == model.config
    said = json.loads((tmp_path / "again" / "config.json").read_text())
    assert said["trained_on"]["classes"] == list(CLASSES)


def test_the_loss_falls_on_a_tiny_set(latents, tmp_path):
    fields = {"steps": 60, "log_every": 10, "checkpoint_every": 60, "model.process": "flow"}
    fields |= {"data.sampled": False, "optimizer.learning_rate": 1e-2, "model.width": 32}
    train(tiny(latents, **fields), tmp_path / "run")
    losses = [r["loss"] for r in lines(tmp_path / "run") if "loss" in r]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, *full({"data": 8})])
def test_eight_devices_train_as_one(latents, sizes, tmp_path):
    fields = {"steps": 20, "checkpoint_every": 20}
    one = train(tiny(latents, **fields), tmp_path / "one")
    eight = tiny(latents, **fields)
    eight.mesh.update(sizes)
    many = train(eight, tmp_path / "eight", 8)
    of_one, of_many = ([r["loss"] for r in lines(tmp_path / name)] for name in ("one", "eight"))
    np.testing.assert_allclose(of_many, of_one, rtol=1e-5)
    chex.assert_trees_all_close(one.ema, jax.device_get(many.ema), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_two_processes_train_as_one(latents, vae, tmp_path):
    fields = {"data.holdout": 2, "validate_every": 4, "vae": str(vae[1]), "mesh.fsdp": 2}
    config = tiny(latents, **fields)
    finished(start(config, tmp_path / "one", devices=4))
    address = f"--coordinator=localhost:{free_port()}"
    each = [[address, "--processes=2", f"--process={i}"] for i in range(2)]
    finished(*(start(config, tmp_path / "two", *flags) for flags in each))
    for a, b in zip(timeless(tmp_path / "one"), timeless(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"loss", "validation_loss"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    one, two = (Latte.from_pretrained(tmp_path / name) for name in ("one", "two"))
    chex.assert_trees_all_close(named_parameters(one), named_parameters(two), atol=1e-5)
    assert len(list((tmp_path / "two" / "samples").iterdir())) == 4


def test_an_update_is_the_released_implementation_s_from_the_step_on_that_clips():
    """Its gradients were of norm 2.67, clipped to 0.1; learning rate 1e-4, no decay."""
    model = released_model("cond")
    x, t, y, noise = (golden(n) for n in ("cond_x", "train_t", "cond_y", "train_noise"))
    x, t, y, noise = map(jnp.asarray, (x, t, y, noise))
    process = GaussianProcess()

    def loss(parameters):
        network = with_parameters(model, parameters)
        output = network(process.noised(x, noise, t), t, y)
        return jnp.mean(process.terms(output, x, noise, t)["loss"])

    config = denoiser_config()
    state = initial_state(model, config)
    gradients = jax.jit(jax.grad(loss))(state.parameters)
    for clip_from in (0, 1):
        config.optimizer.clip_from = clip_from
        after, metrics = jax.jit(functools.partial(apply_gradients, config))(state, gradients)
        assert metrics["gradient_norm"] == pytest.approx(ABOUT["train"][0]["grad_norm"], rel=1e-5)
        shortened = ABOUT["clip_coefficient"] if clip_from == 0 else 1.0
        first = after.optimizer.mu["last.linear.bias"]
        expected = 0.1 * shortened * gradients["last.linear.bias"]
        np.testing.assert_allclose(first, expected, rtol=1e-5)
        for ours, theirs in (
            ("blocks.0.mlp.linear_2.bias", "blocks0_fc2_bias"),
            ("last.linear.bias", "final_linear_bias"),
        ):
            found, golden_after = after.parameters[ours], golden(f"train_after_{theirs}")
            np.testing.assert_allclose(found, golden_after, atol=3e-6, rtol=0)
            before, average = state.parameters[ours], after.ema[ours]
            np.testing.assert_allclose(average, 0.9999 * before + 1e-4 * found, rtol=1e-6)


def test_decay_and_warmup_are_adamw_s():
    config = denoiser_config()
    config.optimizer.update({"weight_decay": 0.1, "warmup_steps": 4, "clip_norm": 0.0})
    state = initial_state(Latte(LatteConfig(depth=2, width=8, heads=2)), config)
    name = "blocks.1.mlp.linear_1.kernel"
    gradients = jax.tree.map(
        lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), state.parameters
    )
    schedule = lambda n: 1e-4 * jnp.minimum((n + 1) / 4, 1)  # noqa: E731
    chain = optax.adamw(schedule, weight_decay=0.1)
    expected, adam = state.parameters[name], chain.init(state.parameters[name])

    @jax.jit
    def both(state, expected, adam):
        state, _ = apply_gradients(config, state, gradients)
        updates, adam = chain.update(gradients[name], adam, expected)
        return state._replace(step=state.step + 1), optax.apply_updates(expected, updates), adam

    for _ in range(6):
        state, expected, adam = both(state, expected, adam)
    np.testing.assert_allclose(state.parameters[name], expected, rtol=1e-6, atol=1e-8)


def test_the_step_encodes_videos_as_a_dataset_of_their_latents_holds_them(
    vae, manifest, latents, tmp_path
):
    """Means, of clips that are the whole video; the posterior's noise is another."""
    fields = {"data.scale": "factor", "vae": str(vae[1])}
    for name, path in (("latents", latents), ("videos", manifest)):
        config = tiny(path, **fields)
        task = denoiser.Denoiser(config, check(config, jax.devices()[:1]))
        task.export(task.initial(), tmp_path / name)
    of_latents, of_videos = (
        Latte.from_pretrained(tmp_path / name).config.trained_on for name in ("latents", "videos")
    )
    assert of_videos == of_latents
    batch = {"clips": np.stack([clip_of(manifest, i) for i in range(6)])}
    scale = Scale(None, None, vae[0].config.scaling_factor)
    key = jax.random.key(0)
    encode = jax.jit(functools.partial(normalised_latents, scale=scale, sampled=False))
    found = encode(batch, vae[0], key=key)
    items = list(LatentDataset(latents, view="mean", normalised=True, scale=scale))
    np.testing.assert_allclose(found, [item["latents"] for item in items], atol=1e-4)


def test_labels_travel_with_videos_that_are_encoded_in_the_step(vae, manifest, tmp_path):
    fields = {"vae": str(vae[1]), "data.scale": "factor", "steps": 2}
    config = tiny(manifest, **fields)
    mesh = check(config, jax.devices()[:1])
    task = denoiser.Denoiser(config, mesh)
    with contextlib.closing(task.feeds({})) as feeds:
        batch = feeds(0)
        assert feeds.position == {"next": 8, "items": 6}
        stands_in = feeds.stand_in(0)
    chex.assert_trees_all_equal_shapes_and_dtypes(batch, stands_in)
    clips = np.stack([clip_of(manifest, i) for i in range(6)])
    for clip, label in zip(np.asarray(batch["clips"]), np.asarray(batch["labels"]), strict=True):
        (number,) = np.flatnonzero((clips == clip).all(axis=(1, 2, 3, 4)))
        assert label == number % 3
    state = train(config, tmp_path / "run")
    assert int(state.step) == 2 and int(state.skipped) == 0
    assert Latte.from_pretrained(tmp_path / "run").config.trained_on.classes == CLASSES
    with pytest.raises(ValueError, match="has the label 2; expected a whole number from 0 to 1"):
        train(tiny(manifest, **fields, **{"model.classes": 2}), tmp_path / "other")


def test_a_training_on_videos_spreads_its_clips_over_them_if_it_is_asked_to(vae, manifest):
    """Videos of 5 frames are too short for 5 at a stride of 2; spread, they are all taken."""
    fields = {"vae": str(vae[1]), "data.scale": "factor", "data.stride": 2, "data.stride_max": 2}
    config = tiny(manifest, **fields)
    mesh = check(config, jax.devices()[:1])
    with pytest.raises(VideoError, match="clips of 5 frames span 9"):
        open_data(config, mesh).clips[0]
    config.data.spread = True
    source, clips = open_source(str(manifest)), open_data(config, mesh).clips
    whole = {source.name(i): source.read(i, Sampling(5), 1, lambda n: 0) for i in range(6)}
    for drawn in map(clips.draw, range(6)):
        np.testing.assert_array_equal(drawn.clip, whole.pop(drawn.video))
    assert not whole


def test_videos_with_an_empty_label_are_left_out_and_said(vae, tmp_path, caplog):
    path = write_manifest(tmp_path)
    path.write_text(path.read_text().replace("v4.mp4,1,", "v4.mp4,,"))
    config = tiny(path, **{"vae": str(vae[1]), "data.scale": "factor"})
    task = denoiser.Denoiser(config, check(config, jax.devices()[:1]))
    (said,) = [r.getMessage() for r in caplog.records if "without a label" in r.getMessage()]
    assert said.startswith("1 video is left out, without a label in the column 'label': ")
    assert said.endswith("v4.mp4")
    clips = np.stack([clip_of(path, i) for i in range(6)])
    with contextlib.closing(task.feeds({})) as feeds:
        for step in range(3):
            batch = feeds(step)
            for clip, label in zip(
                *(np.asarray(batch[n]) for n in ("clips", "labels")), strict=True
            ):
                (number,) = np.flatnonzero((clips == clip).all(axis=(1, 2, 3, 4)))
                assert number != 4 and label == number % 3
    text = path.read_text()
    path.write_text("\n".join(re.sub(r",\d,", ",,", line) for line in text.splitlines()))
    with pytest.raises(ValueError, match=r"no video has a label: the column 'label' .* is empty"):
        denoiser.Denoiser(config, check(config, jax.devices()[:1]))


def test_fields_that_are_of_the_other_kind_of_data_are_said_once(vae, manifest, latents, caplog):
    caplog.set_level("INFO")
    for path, named in (
        (latents, {"data.frames", "data.size", "data.short_side", "data.stride", "data.flip"}),
        (manifest, {"data.holdout"}),
    ):
        caplog.clear()
        config = tiny(path, **{"vae": str(vae[1]), "data.scale": "factor", "data.holdout": 1})
        denoiser.Denoiser(config, check(config, jax.devices()[:1]))
        (said,) = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
        fields = set(said.split(":")[0].split(", "))
        assert named <= fields and not fields & {"data.path", "data.label", "data.threads"}
        assert ("data.holdout" in fields) == (path == manifest)


@pytest.mark.full
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(latents, tmp_path):
    config = tiny(latents, **{"steps": 40, "checkpoint_every": 4, "data.holdout": 2})
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finished(start(config, alone))
    metrics, checkpoints = killed / "metrics.jsonl", killed / "checkpoints"
    for kill in range(3):
        process = start(config, killed)
        size = metrics.stat().st_size if metrics.exists() else 0
        wait_until(lambda s=size: metrics.exists() and metrics.stat().st_size > s, process)
        if kill % 2 == 0:  # while a checkpoint is being written
            wait_until(lambda: any("tmp" in p.name for p in checkpoints.iterdir()), process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"
    finished(start(config, killed))
    weights = [(d / "model" / "model.safetensors").read_bytes() for d in (alone, killed)]
    assert weights[0] == weights[1]
    assert timeless(alone) == timeless(killed)
    assert [r["step"] for r in lines(killed)] == list(range(1, config.steps + 1))


@pytest.mark.parametrize("name", full("ops_vae", "svd_vae", "cv_vae"))
def test_the_other_autoencoders_latents_are_trained_on_and_shown(name, manifest, tmp_path):
    vae = baseline(name)
    vae.save_pretrained(tmp_path / "vae")
    latents = write_latents(tmp_path / "latents", vae, tmp_path / "vae", manifest)
    frames = 5 if name == "svd_vae" else 2
    sizes = {"model.frames": frames, "model.rows": 2, "model.columns": 2}
    fields = {"vae": str(tmp_path / "vae"), "steps": 1, "validate_every": 1, "data.scale": "factor"}
    for path in (latents, manifest):
        workdir = tmp_path / f"of-{path.name}"
        state = train(tiny(path, **sizes, **fields), workdir)
        assert int(state.skipped) == 0
        assert Latte.from_pretrained(workdir).config.trained_on.frames == 5
        assert inspect_video(workdir / "samples" / "sample_0-00000001.mp4").frames == 5


def clip_of(manifest, number):
    source = open_source(str(manifest))
    return source.read(number, Sampling(5, None, (1, 1)), 1, lambda n: 0)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model.channels": 8}, r"channels=8, and the latents of .* have 4: .*channels=4"),
        ({"model.frames": 5}, r"no latents of config.model.frames=5, .*5x16x16: 3 latent frames"),
        ({"model.rows": 4}, r"rows=4 and columns=8; it has 5x16x16: 3 latent frames of 8×8"),
        ({"model.classes": 2}, r"has the label 2; expected a whole number from 0 to 1, for .*=2"),
        ({"model.classes": 0}, r"the denoiser has no classes: give their number"),
        ({"data.label": ""}, r"classes=3 needs labels: name the column"),
        ({"data.label": "lable"}, r"no column 'lable' \(config.data.label\); .*'animal', 'label'"),
        ({"data.names": "name"}, r"no column 'name' \(config.data.names\)"),
        ({"data.label": "animal"}, r"has the label 'cats'; expected a whole number"),
        ({"data.path": "nowhere"}, r"no dataset of latents: make one with .*config.vae"),
        ({"data.path": ""}, r"data.path is empty: give a dataset of latents"),
        ({"data.scale": "unit"}, r"data.scale='unit' is not known"),
        ({"samples.sampler": "euler"}, r"sampler 'euler' is not known here; there are .*ddpm"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"drop_labels": 1.5}, "at most 1"),
        ({"model.param_dtype": "bfloat16"}, "keeps parameters in float32"),
        ({"data.holdout": 6}, "data.holdout=6 leaves none of the 6 records"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(fields, words, latents, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        train(tiny(latents, **fields), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_latents_of_another_autoencoder_are_refused(latents, vae, manifest, tmp_path):
    save_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"has the encoder \w+, and the latents in .*name that"):
        train(tiny(latents, vae=str(tmp_path / "other")), tmp_path / "run")
    for field, value, words in (
        ("data.size", 24, r"size=24 are latents of \(3, 12, 12, 4\) .* \(3, 8, 8, 4\): make"),
        ("data.frames", 6, r"frames=6 and size=16 are no clip .* next that is has 7 frames of 16"),
    ):
        with pytest.raises(ValueError, match=words):
            train(tiny(manifest, vae=str(vae[1]), **{field: value}), tmp_path / "run")
    with pytest.raises(ValueError, match="over data and fsdp alone"):
        config = tiny(latents)
        config.mesh.update({"data": 1, "height": 2})
        train(config, tmp_path / "run", 2)


def test_held_out_records_are_never_trained_on(latents):
    dataset = LatentDataset(latents, holdout=2)
    held = dataset.held_out("5x16x16")
    assert held == [1, 4]
    entries = {dataset[number]["entry"] for number in held}
    read = dataset.batches(4, threads=1)
    seen = {int(entry) for _ in range(4) for entry in next(read)["entry"]}
    read.close()
    assert seen == {item["entry"] for item in dataset} - entries


@pytest.mark.parametrize("name", ["ucf101", "sky", "quick"])
def test_the_configs_are_of_the_paper_and_can_be_checked(name):
    config = load_config(f"latte:{name}")
    check(config, jax.devices()[:1])
    if name == "quick":
        return
    assert denoiser_model_config(config).name == "Latte-XL/2"
    o = config.optimizer
    assert (o.learning_rate, o.b1, o.b2, o.epsilon, o.weight_decay) == (1e-4, 0.9, 0.999, 1e-8, 0)
    assert (o.clip_norm, o.clip_from) == (0.1, {"ucf101": 100_000, "sky": 20_000}[name])
    assert (config.ema_decay, config.steps, config.drop_labels) == (0.9999, 200_000, 0.1)
    assert config.data.scale == "factor" and config.data.sampled
