"""The loop that encoding, decoding and reconstructing files share, with a made-up computation."""

import errno
import os
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax.data.video import VideoError
from odvae_jax.files import BusyError
from odvae_jax.transcoding import Job, Outcome
from odvae_jax.transcoding.run import Conversion, run_jobs
from odvae_jax.transcoding.settings import AlreadyThereError


class Recorder:
    """Conversions of numbers that note in `events` what happens when.

    Args:
      lengths: the number of blocks of each file, by name.
      broken: after how many blocks a file cannot be read any further.

    Attributes:
      fails: what is raised, by the place: "convert", "open", "read", "compute", "write", "finish"
        or "close".
      where: at which place a file fails, by the name of the file; else its name is the place.
    """

    def __init__(self, lengths, broken=None):
        self.lengths, self.broken = lengths, broken or {}
        self.fails, self.where = {}, {}
        self.events, self.read, self.open = [], dict.fromkeys(lengths, 0), set()

    def __call__(self, job, device):
        name = job.source.name
        self.fail("convert", name)
        return Conversion(
            self.blocks(name),
            lambda blocks: self.compute(name, blocks),
            lambda: Written(self, name),
        )

    def fail(self, place, name):
        if self.where.get(name, name) == place and place in self.fails:
            raise self.fails[place]

    def blocks(self, name):
        for i in range(self.lengths[name]):
            if self.broken.get(name) == i:
                raise VideoError(f"{name} is broken.")
            if i == 2:
                self.fail("read", name)
            self.read[name] += 1
            yield np.full(3, i)

    def compute(self, name, blocks):
        for i, block in enumerate(blocks):
            assert (block == i).all()
            if i == 2:
                self.fail("compute", name)
            self.events.append(("compute", name, i))
            yield jnp.asarray(2 * block)

    def run(self, **options):
        jobs = [Job(Path(name), Path(f"{name}.out")) for name in self.lengths]
        outcome = Outcome()
        try:
            run_jobs(jobs, self, outcome, count_frames=lambda _: None, bar=False, **options)
        finally:
            assert not self.open, "every writer is closed, whatever happens"
        return outcome

    def order(self, kind):
        return [event[1:] for event in self.events if event[0] == kind]


class Written:
    def __init__(self, recorder, name):
        recorder.fail("open", name)
        self.recorder, self.name, self.count = recorder, name, 0
        recorder.open.add(self)

    def write(self, part):
        if self.count == 1:
            self.recorder.fail("write", self.name)
        assert isinstance(part, np.ndarray) and (part == 2 * self.count).all()
        self.recorder.events.append(("write", self.name, self.count))
        self.count += 1
        return 1

    def finish(self):
        self.recorder.fail("finish", self.name)
        self.recorder.events.append(("finish", self.name, self.count))
        return self.count, f"{self.name} is short." if self.name == "short" else ""

    def close(self):
        self.recorder.open.discard(self)
        self.recorder.fail("close", self.name)


def test_the_device_is_given_the_next_block_before_a_result_is_written():
    recorder = Recorder({"a": 4, "b": 1, "c": 3})
    outcome = recorder.run()
    assert (outcome.done, outcome.frames, outcome.problems) == (3, 8, {})
    blocks = [(name, i) for name, count in recorder.lengths.items() for i in range(count)]
    assert recorder.order("write") == recorder.order("compute") == blocks
    for name, i in blocks[1:]:
        if i:
            asked = recorder.events.index(("compute", name, i))
            assert asked < recorder.events.index(("write", name, i - 1))
    finished = recorder.events.index(("finish", "a", 4))
    assert recorder.events.index(("compute", "b", 0)) < finished, "from file to file too"


def test_a_bounded_number_of_blocks_is_read_ahead():
    recorder = Recorder({"a": 50, "b": 50, "c": 50})
    write, most = Written.write, 0

    def checked(writer, part):
        nonlocal most
        if writer.count in (5, 20):
            time.sleep(0.3)  # the threads read as much as they may
        most = max(most, sum(recorder.read.values()) - len(recorder.order("write")))
        return write(writer, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Written, "write", checked)
        recorder.run(readers=2)
    # Per file two in the queue and one in the thread's hand; two more are on the device, two wait
    # to be written, and one is written.
    assert 3 < most <= 2 * 3 + 2 + 2 + 1


def test_a_file_that_breaks_is_noted_and_the_others_are_done():
    recorder = Recorder({"a": 2, "bad": 5, "worse": 5, "short": 1}, broken={"bad": 3, "worse": 0})
    outcome = recorder.run()
    assert outcome.done == 2 and outcome.frames == 3
    assert outcome.problems == {
        "bad": "bad is broken.",
        "worse": "worse is broken.",
        "short": "short is short.",
    }
    assert [name for name, _ in recorder.order("finish")] == ["a", "short"]
    assert [i for name, i in recorder.order("write") if name == "bad"] == [0, 1, 2]


def test_whatever_is_raised_for_one_file_is_noted_and_the_others_are_done():
    """In planning how it is done, opening, reading, computing, writing and finishing."""
    names = ["a", "convert", "open", "read", "compute", "write", "finish", "close", "z"]
    recorder = Recorder(dict.fromkeys(names, 4))
    for error in (TypeError("oh"), RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), OSError(5, "oh no")):
        recorder.fails = {name: error for name in names[1:-1]}
        outcome = recorder.run(readers=3)
        # What cannot be closed was written all the same.
        assert list(outcome.problems) == names[1:-2] and outcome.done == 3
        said = {problem.partition(": ")[0]: problem for problem in outcome.problems.values()}
        assert list(said) == names[1:-2]
        expected = "--tile" if isinstance(error, RuntimeError) else "oh"
        assert all(expected in problem for problem in said.values())
        assert outcome.ended == ""


def test_three_files_in_a_row_that_find_the_disk_full_end_the_run_and_its_threads():
    before = threading.active_count()
    for number in (errno.ENOSPC, errno.EDQUOT):
        recorder = Recorder(dict.fromkeys("abcdefgh", 4))
        full = OSError(number, os.strerror(number))
        recorder.fails = {name: full for name in ("write", "open", "finish")}
        recorder.where = {"b": "write", "c": "open", "e": "open", "f": "write", "g": "finish"}
        outcome = recorder.run()
        assert list(outcome.problems) == ["b", "c", "e", "f", "g"], "d, which was done, counts anew"
        assert outcome.done == 2 and "3 files in a row" in outcome.ended
        assert "2 files were written" in outcome.ended and "\n" not in outcome.ended
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_what_another_process_writes_or_has_written_is_no_problem():
    recorder = Recorder(dict.fromkeys("abc", 2))
    recorder.fails = {"open": BusyError("busy"), "convert": AlreadyThereError()}
    recorder.where = {"a": "open", "b": "convert"}
    outcome = recorder.run()
    assert (outcome.busy, outcome.skipped, outcome.done, outcome.problems) == (1, 1, 1, {})


def test_an_interrupt_ends_the_run_and_leaves_no_writer_open():
    recorder = Recorder(dict.fromkeys("abc", 4))
    recorder.fails, recorder.where = {"write": KeyboardInterrupt()}, {"b": "write"}
    with pytest.raises(KeyboardInterrupt):
        recorder.run()
    assert recorder.order("finish") == [("a", 4)]
