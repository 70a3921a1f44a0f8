"""Data collected out of packages; nothing is downloaded here."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odvae_jax import digests
from odvae_jax.cli import main
from odvae_jax.data import motion
from odvae_jax.data.collecting import collect, read_origins
from odvae_jax.data.collecting.packages import folder_of
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.data.video import inspect_video, read_frames
from tests.conftest import write_clip

TESTED_ONLY = {"gradio", "kivy-examples"}


def photograph(path, seed, side=320):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((side * 6 // 5, side), Image.Resampling.BICUBIC).save(path)


def entry(cache, registry, name, part, **files):
    """A package in the cache, and its entry in the list."""
    folder = cache / registry / f"{name}-1"
    listed = {"registry": registry, "name": name, "version": "1", "licence": "CC0", "part": part}
    for what, chosen in files.items():
        listed[what] = [
            {"file": f, "size": (folder / f).stat().st_size, "kind": "photograph", **more,
             "digest": digests.of_file(folder / f)} for f, more in chosen.items()
        ]  # fmt: skip
    return listed


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A cache with three packages, and the list of them."""
    root = tmp_path_factory.mktemp("packages")
    cache = root / "cache"
    for i in range(2):
        photograph(cache / "debian" / "views-1" / f"usr/share/{i}.png", i)
    photograph(cache / "debian" / "others-1" / "usr/share/0.png", 5)
    (cache / "pypi" / "films-1").mkdir(parents=True)
    write_clip(cache / "pypi" / "films-1" / "long.mp4", frames=40)
    (cache / "npm" / "tests-1").mkdir(parents=True)
    write_clip(cache / "npm" / "tests-1" / "a.mp4", frames=40, seed=3)
    listed = [
        entry(cache, "debian", "views", "train", pictures={"usr/share/0.png": {},
                                                           "usr/share/1.png": {}}),
        entry(cache, "pypi", "films", "train", clips={"long.mp4": {}}),
        entry(cache, "debian", "others", "held-out", pictures={"usr/share/0.png": {}}),
        entry(cache, "npm", "tests", "held-out", clips={"a.mp4": {"start": 5}}),
    ]  # fmt: skip
    (root / "list.json").write_text(json.dumps(listed))
    return root


def collected(packages, dest, **options):
    options = {"clips": 5, "size": 32, "offline": True, **options}
    cache = options.pop("cache", packages / "cache")
    report = collect(dest, cache=cache, origins=packages / "list.json", **options)
    return report, json.loads((dest / "collected.json").read_text())


@pytest.fixture(scope="module")
def whole(packages, tmp_path_factory):
    dest = tmp_path_factory.mktemp("whole") / "dest"
    return dest, *collected(packages, dest)


def test_the_folders_are_sources_of_clips_and_pictures_as_they_are(whole):
    dest, report, _ = whole
    assert report.whole, report.text
    videos = open_source(f"folder:{dest}/train-clips")
    assert len(videos) == 6  # five are made, one is real
    frames = [videos.read(i, Sampling(frames=25), 1, lambda n: n - 1) for i in range(6)]
    assert {f.shape[0] for f in frames} == {25} and {min(f.shape[1:3]) for f in frames} == {32}
    pictures = open_source(f"images:{dest}/train-pictures")
    assert len(pictures) == 3  # one is drawn
    assert len(open_source(f"images:{dest}/held-out-pictures")) == 1
    assert len(open_source(f"folder:{dest}/held-out-clips")) == 1


def test_every_file_is_listed_with_its_origin_licence_and_digest(whole):
    dest, _, content = whole
    listed = {r["path"]: [r["size"], r["digest"]] for r in content["files"]}
    assert {**listed, "collected.json": 0}.keys() == digests.of_folder(dest).keys()
    assert not digests.differences(dest, listed)
    for record in content["files"]:
        assert record["kind"] == "drawn" or record["licence"], record


def test_the_same_seed_gives_the_same_files_with_any_number_of_workers(whole, packages, tmp_path):
    content = whole[2]
    again = collected(packages, tmp_path / "again", workers=2)[1]
    assert again == content
    other = collected(packages, tmp_path / "again", seed=1)[1]
    changed = {a["path"] for a, b in zip(other["files"], content["files"], strict=True) if a != b}
    assert {path.split("/")[1] for path in changed} == {"motion", "drawn"}


def test_nothing_in_the_training_comes_from_a_package_that_is_set_aside(whole):
    content = whole[2]
    aside = {"others", "tests"}
    for record in content["files"]:
        names = record.get("package", [])
        names = {names} if isinstance(names, str) else set(names)
        assert names <= aside if record["part"] == "held-out" else not names & aside
        assert record["path"].startswith(record["part"])


def test_what_is_set_aside_are_the_frames_that_the_list_names(whole, packages):
    dest, _, content = whole
    (clip,) = [r for r in content["files"] if r["part"] == "held-out" and "frames" in r]
    source = inspect_video(packages / "cache/npm/tests-1/a.mp4")
    frames = read_frames(source, 0, 40, short_side=32).astype(float)
    found = read_frames(inspect_video(dest / clip["path"]), 0, 33).astype(float)
    assert found.shape == (33, 32, 42, 3)  # the odd column is left out
    errors = [np.abs(found - frames[i : i + 33, :, :42]).mean() for i in range(8)]
    assert np.argmin(errors) == 5 and errors[5] < 10


def test_a_missing_package_is_named_with_its_command_and_the_rest_is_collected(
    packages, tmp_path, whole
):
    cache = tmp_path / "cache"
    shutil.copytree(packages / "cache", cache)
    shutil.rmtree(cache / "debian" / "others-1")
    report, content = collected(packages, tmp_path / "dest", cache=cache)
    assert not report.whole and "others (held-out) is missing" in report.text
    assert "apt-get install others" in report.text
    assert len(content["files"]) == len(whole[2]["files"]) - 1


def test_a_file_that_is_not_as_recorded_is_named_and_the_rest_is_collected(packages, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(packages / "cache", cache)
    photograph(cache / "debian" / "views-1" / "usr/share/0.png", 9)
    (cache / "debian" / "views-1" / "usr/share/1.png").write_bytes(b"no picture")
    (cache / "pypi" / "films-1" / "long.mp4").unlink()
    report, content = collected(packages, tmp_path / "dest", cache=cache, clips=1)
    assert not report.whole
    for said in ("views (train): usr/share/0.png has", "usr/share/1.png cannot be read",
                 "long.mp4 is missing"):  # fmt: skip
        assert said in report.text
    assert sum(r.get("package") == "views" for r in content["files"]) == 1


def test_a_folder_with_other_files_is_left_alone(packages, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        collected(packages, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_debian_package_is_unpacked_without_being_installed(packages, tmp_path, monkeypatch):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    tree = tmp_path / "tree"
    photograph(tree / "usr/share/views/0.png", 0)
    (tree / "DEBIAN").mkdir()
    control = "Package: tiny-views\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\n"
    (tree / "DEBIAN/control").write_text(control + "Description: views\n")
    deb = tmp_path / "tiny-views_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", tree, deb], check=True, capture_output=True)
    apt = tmp_path / "bin/apt-get"
    apt.parent.mkdir()
    apt.write_text(f"#!/bin/sh\ncp {deb} .\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent), prepend=":")
    views = dataclasses.replace(read_origins(packages / "list.json")[0], name="tiny-views")
    folder = folder_of(views, tmp_path / "cache")
    assert (folder / "usr/share/views/0.png").is_file()
    apt.unlink()
    assert folder_of(views, tmp_path / "cache", offline=True) == folder


def test_enough_is_set_aside_and_the_testing_packages_are_not_trained_on():
    origins = read_origins()
    parts = {p: [o for o in origins if o.part == p] for p in ("train", "held-out")}
    aside, train = parts["held-out"], parts["train"]
    assert sum(len(o.clips) for o in aside) >= 8
    assert sum(f.kind == "photograph" for o in aside for f in o.pictures) >= 20
    assert not {o.name for o in train} & {o.name for o in aside}
    assert not {o.name for o in train} & TESTED_ONLY
    contents = [{f.digest for o in p for f in (*o.pictures, *o.clips)} for p in (aside, train)]
    assert not contents[0] & contents[1]
    assert all(f.start is not None for o in aside for f in o.clips)


def test_the_documentation_has_every_package_with_its_licence():
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    trained, aside = page.split("Trained on:")[1].split("Set aside:")
    for origin in read_origins():
        row = f": {origin.name} | {origin.version} | {origin.licence} |"
        assert row in (trained if origin.part == "train" else aside)


def test_a_package_in_both_parts_is_refused(packages, tmp_path):
    listed = json.loads((packages / "list.json").read_text())
    listed[2]["name"] = "views"
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="views is set aside, and trained on"):
        read_origins(tmp_path / "list.json")


def test_the_command_says_what_is_missing_and_has_the_status_1(tmp_path, capsys):
    words = ["data", "collect", str(tmp_path / "dest"), "--offline", "--pictures-only",
             f"--cache={tmp_path}", "--workers=1"]  # fmt: skip
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "apt-get install mate-backgrounds" in said and "pip install gradio==" in said
    assert (tmp_path / "dest/train-pictures/scikit-image").is_dir()  # a package that is installed


def wave(x, y):
    return 127.5 + 100 * np.sin(0.11 * x + 0.07 * y)


def test_a_camera_moves_by_parts_of_a_pixel():
    y, x = np.mgrid[:160, :200] + 0.5
    image = Image.fromarray(np.round(wave(x, y)).astype(np.uint8))
    ways = np.array([0.0, 0.3, 0.55, -7.2])
    path = motion.Path(ways, -2 * ways, np.ones(4), np.zeros(4))
    for frame, way in enumerate(ways):
        seen = np.asarray(motion.render(image, path, frame, 64, 64.0), float)
        v, u = np.mgrid[:64, :64] + 0.5 - 32
        wanted = wave(100 + u + way, 80 + v - 2 * way)
        assert np.abs(seen - wanted).max() < 2


@pytest.mark.parametrize("seed", range(4))
def test_ways_are_smooth(seed):
    path = motion.smooth_path(np.random.default_rng(seed), 33, speed=5.0, still=False)
    for way, most in ((path.x, 1.2), (path.y, 1.2), (path.zoom, 1e-3), (path.angle, 1e-3)):
        assert way.shape == (33,) and np.abs(np.diff(way, 2)).max() < most


def test_the_camera_sees_no_edge_and_a_clip_has_its_shape():
    white = Image.new("RGB", (400, 300), "white")
    for seed in range(8):
        rng = np.random.default_rng(seed)
        clip = motion.clip_of_pictures(rng, [white, white], size=48)
        assert clip.shape == (33, 48, 48, 3) and clip.dtype == np.uint8
        assert (np.ptp(clip, axis=(1, 2)) <= 1).all()


def test_fine_stripes_become_grey_and_not_coarse_ones():
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    path = motion.smooth_path(np.random.default_rng(0), 3, speed=3.0, still=False)
    image, path, reach = motion.covering(Image.fromarray(stripes), path, 64, 0.9)
    seen = np.asarray(motion.render(image, path, 1, 64, reach), float)
    assert 120 < seen.mean() < 135 and seen.std() < 4
