"""Datasets of latents whose videos and shards are at URLs."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.cli import main
from odvae_jax.latents.buckets import Size
from odvae_jax.latents.description import read_description
from odvae_jax.latents.records import unpack_record
from odvae_jax.latents.shards import Limits, read_indices, without_doubles
from odvae_jax.latents.storage import open_folder
from odvae_jax.transcoding import Cut, DatasetSettings, encode_dataset
from odvae_jax.transcoding.units import UnitEncoder
from tests import s3
from tests.conftest import write_clip
from tests.two_levels import CAUSAL

ROOT = Path(__file__).parents[2]
OPTIONS = ("--to=shards", "--buckets=5x16x16", "--hop=4", "--batch=2", "--shard-mb=0.001")


@pytest.fixture(scope="module")
def vae():
    return ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm="frame"))


@pytest.fixture(scope="module")
def saved(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    vae.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_clip(folder / f"{i}.mp4", 12 + 4 * i, 24, 32, seed=i)
    return folder


def upload(folder, url):
    system, path = fsspec.core.url_to_fs(url)
    system.put(f"{folder}/", path, recursive=True)
    return url


@pytest.fixture
def memory():
    fsspec.filesystem("memory").mkdirs("/far", exist_ok=True)
    yield "memory://far"
    fsspec.filesystem("memory").rm("/far", recursive=True)


def encoded(vae, source, dest, run=None, workers=0):
    cut = Cut(buckets=(Size(5, 16, 16),), hop=4)
    how = DatasetSettings(cut, batch=2, workers=workers, limits=Limits(bytes=1000))
    given = {"devices": jax.devices()[:1], "bar": False, "run": run}
    return encode_dataset(vae, "m", str(source), str(dest), how, **given)


def raw(dest):
    """The records that count, by their entries; no shard is damaged, and none lacks its index."""
    folder, found = open_folder(dest), {}
    indices = read_indices(folder)
    assert len(indices) == sum(name.endswith(".array_record") for name in folder.names())
    for index, mask in without_doubles(indices):
        reader = ArrayRecordReader(str(folder.local(f"{index.name}.array_record")))
        for entry, counts, record in zip(index.entries, mask, reader.read_all(), strict=True):
            if counts:
                assert int(entry) not in found
                found[int(entry)] = record
    return found


def latents(dest):
    """The latents by the names of videos, without their folders, and the clips' beginnings."""
    found = {}
    for record in raw(dest).values():
        record = unpack_record(record, "r")
        name = record.header["source"].rsplit("/", 1)[-1]
        found[name, record.header["place"]["start"]] = record.latents
    return found


def agree(dest, other):
    ours, theirs = latents(dest), latents(other)
    assert ours.keys() == theirs.keys()
    for place, value in ours.items():
        np.testing.assert_array_equal(value, theirs[place])
    ours, theirs = (read_description(open_folder(place)) for place in (dest, other))
    assert (ours.records, ours.scale) == (theirs.records, theirs.scale)
    assert ours.records == len(latents(other))
    return True


@pytest.fixture(scope="module")
def near(vae, videos, tmp_path_factory):
    dest = tmp_path_factory.mktemp("near") / "d"
    encoded(vae, videos, dest)
    return dest


def test_in_memory_is_as_on_disk(vae, videos, near, memory):
    source = upload(videos, f"{memory}/videos")
    dest = f"{memory}/latents"
    encoded(vae, source, dest, workers=2)  # which is decoded in the process all the same
    assert agree(dest, near)
    again = encoded(vae, source, dest)
    assert (again.clips, again.there) == (0, again.description.records)


def test_an_upload_that_fails_is_said_in_one_line_and_done_again(
    vae, videos, near, memory, monkeypatch
):
    system = fsspec.filesystem("memory")
    put, count = system.put_file, []

    def fails(path, name, **more):
        count.append(name)
        if name.endswith(".array_record") and len(count) > 8:
            raise RuntimeError("the network\nis down")
        put(path, name, **more)

    monkeypatch.setattr(system, "put_file", fails)
    dest = f"{memory}/latents"
    with pytest.raises(OSError) as error:
        encoded(vae, videos, dest)
    said = str(error.value)
    assert said.startswith(f"{dest}/5x16x16/") and said.endswith("written: the network is down")
    there = raw(dest)
    assert 0 < len(there) < len(raw(near))
    assert there.items() <= raw(near).items()
    assert read_description(open_folder(dest)).records is None
    monkeypatch.undo()
    encoded(vae, videos, dest)
    assert agree(dest, near)


@pytest.mark.parametrize("place", ["near", "far"])
def test_an_entry_that_two_writers_have_written_counts_once(
    vae, videos, near, tmp_path, memory, place
):
    dest = f"{memory}/latents" if place == "far" else str(tmp_path / "d")

    def twice(description, plan, reading, units, finished):
        for _ in range(2):
            devices = jax.devices()[:1]
            with UnitEncoder(
                vae, description, plan, reading, open_folder(dest), devices=devices
            ) as encoder:
                yield from encoder.run(units, finished)
                encoder.finish()

    encoded(vae, videos, dest, run=twice)
    if place == "near":
        open_folder(dest).tidy()
    stored = sum(len(index.entries) for index in read_indices(open_folder(dest)).values())
    assert stored == 2 * len(raw(near))
    assert agree(dest, near)


@pytest.fixture(scope="module")
def bucket():
    with s3.server() as url:
        yield url


def test_s3_to_s3_with_processes_that_read(saved, videos, near, bucket):
    source, dest = upload(videos, f"{bucket}/videos"), f"{bucket}/latents"
    given = [source, dest, f"--ckpt={saved}", *OPTIONS, "--workers=1", "--devices=1"]
    assert main(["encode", *given]) == 0
    assert agree(dest, near)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://nobody/d", ".index cannot be written: The specified bucket"),
        ("fo://d", "fo://d cannot"),
    ],
)
def test_a_far_place_that_cannot_be_written_is_named(saved, videos, bucket, capsys, url, said):
    assert main(["encode", str(videos), url, f"--ckpt={saved}", *OPTIONS, "--workers=0"]) == 1
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("which", ["input", "output"])
@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_a_url_for_files_is_refused_in_one_line(command, which, tmp_path, saved, videos, capsys):
    url = "s3://bucket/some/videos"
    places = [url, str(tmp_path / "out")] if which == "input" else [str(videos), url]
    assert main([command, *places, f"--ckpt={saved}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{url} is a URL" in line and "--to=shards" in line
    assert not (tmp_path / "out").exists()


def alone(saved, source, dest, *more):
    """A command in a process of its own, with one CPU device."""
    command = [sys.executable, "-m", "odvae_jax", "encode", str(source), str(dest)]
    kept = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    return subprocess.Popen(
        [*command, f"--ckpt={saved}", *OPTIONS, *more],
        env={**os.environ, **kept},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, status=0):
    printed = process.communicate(timeout=300)
    assert process.returncode == status, printed
    return printed


@pytest.fixture(scope="module")
def near_alone(saved, videos, tmp_path_factory):
    dest = tmp_path_factory.mktemp("near") / "d"
    ended(alone(saved, videos, dest, "--hop=1"))
    return dest


@pytest.mark.full
def test_two_writers_at_once_to_one_far_place_end_with_one_dataset(
    saved, videos, near_alone, bucket
):
    dest = f"{bucket}/both"
    both = [alone(saved, videos, dest, "--hop=1", "--workers=1") for _ in range(2)]
    for process in both:
        ended(process)
    assert agree(dest, near_alone)


@pytest.mark.full
def test_ray_reads_from_s3_and_writes_there(saved, videos, near_alone, bucket):
    pytest.importorskip("ray")
    source, dest = upload(videos, f"{bucket}/for-ray"), f"{bucket}/of-ray"
    ended(alone(saved, source, dest, "--hop=1", "--engine=ray", "--actors=2", "--workers=1"))
    assert agree(dest, near_alone)


@pytest.mark.full
def test_a_server_that_goes_away_ends_the_run_in_one_line(saved, videos, near_alone, bucket):
    dest = f"{bucket}/away"
    process = alone(saved, videos, dest, "--hop=1", "--workers=1")
    folder = open_folder(dest)
    while not any(name.endswith(".array_record") for name in folder.names()):
        assert process.poll() is None, process.communicate()
    with s3.away():
        _, said = ended(process, 1)
    line = said.strip().splitlines()[-1]
    assert line.startswith(f"odvae encode: {dest}/") and "cannot be" in line
    assert 0 < len(raw(dest)) < len(raw(near_alone))
    ended(alone(saved, videos, dest, "--hop=1", "--workers=1"))
    assert agree(dest, near_alone)
