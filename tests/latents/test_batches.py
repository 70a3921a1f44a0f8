"""Batches of datasets of latents: their order, the parts of hosts, and going on."""

import collections
import os
import signal
import tempfile

import numpy as np
import psutil
import pytest

from odvae_jax.latents import LatentDataset
from tests import s3
from tests.conftest import full
from tests.latents.making import BUCKETS, make_dataset


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset") / "d"
    make_dataset(path, store="bfloat16")
    return path


@pytest.fixture(scope="module")
def dataset(path):
    return LatentDataset(path, view="sample", normalised=True, window=3, stride=2)


def take(batches, count):
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if isinstance(value, np.ndarray):
                assert value.dtype == b[name].dtype
                np.testing.assert_array_equal(value, b[name])
            else:
                assert value == b[name]


@pytest.mark.parametrize("workers", [1, *full(2), 4])
def test_batches_go_on_to_the_bit_under_other_workers(workers, dataset):
    whole = take(dataset.batches(4, seed=7), 12)
    assert {batch["bucket"] for batch in whole} == set(BUCKETS)
    first = dataset.batches(4, seed=7, workers=workers, threads=1)
    begun = [next(first) for _ in range(5)]
    number = first.number
    first.close()
    rest = take(dataset.batches(4, seed=7, first=number, threads=3), 4)
    last = take(dataset.batches(4, seed=7, first=9, workers=workers), 3)
    assert_same(begun + rest + last, whole)
    assert [batch["number"] for batch in whole] == list(range(12))


@pytest.mark.parametrize("hosts", [2, 3])
def test_the_parts_of_hosts_are_disjoint_and_are_the_whole(hosts, dataset):
    whole = take(dataset.batches(6, seed=1), 8)
    parts = [
        take(dataset.batches(6, seed=1, process_index=i, process_count=hosts), 8)
        for i in range(hosts)
    ]
    for number, batch in enumerate(whole):
        of_hosts = [part[number] for part in parts]
        for name in ("latents", "entry", "frames"):
            joined = np.concatenate([part[name] for part in of_hosts])
            np.testing.assert_array_equal(joined, batch[name])
        assert [name for part in of_hosts for name in part["source"]] == batch["source"]
        assert {part["bucket"] for part in of_hosts} == {batch["bucket"]}
    odd = take(dataset.batches(6, seed=1, rows=[4, 1]), 8)
    for batch, part in zip(whole, odd, strict=True):
        np.testing.assert_array_equal(part["latents"], batch["latents"][[4, 1]])


def test_every_item_comes_once_per_epoch_of_its_bucket(path):
    dataset = LatentDataset(path)
    seen = collections.defaultdict(list)
    for batch in take(dataset.batches(2, seed=3), 40):
        assert {batch["bucket"]} == {dataset[int(entry)]["bucket"] for entry in batch["entry"]}
        seen[batch["bucket"]] += batch["entry"].tolist()
    orders = set()
    for low, bucket in ((0, "17x16x24"), (7, "9x24x16")):
        count = BUCKETS[bucket]
        epochs = [seen[bucket][i : i + count] for i in range(0, len(seen[bucket]), count)][:-1]
        assert len(epochs) > 2
        for epoch in epochs:
            assert sorted(epoch) == list(range(low, low + count))
            orders.add(tuple(epoch))
    assert len(orders) > 4, "each epoch has its own order"


def test_buckets_come_in_the_shares_that_are_set(path):
    dataset = LatentDataset(path, view="mean")
    rates = {"17x16x24": 3, "9x24x16": 1}
    batches = take(dataset.batches(1, seed=3, rates=rates), 2000)
    counts = collections.Counter(batch["bucket"] for batch in batches)
    assert counts["17x16x24"] == pytest.approx(1500, abs=60)
    again = take(dataset.batches(1, seed=3, rates=dict(reversed(rates.items()))), 50)
    assert_same(again, batches[:50])
    equally = take(dataset.batches(1, seed=3), 2000)
    often = collections.Counter(int(batch["entry"][0]) for batch in equally)
    assert min(often.values()) > 0.8 * max(often.values()), "each item as often as any other"
    only = take(dataset.batches(1, rates={"9x24x16": 1, "17x16x24": 0}), 10)
    assert {batch["bucket"] for batch in only} == {"9x24x16"}


def test_an_item_has_other_noise_each_time_it_is_drawn(path):
    dataset = LatentDataset(path, view="sample", buckets="9x24x16")
    drawn = collections.defaultdict(list)
    for batch in take(dataset.batches(5), 2):
        for entry, latents in zip(batch["entry"], batch["latents"], strict=True):
            drawn[int(entry)].append(latents)
    assert all(not np.array_equal(*both) for both in drawn.values()) and len(drawn) == 5


def test_batches_say_what_their_items_are(path):
    dataset = LatentDataset(path, window=2, buckets="17x16x24")
    (batch,) = take(dataset.batches(3), 1)
    assert batch["latents"].shape == (3, 2, 2, 3, 8) and batch["latents"].dtype.name == "bfloat16"
    assert batch["frames"].shape == (3, 2, 2)
    for i, entry in enumerate(batch["entry"]):
        assert batch["columns"][i] == {"caption": f"caption {entry}"}
        assert batch["place"][i]["video"] == entry and batch["source"][i] == f"video{entry}.mp4"
        first = batch["first"][i]
        assert batch["frames"][i].tolist() == (
            [[0, 0], [1, 4]] if first == 0 else [[5, 8], [9, 12]]
        )
    np.testing.assert_array_equal(batch["fps"], [8.0] * 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rates": {"9x1x1": 1}}, "has no items"),
        ({"rates": {"9x24x16": -1}}, "expected 0 or more"),
        ({"rates": {"9x24x16": 0}}, "no items"),
        ({"rows": [4]}, "are not some of the 4"),
        ({"process_index": 0}, "give both"),
        ({"process_index": 0, "process_count": 3}, "cannot be divided"),
        ({"process_index": 2, "process_count": 2}, "cannot be divided"),
        ({"first": -1}, "from 0"),
    ],
    ids=str,
)
def test_batches_that_cannot_be_are_refused_at_once(arguments, said, dataset):
    with pytest.raises(ValueError, match=said):
        dataset.batches(4, **arguments)


def test_records_of_different_lengths_need_a_window(tmp_path):
    lengths = {0: 9, 1: 17, 2: 5}
    make_dataset(tmp_path, buckets={"0x16x16": 3}, lengths=lengths, more={"place": None})
    dataset = LatentDataset(tmp_path)
    assert [len(item["latents"]) for item in dataset] == [3, 5, 2]
    with pytest.raises(ValueError, match="have 2 to 5 latent frames"):
        dataset.batches(2)
    windows = LatentDataset(tmp_path, window=2)
    (batch,) = take(windows.batches(4), 1)
    assert batch["latents"].shape[:2] == (4, 2) and batch["place"] == [None] * 4


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_passed_over_and_named_in_the_process_that_asks(workers, tmp_path, caplog):
    made = make_dataset(tmp_path, writers=1)
    shard = sorted(tmp_path.glob("17x16x24/*.array_record"))[0]
    shard.write_bytes(b"")
    dataset = LatentDataset(tmp_path, buckets="17x16x24")
    for batch in take(dataset.batches(2, workers=workers), 6):
        for entry, latents in zip(batch["entry"], batch["latents"], strict=True):
            np.testing.assert_array_equal(latents, made[int(entry)])
    assert dataset.problems and all(str(shard) in name for name in dataset.problems)
    assert sum("passed over" in r.message for r in caplog.records) == len(dataset.problems)
    strict = LatentDataset(tmp_path, buckets="17x16x24", damaged="raise")
    batches = strict.batches(2, workers=workers)
    with pytest.raises(ValueError, match="cannot be read"):
        take(batches, 6)


def test_a_worker_that_is_killed_costs_no_batch(dataset):
    whole = take(dataset.batches(2), 12)
    batches = dataset.batches(2, workers=1, threads=1)
    ours = [next(batches)]
    for child in psutil.Process().children():
        if "worker.py" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
    assert_same(ours + take(batches, 11), whole)


@pytest.fixture(scope="module")
def bucket():
    with s3.server() as url:
        yield url


@pytest.mark.parametrize("workers", [1, *full(2)])
def test_workers_share_the_copies_of_a_far_dataset(workers, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_dataset(f"{bucket}/dataset", buckets=BUCKETS)
    whole = LatentDataset(f"{bucket}/dataset")
    ours = take(whole.batches(4, seed=7), 6)
    far = LatentDataset(f"{bucket}/dataset")
    assert_same(take(far.batches(4, seed=7, workers=workers), 6), ours)
    folders = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*.array_record")}
    assert len(folders) == 2, "this process's, one for each dataset that it opened"
