"""Whole runs of a tiny model on real video files."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.checkpoints import sd_vae
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.data.video import centre_crop
from odvae_jax.evaluation.models import load_contenders
from odvae_jax.sharding import make_mesh
from odvae_jax.training import loop
from odvae_jax.training.config import default_config
from odvae_jax.training.raw_weights import load_raw
from odvae_jax.training.tasks import autoencoder
from tests.conftest import small_model, write_clip
from tests.two_levels import TWO_LEVELS


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i in range(2):
        write_clip(path / f"clip{i}.mp4", seed=i)
    (path / "fake.mp4").write_text("not a video")
    return path


def tiny(videos, **fields):
    """A model of two levels, for its program is compiled soonest."""
    config = default_config()
    config.model = ODVAEConfig(structure=TWO_LEVELS, width=8, groups=4).to_dict()
    config.update_from_flattened_dict(
        {
            "data.path": str(videos),
            "data.frames": 1,
            "data.size": 16,
            "data.short_side": 24,
            "data.holdout": 5,
            "data.max_unusable": 0.5,
            "optimizer.learning_rate": 1e-3,
            "discriminator.start": 2,
            "discriminator.width": 4,
            "loss.perceptual_weight": 0.0,
            "ema_decay": 0.5,
            "batch_size": 8,
            "steps": 6,
            "log_every": 1,
            "validate_every": 3,
            "checkpoint_every": 2,
            **fields,
        }
    )
    return config


def train(config, workdir):
    """On two of the eight devices."""
    return loop.train(config, workdir, devices=jax.devices()[:2])


WITH_ALL = {"loss.perceptual_weight": 1.0, "ema_warmup": True}


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def timeless(workdir):
    """The metrics of every step but those that depend on the clock."""
    clock = ("second", "fraction", "utilisation", "memory")
    return [
        {k: v for k, v in r.items() if not any(word in k for word in clock)}
        for r in lines(workdir)
        if "skipped_steps" in r
    ]


@pytest.fixture(scope="module")
def whole_run(videos, tmp_path_factory):
    """A run whose step may be traced once: it is of one kind, and its batches of one shape."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    make = autoencoder.autoencoder_step
    with pytest.MonkeyPatch.context() as patch:
        chex.clear_trace_counter()
        patch.setattr(
            autoencoder, "autoencoder_step", lambda *a: chex.assert_max_traces(make(*a), n=1)
        )
        return workdir, train(tiny(videos, **WITH_ALL), workdir)


def test_a_run_leaves_a_model_metrics_pictures_and_checkpoints(whole_run):
    workdir, state = whole_run
    vae = ODVAE.from_pretrained(workdir)
    np.testing.assert_array_equal(vae.quant_conv.kernel[...], state.ema["quant_conv.kernel"])
    assert state.discriminator["layers.0.kernel"].shape[-1] == 4
    assert (state.ema["quant_conv.kernel"] != state.parameters["quant_conv.kernel"]).any()
    raw = load_raw(workdir)
    np.testing.assert_array_equal(raw.quant_conv.kernel[...], state.parameters["quant_conv.kernel"])
    with pytest.raises(FileNotFoundError, match="model holds no checkpoint of a training run"):
        load_raw(workdir / "model")
    named = load_contenders([f"{workdir}@raw", f"x={workdir}@ema", str(workdir)])
    assert [c.label for c in named] == ["whole@raw", "x", "whole"]
    for c, expected in zip(named, (state.parameters, state.ema, state.ema), strict=True):
        found = c.model.quant_conv.kernel[...]
        np.testing.assert_array_equal(found, expected["quant_conv.kernel"])
    records = lines(workdir)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "psnr" in r] == [3, 6]
    measured = {"loss", "nll", "reconstruction", "perceptual", "kl", "generator", "discriminator"}
    measured |= {"adaptive_weight", "logits_real", "logits_fake", "latent_mean", "latent_std"}
    measured |= {"gradient_norm_generator", "gradient_norm_discriminator", "data_wait_fraction"}
    measured |= {"clips_per_second", "frames_per_second", "seconds_per_step", "skipped_steps"}
    assert measured <= records[0].keys()
    assert {"psnr", "psnr_raw", "ssim", "ssim_raw"} <= {n for r in records for n in r}
    for record in records:
        if "loss" in record:  # of clips of 1×16×16
            np.testing.assert_allclose(record["loss_per_value"] * 16 * 16 * 3, record["loss"])
    assert [r["adaptive_weight"] > 0 for r in records if "loss" in r] == [False] * 2 + [True] * 4
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]
    events = EventAccumulator(str(workdir / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert len(events.Images("clip_0")) == len(events.Images("clip_1")) == 2
    assert Image.open(workdir / "curves.png").size[0] > 500


def test_the_latents_of_a_finished_run_are_measured_on_held_out_frames(whole_run, videos):
    vae = ODVAE.from_pretrained(whole_run[0])
    frames = []
    for i in range(2):
        every = open_source(videos / f"clip{i}.mp4").read(0, Sampling(5, 24), 1, lambda n: n - 1)
        frames.append(centre_crop(every, 16, 16))  # the last five, which are held out
    video = np.concatenate(frames).astype(np.float32)[:, None] / 127.5 - 1
    posterior = vae.encode(video)
    mean = np.asarray(posterior.mean, np.float64).reshape(-1, 4)
    variance = np.exp(np.asarray(posterior.logvar, np.float64)).reshape(-1, 4)
    std = np.sqrt(mean.var(0) + variance.mean(0))
    np.testing.assert_allclose(vae.config.latents_mean, mean.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(vae.config.latents_std, std, rtol=1e-3)
    z = vae.normalise(np.asarray(posterior.sample(jax.random.key(0))))
    np.testing.assert_allclose(z.std((0, 1, 2, 3)), 1, atol=0.1)


@pytest.mark.parametrize(
    "step, fields, said, measured",
    [
        (6, {"data.holdout": 0, "steps": 6}, "measured on 48 training clips", True),
        (6, {"data.holdout": 0, "scale_clips": 3}, "measured on 3 training clips", True),
        (6, {"scale_clips": 0}, "the model is in", False),
        (5, {}, "so the scale of its latents was not measured", False),
    ],
)
def test_a_run_says_what_its_latents_are_measured_on(
    step, fields, said, measured, videos, tmp_path, caplog
):
    caplog.set_level("INFO", logger="odvae_jax")
    task, state = task_and_state(tiny(videos, validate_every=0, **fields), step)
    task.export(state, tmp_path)
    assert ODVAE.from_pretrained(tmp_path).config.scale.measured == measured
    assert said in caplog.text


def test_latents_that_cannot_be_measured_cost_no_export(videos, tmp_path, caplog):
    shutil.copytree(videos, tmp_path / "videos")
    config = tiny(tmp_path / "videos", validate_every=0)
    task, state = task_and_state(config, config.steps)
    shutil.rmtree(tmp_path / "videos")
    task.export(state, tmp_path)
    vae = ODVAE.from_pretrained(tmp_path)
    np.testing.assert_array_equal(vae.quant_conv.kernel[...], state.ema["quant_conv.kernel"])
    assert not vae.config.scale.measured
    assert "was not measured" in caplog.text and "odvae calibrate" in caplog.text


def task_and_state(config, step):
    """A run's task, and its state as it would be after some steps."""
    task = autoencoder.Autoencoder(config, make_mesh(1, devices=jax.devices()[:1]))
    return task, task.initial()._replace(step=np.int32(step))


def test_files_of_others_and_a_picture_that_cannot_be_drawn_cost_no_export(
    whole_run, videos, tmp_path, caplog
):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run[0], workdir)
    (workdir / "model" / "notes.txt").write_text("mine")
    (workdir / "model" / "model.safetensors").unlink()
    (workdir / "curves.png").unlink()
    (workdir / "curves.png").mkdir()
    train(tiny(videos, **WITH_ALL), workdir)
    vae = ODVAE.from_pretrained(workdir / "model-6")
    assert vae.config == ODVAE.from_pretrained(whole_run[0]).config, "it is measured again"
    np.testing.assert_array_equal(vae.quant_conv.kernel[...], whole_run[1].ema["quant_conv.kernel"])
    kept = sorted(p.name for p in (workdir / "model").iterdir())
    assert kept == ["config.json", "notes.txt"]
    assert f"The model is saved in {workdir / 'model-6'}" in caplog.text
    assert "the curves could not be drawn" in caplog.text


def test_raw_weights_are_those_of_the_newest_whole_checkpoint(whole_run, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    expected = load_raw(workdir).quant_conv.kernel[...]
    (workdir / "config.json").write_text("")
    shutil.copytree(whole_run[0] / "checkpoints" / "6", workdir / "checkpoints" / "6")
    file = max((workdir / "checkpoints" / "6").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(load_raw(workdir).quant_conv.kernel[...], expected)
    assert "changed bytes; the weights are those of step 4" in caplog.text
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


@pytest.mark.full
def test_a_run_learns(videos, tmp_path):
    (tmp_path / "one").mkdir()
    write_clip(tmp_path / "one" / "clip.mp4", frames=10)
    fields = {
        "steps": 60,
        "validate_every": 0,
        "checkpoint_every": 60,
        "optimizer.learning_rate": 4e-3,
        "discriminator.start": 40,
    }
    train(tiny(tmp_path / "one", **fields), tmp_path / "run")
    losses = [r["nll"] for r in lines(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.full
def test_a_run_stopped_and_continued_ends_as_one_left_alone(whole_run, videos, tmp_path):
    workdir, expected = whole_run
    short = tiny(videos, steps=4, **WITH_ALL)
    train(short, tmp_path / "run")
    # As if the run had gone on to step 5 and died before its next checkpoint, writing a line.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 0.0}) + "\n" + '{"step": 5, "lo')
    state = train(tiny(videos, **WITH_ALL), tmp_path / "run")
    chex.assert_trees_all_equal(state, expected)
    assert timeless(tmp_path / "run") == timeless(workdir)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.full
@pytest.mark.parametrize("continued", [False, True])
def test_pictures_among_the_clips(videos, tmp_path, monkeypatch, caplog, continued):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 10, 200)).save(pictures / f"{i}.png")
    fields = {"data.image_path": f"images:{pictures}", "data.image_batch_size": 2}
    fields |= {"data.image_rate": 0.5, "data.frames": 2, "discriminator.weight": 0.0}
    seen = []
    call = autoencoder.ClipFeeds.__call__

    def noted(self, step):
        batch = call(self, step)
        seen.append(batch.shape)
        assert self.stand_in(step).shape == batch.shape
        return batch

    monkeypatch.setattr(autoencoder.ClipFeeds, "__call__", noted)

    def run(workdir, steps):
        config = tiny(videos, steps=steps, batch_size=4, validate_every=0, **fields)
        return train(config, tmp_path / workdir)

    whole = run("whole", 4)
    assert seen == [(4, 2, 16, 16, 3), (2, 1, 16, 16, 3)] * 2
    if not continued:
        return
    run("parts", 3)
    seen.clear()
    chex.assert_trees_all_equal(run("parts", 4), whole)
    assert seen == [(2, 1, 16, 16, 3)]
    assert "order" not in caplog.text
    Image.new("RGB", (40, 30)).save(pictures / "another.png")
    run("parts", 5)
    assert "reads 3 videos and 4 pictures, where 3 and 3 were read before" in caplog.text


@pytest.mark.full
def test_a_video_model_starts_from_an_sd_vae_by_tail_initialisation(videos, tmp_path):
    sd_vae.save(small_model("image"), tmp_path / "sd" / "vae")
    config = tiny(videos, steps=1, validate_every=1, **{"data.frames": 5})
    config.update_from_flattened_dict({"discriminator.weight": 0.0, "loss.perceptual_weight": 0.0})
    config.model = ODVAEConfig.variant(4, width=8, groups=4).to_dict()
    config.init.update(from_pretrained=str(tmp_path / "sd"), subfolder="vae")
    config.optimizer.learning_rate = 0.0
    state = train(config, tmp_path / "run")
    kernel = np.asarray(state.parameters["decoder.conv_in.kernel"])
    assert not kernel[:2].any()
    np.testing.assert_array_equal(kernel[2:], small_model("image").decoder.conv_in.kernel[...])


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"data.path": ""}, ["config.data.path", "sample-clips"]),
        ({"data.frames": 8}, ["config.data.frames=8", "4k + 1", "is 9"]),
        ({"data.size": 20}, ["config.data.size=20", "nearest is 16"]),
        ({"data.short_side": 8}, ["config.data.short_side=8"]),
        ({"data.short_side_max": 20}, ["config.data.short_side_max=20", "short_side=24"]),
        (
            {"data.short_side_max": 40, "data.in_memory": True},
            ["config.data.in_memory", "short_side_max=40"],
        ),
        ({"batch_size": 13}, ["config.batch_size=13", "2 devices", "nearest that does is 12"]),
        ({"batch_size": 7, "accumulate": 2}, ["2 devices in 2 parts", "that does is 8"]),
        ({"mesh.fsdp": 3}, ["config.mesh", "data=1, fsdp=3", "there are 2"]),
        ({"mesh.data": 0}, ["config.mesh: data=0 must be at least 1"]),
        ({"mesh.height": 2, "data.size": 24}, ["config.data.size=24", "height=2", "does is 32"]),
        ({"data.size": 8, "data.short_side": 8, **WITH_ALL}, ["size=8 is too small", "weight=0"]),
        ({"freeze": "decoder"}, ["config.freeze='decoder'", "encoder"]),
        ({"discriminator.turns": "both"}, ["config.discriminator.turns='both'", "alternate"]),
        ({"discriminator.loss": "wgan"}, ["config.discriminator.loss='wgan'", "hinge"]),
        ({"data.crop": "corner"}, ["config.data.crop='corner'", "centre"]),
        ({"data.image_rate": 0.5}, ["config.data.image_rate=0.5", "give both"]),
        (
            {"data.image_rate": 0.5, "data.image_path": "x", "data.image_batch_size": 3},
            ["config.data.image_batch_size=3", "that does is 4"],
        ),
        ({"steps": 0}, ["config.steps=0"]),
        ({"seed": -1}, ["config.seed=-1"]),
        ({"validation_clips": 0}, ["config.validation_clips=0"]),
        ({"data.holdout": -5}, ["config.data.holdout=-5"]),
        ({"ema_decay": 2.0}, ["config.ema_decay=2.0"]),
        ({"optimizer.b2": 1.0}, ["config.optimizer.b2=1.0", "less than 1"]),
        ({"model.param_dtype": "bfloat16"}, ["config.model.param_dtype='bfloat16'", "float32"]),
        ({"optimizer.learning_rate": float("nan")}, ["config.optimizer.learning_rate=nan"]),
        ({"loss.reconstruction": "l3"}, ["config.loss.reconstruction='l3'", "l1"]),
        ({"optimizer.decay": "linear"}, ["config.optimizer.decay='linear'", "cosine"]),
        ({"init.method": "tial"}, ["config.init.method='tial'", "tail"]),
        ({"model.norm": "batch"}, ["norm='batch'", "frame"]),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_impossible_configs_are_refused_before_anything_compiles(videos, tmp_path, fields, words):
    config = tiny(videos)
    config.model = ODVAEConfig.variant(4, width=8, groups=4).to_dict()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError) as error:
        train(config, tmp_path / "run")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "run").exists()


def test_missing_data_and_models_are_named(videos, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train(tiny(tmp_path / "nowhere"), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no-model does not exist"):
        train(
            tiny(videos, **{"init.from_pretrained": str(tmp_path / "no-model")}), tmp_path / "run"
        )
    small_model("v1").save_pretrained(tmp_path / "v1")
    config = tiny(videos, **{"init.from_pretrained": str(tmp_path / "v1")})
    config.model = ODVAEConfig.image(width=8, groups=4).to_dict()
    with pytest.raises(ValueError, match="structure is 'v1' there, 'image' here"):
        train(config, tmp_path / "run")


def test_a_run_is_continued_with_its_own_config_unless_a_change_is_asked_for(whole_run, videos):
    workdir, _ = whole_run

    def own(**changes):
        return tiny(videos, **WITH_ALL, **changes)

    with pytest.raises(ValueError, match=r"model.norm: 'clip' there, 'frame' now"):
        train(own(**{"model.norm": "frame"}), workdir)
    both = r"batch_size: 8 there, 16 now; seed: 0 there, 1 now"
    with pytest.raises(ValueError, match=both):
        train(own(batch_size=16, seed=1), workdir)
    with pytest.raises(ValueError, match=both):
        train(own(batch_size=16, seed=1, continue_with_changes=True), workdir)
    faster = {"optimizer.learning_rate": 0.1}
    with pytest.raises(ValueError, match=r"learning_rate: 0.001 there, 0.1 now.*continue_with_ch"):
        train(own(**faster), workdir)
    train(own(**faster, continue_with_changes=True), workdir)


@pytest.mark.full
def test_kept_checkpoints_are_the_last_ones_and_every_nth(videos, tmp_path):
    fields = {"steps": 7, "checkpoint_every": 1, "keep_checkpoints": 2, "keep_every": 3}
    train(tiny(videos, validate_every=0, log_every=4, **fields), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == list("367")
    assert [r["step"] for r in lines(tmp_path / "run")] == [4, 7]


def test_runs_that_differ_in_their_seeds_alone_share_the_compiled_step(videos):
    """So the compilation cache has the second one's."""
    texts, mesh = [], make_mesh(devices=jax.devices()[:1])
    for seed in (1, 2):
        task = autoencoder.Autoencoder(tiny(videos, seed=seed, validate_every=0), mesh)
        clips = jax.ShapeDtypeStruct((8, 1, 16, 16, 3), np.uint8)
        texts.append(
            jax.jit(task.step("both")).lower(task.abstract(), clips, task.constants()).as_text()
        )
    assert texts[0] == texts[1]
