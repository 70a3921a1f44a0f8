"""`odvae encode --to=shards`: what is in the records, how they are made, and what is refused."""

import csv
import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.monitoring
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from odvae_jax import ODVAE, ODVAEConfig, encode_uint8
from odvae_jax.cli import main
from odvae_jax.data.sources import Files, Sampling, Source, open_source
from odvae_jax.data.video import TimeLimitError
from odvae_jax.files import WholeFile
from odvae_jax.latents import LatentsFile, find_latents
from odvae_jax.latents.buckets import LeftOutError, Size, choose, of_budget, parse_buckets
from odvae_jax.latents.records import unpack_record
from odvae_jax.latents.shards import Index
from odvae_jax.tiling import AutoTiling
from odvae_jax.transcoding import Cut, DatasetSettings, encode_dataset
from odvae_jax.transcoding.computation import Computation
from odvae_jax.transcoding.units import encode_unit
from tests.conftest import remuxed, write_clip
from tests.two_levels import CAUSAL


@pytest.fixture(scope="session")
def vae():
    return ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm="frame"))


@pytest.fixture(scope="session")
def saved(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    vae.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """Five videos of two shapes with captions, one of them too short, and one that is none."""
    folder = tmp_path_factory.mktemp("source")
    rows = []
    for number, (frames, height, width) in enumerate(
        [(12, 24, 32), (9, 32, 24), (21, 24, 32), (3, 24, 32), (14, 24, 40)]
    ):
        path = write_clip(folder / f"v{number}.mp4", frames, height, width, seed=number)
        rows.append({"path": path.name, "caption": f"clip {number}", "label": number})
    (folder / "broken.mp4").write_bytes(b"no video")
    rows.append({"path": "broken.mp4", "caption": "none", "label": 9})
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "caption", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "list.csv"


SIZES = "5x16x16,5x16x24"


def settings(**given):
    cut = {"buckets": (Size(5, 16, 16), Size(5, 16, 24)), "hop": 4, **given.pop("cut", {})}
    return DatasetSettings(cut=Cut(**cut), batch=2, **given)


def encoded(vae, source, dest, how=None, **given):
    given = {"devices": jax.devices()[:1], "bar": False, **given}
    return encode_dataset(vae, "m", str(source), str(dest), how or settings(), **given)


def records(dest):
    """Every record of a dataset by its entry; each entry has one."""
    found = {}
    for shard in sorted(Path(dest).rglob("*.array_record")):
        reader = ArrayRecordReader(str(shard))
        for data in reader.read_all():
            record = unpack_record(data, shard.name)
            assert record.entry not in found, "an entry has one record"
            found[record.entry] = data
    return found


@pytest.fixture(scope="session")
def dataset(vae, manifest, tmp_path_factory):
    dest = tmp_path_factory.mktemp("dest") / "d"
    return dest, encoded(vae, manifest, dest)


def test_records_hold_the_latents_of_the_clips_and_the_columns(vae, manifest, dataset):
    dest, summary = dataset
    description = json.loads((dest / "dataset.json").read_text())
    source = open_source(str(manifest))
    found = {entry: unpack_record(r, "r") for entry, r in records(dest).items()}
    assert len(found) == description["records"] == summary.clips == 2 + 2 + 5 + 3
    for record in found.values():
        info = record.info(description["shared"])
        size = (info.height, info.width)
        sampling = Sampling(5, None, (1, 1), cover=size)
        place = info.place
        clip = source.read(place["video"], sampling, 1, lambda n, at=place["start"]: at)
        expected = encode_uint8(vae, clip[None]).mean[0]
        np.testing.assert_allclose(record.latents, expected, atol=2e-5)
        assert info.columns == source.columns(place["video"])
        assert info.columns["caption"] == f"clip {place['video']}"
        assert (info.frames, info.fps) == (5, 12.0)


def test_the_scale_is_that_of_samples_of_all_latents(dataset, vae):
    dest, _ = dataset
    description = json.loads((dest / "dataset.json").read_text())
    means, variances = [], []
    for data in records(dest).values():
        record = unpack_record(data, "r")
        means.append(record.latents.reshape(-1, record.latents.shape[-1]))
    for path in sorted(dest.rglob("*.index")):
        if path.parent != dest:  # the index of a shard, not of the plan
            variances.extend(Index.from_bytes(path.stem, path.read_bytes()).sums[:, 2])
    everything = np.concatenate(means).astype(np.float64)
    variance = everything.var(axis=0) + np.sum(variances, axis=0) / len(everything)
    np.testing.assert_allclose(description["scale"]["mean"], everything.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(description["scale"]["std"], np.sqrt(variance), rtol=1e-6)


def test_eight_devices_make_the_records_of_one_bit_for_bit(vae, manifest, dataset, tmp_path):
    dest, _ = dataset
    encoded(vae, manifest, tmp_path / "d", devices=jax.devices())
    assert records(tmp_path / "d") == records(dest)
    ours, theirs = (json.loads((d / "dataset.json").read_text()) for d in (tmp_path / "d", dest))
    chex.assert_trees_all_equal(ours, theirs)


def test_parts_together_are_the_whole_and_what_is_there_is_left(vae, manifest, dataset, tmp_path):
    dest, _ = dataset
    first = encoded(vae, manifest, tmp_path / "d", part=(0, 2))
    assert first.description.records is None
    again = encoded(vae, manifest, tmp_path / "d", part=(0, 2))
    assert (again.clips, again.there) == (0, first.clips)
    second = encoded(vae, manifest, tmp_path / "d", part=(1, 2))
    assert first.clips + second.clips == second.description.records
    assert records(tmp_path / "d") == records(dest)
    ours, theirs = (json.loads((d / "dataset.json").read_text()) for d in (tmp_path / "d", dest))
    chex.assert_trees_all_equal(ours, theirs)


def test_what_is_missing_is_done_again_and_comes_out_the_same(vae, manifest, dataset, tmp_path):
    dest, _ = dataset
    encoded(vae, manifest, tmp_path / "d")
    shards = sorted((tmp_path / "d").rglob("*.array_record"))
    shards[0].unlink()  # and its index stays, as after a kill between the two
    summary = encoded(vae, manifest, tmp_path / "d")
    assert 0 < summary.clips < summary.description.records
    assert records(tmp_path / "d") == records(dest)


def test_as_many_programs_are_compiled_as_there_are_buckets(vae, manifest, tmp_path):
    compiled = []
    watch = lambda name, seconds, **more: compiled.append(more.get("fun_name", ""))  # noqa: E731
    encode_unit.clear_cache()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **more: (
            watch(name, seconds, **more) if name.endswith("backend_compile_duration") else None
        )
    )
    summary = encoded(vae, manifest, tmp_path / "d", settings(seed=1))
    ours = [name for name in compiled if "encode_unit" in name]
    assert len(ours) == summary.programs == len(summary.description.buckets) == 2


def test_a_twin_is_the_mirrored_clip(vae, manifest, dataset, tmp_path):
    dest, _ = dataset
    encoded(vae, manifest, tmp_path / "d", settings(cut={"mirror": True}))
    plain = [unpack_record(r, "r") for r in records(dest).values()]
    twins = [unpack_record(r, "r") for r in records(tmp_path / "d").values()]
    key = lambda r: (r.header["place"]["video"], r.header["place"]["start"])  # noqa: E731
    straight = {key(r): r for r in twins if not r.header["place"]["mirrored"]}
    mirrored = {key(r): r for r in twins if r.header["place"]["mirrored"]}
    assert straight.keys() == mirrored.keys() == {key(r) for r in plain}
    source = open_source(str(manifest))
    for (video, start), record in mirrored.items():
        size = (record.header["height"], record.header["width"])
        clip = source.read(video, Sampling(5, cover=size), 1, lambda n, at=start: at)
        expected = encode_uint8(vae, clip[None, :, :, ::-1]).mean[0]
        np.testing.assert_allclose(record.latents, expected, atol=2e-5)


def test_whole_videos_are_the_same_in_shards_as_in_files(saved, manifest, tmp_path):
    given = [f"--ckpt={saved}", "--size=16"]
    assert main(["encode", str(manifest.parent), str(tmp_path / "f"), *given]) == 1
    source = [str(manifest), str(tmp_path / "s"), *given, "--to=shards", "--workers=0"]
    assert main(["encode", *source]) == 1  # for the one that is no video
    files = {p.name: LatentsFile(p) for p in find_latents(tmp_path / "f")}
    found = [unpack_record(r, "r") for r in records(tmp_path / "s").values()]
    assert len(files) == len(found) == 5
    for record in found:
        file = files[Path(record.header["source"]).with_suffix(".safetensors").name]
        np.testing.assert_array_equal(record.latents, file.read())
        assert record.header["frames"] == file.info.frames


def test_videos_of_all_lengths_share_their_programs(vae, tmp_path):
    from odvae_jax.transcoding import Job, Settings, encode_files

    jobs = []
    for frames in range(1, 40, 3):
        path = write_clip(tmp_path / f"{frames}.mp4", frames, 16, 16, seed=frames)
        jobs.append(Job(path, tmp_path / f"{frames}.safetensors", path.name))
    chex.clear_trace_counter()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **more: (
            compiled.append(more.get("fun_name"))
            if name.endswith("backend_compile_duration")
            else None
        )
    )
    outcome = encode_files(vae, "m", jobs, Settings(), bar=False)
    assert outcome.done == len(jobs)
    # The first chunk, the others, halves of both, and one for pictures.
    assert sum("encode_part" in str(name) for name in compiled) <= 5
    for job in jobs[::4]:
        clip = open_source(str(job.source))
        video = clip.read(0, Sampling(int(job.source.stem)), 1, lambda n: 0)
        expected = encode_uint8(vae, video[None], pad=True).mean[0]
        np.testing.assert_allclose(LatentsFile(job.target).read(), expected, atol=2e-5)


def test_what_is_left_out_and_what_cannot_be_read_is_named(dataset):
    dest, summary = dataset
    rows = [json.loads(line) for line in (dest / "problems.jsonl").read_text().splitlines()]
    assert [Path(row["video"]).name for row in rows] == ["broken.mp4"]
    assert rows[0]["reason"] and rows[0]["entry"] is None
    assert list(summary.problems) == [rows[0]["video"]]
    assert summary.left_out == {"too short": 1, "cannot be read": 1}


def test_a_clip_that_cannot_be_decoded_costs_no_other(vae, tmp_path, dataset):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        write_clip(folder / f"{number}.mp4", 12, 24, 32, seed=number)
    path = folder / "1.mp4"
    content = path.read_bytes()
    at = content.index(b"mdat") + 8
    path.write_bytes(content[:at] + bytes(len(content) // 3) + content[at + len(content) // 3 :])
    summary = encoded(vae, folder, tmp_path / "d")
    named = {Path(name).name for name in summary.problems}
    assert named == {"1.mp4"}
    sources = {
        Path(unpack_record(r, "r").header["source"]).name for r in records(tmp_path / "d").values()
    }
    assert {"0.mp4", "2.mp4"} <= sources
    rows = [json.loads(x) for x in (tmp_path / "d" / "problems.jsonl").read_text().splitlines()]
    assert {row["entry"] for row in rows}.isdisjoint(records(tmp_path / "d"))
    write_clip(path, 12, 24, 32, seed=1)


@pytest.mark.parametrize(
    "changed",
    [
        {"content": "moments"},
        {"store": "bfloat16"},
        {"cut": {"hop": 5}},
        {"cut": {"buckets": (Size(5, 16, 16),)}},
    ],
    ids=["content", "store", "hop", "buckets"],
)
def test_a_dataset_that_was_made_otherwise_is_refused(vae, manifest, dataset, changed):
    dest, _ = dataset
    before = {p: p.stat().st_mtime_ns for p in dest.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="made otherwise"):
        encoded(vae, manifest, dest, settings(**changed))
    assert {p: p.stat().st_mtime_ns for p in dest.rglob("*") if p.is_file()} == before


def test_another_model_another_source_and_another_version_are_refused(
    vae, manifest, dataset, tmp_path
):
    dest, _ = dataset
    other = ODVAE(vae.config, rngs=1)
    with pytest.raises(ValueError, match="encoder differ"):
        encoded(other, manifest, dest)
    with pytest.raises(ValueError, match="digest"):
        encoded(vae, manifest.parent / "v0.mp4", dest)
    text = (dest / "dataset.json").read_text()
    try:
        (dest / "dataset.json").write_text(text.replace("latents 1", "latents 7"))
        with pytest.raises(ValueError, match=r"latents 7.*this version reads"):
            encoded(vae, manifest, dest)
    finally:
        (dest / "dataset.json").write_text(text)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        encoded(vae, manifest, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


def test_a_second_writer_of_the_same_part_is_refused(vae, manifest, dataset):
    dest, _ = dataset
    lock = WholeFile(dest / "part-0-of-1")
    try:
        with pytest.raises(OSError, match="another process"):
            encoded(vae, manifest, dest)
    finally:
        lock.close()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(saved, manifest, tmp_path, capsys):
    dest = tmp_path / "d"
    given = [f"--ckpt={saved}", "--to=shards", f"--buckets={SIZES}", "--hop=4", "--dry-run"]
    assert main(["encode", str(manifest), str(dest), *given, "--workers=0"]) == 1
    said = capsys.readouterr().out
    assert "12 clips" in said and "2 programs" in said and "1 too short" in said
    assert not dest.exists()


def test_a_spread_clip_needs_no_more_than_its_frames_of_a_video(saved, manifest, tmp_path, capsys):
    """Of videos of 12, 9, 21, 3 and 14 frames, one is longer than the window of 15 frames."""
    given = [f"--ckpt={saved}", "--to=shards", "--frames=5", "--stride=3", "--size=16", "--dry-run"]
    for more, clips in ((["--spread"], 4), (["--spread", "--hop=1"], 9), (["--hop=30"], 2)):
        main(["encode", str(manifest), str(tmp_path / "d"), *given, *more, "--workers=0"])
        assert f"{clips} clips" in capsys.readouterr().out, more


@pytest.mark.parametrize(
    "given, said",
    [
        (["--to=shards", "--frames=5", "--spread", "--fps=4"], "spread is about clips"),
        (["--to=shards", "--buckets=5x16x16", "--spread"], "spread is about clips"),
        (["--spread"], "--spread is for datasets"),
        (["--frames=5"], "--to=shards"),
        (["--to=shards", "--hop=3"], "frames or buckets"),
        (["--to=shards", "--buckets=6x16x16"], "nearest is 5x16x16"),
        (["--to=shards", "--buckets=5x16"], "is no bucket"),
        (["--to=shards", "--buckets=5x16x16", "--size=16"], "leave out"),
        (["--to=shards", "--frames=5", "--hop=2", "--clips-per-video=2"], "give one"),
        (["--to=shards", "--devices=9", "--frames=5"], "this machine has 8 devices"),
        (["--to=shards", "--overwrite"], "new folder"),
        (["--to=shards", "--rows=2"], "--rows is for files"),
        (["--to=shards", "--frames=5", "--fps=0"], "no number greater than 0"),
        (["--to=shards", "--engine=ray", "--tiling=auto"], "name the tiling"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    saved, manifest, tmp_path, capsys, given, said
):
    dest = tmp_path / "d"
    assert main(["encode", str(manifest), str(dest), f"--ckpt={saved}", *given]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum(said in line for line in lines) == 1 and len(lines) <= 2 and not dest.exists()


def test_a_video_goes_to_the_bucket_of_the_nearest_aspect_ratio():
    sizes = [Size(f, h, w) for f in (5, 17) for h, w in ((64, 64), (32, 64), (64, 32))]
    assert choose(sizes, 20, 100, 110) == Size(17, 64, 64)
    assert choose(sizes, 16, 100, 180) == Size(5, 32, 64)
    assert choose(sizes, 17, 640, 360) == Size(17, 64, 32)
    with pytest.raises(LeftOutError, match="too short"):
        choose(sizes, 4, 100, 100)
    with pytest.raises(LeftOutError, match="too small"):
        choose(sizes, 20, 60, 60)


def test_buckets_of_a_budget_keep_it_and_nearly_use_it():
    sizes = of_budget(17, 65536, unit=16)
    assert parse_buckets("17@65536", time=4, space=8) == tuple(sorted(sizes))
    areas = [size.height * size.width for size in sizes]
    assert max(areas) <= 65536 and min(areas) > 0.85 * 65536
    assert Size(17, 256, 256) in sizes
    aspects = sorted(size.width / size.height for size in sizes)
    assert aspects[0] >= 0.5 and aspects[-1] <= 2
    assert {(size.width, size.height) for size in sizes} == {(s.height, s.width) for s in sizes}
    assert max(b / a for a, b in itertools.pairwise(aspects)) < 1.3


def test_a_tiling_is_chosen_once_by_the_memory_and_kept(vae, manifest, dataset, tmp_path):
    dest, _ = dataset
    auto = settings(tiling=AutoTiling(memory=2**40))
    encoded(vae, manifest, tmp_path / "d", auto)
    assert records(tmp_path / "d") == records(dest), "clips are whole where there is room"
    again = encoded(vae, manifest, tmp_path / "d", settings(tiling=AutoTiling(memory=1)))
    assert again.clips == 0 and again.there == len(records(dest))
    small = encoded(
        vae, manifest, tmp_path / "small", settings(tiling=AutoTiling(memory=1))
    ).description
    assert small.shared["tiling"] != again.description.shared["tiling"]
    assert small.records == len(records(dest))


def test_a_whole_video_that_ends_too_early_is_kept_and_named(vae, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_clip(folder / "good.mp4", 12, 16, 16)
    whole = write_clip(tmp_path / "whole.mp4", 96, 16, 16, seed=1)
    cut = remuxed(whole, folder / "cut.mp4", movflags="faststart")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    how = settings(cut={"buckets": (), "hop": None})
    summary = encoded(vae, folder, tmp_path / "d", how)
    assert [Path(name).name for name in summary.problems] == ["cut.mp4"]
    found = [unpack_record(r, "r").header for r in records(tmp_path / "d").values()]
    lengths = {Path(header["source"]).name: header["frames"] for header in found}
    assert lengths["good.mp4"] == 12 and 10 < lengths["cut.mp4"] < 96
    assert summary.description.records == 2


def test_a_video_that_was_mended_is_encoded_by_the_same_command(vae, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in (0, 2):
        write_clip(folder / f"{number}.mp4", 12, 24, 32, seed=number)
    (folder / "1.mp4").write_bytes(b"no video")
    first = encoded(vae, folder, tmp_path / "d")
    before = records(tmp_path / "d")
    assert [Path(name).name for name in first.problems] == ["1.mp4"]
    write_clip(folder / "1.mp4", 14, 24, 32, seed=1)
    second = encoded(vae, folder, tmp_path / "d")
    after = records(tmp_path / "d")
    assert not second.problems and second.left_out == {}
    assert after.items() >= before.items() and len(after) == second.description.records
    new = after.keys() - before
    assert second.clips == len(new) > 0
    source = open_source(str(folder))
    for entry in new:
        record = unpack_record(after[entry], "r")
        assert record.header["place"]["video"] == 1
        start = record.header["place"]["start"]
        size = (record.header["height"], record.header["width"])
        clip = source.read(1, Sampling(5, cover=size), 1, lambda n, at=start: at)
        expected = encode_uint8(vae, clip[None]).mean[0]
        np.testing.assert_allclose(record.latents, expected, atol=2e-5)
    assert encoded(vae, folder, tmp_path / "d").clips == 0


def test_a_source_may_be_named_by_another_path(vae, manifest, dataset, monkeypatch):
    dest, summary = dataset
    monkeypatch.chdir(manifest.parent)
    for text in (manifest.name, f"folder:{manifest}", f"./{manifest.name}"):
        again = encoded(vae, text, dest)
        assert (again.clips, again.there) == (0, summary.clips)


def test_what_cannot_be_read_for_the_moment_is_not_too_short(vae, tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(2):
        write_clip(folder / f"{number}.mp4", 12, 24, 32, seed=number)
    places = Source.places

    def slow(self, index, sampling, stride):
        if index == 1:
            raise TimeLimitError(f"{self.name(index)} was not read in time.")
        return places(self, index, sampling, stride)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "places", slow)
        first = encoded(vae, folder, tmp_path / "d")
    assert first.left_out == {"cannot be read": 1} and len(first.problems) == 1
    second = encoded(vae, folder, tmp_path / "d")
    assert second.clips == first.clips and not second.problems


def test_a_device_that_fails_ends_the_run_and_blames_no_video(vae, tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(4):
        write_clip(folder / f"{number}.mp4", 12, 16, 16, seed=number)
    how = settings(cut={"buckets": (), "hop": None})
    encode, calls = Computation.encode, []

    def failing(self, blocks):
        calls.append(1)
        if len(calls) > 3:  # the first call compiles
            raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")
        yield from encode(self, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(Computation, "encode", failing)
        with pytest.raises(jax.errors.JaxRuntimeError, match="gone"):
            encoded(vae, folder, tmp_path / "d", how)
    kept = records(tmp_path / "d")
    assert not (tmp_path / "d" / "problems.jsonl").exists()
    summary = encoded(vae, folder, tmp_path / "d", how)
    assert summary.there == len(kept) and summary.description.records == 4


def test_frames_that_are_not_as_the_header_says_are_a_problem(vae, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "v.mp4", 12, 16, 24)
    header = Files.header
    with monkeypatch.context() as patch:
        patch.setattr(
            Files, "header", lambda *a: dataclasses.replace(header(*a), height=32, width=24)
        )
        summary = encoded(vae, path, tmp_path / "d", settings(cut={"buckets": (), "hop": None}))
    assert "its header promised 32×24" in next(iter(summary.problems.values()))
    assert summary.description.records == 0


def test_shards_of_another_plan_do_not_count(vae, manifest, dataset, tmp_path):
    dest, summary = dataset
    copy = tmp_path / "d"
    shutil.copytree(dest, copy)
    for path in list(copy.rglob("*-00000.*")):  # as of a process that planned at the same time
        path.rename(path.with_name("00000000" + path.name[8:]))
    again = encoded(vae, manifest, copy)
    assert again.clips == summary.clips and again.there == 0


def test_a_dry_run_of_whole_videos_counts_bytes(saved, manifest, tmp_path, capsys):
    given = [f"--ckpt={saved}", "--to=shards", "--size=16", "--dry-run", "--workers=0"]
    assert main(["encode", str(manifest), str(tmp_path / "d"), *given]) == 1
    said = capsys.readouterr().out
    # Frames 12, 9, 21, 3 and 14 become 7, 5, 11, 2 and 8 latent frames of 8×8 with 4 channels.
    assert "5 clips" in said and f"{33 * 8 * 8 * 4 * 4 / 1e9:.6f} GB" in said


def test_a_part_that_ends_late_keeps_the_entries_that_another_part_added(vae, tmp_path):
    folder, dest = tmp_path / "videos", tmp_path / "d"
    folder.mkdir()
    for number in (0, 2):
        write_clip(folder / f"{number}.mp4", 12, 24, 32, seed=number)
    (folder / "1.mp4").write_bytes(b"no video")

    def other_part_first(*_):
        write_clip(folder / "1.mp4", 14, 24, 24, seed=1)  # mended, and in a bucket of its own
        encoded(vae, folder, dest, part=(1, 2))
        return (came for came in ())

    late = encoded(vae, folder, dest, part=(0, 2), run=other_part_first)
    names = [bucket.name for bucket in late.description.buckets]
    assert sorted(names) == ["5x16x16", "5x16x24"]
    whole = encoded(vae, folder, dest)
    assert whole.description.records == len(records(dest))
    videos = {unpack_record(r, "r").header["place"]["video"] for r in records(dest).values()}
    assert videos == {0, 1, 2}
