"""Checkpoints that are damaged, saves that fail, data that does not come, files that are foreign.

What is trained is `counting.py`: what is tested here does not depend on it.
"""

import json
import logging
import os
import shutil
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from odvae_jax.training import loop
from tests.training.counting import get_config
from tests.training.test_loop import timeless

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def every_message(caplog):
    caplog.set_level(logging.INFO, "odvae_jax")


def config(**fields):
    return ml_collections.ConfigDict({**get_config().to_dict(), **fields})


def train(workdir, **fields):
    return loop.train(config(**fields), workdir, devices=jax.devices()[:2])


def saved(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of six steps that nothing disturbed, and its state."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    return workdir, train(workdir)


@pytest.fixture
def run(alone, tmp_path):
    """A copy of it without the checkpoint of its last step."""
    shutil.copytree(alone[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    return tmp_path / "run"


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def halved(folder):
    os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def flipped(folder):
    file = largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def emptied_files(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def no_folder(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "a bit is flipped": flipped,
    "a file is halved": halved,
    "a file is gone": lambda folder: largest(folder).unlink(),
    "all files are empty": emptied_files,
    "the state is gone": lambda folder: shutil.rmtree(folder / "state"),
    "the position is gone": lambda folder: shutil.rmtree(folder / "run"),
    "the folder is empty": emptied,
    "the folder is a file": no_folder,
    "its digests are cut short": lambda folder: os.truncate(folder / "digests.json", 30),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(alone, run, caplog, damage):
    DAMAGES[damage](run / "checkpoints" / "4")
    state = train(run)
    np.testing.assert_array_equal(state.numbers, alone[1].numbers)
    assert "continuing from step 2" in caplog.text
    assert "the checkpoint of step 4 is damaged: " in caplog.text
    aside, *whole = sorted(saved(run), key=len, reverse=True)
    assert aside.startswith("damaged-4-") and sorted(whole) == ["2", "4", "6"]
    assert timeless(run) == timeless(alone[0])
    caplog.clear()
    train(run, steps=8)
    assert aside in saved(run), "it is kept"
    assert "damaged" not in caplog.text, "it is not counted"


@pytest.mark.parametrize(
    "content", [None, b"", b'{"item_ha', b"\xff\xff", b"[]", b'{"a": 1}'], ids=str
)
def test_the_library_s_own_notes_are_not_needed(alone, run, caplog, content):
    for notes in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (run / "checkpoints" / "4" / notes).unlink(missing_ok=True)
        if content is not None:
            (run / "checkpoints" / "4" / notes).write_bytes(content)
    np.testing.assert_array_equal(train(run).numbers, alone[1].numbers)
    assert "continuing from step 4" in caplog.text


@pytest.mark.parametrize("damage", ["a file is gone", "the folder is empty"])
def test_a_damaged_checkpoint_without_digests_is_passed_over_too(alone, run, caplog, damage):
    for step in "24":
        (run / "checkpoints" / step / "digests.json").unlink()
    DAMAGES[damage](run / "checkpoints" / "4")
    np.testing.assert_array_equal(train(run).numbers, alone[1].numbers)
    assert "2 has no digests, as checkpoints of earlier versions" in caplog.text


def test_without_a_whole_checkpoint_a_line_says_what_was_tried_and_nothing_is_moved(run):
    emptied(run / "checkpoints" / "2")
    flipped(run / "checkpoints" / "4")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"step 4: state/.* changed bytes; step 2: ") as error:
            train(run)
        assert "\n" not in str(error.value)
        assert saved(run) == ["2", "4"]


def test_a_whole_checkpoint_of_another_state_is_not_taken_for_damaged(run):
    (run / "config.json").unlink()
    for step in "24":
        (run / "checkpoints" / step / "config.json").unlink()
        (run / "checkpoints" / step / "digests.json").unlink()
    with pytest.raises(ValueError, match=r"numbers is \(5000,\) there, \(32,\) now"):
        train(run, size=32)
    assert saved(run) == ["2", "4"]


def test_digests_are_compared_only_if_the_config_says_so(run, caplog):
    flipped(run / "checkpoints" / "4")
    (run / "checkpoints" / "4" / "digests.json").write_text("{}")
    train(run, verify_checkpoints=False)
    assert "damaged" not in caplog.text and "continuing from step 4" in caplog.text


@pytest.mark.parametrize("content", [b"", b'{"task": "cou', b"\xff\xfe", b"[]"], ids=str)
def test_a_damaged_config_of_a_run_is_taken_from_its_checkpoint(alone, run, caplog, content):
    (run / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="size: 5000 there, 32 now"):
        train(run, size=32)
    assert "config.json is damaged" in caplog.text and "checkpoints/4/config.json" in caplog.text
    np.testing.assert_array_equal(train(run).numbers, alone[1].numbers)
    assert json.loads((run / "config.json").read_text())["steps"] == 6
