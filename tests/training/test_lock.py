"""One run at a time in a folder; who died does not keep the next one out."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from odvae_jax.files import BusyError
from odvae_jax.training import lock
from odvae_jax.training.lock import LOCK_FILE, RunLock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits a tenth of a second where runs wait for seconds."""
    for name, seconds in (("RENEW_EVERY", 0.05), ("WAIT", 0.5), ("LOOK_EVERY", 0.02)):
        monkeypatch.setattr(lock, name, seconds)
    monkeypatch.setattr(lock, "SETTLE", 0.1)


def written(folder):
    return json.loads((folder / LOCK_FILE).read_text())


def elsewhere(folder, **fields):
    """The lock of a run on another host."""
    folder.mkdir(exist_ok=True)
    holder = {"host": "elsewhere", "boot": "b", "pids": "p", "pid": 77, "token": "t", **fields}
    (folder / LOCK_FILE).write_text(json.dumps(holder))


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path):
    with RunLock(tmp_path / "run"):
        with pytest.raises(BusyError) as error, RunLock(tmp_path / "run"):
            pass
        assert f"process {os.getpid()} on host {os.uname().nodename}" in str(error.value)
        assert "\n" not in str(error.value)
        assert written(tmp_path / "run")["pid"] == os.getpid(), "the first one still holds it"
    assert not (tmp_path / "run").exists(), "nothing was written, so nothing is left"


def test_the_lock_goes_away_after_an_error_and_what_was_written_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "file").write_text("kept")
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "a" / "run").iterdir()] == ["file"]


def test_the_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(lock, "WAIT", 60.0)
    with RunLock(tmp_path):
        mine = written(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        child.kill()
        child.wait()
    gone = {**mine, "pid": child.pid, "token": "gone"}
    reused = {**mine, "started": mine["started"] - 1, "token": "reused"}
    for holder in (gone, reused):
        (tmp_path / LOCK_FILE).write_text(json.dumps(holder))
        start = time.monotonic()
        with RunLock(tmp_path):
            assert time.monotonic() - start < 30, "it waited"
        assert f"process {holder['pid']} on host" in caplog.text
        assert "is taken over" in caplog.text
        caplog.clear()


def test_a_process_of_this_host_that_is_stopped_still_holds_its_lock(tmp_path):
    program = "import sys; from pathlib import Path; from odvae_jax.training.lock import RunLock\n"
    program += "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == b"held\n"
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(BusyError, match=f"process {child.pid} "), RunLock(tmp_path / "run"):
            pass
        child.kill()
        child.wait()
        with RunLock(tmp_path / "run"):
            assert written(tmp_path / "run")["pid"] == os.getpid()


def test_a_run_on_another_host_that_moves_is_not_disturbed(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 60.0)
    elsewhere(tmp_path)
    ended = threading.Event()

    def renew():
        for count in range(1000):
            if ended.wait(0.2):
                return
            elsewhere(tmp_path, renewed=count)

    mover = threading.Thread(target=renew)
    mover.start()
    try:
        with pytest.raises(BusyError, match="process 77 on host elsewhere"), RunLock(tmp_path):
            pass
    finally:
        ended.set()
        mover.join()
    assert written(tmp_path)["host"] == "elsewhere"
    assert "waiting up to 60 s for a sign of its life" in caplog.text


@pytest.mark.parametrize("content", ["stale", "empty", "binary", "a list"])
def test_a_lock_that_does_not_move_is_taken_over_after_the_wait(tmp_path, caplog, content):
    elsewhere(tmp_path)
    if content != "stale":
        bad = {"empty": b"", "binary": b"\xff\0\x80", "a list": b"[1]"}
        (tmp_path / LOCK_FILE).write_bytes(bad[content])
    start = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - start >= 0.5
        assert written(tmp_path)["pid"] == os.getpid()
    assert "has shown no sign of life for 0.5 s; its lock is taken over" in caplog.text
    assert not any(tmp_path.iterdir())


def test_of_many_that_wait_for_the_same_lock_one_gets_it(tmp_path):
    elsewhere(tmp_path)
    had, refused, done = [], [], threading.Event()

    def wait():
        try:
            with RunLock(tmp_path):
                had.append(1)
                done.wait(10)
        except BusyError as error:
            refused.append(str(error))

    waiters = [threading.Thread(target=wait) for _ in range(8)]
    for waiter in waiters:
        waiter.start()
    deadline = time.monotonic() + 10
    while len(had) + len(refused) < len(waiters) and time.monotonic() < deadline:
        time.sleep(0.02)
    done.set()
    for waiter in waiters:
        waiter.join()
    assert (len(had), len(refused)) == (1, 7)


def becomes(condition):
    """Waits until something is so, however busy the machine is."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_holder_renews_its_lock_and_sees_that_another_has_taken_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 60.0)
    file = tmp_path / LOCK_FILE
    with RunLock(tmp_path) as held:
        first = file.stat().st_mtime_ns
        becomes(lambda: file.stat().st_mtime_ns > first)
        held.check()
        file.unlink()  # by hand: the run goes on, and writes it anew
        held.check()
        becomes(file.exists)
        assert written(tmp_path)["pid"] == os.getpid()
        elsewhere(tmp_path)
        with pytest.raises(BusyError, match="taken over .* process 77 on host elsewhere, .* saves"):
            held.check()
        becomes(lambda: held.lost)
    assert written(tmp_path)["host"] == "elsewhere", "another's lock is left alone"


def test_a_run_on_another_host_whose_disk_is_full_is_not_disturbed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 30.0)
    program = """if True:
        import resource, socket, sys
        from pathlib import Path
        from odvae_jax.training import lock
        socket.gethostname = lambda: "elsewhere"
        lock.RENEW_EVERY = 0.05
        with lock.RunLock(Path(sys.argv[1])):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no byte can be written any more
            print("held", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match=f"process {child.pid} on host elsewhere"):
            RunLock(tmp_path / "run").__enter__()
        child.stdin.close()
        assert child.wait() == 0
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), RunLock(tmp_path / "file" / "run"):
        pass
    assert (tmp_path / "file").read_text() == ""
