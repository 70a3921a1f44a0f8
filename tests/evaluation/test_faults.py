"""An evaluation beside bad videos, damaged records, broken models and odd labels."""

import io
import json
import logging
import os
import re
import sys

import jax
import numpy as np
import pytest

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.cli import main
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.measure import Meters, measure
from odvae_jax.evaluation.models import contender, load_contenders
from odvae_jax.evaluation.results import as_json, as_markdown, notes, summarise, table
from odvae_jax.evaluation.run import evaluate
from odvae_jax.files import printable
from tests.conftest import full, write_clip
from tests.odd_files import odd_folder
from tests.two_levels import TWO_LEVELS

SIZE = {"frames": 2, "size": 16}
LABELS = [
    "a|b",
    "<script>alert(1)</script>",
    "$x^2$ $\\frac{",
    "../../etc/passwd",
    "two\nlines\x1b[31m",
    "_hidden_",
    "`code` *b* [l](http://x) ~~s~~ # h &amp;",
    "é" * 300,
    os.fsdecode(b"\xff"),
]


@pytest.fixture(scope="module")
def vae():
    return ODVAE(ODVAEConfig(structure=TWO_LEVELS, width=8, groups=4), rngs=0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    for i in range(3):
        write_clip(path / f"{i}.mp4", frames=2, height=16, width=16, seed=i)
    return path


def broken(vae):
    """A model of finite weights whose reconstructions are not finite."""

    def changed(path, leaf):
        if not jax.tree_util.keystr(path).startswith(".decoder.conv_out") or leaf.ndim < 2:
            return leaf
        return np.where(leaf < 0, -3e38, 3e38).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(changed, vae)


def run(vae, clips, output, *labels):
    """A report of a model under some labels."""
    models = [contender(label, "", vae) for label in labels]
    found = FixedClips(clips, **SIZE)
    one = jax.devices()[:1]
    return evaluate(models, found, Meters(), output=output, devices=one, progress=False)


def measured(clips, folder, **models):
    """The numbers of models, measured or from the records in a folder."""
    models = [contender(label, "", model) for label, model in models.items()]
    one = jax.devices()[:1]
    found = FixedClips(clips, **SIZE)
    return summarise(
        measure(models, found, Meters(), folder=folder, devices=one, progress=False), models
    )


@pytest.mark.full
def test_each_good_video_is_measured_and_each_bad_one_named(vae, tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    good, bad = odd_folder(videos, pipes=False)
    small = {"1x1.mp4", "2x2.mp4", "16x3.mp4", "one frame.mp4"}  # too few frames, or scaled
    vae.save_pretrained(tmp_path / "model")
    how = ["eval", f"--ckpt={tmp_path / 'model'}", f"--data={videos}", "--frames=2", "--size=16"]
    how += ["--nofvd", "--nofloor"]
    for encoding in ("utf-8", "ascii"):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            patch.setattr(logging, "lastResort", None)
            status = main([*how, f"--output={tmp_path / 'out'}"])
            for stream in streams:
                stream.flush()
        said, errors = (stream.buffer.getvalue().decode(encoding) for stream in streams)
        assert status == 1, said
        lost = {name for name in bad if (videos / name).is_symlink()}  # links to nothing
        for name in bad - lost:
            assert said.count(f"  {printable(videos / name)}") == 1, name
        for name in lost:
            assert printable(videos / name) in errors, name
        read = json.loads((tmp_path / "out/results.json").read_text())
        assert not {printable(videos / name) for name in good - small} & read["skipped"].keys()
        assert {printable(videos / name) for name in bad - lost} <= read["skipped"].keys()
    for name in ("results.md", "results.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "videos were skipped" in text and "\x1b" not in text


def test_a_broken_model_is_named_and_the_others_numbers_stay(vae, clips, tmp_path):
    alone = measured(clips, None, good=vae)
    for _ in range(2):  # measured, and from the records
        both = measured(clips, tmp_path, good=vae, broken=broken(vae))
        rows = {row.contender.label: row for row in both.rows}
        assert rows["good"].scores == alone.rows[0].scores and rows["good"].clips == 3
        assert rows["broken"].clips == 0 and len(rows["broken"].not_finite) == 3
        cells = {row[0]: row[3:] for row in table(both)[1]}
        assert "not finite" in cells["broken"] and "not finite" not in cells["good"]
        assert any(line.startswith("broken: the reconstruction of 3 clips") for line in notes(both))
        json.dumps(as_json(both), allow_nan=False)


@pytest.mark.parametrize(
    "content", [b'{"data": ', *full(b"", b"\xff\xfe", b"[]", b"null", bytes(100))]
)
def test_settings_cut_short_are_moved_aside_and_all_is_measured_again(
    content, vae, clips, tmp_path, caplog
):
    folder = tmp_path / "measurements"
    first = measured(clips, folder, m=vae)
    whole = (folder / "settings.json").read_bytes()
    for i in (1, 2):
        (folder / "settings.json").write_bytes(content)
        records = {p.name: p.read_bytes() for p in folder.iterdir()}
        with caplog.at_level(logging.WARNING):
            again = measured(clips, folder, m=vae)
        assert again.rows[0].scores == first.rows[0].scores
        assert (folder / "settings.json").read_bytes() == whole
        aside = tmp_path / f"damaged-measurements-{i}"
        assert {p.name: p.read_bytes() for p in aside.iterdir()} == records
        assert "settings.json is damaged" in caplog.text and str(aside) in caplog.text


def test_damaged_records_are_measured_again(vae, clips, tmp_path):
    first = measured(clips, tmp_path, m=vae)
    for path in tmp_path.glob("*.jsonl"):
        lines = path.read_bytes().splitlines()
        nan = json.dumps({"clip": 1, "psnr": {"float32": "AADAfwAAwH8="}})
        for damage in (
            [b"\xff\xfe\x00", *lines[1:]],
            [lines[0][:-9], *lines[1:]],
            [b"5", b"[]", b"null", b'{"clip": [1]}', b'{"clip": {}}', b"[" * 9999, *lines[:2]],
            [lines[0].replace(b'"float32": "', b'"float32": "AAAA'), *lines[1:]],
            [*lines[:1], nan.encode(), *lines[2:]],
            [re.sub(rb'"(psnr|frames)": ({[^}]*}|"[^"]*")', rb'"\1": 7', lines[0]), *lines[1:]],
            [],
        ):
            path.write_bytes(b"\n".join(damage))
            again = measured(clips, tmp_path, m=vae)
            assert again.rows[0].scores == first.rows[0].scores
            assert again.rows[0].by_clip == first.rows[0].by_clip


def test_labels_mean_nothing_but_themselves_in_the_report(vae, clips, tmp_path):
    _, written = run(vae, clips, tmp_path / "out", *LABELS)
    names = {str(path.relative_to(tmp_path / "out")) for path in written}
    assert names == {
        *(f"results.{kind}" for kind in ("json", "md", "html")),
        *(f"clips/{clip}.{kind}" for clip in ("best", "worst") for kind in ("mp4", "png")),
        "by_frame.png",
        "frames.png",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    odd = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    rows = [line for line in odd.splitlines() if line.startswith("|")]
    models = len(LABELS) + 1  # and the mean over blocks
    tables = 2 * (models + 2)  # two of a line per model; then one of a line per clip
    columns = [11] * (models + 2) + [9] * (models + 2)
    assert [len(CELLS.split(row)) for row in rows[:tables]] == columns
    assert [len(CELLS.split(row)) for row in rows[tables:]] == [models + 3] * (2 + 3)
    page = (tmp_path / "out" / "results.html").read_text(encoding="utf-8")
    for text in (odd, page):
        assert "<script>" not in text and "&lt;script&gt;" in text
        assert "\x1b" not in text and "two\nlines" not in text
    assert page.count("<tr>") == 2 * (models + 1) + 3 + 1


CELLS = re.compile(r"(?<!\\)\|")
MARKED = re.compile(r"(?<!\\)[`*_\[\]|~$#<>]")


def test_in_markdown_only_the_table_is_markup():
    text = as_markdown(["model"], [[printable(label)] for label in LABELS])
    for label, line in zip(LABELS, text.splitlines()[2:], strict=True):
        assert line.startswith("| ") and line.endswith(" |")
        assert not MARKED.search(line[2:-2].replace("\\\\", "")), line
        shown = re.sub(r"\\([\\`*_\[\]|~$#])", r"\1", line[2:-2])
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            shown = shown.replace(entity, character)
        assert shown == printable(label)


def test_labels_that_look_alike_once_they_are_printable_are_refused(vae, tmp_path):
    vae.save_pretrained(tmp_path / "m")
    names = [f"{label}={tmp_path / 'm'}" for label in ("a\nb", r"a\x0ab")]
    with pytest.raises(ValueError, match="several models are called"):
        load_contenders(names)
    labels = [c.label for c in load_contenders([names[0], f"a|b={tmp_path / 'm'}"])]
    assert labels == [r"a\x0ab", "a|b"]


def test_whatever_a_source_raises_is_one_clip_s_reason(vae, clips):
    found = FixedClips(clips, **SIZE)
    read = found._source.read

    def failing(index, *given):
        if index == 1:
            raise TypeError("a\nbug")
        return read(index, *given)

    found._source.read = failing
    models = [contender("m", "", vae)]
    found = measure(models, found, Meters(), devices=jax.devices()[:1], progress=False)
    assert list(found.names) == [0, 2]
    assert list(found.skipped.values()) == [f"{clips / '1.mp4'}: a bug"]
    assert summarise(found, models).rows[0].clips == 2
