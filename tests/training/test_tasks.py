"""What is trained is a task: this package's by name, or a user's own; the loop knows none."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odvae_jax
from odvae_jax.data.video import VideoReader
from odvae_jax.training import loop
from odvae_jax.training.config import default_config
from odvae_jax.training.fields import task_class
from odvae_jax.training.reporting import Reporter
from odvae_jax.training.tasks import Measured
from odvae_jax.training.tasks.autoencoder import Autoencoder
from tests.conftest import write_clip
from tests.training.test_loop import lines, timeless

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i, folder in enumerate(("cats", "dogs")):
        (path / folder).mkdir()
        write_clip(path / folder / "clip.mp4", frames=12, seed=i)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, empty; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def page(here):
    """The module that docs/tasks.md prints, in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.DOTALL)
    (here / "frames.py").write_text(code)
    sys.path.append(str(here))
    return importlib.import_module("frames")


def config_of(page, videos, **fields):
    config = page.get_config()
    config.update_from_flattened_dict(
        {
            "data.path": str(videos),
            "data.frames": 3,
            "data.size": 16,
            "batch_size": 4,
            "steps": 4,
            "log_every": 1,
            "checkpoint_every": 2,
            "validate_every": 4,
            **fields,
        }
    )
    return config


def train(config, workdir):
    return loop.train(config, workdir, devices=jax.devices()[:2])


def test_the_task_of_the_page_trains_saves_and_goes_on(page, videos, here, monkeypatch):
    whole = train(config_of(page, videos), here / "whole")
    assert int(whole.step) == 4 and int(whole.skipped) == 0
    records = lines(here / "whole")
    assert [r["step"] for r in records if "accuracy" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in records if "certainty" in r] == [4]
    assert {"loss", "gradient_norm", "clips_per_second", "frames_per_second"} <= records[0].keys()
    assert "model_flop_utilisation" not in records[0]
    exported = np.load(here / "whole" / "classifier.npz")
    np.testing.assert_array_equal(exported["out"], whole.parameters["out"])

    # In two parts; in each the step, of one kind and one shape of batches, is traced once.
    make = page.Classifier.step
    monkeypatch.setattr(
        page.Classifier, "step", lambda self, kind: chex.assert_max_traces(make(self, kind), n=1)
    )
    for steps in (2, 4):
        chex.clear_trace_counter()
        parts = train(config_of(page, videos, steps=steps), here / "parts")
    chex.assert_trees_all_equal(parts, whole)
    assert timeless(here / "parts") == timeless(here / "whole")
    with pytest.raises(ValueError, match=r"classes: \['cats', 'dogs'\] there, \['dogs'\] now"):
        changed = config_of(page, videos, continue_with_changes=True)
        changed.classes = ("dogs",)
        train(changed, here / "parts")


def test_the_guard_is_around_every_task(page, videos, here, monkeypatch):
    make = page.Classifier.step

    def breaking(self, kind):
        step = make(self, kind)

        def sometimes(state, batch, constants):
            new, metrics = step(state, batch, constants)
            bad = jnp.where(state.step == 1, jnp.nan, 1.0)
            return new, {name: value * bad for name, value in metrics.items()}

        return sometimes

    monkeypatch.setattr(page.Classifier, "step", breaking)
    state = train(config_of(page, videos, steps=3), here / "run")
    assert [int(x) for x in (state.step, state.skipped, state.skipped_in_a_row)] == [3, 1, 0]
    adam = state.optimizer[0]
    assert int(adam.count) == 2, "the step that was not finite left the optimizer alone"


class Uncounted(NamedTuple):
    parameters: dict
    step: jax.Array


def test_a_state_without_the_counters_and_a_step_that_changes_its_form_are_refused(
    page, videos, here, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(page.Classifier, "initial", lambda self: Uncounted({}, jnp.zeros(())))
        with pytest.raises(TypeError, match=r"state of Classifier.*Uncounted.*field 'skipped';"):
            train(config_of(page, videos), here / "a")
        assert not (here / "a").exists()

    def halved(self, kind):
        def step(state, batch, constants):
            return jax.tree.map(lambda a: a.astype(jnp.float16), state), {"loss": jnp.zeros(())}

        return step

    monkeypatch.setattr(page.Classifier, "step", halved)
    with pytest.raises(AssertionError, match="float16"):
        train(config_of(page, videos), here / "b")


@pytest.mark.parametrize(
    "name, words",
    [
        ("autoencodr", r"config.task='autoencodr' is not known; did you mean 'autoencoder'\?"),
        ("frame:Classifier", r"config.task: 'frame:Classifier' cannot be imported .*PYTHONPATH"),
        ("frames:Classifer", r"'frames:Classifer' does not exist; did you mean 'Classifier'\?"),
        ("frames:logits", "config.task='frames:logits' is no task; expected a class"),
    ],
)
def test_a_task_that_does_not_exist_is_named_with_the_nearest(page, videos, here, name, words):
    config = config_of(page, videos)
    config.task = name
    with pytest.raises(ValueError, match=words):
        train(config, here / "run")
    assert not (here / "run").exists()


def test_the_default_task_is_the_autoencoder():
    config = default_config()
    assert task_class(config) is Autoencoder
    del config.task
    assert task_class(config) is Autoencoder


def test_videos_of_a_validation_are_written(tmp_path):
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    reporter = Reporter(tmp_path, 0, {"clips": 1}, 0.0)
    reporter.validate(7, Measured({}, {}, {"sample": (frames, 8.0)}))
    reporter.close()
    with VideoReader(str(tmp_path / "samples" / "sample-00000007.mp4")) as video:
        assert video.fps == 8.0
    assert json.dumps(lines(tmp_path)) == "[]", "no numbers, no line"


def imported(module):
    """The modules of this package that a module's file imports, its own imports' too."""
    seen, waiting = set(), [module]
    package = Path(odvae_jax.__file__).parent
    while waiting:
        name = waiting.pop()
        path = package.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file() or name == "odvae_jax":
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("odvae_jax"):
                waiting += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    return seen


def test_the_loop_imports_no_model_and_no_loss():
    found = imported("odvae_jax.training.loop")
    assert "odvae_jax.training.fields" in found
    models = {"autoencoder", "blocks", "metrics", "layers", "training.step", "training.losses"}
    models |= {"training.discriminator", "training.state", "training.tasks.autoencoder"}
    models |= {"checkpoints"}
    inside = [n for n in found for m in models if (n + ".").startswith(f"odvae_jax.{m}.")]
    assert inside == []
