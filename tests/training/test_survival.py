"""Checkpoints that are damaged, saves that fail, data that does not come, files that are foreign.

What is trained is `counting.py`: what is tested here does not depend on it.
"""

import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from odvae_jax import digests
from odvae_jax.cli import main
from odvae_jax.files import BusyError
from odvae_jax.training import lock, loop, reporting
from tests.conftest import full
from tests.training.counting import get_config
from tests.training.test_faults import arguments as given
from tests.training.test_loop import lines, timeless, tiny

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


QUICK = ("a bit is flipped", "a file is halved", "the folder is empty", "its digests are cut short")


@pytest.mark.parametrize("damage", [*QUICK, *full(*(d for d in DAMAGES if d not in QUICK))])
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
    "content", [b"[]", *full(None, b"", b'{"item_ha', b"\xff\xff", b'{"a": 1}')], ids=str
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


@pytest.fixture
def failing_reads(monkeypatch):
    """Reads of files of the checkpoint of step 4 fail with an error, a number of times."""
    monkeypatch.setattr(digests, "RETRY_AFTER", 0.01)
    read, left = digests.of_file, []

    def of_file(path):
        if "/4/state/" in str(path) and left:
            left.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(digests, "of_file", of_file)
    return lambda times: left.extend([None] * times)


def test_a_read_that_fails_once_costs_no_step(alone, run, caplog, failing_reads):
    failing_reads(1)
    np.testing.assert_array_equal(train(run).numbers, alone[1].numbers)
    assert "continuing from step 4" in caplog.text and saved(run) == ["2", "4", "6"]


def test_a_disk_that_cannot_be_read_is_no_damage(alone, run, failing_reads):
    failing_reads(100)
    before = (run / "config.json").read_bytes()
    with pytest.raises(
        OSError, match=r"/4/state/.* cannot be read \(Input/output error\)"
    ) as error:
        train(run)
    assert "\n" not in str(error.value)
    assert saved(run) == ["2", "4"] and (run / "config.json").read_bytes() == before


@pytest.mark.parametrize("which", ["its state", "its digests", *full("the run's config")])
@pytest.mark.parametrize("digests_there", [False, True])
def test_a_file_that_the_system_does_not_open_is_no_damage(
    alone, run, monkeypatch, which, digests_there
):
    """A link to itself is one even for the superuser."""
    monkeypatch.setattr(digests, "RETRY_AFTER", 0.01)
    checkpoint = run / "checkpoints" / "4"
    if not digests_there:
        (checkpoint / "digests.json").unlink()
    places = {"its state": largest(checkpoint), "its digests": checkpoint / "digests.json"}
    file = places.get(which, run / "config.json")
    content = file.read_bytes() if file.exists() else None
    file.unlink(missing_ok=True)
    file.symlink_to(file.name)
    with pytest.raises(OSError, match="Too many levels of symbolic links") as error:
        train(run)
    assert file.name in str(error.value) and "\n" not in str(error.value)
    assert saved(run) == ["2", "4"]
    if content is not None:
        file.unlink()
        file.write_bytes(content)
        np.testing.assert_array_equal(train(run).numbers, alone[1].numbers)


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
    with pytest.raises(ValueError, match=r"numbers is \(5000,\) there, \(32,\) now") as error:
        train(run, size=32)
    assert "is whole" not in str(error.value), "it is the config's fault"
    assert saved(run) == ["2", "4"]


def test_digests_are_compared_only_if_the_config_says_so(run, caplog):
    flipped(run / "checkpoints" / "4")
    (run / "checkpoints" / "4" / "digests.json").write_text("{}")
    train(run, verify_checkpoints=False)
    assert "damaged" not in caplog.text and "continuing from step 4" in caplog.text


@pytest.mark.parametrize("content", [b'{"task": "cou', *full(b"", b"\xff\xfe", b"[]")], ids=str)
def test_a_damaged_config_of_a_run_is_taken_from_its_checkpoint(alone, run, caplog, content):
    (run / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="size: 5000 there, 32 now"):
        train(run, size=32)
    assert "config.json is damaged" in caplog.text and "checkpoints/4/config.json" in caplog.text
    np.testing.assert_array_equal(train(run).numbers, alone[1].numbers)
    assert json.loads((run / "config.json").read_text())["steps"] == 6


@pytest.fixture
def stop_when_blocked(monkeypatch):
    """Sends a signal to this process a moment after it began to wait; and Ctrl-C much later."""
    timers = []

    def later(which):
        for seconds, sent in ((1.0, which), (15.0, signal.SIGINT)):
            timers.append(threading.Timer(seconds, os.kill, (os.getpid(), sent)))
            timers[-1].start()

    yield later
    for timer in timers:
        timer.cancel()


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_run_waits_for_data_saves_what_is_done(
    alone, tmp_path, stop_when_blocked, which
):
    stop_when_blocked(which)
    start = time.monotonic()
    state = train(tmp_path / "run", blocks_at=4)
    assert time.monotonic() - start < 10
    assert int(state.step) == 3 and saved(tmp_path / "run") == ["2", "3"]
    assert (tmp_path / "run" / "numbers.npy").exists(), "a run that is stopped exports"
    assert [r["step"] for r in lines(tmp_path / "run")] == [1, 2, 3]
    np.testing.assert_array_equal(train(tmp_path / "run").numbers, alone[1].numbers)
    assert timeless(tmp_path / "run") == timeless(alone[0])


def test_a_signal_before_the_first_step_leaves_nothing_unfinished(tmp_path, stop_when_blocked):
    stop_when_blocked(signal.SIGTERM)
    train(tmp_path / "run", blocks_at=1)
    assert saved(tmp_path / "run") == [] and not (tmp_path / "run" / "numbers.npy").exists()
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.usefixtures("own_log")
def test_what_the_data_raises_costs_no_step(alone, tmp_path, capsys):
    file = f"--config={ROOT}/tests/training/counting.py"
    words = ["train", file, f"--workdir={tmp_path}/run", "--config.log_every=100"]
    assert main([*words, "--config.fails_at=4"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "odvae train: workers died 4 times; give the run more memory"
    assert saved(tmp_path / "run") == ["2", "3"]
    assert [r["step"] for r in lines(tmp_path / "run")] == [3], "what was measured is written"
    assert not (tmp_path / "run" / "run.lock").exists()
    np.testing.assert_array_equal(train(tmp_path / "run").numbers, alone[1].numbers)


def test_a_run_is_refused_where_another_one_is(run):
    with lock.RunLock(run):
        before = (run / "run.lock").read_bytes()
        with pytest.raises(BusyError, match=f"in use by another run, process {os.getpid()} on "):
            train(run)
        assert (run / "run.lock").read_bytes() == before and saved(run) == ["2", "4"]
    train(run)
    assert not (run / "run.lock").exists()


def test_a_run_whose_folder_was_taken_over_saves_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_EVERY", 3600.0)
    report = reporting.Reporter.train
    other = {"host": "elsewhere", "pid": 77, "token": "other"}

    def taken_at_3(self, step, metrics):
        if step == 3:
            (tmp_path / "run" / "run.lock").write_text(json.dumps(other))
        return report(self, step, metrics)

    monkeypatch.setattr(reporting.Reporter, "train", taken_at_3)
    with pytest.raises(BusyError, match="taken over by another run, process 77 on host elsewhere"):
        train(tmp_path / "run")
    assert saved(tmp_path / "run") == ["2"]
    assert json.loads((tmp_path / "run" / "run.lock").read_text()) == other
    assert not (tmp_path / "run" / "numbers.npy").exists()


@pytest.mark.parametrize("how, good", [("full", "step 4"), ("gone", "none yet")])
def test_a_run_whose_last_save_failed_says_so_and_names_the_last_good_one(
    run, monkeypatch, how, good
):
    report, of_folder = reporting.Reporter.train, digests.of_folder

    def full(folder):
        if folder.name.startswith("6"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return of_folder(folder)

    def gone(self, step, metrics):
        if step == 6:
            (run / "checkpoints").rename(run / "away")
            (run / "checkpoints").write_text("")
        return report(self, step, metrics)

    if how == "full":
        monkeypatch.setattr(digests, "of_folder", full)
    else:
        monkeypatch.setattr(reporting.Reporter, "train", gone)
    before = set(threading.enumerate())
    with pytest.raises(OSError, match=f"of step 6, could not be saved .*last good one is {good}"):
        train(run)
    assert (run / "numbers.npy").exists(), "it is exported nevertheless"
    idle = ("asyncio_", "metadata_store_")  # of pools, which end with the program
    new = [t for t in set(threading.enumerate()) - before if not t.name.startswith(idle)]
    deadline = time.monotonic() + 5
    while (left := [t.name for t in new if t.is_alive()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "what waits would keep the program from ending"


def test_what_killed_runs_were_writing_is_removed_by_the_next(alone, run):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left = [".config.json.{}.part", ".metrics.jsonl.{}.part", "checkpoints/4/.digests.json.{}.part"]
    for name in left:
        (run / name.format(dead.pid)).write_text("{")
    (run / left[0].format(os.getpid())).write_text("{")  # a container's processes share their ids
    others = [run / left[0].format(os.getppid()), run / ".notes.part"]
    for path in others:
        path.write_text("{")
    np.testing.assert_array_equal(train(run).numbers, alone[1].numbers)
    assert sorted(run.rglob(".*.part")) == sorted(others)


BAD_LINES = [
    b"\xff\x00\x80",
    b"{'step': 1}",
    b"[1, 2]",
    b"5",
    b'{"loss": 1.0}',
    b'{"step": NaN, "loss": 1.0}',
    b'{"step": "3"}',
    b'{"step": 2, "loss": "low"}',
    b'{"step": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
]


def test_lines_that_are_no_metrics_are_set_aside(alone, run, capsys):
    content = (run / "metrics.jsonl").read_bytes().splitlines()
    mixed = [line for pair in zip(BAD_LINES, content * 2, strict=False) for line in pair]
    (run / "metrics.jsonl").write_bytes(
        b"\n".join(mixed[:12] + BAD_LINES[6:]) + b'\n{"step": 4, "l'
    )
    assert main(["curves", str(run), str(run.parent / "curves.png")]) == 0, capsys.readouterr().err
    train(run)
    assert [r["step"] for r in lines(run)] == list(range(1, 7))
    assert (run / "metrics-damaged.jsonl").read_bytes().split(b"\n") == [*BAD_LINES, b""]
    train(run, steps=8)
    assert (run / "metrics-damaged.jsonl").read_bytes().split(b"\n") == [*BAD_LINES, b""]


def program(workdir, *options):
    """The command that trains, and the log that it writes into."""
    words = ["-m", "odvae_jax", "train", f"--config={ROOT}/tests/training/counting.py"]
    words = [sys.executable, *words, f"--workdir={workdir}", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.full
def test_of_two_commands_in_one_folder_the_second_ends_at_once(tmp_path):
    with program(tmp_path / "run", "--config.blocks_at=4") as first:
        assert first.stdout.readline() == "blocked\n", first.stderr.read()
        with program(tmp_path / "run") as second:
            said = second.communicate(timeout=60)[1]
        assert second.returncode == 1
        assert said.startswith("odvae train: ") and len(said.splitlines()) == 1
        assert f"in use by another run, process {first.pid} on host" in said
        first.kill()
        first.communicate()
    with program(tmp_path / "run") as third:
        said = third.communicate(timeout=60)[1]
    assert third.returncode == 0, said
    assert f"was held by process {first.pid} on host" in said and "taken over" in said


def two(workdir, *options):
    """Begins the two processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator=localhost:{free.getsockname()[1]}"
    each = [(address, "--processes=2", f"--process={i}") for i in range(2)]
    return [program(workdir, *words, *options) for words in each]


def ended(processes):
    """The statuses of processes, and what each said."""
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


@pytest.mark.full
def test_two_processes_are_refused_together_and_go_on_from_the_same_checkpoint(run):
    flipped(run / "checkpoints" / "4")
    with lock.RunLock(run):
        statuses, said = ended(two(run))
    assert statuses == [1, 1], said
    (last,) = {text.splitlines()[-1] for text in said}
    assert "in use by another run" in last
    statuses, said = ended(two(run))
    assert statuses == [0, 0], said
    assert "continuing from step 2" in said[0]
    assert [name[:9] for name in saved(run)] == ["2", "4", "6", "damaged-4"]
    assert not (run / "run.lock").exists()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes that nothing disturbed have exported."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    statuses, said = ended(two(workdir))
    assert statuses == [0, 0], said
    return np.load(workdir / "numbers.npy")


def goes_on_as(undisturbed, workdir):
    statuses, said = ended(two(workdir))
    assert statuses == [0, 0], said
    np.testing.assert_array_equal(np.load(workdir / "numbers.npy"), undisturbed)
    assert [r["step"] for r in lines(workdir)] == list(range(1, 7))
    assert [r["skipped_steps"] for r in lines(workdir)] == [0] * 6


@pytest.mark.full
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("log_every", [1, 100])
def test_the_data_of_one_of_two_processes_costs_no_step(together, tmp_path, which, log_every):
    workdir, start = tmp_path / "run", time.monotonic()
    often = [f"--config.log_every={log_every}", "--config.checkpoint_every=100"]
    statuses, said = ended(two(workdir, "--config.fails_at=4", f"--config.only_in={which}", *often))
    assert statuses == [1, 1], said
    assert time.monotonic() - start < 60
    assert said[which].splitlines()[-1].endswith("workers died 4 times; give the run more memory")
    assert "another process of this run failed" in said[1 - which].splitlines()[-1]
    assert saved(workdir) == ["3"] and not (workdir / "run.lock").exists()
    assert lines(workdir)[-1]["step"] == 3
    if log_every == 1:
        goes_on_as(together, workdir)


@pytest.mark.full
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_while_one_of_two_processes_waits_for_data_costs_no_step(
    together, tmp_path, which
):
    workdir = tmp_path / "run"
    each = two(workdir, "--config.blocks_at=4", f"--config.only_in={which}")
    assert "blocked\n" in each[which].stdout  # and other lines before
    time.sleep(1)
    start = time.monotonic()
    for process in each:
        process.send_signal(signal.SIGTERM)
    statuses, said = ended(each)
    assert statuses == [0, 0], said
    assert time.monotonic() - start < 15
    assert saved(workdir) == ["2", "3"] and (workdir / "numbers.npy").exists()
    goes_on_as(together, workdir)


@pytest.mark.full
@pytest.mark.parametrize("stands_in", ["", "no"])
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path, stands_in):
    workdir = tmp_path / "run"
    options = ["--config.steps=1000000", "--config.checkpoint_every=1000000"]
    each = two(workdir, f"--{stands_in}config.stands_in", *options)
    deadline = time.monotonic() + 60
    while not (workdir / "metrics.jsonl").exists() or not lines(workdir):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    each[1].send_signal(signal.SIGTERM)
    statuses, said = ended(each)
    assert statuses == [0, 0], said
    (step,) = saved(workdir)
    assert lines(workdir)[-1]["step"] == int(step)
    assert f"stopped after step {step};" in said[0]
    assert [r["step"] for r in lines(workdir)] == list(range(1, int(step) + 1))


@pytest.mark.full
@pytest.mark.parametrize("which", [0, 1])
def test_feeds_without_a_stand_in_end_both_processes_and_keep_the_last_checkpoint(
    together, tmp_path, which
):
    workdir, start = tmp_path / "run", time.monotonic()
    options = ("--config.fails_at=4", f"--config.only_in={which}", "--noconfig.stands_in")
    statuses, said = ended(two(workdir, *options))
    assert statuses[which] == 1 and statuses[1 - which] != 0, said
    assert time.monotonic() - start < 60
    assert saved(workdir) == ["2"]
    goes_on_as(together, workdir)


SLOW_SOURCE = """
import os
import time
from odvae_jax.data.sources.files import Files
from odvae_jax.data.sources.parsing import SOURCES
from odvae_jax.data.video import find_videos
from tests.two_levels import get_config

reads = 0

class Blocking(Files):
    def frames(self, *arguments):
        global reads
        reads += 1
        if reads > 24:
            os.write(1, b"blocked\\n")  # whole, though several threads write
            time.sleep(1e6)
        return super().frames(*arguments)

def open_blocking(text, **options):
    return Blocking([(path, None, None) for path in find_videos(text)])

SOURCES["blocking:"] = open_blocking
"""


@pytest.mark.full
@pytest.mark.parametrize("seconds", [0, 2])
def test_a_source_that_blocks_keeps_no_run_from_ending(videos, tmp_path, seconds):
    """A signal ends it, or without one the limit for a read."""
    (tmp_path / "slow.py").write_text(SLOW_SOURCE)
    fields = tiny(videos, steps=100, batch_size=4, validate_every=0, checkpoint_every=1000)
    words = given(fields, tmp_path / "run")[3:]
    words = [w for w in words if "data.path" not in w and "read_timeout" not in w]
    words = [sys.executable, "train.py", f"--config={tmp_path}/slow.py", *words]
    words += [f"--config.data.path=blocking:{videos}", f"--config.data.read_timeout={seconds}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
    ) as process:
        assert process.stdout.readline() == "blocked\n", (tmp_path / "log").read_text()
        done = []
        while not seconds and len(done) < 2:  # the batches that were read ahead
            done = lines(tmp_path / "run") if (tmp_path / "run/metrics.jsonl").exists() else []
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        time.sleep(3)
        start = time.monotonic()
        if not seconds:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
        took = time.monotonic() - start
    said = (tmp_path / "log").read_text()
    assert process.returncode == (1 if seconds else 0), said
    (step,) = saved(tmp_path / "run")
    assert int(step) == lines(tmp_path / "run")[-1]["step"] >= 2
    assert (tmp_path / "run" / "model").exists() == (not seconds)
    assert seconds or took < 15, said
    assert "Traceback" not in said
