"""What the search calls damage is damage: whole files are read by every target."""

import random

import pytest

from tests.robustness import targets

DAMAGES = {
    "damaged_bytes": lambda rng, content, others=(): content,
    "damaged_json": lambda rng, value: value,
    "deep_json": lambda rng: "{}",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "corpus"
    targets.make_corpus(path)
    return path


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n in targets.TARGETS if n != "pickle_programs"])
def test_every_target_takes_whole_files(name, corpus, tmp_path, monkeypatch):
    for function, undamaged in DAMAGES.items():
        monkeypatch.setattr(targets, function, undamaged)
    for seed in range(20):
        scratch = tmp_path / str(seed)
        scratch.mkdir()
        rng = random.Random(seed)
        monkeypatch.setattr(rng, "random", lambda: 0.5)  # no file is removed or emptied
        _, use = targets.TARGETS[name](rng, corpus, scratch)
        assert use() is None
