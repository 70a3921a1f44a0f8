"""Data workers that are killed, and reads that block."""

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odvae_jax.data import processes
from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.inspection import survey
from odvae_jax.data.packing import pack_videos
from odvae_jax.data.processes import InOrder, WorkerError
from odvae_jax.data.sources import SOURCES, Sampling, Source, open_source
from odvae_jax.data.video import FrameBlocks, VideoError, VideoReader, inspect_video
from tests.conftest import write_clip

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_clip(path / f"clip{i}.mp4", frames=8 + i, height=32, width=32, seed=i)
    return path


def children():
    """The processes that this one started, and that live."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(status.parent.name))
    return sorted(found)


def taken(feed, count):
    return [batch.copy() for batch in itertools.islice(feed, count)]


@pytest.mark.parametrize("sent", ["SIGKILL", *[pytest.param("SIGSEGV", marks=pytest.mark.full)]])
def test_the_clips_are_the_same_when_a_worker_is_killed(folder, caplog, sent):
    clips = RandomClips(folder, frames=5, size=32)
    with contextlib.closing(batches(clips, 3)) as feed:
        undisturbed = taken(feed, 40)
    with contextlib.closing(batches(clips, 3, workers=2, threads=2)) as feed:
        disturbed = taken(feed, 3)
        workers = children()
        assert len(workers) == 2
        os.kill(workers[0], getattr(signal, sent))
        began = time.monotonic()
        disturbed += taken(feed, 37)
        assert time.monotonic() - began < 20
        assert len(children()) == 2
    for one, other in zip(undisturbed, disturbed, strict=True):
        np.testing.assert_array_equal(one, other)
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sent in message and "1 of 3 times within an hour" in message
    assert ("out of memory" in message) == (sent == "SIGKILL")
    assert "fewer config.data.workers" in message and "odvae data pack" in message
    assert not children(), "closing ends them"


def registered(monkeypatch, read, count=4, size=16):
    """A source `odd:` of a few videos of 9 frames; `read(index)` is called before each read."""

    class Odd(Source):
        def __len__(self):
            return count

        def name(self, index):
            return f"odd {index}"

        def rate(self, index):
            return 10.0

        def frames(self, index, sampling, stride, where):
            read(index)
            where(9 - (sampling.frames - 1) * stride)
            return [np.full((size, size, 3), 10 * index, np.uint8)] * sampling.frames

    monkeypatch.setitem(SOURCES, "odd:", lambda text, in_memory: Odd())
    return "odd:"


def test_workers_that_keep_dying_end_with_advice(monkeypatch, caplog):
    def read(index):
        import os

        os.kill(os.getpid(), 9)

    clips = RandomClips(registered(monkeypatch, read), frames=2, size=16)
    with contextlib.closing(batches(clips, 2, workers=1, threads=2)) as feed:
        with pytest.raises(
            WorkerError,
            match=r"died 4 times within an hour.*SIGKILL.*memory.*odd \d \([23] times\).*fewer",
        ):
            next(feed)
        with pytest.raises((WorkerError, StopIteration)):
            next(feed)
    assert sum("started again" in r.getMessage() for r in caplog.records) == 3
    assert not children()


def test_workers_that_cannot_be_started_end_with_the_reason(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    clips = RandomClips(folder, frames=2, size=16)
    reason = r"could not be started .*No such file"
    feed = batches(clips, 2, workers=1)
    with contextlib.closing(feed), pytest.raises(WorkerError, match=reason):
        next(feed)
    with pytest.raises(WorkerError, match=r"3 processes .*could not be started"):
        survey(str(folder), workers=2)
    with pytest.raises(WorkerError, match=r"3 processes .*could not be started"):
        pack_videos(str(folder), tmp_path / "packed", workers=2)


def test_a_video_that_kills_its_process_is_named_and_the_others_are_packed(monkeypatch, tmp_path):
    died = str(tmp_path / "died")

    def read(index):
        import os

        once = index == 1 and not os.path.exists(died)
        if once:
            open(died, "w").close()
        if index == 2 or once:
            os.kill(os.getpid(), 9)

    text = registered(monkeypatch, read)
    packing = pack_videos(text, tmp_path / "packed", kind="raw", short_side=16, workers=2)
    assert set(packing.unusable) == {"odd 2"}, "video 1 was only there when a process was killed"
    assert "SIGKILL" in packing.unusable["odd 2"] and "twice" in packing.unusable["odd 2"]
    packed = open_source(f"array_record:{tmp_path / 'packed'}")
    frames = [packed.frames(i, Sampling(1), 1, lambda n: 0)[0] for i in range(len(packed))]
    assert [int(frame.max()) for frame in frames] == [0, 10, 30]
    report = survey(text, workers=2)
    assert report.usable == 3 and "SIGKILL" in report.unusable["odd 2"]


def killing(sent):
    """What reads a video and dies of video 3 by such a signal."""

    def read(index):
        import ctypes
        import os

        if index == 3:
            ctypes.string_at(0) if sent == "SIGSEGV" else os.kill(os.getpid(), 9)

    return read


def broken(index):
    if index == 3:
        raise VideoError("broken")


@pytest.mark.parametrize("sent", ["SIGKILL", pytest.param("SIGSEGV", marks=pytest.mark.full)])
def test_a_video_that_kills_workers_is_named_and_passed_over_like_a_broken_one(
    monkeypatch, caplog, sent
):
    clips = RandomClips(registered(monkeypatch, broken, 10), frames=2, size=16)
    with contextlib.closing(batches(clips, 2, threads=1)) as feed:
        undisturbed = taken(feed, 60)
    clips = RandomClips(registered(monkeypatch, killing(sent), 10), frames=2, size=16)
    with contextlib.closing(batches(clips, 2, workers=2, threads=1)) as feed:
        disturbed = taken(feed, 60)
    np.testing.assert_array_equal(np.stack(disturbed), np.stack(undisturbed))
    ((name, reason),) = clips.skipped.items()
    assert name == "odd 3"
    assert reason.startswith("odd 3 cannot be used: a process that read it twice was ") and (
        sent in reason
    )
    assert any(f"skipped (1 so far): {reason}" == r.getMessage() for r in caplog.records)


@pytest.mark.full
def test_a_video_that_kills_workers_counts_as_unusable_and_uses_up_no_restarts(monkeypatch):
    text = registered(monkeypatch, killing("SIGSEGV"), 10)
    clips = RandomClips(text, frames=2, size=16)
    with contextlib.closing(batches(clips, 2, workers=2, threads=1)) as feed:
        taken(feed, 60)
        for _ in range(3):
            os.kill(children()[0], signal.SIGKILL)
            taken(feed, 10)
        os.kill(children()[0], signal.SIGKILL)
        with pytest.raises(WorkerError, match="died 4 times"):
            taken(feed, 10)
    strict = RandomClips(text, frames=2, size=16, max_unusable=0.0)
    feed = batches(strict, 2, workers=1, threads=1)
    with (
        contextlib.closing(feed),
        pytest.raises(VideoError, match=r"max_unusable=0.0(.|\n)*odd 3 .*SIGSEGV"),
    ):
        taken(feed, 30)


def blocking(monkeypatch, which, count=4):
    """A source of which some videos block in a read of the system that never returns."""
    reader, writer = os.pipe()

    def read(index):
        if index in which:
            import os

            os.read(reader, 1)

    return registered(monkeypatch, read, count), lambda: os.write(writer, b"0" * 50)


def test_a_read_that_blocks_is_named_and_given_up(monkeypatch, tmp_path):
    text, release = blocking(monkeypatch, {1})
    clips = RandomClips(text, frames=2, size=16, timeout=0.2)
    with contextlib.closing(batches(clips, 4, threads=2)) as feed:
        shown = np.stack(taken(feed, 5))
    assert set(np.unique(shown)) == {0, 20, 30}
    reason = "odd 1 was not read within 0.2 s; is its disk reachable?"
    assert clips.skipped == {"odd 1": reason}
    assert clips.held_out(4).shape[0] == 3
    strict = RandomClips(text, frames=2, size=16, timeout=0.2, max_unusable=0.1)
    with contextlib.closing(batches(strict, 4)) as feed, pytest.raises(VideoError, match=reason):
        taken(feed, 5)
    report = survey(text, timeout=0.2)
    assert (report.usable, report.unusable) == (3, {"odd 1": reason})
    packing = pack_videos(text, tmp_path / "packed", kind="raw", short_side=16, timeout=0.2)
    assert packing.unusable == {"odd 1": reason} and sum(packing.records.values()) == 3
    # The limit given to `batches` counts, and a slow video is no blocked one.
    slow = RandomClips(registered(monkeypatch, lambda index: time.sleep(0.3)), frames=2, size=16,
                       timeout=0.1)  # fmt: skip
    for timeout in (5.0, None):
        with contextlib.closing(batches(slow, 1, threads=1, timeout=timeout)) as feed:
            assert next(feed).shape == (1, 2, 16, 16, 3)
    with contextlib.closing(batches(slow, 1, threads=1)) as feed, pytest.raises(VideoError):
        next(feed)
    release()


def test_opening_a_file_that_blocks_is_given_up(folder, monkeypatch):
    reader, writer = os.pipe()
    path = str(folder / "clip0.mp4")
    monkeypatch.setattr("av.open", lambda *_, **__: os.read(reader, 1))
    for read in (
        lambda: VideoReader(path, timeout=0.2).__enter__(),
        lambda: list(FrameBlocks(path, 4, timeout=0.2)),
        lambda: inspect_video(path, timeout=0.2),
        lambda: RandomClips(path, frames=2, size=16, timeout=0.2)[0],
    ):
        with pytest.raises(VideoError, match=r"clip0.mp4 was not read within 0.2 s; is its disk"):
            read()
    os.write(writer, b"0" * 9)


def test_a_disk_that_is_gone_ends_the_run_after_a_few_reads(monkeypatch):
    text, release = blocking(monkeypatch, set(range(100)), 100)
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"no usable video for clip 0 in 5 draws(.|\n)*reachable"):
        RandomClips(text, frames=2, size=16, timeout=0.1)[0]
    assert time.monotonic() - began < 5
    release()


BLOCKED = """
import logging, os, sys, threading, time
import numpy as np
from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.data.sources import SOURCES, Source

class Blocked(Source):
    def __len__(self):
        return 1
    def name(self, index):
        return "blocked"
    def rate(self, index):
        return 1.0
    def frames(self, *_):
        os.read(os.pipe()[0], 1)

SOURCES["blocked:"] = lambda text, in_memory: Blocked()
workers, closed = int(sys.argv[1]), sys.argv[2] == "closed"
clips = RandomClips("blocked:", frames=1, size=16)
feed = batches(clips, 2, workers=workers, threads=2)
waiting = threading.Thread(target=lambda: print("next", list(feed)), daemon=True)
waiting.start()
time.sleep(0.5 + workers)
start = time.monotonic()
if closed:
    feed.close()
    waiting.join()
    print("closed", time.monotonic() - start < 5)
print("end", time.time(), flush=True)
"""


@pytest.mark.parametrize(
    "workers, closed",
    [
        (0, "closed"),
        (1, "closed"),
        pytest.param(0, "left", marks=pytest.mark.full),
        pytest.param(1, "left", marks=pytest.mark.full),
    ],
)
def test_closing_and_the_end_of_the_program_wait_for_no_blocked_read(tmp_path, workers, closed):
    script = tmp_path / "script.py"
    script.write_text(BLOCKED)
    command = [sys.executable, str(script), str(workers), closed]
    run = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)
    ended, words = time.time(), run.stdout.split()
    assert run.returncode == 0 and not run.stderr, run.stderr
    assert closed == "left" or words[:4] == ["next", "[]", "closed", "True"], run.stdout
    assert ended - float(words[words.index("end") + 1]) < 5


def test_only_regular_files_are_taken_for_videos(tmp_path, monkeypatch, caplog):
    videos = tmp_path / "videos"
    (videos / "in").mkdir(parents=True)
    good = write_clip(tmp_path / "good.mp4", frames=6, height=32, width=32)
    (videos / "link.mp4").symlink_to(good)
    os.mkfifo(videos / "fifo.mp4")
    (videos / "nowhere.mp4").symlink_to("gone.mp4")
    (videos / "loop.mp4").symlink_to("loop.mp4")
    (videos / "device.mp4").symlink_to("/dev/zero")
    (videos / "in" / "back").symlink_to(videos)
    monkeypatch.chdir(videos)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.mp4")
    source = open_source("folder:.")
    assert [source.name(i) for i in range(len(source))] == ["link.mp4"]
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith("5 of 6 videos below . are left out: they are no regular files")
    for name, what in {"fifo": "a named pipe", "socket": "a socket", "device": "a device"}.items():
        with pytest.raises(ValueError, match=rf"{name}.mp4 is {what}; expected a regular file"):
            open_source(f"{name}.mp4")
        for read in (inspect_video, lambda p: VideoReader(p).__enter__(),
                     lambda p: list(FrameBlocks(p, 4))):  # fmt: skip
            with pytest.raises(VideoError, match=rf"{name}.mp4 is {what}"):
                read(f"{name}.mp4")
    for name in ("nowhere", "loop"):
        with pytest.raises(FileNotFoundError, match=f"{name}.mp4 does not exist"):
            open_source(f"{name}.mp4")
    os.mkfifo("list.csv")
    os.mkfifo("shard.array_record")
    for text in ("list.csv", "array_record:shard.array_record", "images:fifo.mp4"):
        with pytest.raises(ValueError, match="is a named pipe; expected a regular file"):
            open_source(text)
    os.mkdir("packed")
    os.mkfifo("packed/shard.array_record")
    with pytest.raises(ValueError, match="is a named pipe"):
        open_source("array_record:packed")
    listener.close()


def test_a_file_that_becomes_a_pipe_after_it_was_found_does_not_block(tmp_path):
    for i in range(2):
        write_clip(tmp_path / f"{i}.mp4", frames=6, height=32, width=32)
        Image.new("RGB", (32, 32)).save(tmp_path / f"{i}.png")
    videos = RandomClips(tmp_path, frames=2, size=32)
    pictures = RandomClips(f"images:{tmp_path}", frames=1, size=32)
    for name in ("0.mp4", "0.png"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    began = time.monotonic()
    for clips in (videos, pictures):
        assert all(clips[i] is not None for i in range(4))
        (reason,) = clips.skipped.values()
        assert "is a named pipe; expected a regular file" in reason
    assert time.monotonic() - began < 5


STOPPED = """
import os, sys
from odvae_jax.data.clips import RandomClips
from odvae_jax.data.sources import SOURCES, Source
import numpy as np

class Slow(Source):
    def __len__(self):
        return 1
    def name(self, index):
        return "slow"
    def rate(self, index):
        return 1.0
    def frames(self, *_):
        print("reading", flush=True)
        os.read(0, 1)
        return [np.zeros((16, 16, 3), np.uint8)]

SOURCES["slow:"] = lambda text, in_memory: Slow()
print(RandomClips("slow:", frames=1, size=16, timeout=2.0)[0].shape[0])
"""


@pytest.mark.full
def test_a_program_that_was_stopped_does_not_give_up_what_it_was_reading():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", STOPPED], env=ENV, bufsize=0, **pipes) as process:
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.stdin.write(b"0")
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == b"1\n", process.stderr.read()


INTERRUPTED = """
import random, signal, sys
from odvae_jax.data.video import FrameBlocks, VideoReader, inspect_video, read_frames

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
path, wanted = sys.argv[1], int(sys.argv[2])
info = inspect_video(path)
random.seed(0)
count = 0
while count < wanted:
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
    try:
        if count % 3 == 0:
            read_frames(info, 0, info.frames)
        elif count % 3 == 1:
            with VideoReader(path, threads=count % 2) as video:
                for _ in video.frames_in_order(None):
                    pass
        else:
            list(FrameBlocks(path, 8))
    except KeyboardInterrupt:
        count += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
print("interrupted", count)
"""


@pytest.mark.parametrize("times", [12, pytest.param(600, marks=pytest.mark.full)])
def test_reads_can_be_interrupted_at_any_time(tmp_path, times):
    path = write_clip(tmp_path / "clip.mp4", frames=120, height=144, width=176)
    command = [sys.executable, "-c", INTERRUPTED, str(path), str(times)]
    run = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)
    assert (run.returncode, run.stdout) == (0, f"interrupted {times}\n"), run.stderr


WAITS = """
import random, signal, sys
from odvae_jax.data.processes import InOrder

signal.signal(signal.SIGALRM, signal.default_int_handler)
count = 0
for _ in range(int(sys.argv[1])):
    results = InOrder(
        lambda _, job: sum(range(300)), None, range(10**9), workers=0, threads=16, ahead=40
    )
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-3, 8e-3))
        for _ in results:
            pass
    except KeyboardInterrupt:
        count += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    results.close()
print("interrupted", count)
"""


@pytest.mark.parametrize("times", [100, pytest.param(2000, marks=pytest.mark.full)])
def test_waiting_for_results_can_be_interrupted_at_any_time(times):
    command = [sys.executable, "-c", WAITS, str(times)]
    run = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=300)
    assert (run.returncode, run.stdout) == (0, f"interrupted {times}\n"), run.stderr


def test_several_threads_that_ask_get_each_result_once_and_all_end():
    results = InOrder(lambda _, job: job, None, range(3000), workers=0, threads=4, ahead=8)
    got = [[] for _ in range(3)]
    asking = [threading.Thread(target=part.extend, args=[results], daemon=True) for part in got]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert not any(thread.is_alive() for thread in asking)
    assert sorted(itertools.chain(*got)) == list(range(3000))
    assert all(part == sorted(part) for part in got)


def test_results_come_while_the_next_job_is_long_in_coming():
    asked, in_time = threading.Event(), []

    def jobs():
        yield from (1, 2)
        in_time.append(asked.wait(20))
        yield 3

    results = InOrder(
        lambda _, job: 10 * job, None, jobs(), workers=0, threads=2, ahead=8, lost=None
    )
    with contextlib.closing(results):
        assert [next(results), next(results)] == [10, 20]
        asked.set()
        assert list(results) == [30]
    assert in_time == [True]


@pytest.mark.parametrize("seed", range(4))
def test_many_threads_and_few_jobs_at_a_time_lose_no_job(seed):
    rng = np.random.default_rng(seed)
    count, (threads, ahead) = 400, rng.integers(1, 40, 2)
    pauses = rng.exponential(2e-4, (3, count)) * rng.integers(0, 2, (3, 1))  # none, for some seeds

    def jobs():
        for job, pause in enumerate(pauses[0]):
            time.sleep(pause)
            yield job

    def double(_, job):
        time.sleep(pauses[1, job])
        return 2 * job

    results = InOrder(double, None, jobs(), workers=0, threads=int(threads), ahead=int(ahead))
    doubled: list[int] = []

    def take():
        for result, pause in zip(results, pauses[2], strict=True):
            doubled.append(result)
            time.sleep(pause)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(30)
    results.close()
    assert doubled == [2 * job for job in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_jobs_whose_processes_die_are_done_alone_and_none_is_lost(seed):
    count, threads = 300, 12
    tasks = processes._Tasks(iter(range(count)), 20, lost=lambda job, reason, read: (job, reason))
    active, not_alone, lock = [], [], threading.Lock()

    def lane(number):
        rng = np.random.default_rng([seed, number])
        while (task := tasks.take()) is not None:
            with lock:
                active.append(task)
            time.sleep(rng.exponential(1e-4))
            with lock:
                if task.suspect and len(active) > 1:
                    not_alone.append(task.job)
                active.remove(task)
            if rng.random() < 0.2:
                tasks.died(task, bool(rng.integers(2)), "died", None)
            else:
                tasks.done(task, True, task.job)

    lanes = [threading.Thread(target=lane, args=(i,), daemon=True) for i in range(threads)]
    results: list = []

    def take():
        with contextlib.suppress(StopIteration):
            while True:
                results.append(tasks.next_result())

    taking = threading.Thread(target=take, daemon=True)
    for thread in (*lanes, taking):
        thread.start()
    taking.join(30)
    tasks.end()
    given_up = {job: (job, "a process that read it twice died") for job in range(count)}
    assert len(results) == count and not not_alone
    assert all(r in (job, given_up[job]) for job, r in enumerate(results))
    assert any(r == given_up[job] for job, r in enumerate(results))
    for thread in lanes:
        thread.join(5)
        assert not thread.is_alive()
