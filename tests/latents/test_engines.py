"""The same dataset of latents, whoever encodes it, and whatever is killed meanwhile.

All commands run in processes of their own, each with one CPU device.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.cli import main
from odvae_jax.latents.description import read_description, read_plan
from odvae_jax.latents.shards import read_indices, without_doubles
from odvae_jax.latents.storage import open_folder
from tests.conftest import write_clip
from tests.two_levels import CAUSAL

ROOT = Path(__file__).parents[2]
VIDEOS = 6
CUT = ("--frames=5", "--hop=1", "--size=16", "--batch=3", "--workers=1", "--threads=1")
SMALL_SHARDS = ("--shard-mb=0.02",)
RAY = ("--engine=ray", "--actors=2")
LONG = 300.0  # seconds after which a command hangs


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model, and a manifest of videos with captions, one of which cannot be read."""
    path = tmp_path_factory.mktemp("given")
    config = ODVAEConfig(structure=CAUSAL, width=8, groups=4)
    ODVAE(config, rngs=0).save_pretrained(path / "model")
    rows = [{"path": "no.mp4", "caption": "nothing"}]
    for i in range(VIDEOS):
        write_clip(path / f"{i}.mp4", frames=20 + i, height=24, width=32, seed=i)
        rows.append({"path": f"{i}.mp4", "caption": f"waves {i}"})
    (path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def environment():
    kept = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **kept, "RAY_ADDRESS": ""}


def command(given, dest, *options):
    module = [sys.executable, "-m", "odvae_jax", "encode", f"{given}/list.jsonl", str(dest)]
    return [*module, f"--ckpt={given}/model", "--to=shards", *CUT, *SMALL_SHARDS, *options]


def start(given, dest, *options):
    return subprocess.Popen(
        command(given, dest, *options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process):
    """The exit status and what was printed."""
    try:
        printed, _ = process.communicate(timeout=LONG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, printed


def encode(given, dest, *options):
    status, printed = ended(start(given, dest, *options))
    assert status == 1, printed  # one video cannot be read
    assert "no.mp4" in printed
    return dest


def records(dest):
    """The records that count, by their entries; every shard is whole, and as its index says."""
    from array_record.python.array_record_module import ArrayRecordReader

    folder, found = open_folder(dest), {}
    indices = read_indices(folder)
    assert len(indices) == sum(name.endswith(".array_record") for name in folder.names())
    for index, mask in without_doubles(indices):
        reader = ArrayRecordReader(str(folder.local(f"{index.name}.array_record")))
        assert reader.num_records() == len(index.entries)
        for entry, counts, record in zip(index.entries, mask, reader.read_all(), strict=True):
            if counts:
                assert int(entry) not in found
                found[int(entry)] = record
        reader.close()
    return found


def same(dest, expected):
    """Whether two datasets hold the same: records, counts, scale and problems."""
    ours, theirs = records(dest), records(expected)
    folder = open_folder(dest)
    plan = read_plan(folder, read_description(folder))
    assert ours.keys() == theirs.keys() == set(range(len(plan)))
    assert ours == theirs
    ours, theirs = (read_description(open_folder(place)) for place in (dest, expected))
    assert ours == theirs
    assert ours.records == len(records(expected))
    assert ours.scale is not None
    left = [p for p in Path(dest).rglob(".*") if not p.name.startswith(".part-")]
    assert not left, "what was left unfinished is removed"
    return True


@pytest.fixture(scope="module")
def plain(given, tmp_path_factory):
    dest = encode(given, tmp_path_factory.mktemp("plain") / "latents")
    assert len(read_indices(open_folder(dest))) > 10, "kills would meet no finished shard"
    return dest


def test_ray_with_two_actors_gives_the_records_of_the_plain_engine(given, plain, tmp_path):
    pytest.importorskip("ray")
    assert same(encode(given, tmp_path / "ray", *RAY), plain)


@pytest.mark.full
def test_parts_side_by_side_give_the_records_of_the_plain_engine(given, plain, tmp_path):
    dest = tmp_path / "parts"
    parts = [start(given, dest, f"--shard={i}/2") for i in range(2)]
    assert {ended(part)[0] for part in parts} <= {0, 1}
    assert same(dest, plain)


def below(process, text):
    """The processes below a process whose command line has a text."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if text in " ".join(child.cmdline()):
                    found.append(child)
    return found


def wait_for(condition, process):
    """Waits until a condition holds, and returns its value."""
    until = time.monotonic() + LONG
    while not (value := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)
    return value


def shards(dest):
    return len(list(Path(dest).rglob("*.array_record")))


def at_a_random_moment(process, dest, chance):
    """Waits until a random number of shards is there, and a moment longer."""
    count = chance.randrange(0, 8)
    wait_for(lambda: (dest / "dataset.json").exists() and shards(dest) >= count, process)
    time.sleep(chance.uniform(0, 0.1))


KILLS = [
    ("ray::Encoder", RAY, 0),
    ("ray::Encoder", RAY, 1),
    ("ray::Encoder", RAY, 2),
    ("data/worker.py", (), 3),
    ("data/worker.py", (), 4),
    ("data/worker.py", RAY, 5),
]


@pytest.mark.full
@pytest.mark.parametrize(("who", "engine", "seed"), KILLS)
def test_what_is_killed_is_replaced(given, plain, tmp_path, who, engine, seed):
    dest, chance = tmp_path / "killed", random.Random(seed)
    process = start(given, dest, *engine)
    wait_for(lambda: below(process, who), process)
    at_a_random_moment(process, dest, chance)
    victim = chance.choice(wait_for(lambda: below(process, who), process))
    victim.kill()
    status, printed = ended(process)
    assert status == 1, printed
    if who.startswith("ray"):
        assert "an actor died" in printed, "it was killed while it had nothing to do any more"
    assert same(dest, plain)


@pytest.mark.full
@pytest.mark.parametrize(("engine", "seed"), [((), 6), ((), 7), (RAY, 8), (RAY, 9)])
def test_after_all_is_killed_the_same_command_goes_on(given, plain, tmp_path, engine, seed):
    dest = tmp_path / "killed"
    process = start(given, dest, *engine)
    at_a_random_moment(process, dest, random.Random(seed))
    children = psutil.Process(process.pid).children(recursive=True)
    others = [p for p in children if "Agent" not in p.name()]  # Ray's own take a minute or more
    process.kill()
    status, printed = ended(process)
    assert status == -signal.SIGKILL, printed
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not alive, "what a killed process started ends by itself"
    assert records(dest).items() < records(plain).items()
    encode(given, dest, *engine)
    assert same(dest, plain)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_actors_finish_their_shards(given, tmp_path, number):
    many = ("--mirror",)  # twice as many clips, so that the signal comes before the end
    dest, plain = tmp_path / "ended", encode(given, tmp_path / "plain", *many)
    process = start(given, dest, *RAY, *many, "--shard-mb=100")
    wait_for(lambda: list(dest.rglob(".*.array_record.*")), process)
    # Ctrl-C of a terminal goes to all processes, a SIGTERM to the command. (Ray's own processes die
    # of SIGTERM, and Ray then ends the command, without a word and with the status 1.)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    status, printed = ended(process)
    assert (status, "the same command goes on" in printed) == (128 + number, True), printed
    assert 0 < shards(dest) <= 2
    assert not list(dest.rglob(".*.array_record.*"))
    encode(given, dest, *RAY, *many)
    assert same(dest, plain)


POISON = """
import os, signal, sys

import numpy as np

from odvae_jax.cli import main
from odvae_jax.data.sources import Source, parsing


class Poison(Source):
    def __len__(self):
        return 7

    def name(self, index):
        return f"video {index}"

    def rate(self, index):
        return 12.0

    def frames(self, index, sampling, stride, where):
        where(6 - sampling.frames)  # each video has five frames
        if index == 3 and sampling.frames > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [np.full((16, 16, 3), index, np.uint8)] * sampling.frames


if __name__ == "__main__":
    parsing.SOURCES["poison:"] = lambda rest, in_memory: Poison()
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.full
def test_a_clip_that_actors_die_of_is_named_and_costs_no_other(given, tmp_path):
    script, dest = tmp_path / "poison.py", tmp_path / "latents"
    script.write_text(POISON)
    options = [f"--ckpt={given}/model", "--to=shards", "--frames=5", "--batch=1", "--workers=0"]
    printed = subprocess.run(
        [sys.executable, script, "encode", "poison:", dest, *options, *RAY],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert printed.returncode == 1, printed
    assert (dest / "problems.jsonl").exists(), printed
    (row,) = map(json.loads, (dest / "problems.jsonl").read_text().splitlines())
    assert (row["entry"], row["video"]) == (3, "video 3")
    assert "3 actors died of it" in row["reason"]
    assert row["reason"] in printed.stderr
    assert sorted(records(dest)) == [0, 1, 2, 4, 5, 6]


CLUSTER = """
import subprocess, sys

from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 2**27}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
for actors in ("3", "2"):
    more = [f"--address={cluster.address}", f"--actors={actors}"]
    ended = subprocess.run([*sys.argv[1:], *more], capture_output=True, text=True)
    print(ended.returncode, ended.stdout, ended.stderr)
cluster.shutdown()
"""


@pytest.mark.full
def test_a_cluster_with_an_address_encodes_as_the_plain_engine(given, plain, tmp_path):
    dest = tmp_path / "latents"
    script = [sys.executable, "-c", CLUSTER, *command(given, dest, "--engine=ray")]
    printed = subprocess.run(
        script, env=environment(), capture_output=True, text=True, timeout=LONG
    ).stdout
    assert "3 actors need as many CPUs, and the cluster has 2" in printed
    assert "2 Ray actors" in printed
    assert same(dest, plain)


def test_without_ray_a_line_says_how_to_install_it(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    source, dest = str(given / "list.jsonl"), tmp_path / "latents"
    options = [f"--ckpt={given}/model", "--to=shards", "--frames=5", "--engine=ray"]
    assert main(["encode", source, str(dest), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'odvae_jax[ray]'" in line
    assert not dest.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine=ray"], "--to=shards"),
        (["--to=shards", "--frames=5", "--actors=2"], "--engine=ray"),
        (["--to=shards", "--frames=5", "--engine=ray", "--devices=2"], "--actors"),
        (["--to=shards", "--frames=5", "--engine=ray", "--address=127.0.0.1:1"], "no Ray cluster"),
    ],
)
def test_options_of_ray_that_do_not_fit_are_refused_in_one_line(
    given, tmp_path, capsys, options, said
):
    source, dest = str(given / "list.jsonl"), tmp_path / "latents"
    assert main(["encode", source, str(dest), f"--ckpt={given}/model", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not dest.exists()
