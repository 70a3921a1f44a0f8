"""Files that appear whole or not at all, under writers that race and names that are odd."""

import errno
import fcntl
import multiprocessing
import os
import time

import pytest

from odvae_jax import digests
from odvae_jax.files import BusyError, WholeFile, counted, one_line, part_of, printable, write_whole

_SIZE = 4096


def _write_over_and_over(path, until):
    letter = os.getpid() % 250
    while time.monotonic() < until:
        try:
            whole = WholeFile(path)
        except BusyError:
            continue
        whole.file.write(bytes([letter]) * _SIZE)
        whole.finish()


def test_readers_see_only_whole_files_while_two_processes_write(tmp_path):
    path = tmp_path / "file"
    until = time.monotonic() + 1.5
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_over_and_over, args=(path, until)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads, torn = 0, 0
    while time.monotonic() < until:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        reads += 1
        torn += len(content) != _SIZE or len(set(content)) != 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert reads > 100 and torn == 0
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_writer_that_locks_what_the_other_has_just_finished_begins_anew(tmp_path, monkeypatch):
    """The race in slow motion: the file gets its name between opening and locking."""
    path = tmp_path / "file"
    first = WholeFile(path)
    first.file.write(b"finished")
    flock = fcntl.flock

    def late(*arguments):
        if not first.file.closed:
            first.finish()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    second = WholeFile(path)
    assert path.read_bytes() == b"finished"
    second.close()
    assert path.read_bytes() == b"finished"


def test_on_disks_without_locks_each_writer_s_file_is_whole(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", cannot)
    path = tmp_path / "file"
    first, second = WholeFile(path), WholeFile(path)
    first.file.write(b"1" * 9)
    second.file.write(b"2" * 5)
    first.finish()
    assert path.read_bytes() == b"1" * 9
    second.finish()
    assert path.read_bytes() == b"2" * 5
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_was_removed_while_it_was_written_does_not_get_its_name(tmp_path):
    whole = WholeFile(tmp_path / "file")
    whole.part.write_bytes(b"another's")
    whole.part.unlink()
    with pytest.raises(OSError, match="removed while it was written"):
        whole.finish()
    whole.close()
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_the_part_file_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    part_of(tmp_path / "file").symlink_to(precious)
    whole = WholeFile(tmp_path / "file")
    whole.file.write(b"new")
    whole.finish()
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()


def test_the_second_of_two_writers_is_told(tmp_path):
    first = WholeFile(tmp_path / "file")
    with pytest.raises(BusyError, match="another process"):
        WholeFile(tmp_path / "file")
    first.close()
    assert not list(tmp_path.iterdir())


def test_names_of_255_bytes_can_be_written(tmp_path):
    path = tmp_path / ("é" * 127 + "x")
    whole = WholeFile(path)
    whole.file.write(b"x")
    assert part_of(path).exists()
    whole.finish()
    assert path.read_bytes() == b"x" and len(list(tmp_path.iterdir())) == 1


def test_a_text_file_that_could_not_be_written_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "\udcff")
    assert not list(tmp_path.iterdir())


def test_any_name_and_any_error_can_be_printed():
    name = os.fsdecode(b"caf\xe9\n.mp4")
    assert printable(name) == "caf\\xe9\\x0a.mp4"
    assert one_line(ValueError(f"{name} is odd")).isprintable()
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 9999))) == 500


def test_what_is_counted_is_singular_for_one_alone():
    assert [counted(n, "file") for n in (0, 1, 2, -1)] == [
        "0 files",
        "1 file",
        "2 files",
        "-1 files",
    ]
    assert counted(1, "video was", "videos were") == "1 video was"
    assert counted(3, "video was", "videos were") == "3 videos were"


def test_every_kind_of_damage_to_a_folder_is_named(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("d/whole", "d/flipped", "d/short", "gone"):
        (tmp_path / name).write_bytes(b"0123456789")
    recorded = digests.of_folder(tmp_path)
    assert digests.differences(tmp_path, recorded) == []
    (tmp_path / "d/flipped").write_bytes(b"0123456788")
    (tmp_path / "d/short").write_bytes(b"01234")
    (tmp_path / "gone").unlink()
    assert digests.differences(tmp_path, recorded) == [
        "d/flipped has changed bytes",
        "d/short has 5 bytes, not 10",
        "gone is missing",
    ]
    assert digests.of_file(tmp_path / "d/whole") == digests.of_bytes(b"01234", b"56789")
