"""Datasets of latents as they are read: items, windows, what is made of them, and damage."""

import pickle
import shutil
import threading

import grain
import numpy as np
import pytest

from odvae_jax.latents import LatentDataset, LatentsError, Scale
from odvae_jax.latents.description import DATASET
from tests.latents.making import BUCKETS, IMAGE, VIDEO, make_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of moments in two buckets, and each entry's moments."""
    path = tmp_path_factory.mktemp("dataset") / "d"
    return path, make_dataset(path)


@pytest.mark.parametrize("config", [VIDEO, IMAGE], ids=["video", "image"])
@pytest.mark.parametrize("content", ["moments", "mean"])
@pytest.mark.parametrize("store", ["float32", "bfloat16"])
def test_every_record_comes_as_it_was_stored(store, content, config, tmp_path):
    made = make_dataset(tmp_path, content=content, store=store, config=config)
    dataset = LatentDataset(tmp_path)
    assert len(dataset) == sum(BUCKETS.values()) == len(made)
    assert dataset.buckets == tuple(BUCKETS) and dataset.finished and not dataset.problems
    for i, item in enumerate(dataset):  # by bucket, then by entry, whoever wrote it
        assert (item["entry"], item["source"]) == (i, f"video{i}.mp4")
        expected = made[i] if content == "moments" else made[i][..., :4]
        assert item["latents"].dtype.name == store
        np.testing.assert_array_equal(item["latents"], expected)
        assert item["columns"] == {"caption": f"caption {i}"}
        assert item["place"] == {"video": i, "start": 3, "stride": 1, "mirrored": False}
        assert (item["bucket"], item["fps"]) == (list(BUCKETS)[i >= 7], 8.0)
    np.testing.assert_array_equal(dataset[-1]["latents"], dataset[len(made) - 1]["latents"])
    with pytest.raises(IndexError):
        dataset[len(made)]


@pytest.mark.parametrize("config", [VIDEO, IMAGE], ids=["video", "image"])
def test_latent_frames_say_which_video_frames_they_stand_for(config, tmp_path):
    make_dataset(tmp_path, buckets={"11x16x16": 1}, config=config)
    frames = LatentDataset(tmp_path)[0]["frames"].tolist()
    if config is IMAGE:
        assert frames == [[i, i] for i in range(11)]
    else:  # the eleven frames were padded to thirteen
        assert frames == [[0, 0], [1, 4], [5, 8], [9, 10]]
    both = [x["frames"].tolist() for x in LatentDataset(tmp_path, window=2, stride=1)]
    assert both == [frames[i : i + 2] for i in range(len(frames) - 1)]


def test_windows_are_parts_of_records_and_what_is_shorter_is_counted(made, caplog):
    path, moments = made
    dataset = LatentDataset(path, window=4, stride=1)  # records have five and three latent frames
    assert len(dataset) == 2 * BUCKETS["17x16x24"] and dataset.buckets == ("17x16x24",)
    assert dataset.too_short == BUCKETS["9x24x16"] and "5 of 12 records" in caplog.text
    for i, item in enumerate(dataset):
        entry, first = divmod(i, 2)
        assert (item["entry"], item["first"]) == (entry, first)
        np.testing.assert_array_equal(item["latents"], moments[entry][first : first + 4])
    assert len(LatentDataset(path, window=2)) == 7 * 2 + 5 * 1
    assert len(LatentDataset(path, window=2, stride=3)) == 7 * 2 + 5 * 1
    one = LatentDataset(path, window=1, buckets="9x24x16")
    assert len(one) == 15 and one.buckets == ("9x24x16",) and one[0]["entry"] == 7


def test_means_moments_and_samples_are_those_of_the_stored_moments(made):
    path, moments = made
    mean, logvar = np.split(moments[3].astype(np.float64), 2, axis=-1)
    np.testing.assert_array_equal(LatentDataset(path, view="mean")[3]["latents"], mean)
    np.testing.assert_array_equal(LatentDataset(path, view="moments")[3]["latents"], moments[3])
    samples = [LatentDataset(path, view="sample", seed=s)[3]["latents"] for s in range(300)]
    assert samples[0].dtype == np.float32
    noise = (np.stack(samples) - mean) / np.exp(0.5 * logvar)
    np.testing.assert_allclose(noise.mean((0, 1, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(noise.std((0, 1, 2, 3)), 1, atol=0.05)
    assert LatentDataset(path, view="mean", dtype="bfloat16")[3]["latents"].dtype.name == "bfloat16"


def test_samples_depend_on_the_seed_and_the_item_alone(made):
    path, _ = made
    dataset = LatentDataset(path, view="sample", seed=5)
    again = pickle.loads(pickle.dumps(dataset))
    for i in (6, 2, 6):
        np.testing.assert_array_equal(dataset[i]["latents"], again[i]["latents"])
    other = LatentDataset(path, view="sample", seed=6)
    assert not np.array_equal(dataset[2]["latents"], other[2]["latents"])


@pytest.mark.parametrize("finished", [True, False])
def test_normalised_samples_have_mean_0_and_deviation_1_per_channel(finished, tmp_path, caplog):
    make_dataset(tmp_path, buckets={"17x64x64": 8}, finished=finished)
    dataset = LatentDataset(tmp_path, view="sample", normalised=True)
    assert dataset.finished == finished and ("is unfinished: 8 records" in caplog.text) != finished
    drawn = np.stack([item["latents"] for item in dataset]).reshape(-1, 4)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(drawn.std(0), 1, atol=0.05)
    # Sampling normalised moments is sampling, then normalising.
    plain = LatentDataset(tmp_path, view="moments")[2]["latents"]
    scaled = LatentDataset(tmp_path, view="moments", normalised=True)[2]["latents"]
    for noise in (-1.0, 0.5):
        first, second = (
            m[..., :4] + np.exp(0.5 * m[..., 4:]) * noise for m in (plain, scaled)
        )  # fmt: skip
        np.testing.assert_allclose(dataset.normalise(first), second, atol=1e-5)
    np.testing.assert_allclose(dataset.denormalise(dataset.normalise(first)), first, atol=1e-5)


def test_a_model_s_factor_may_take_the_place_of_the_dataset_s_scale(made):
    path, moments = made
    given = {"normalised": True, "scale": Scale(None, None, 0.5)}
    mean = LatentDataset(path, view="mean", **given)[0]["latents"]
    np.testing.assert_allclose(mean, moments[0][..., :4] * 0.5, rtol=1e-6)
    both = LatentDataset(path, view="moments", **given)[0]["latents"]
    np.testing.assert_allclose(np.exp(both[..., 4:]), np.exp(moments[0][..., 4:]) / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"view": "sample"}, "stores the mean"),
        ({"view": "moments"}, "stores the mean"),
        ({"view": "latents"}, "is not known"),
        ({"normalised": True}, "as they are stored"),
        ({"dtype": "int8"}, "is not known"),
        ({"window": 0}, "expected a number of latent frames"),
        ({"stride": 2}, "give window too"),
        ({"buckets": "17x1x1"}, "no bucket '17x1x1'"),
        ({"damaged": "ignore"}, "is not known"),
    ],
    ids=str,
)
def test_what_cannot_be_read_so_is_said_at_once(arguments, said, tmp_path):
    make_dataset(tmp_path, content="mean", buckets={"9x16x16": 2})
    with pytest.raises(ValueError, match=said):
        LatentDataset(tmp_path, **arguments)


def test_a_folder_without_a_dataset_and_one_of_another_version_are_refused(tmp_path):
    with pytest.raises(LatentsError, match="is no dataset of latents"):
        LatentDataset(tmp_path / "nowhere")
    make_dataset(tmp_path, buckets={"9x16x16": 1})
    text = (tmp_path / DATASET).read_text()
    for old, new, said in (
        ("dataset of latents 1", "dataset of latents 9", "this version reads"),
        ('"v4"', '"v9"', "config is"),
        ("{", "[", "describes no dataset"),
    ):
        (tmp_path / DATASET).write_text(text.replace(old, new, 1))
        with pytest.raises(LatentsError, match=said):
            LatentDataset(tmp_path)


def test_an_empty_dataset_has_no_items_and_says_so_when_batches_are_asked_for(tmp_path):
    make_dataset(tmp_path, buckets={"9x16x16": 0})
    dataset = LatentDataset(tmp_path)
    assert len(dataset) == 0 and dataset.buckets == ()
    with pytest.raises(ValueError, match="no items"):
        dataset.batches(2)
    with pytest.raises(LatentsError, match="no scale"):
        LatentDataset(tmp_path, view="mean", normalised=True)


def flip(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)


def shards(path, suffix, bucket="17x16x24"):
    return sorted((path / bucket).glob(f"*{suffix}"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a flipped bit": lambda path: flip(shards(path, ".array_record")[0]),
    "a shard cut short": lambda path: cut(shards(path, ".array_record")[0]),
    "an index cut short": lambda path: cut(shards(path, ".index")[0]),
    "a missing index": lambda path: shards(path, ".index")[0].unlink(),
    "a missing shard": lambda path: shards(path, ".array_record")[0].unlink(),
    "an index of another shard": lambda path: shutil.copy(
        shards(path, ".index", "9x24x16")[0], shards(path, ".index")[0]
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_passed_over_or_raised(what, tmp_path, caplog):
    made = make_dataset(tmp_path)
    DAMAGE[what](tmp_path)
    dataset = LatentDataset(tmp_path)
    read = [dataset[i] for i in range(len(dataset))]
    for i, item in enumerate(read):
        np.testing.assert_array_equal(item["latents"], made[item["entry"]])
        np.testing.assert_array_equal(item["latents"], dataset[i]["latents"])
    assert {item["bucket"] for item in read} == set(BUCKETS)
    assert len(dataset.problems) > 0 and str(tmp_path) in "".join(dataset.problems.values())
    warned = [r for r in caplog.records if "passed over" in r.message]
    assert len(warned) == len(dataset.problems), "each is said once"
    with pytest.raises(LatentsError, match=str(tmp_path)):
        list(LatentDataset(tmp_path, damaged="raise"))


def test_a_bucket_of_which_nothing_can_be_read_ends_with_the_reasons(tmp_path):
    make_dataset(tmp_path, buckets={"9x16x16": 2}, writers=1)
    for path in shards(tmp_path, ".array_record", "9x16x16"):
        cut(path)
    with pytest.raises(LatentsError, match=r"64 records in a row(.|\n)*array_record, record"):
        LatentDataset(tmp_path)[0]


def test_records_that_two_writers_have_done_come_once(tmp_path):
    made = make_dataset(tmp_path, writers=1)
    for path in sorted(tmp_path.glob("*/writer0-*")):
        shutil.copy(path, path.with_name(path.name.replace("writer0", "writer1")))
    dataset = LatentDataset(tmp_path)
    # The copies' own names do not matter; entries do.
    assert [item["entry"] for item in dataset] == list(range(len(made)))


def test_far_datasets_are_read_too(caplog):
    made = make_dataset("memory://latents/d")
    dataset = LatentDataset("memory://latents/d")
    for item in dataset:
        np.testing.assert_array_equal(item["latents"], made[item["entry"]])
    batches = dataset.batches(2, workers=2)
    assert next(batches)["latents"].shape[0] == 2
    batches.close()
    assert "lives in the memory of one process" in caplog.text


def test_several_threads_may_read_and_a_pickle_holds_no_open_file(made):
    path, moments = made
    dataset = LatentDataset(path)
    before = len(pickle.dumps(dataset))
    wrong = []

    def work():
        for i in np.random.default_rng(0).integers(len(dataset), size=200):
            if not np.array_equal(dataset[i]["latents"], moments[int(i)]):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(pickle.dumps(dataset)) == before
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[4]["latents"], moments[4])


def test_opening_does_not_open_shards(made):
    path, _ = made
    moved = [(p, p.with_suffix(".moved")) for p in path.glob("*/*.array_record")]
    for shard, _ in moved:
        shard.rename(shard.with_suffix(".moved"))
        shard.touch()
    try:
        assert len(LatentDataset(path, damaged="raise", window=2)) == 19
    finally:
        for shard, other in moved:
            other.rename(shard)


def test_grain_shuffles_and_batches_it(made):
    path, moments = made
    dataset = LatentDataset(path, buckets="17x16x24")
    assert isinstance(dataset, grain.sources.RandomAccessDataSource)
    source = grain.MapDataset.source(dataset).shuffle(seed=3).batch(2, drop_remainder=True)
    seen = []
    for batch in source:
        for i, entry in enumerate(batch["entry"]):
            np.testing.assert_array_equal(batch["latents"][i], moments[int(entry)])
            assert batch["columns"]["caption"][i] == f"caption {entry}"
            seen.append(int(entry))
    assert len(set(seen)) == 6
