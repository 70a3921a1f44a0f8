"""Folders in which files appear complete or not at all."""

import os
import subprocess
import sys
from pathlib import Path

from odvae_jax.latents.storage import open_folder

ROOT = Path(__file__).parents[2]
DIES = """
import os, signal, sys
from odvae_jax.latents.storage import open_folder

folder = open_folder(sys.argv[1])
folder.write("a/whole", b"1")
folder.scratch("a/half").write_bytes(b"2")
os.kill(os.getpid(), signal.SIGKILL)
"""


def hidden(path):
    return [p for p in path.rglob("*") if p.name.startswith(".")]


def test_what_the_dead_left_is_removed_and_what_the_living_write_stays(tmp_path):
    folder = open_folder(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], env=environment)
    (half,) = hidden(tmp_path)
    path = folder.scratch("a/other")
    open_folder(tmp_path).tidy()
    assert hidden(tmp_path) == [path] != [half]
    path.write_bytes(b"3")
    folder.take("a/other", path)
    assert folder.names() == ["a/other", "a/whole"]
    assert folder.read("a/other") == b"3"
    assert not hidden(tmp_path)


def test_what_another_machine_left_is_removed_after_a_day(tmp_path):
    path = tmp_path / ".shard.elsewhere.1234.part"
    path.write_bytes(b"half")
    open_folder(tmp_path).tidy()
    assert path.exists(), "a lock of another machine need not be seen here"
    os.utime(path, (0, 0))
    open_folder(tmp_path).tidy()
    assert not path.exists()
