"""The search for files that break the library, and the soak, find what they look for."""

import random

import pytest

from tests.robustness.fuzz import Process, search, table
from tests.robustness.mutations import damaged_bytes, damaged_json
from tests.robustness.soak import growth

PITFALLS = "tests.robustness.pitfalls"
KINDS = {
    "good": ("taken", ""),
    "refuses": ("refused", "odd is damaged"),
    "unnamed": ("finding", "without the file's name"),
    "silent": ("finding", "says nothing"),
    "raises": ("finding", "IndexError"),
    "aborts": ("finding", "it died (-6)"),
    "hangs": ("finding", "no answer after 1 s"),
    "grows": ("finding", "MiB"),
    "differs": ("finding", "something else was read"),
}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    process = Process(tmp_path_factory.mktemp("fuzz"), PITFALLS)
    yield process
    process.close()


@pytest.mark.parametrize("name", KINDS)
def test_every_way_to_go_wrong_is_found(process, name):
    kind, said = KINDS[name]
    found = process.run(name, 0, seconds=1 if name == "hangs" else 60)
    assert found["kind"] == kind and said in found["said"]
    assert process.run("good", 0)["kind"] == "taken"  # and the search goes on


def test_a_case_is_repeated_by_its_seed(process):
    first = [process.run("flips", seed)["kind"] for seed in range(20)]
    assert first == [process.run("flips", seed)["kind"] for seed in range(20)]
    assert set(first) == {"taken", "finding"}


def test_a_search_counts_and_names_the_command_that_repeats_a_finding(tmp_path):
    counts, findings = search(["good", "raises"], 7, 1, tmp_path, PITFALLS)
    assert counts["good"].total() == counts["raises"]["finding"] == len(findings) > 0
    assert findings[0].startswith("python -m tests.robustness.fuzz --case=raises:7\n")
    assert f"| raises | {len(findings):,} | 0 | 0 | {len(findings):,} |" in table(counts)


def test_damage_is_decided_by_the_seed_and_changes_something():
    content = bytes(range(256)) * 8
    value = {"a": [1, 2.0, "x"], "b": {"c": None}}
    for damage, whole in ((damaged_bytes, content), (damaged_json, value)):
        found = [damage(random.Random(seed), whole) for seed in range(50)]
        assert repr(found) == repr([damage(random.Random(seed), whole) for seed in range(50)])
        assert sum(one != whole for one in found) > 40


def test_the_soak_sees_memory_that_grows_and_none_that_only_varies():
    varies = [10**9 + 10**7 * (i % 7) for i in range(300)]
    begins = [10**8 * min(i, 29) for i in range(30)]  # the first tenth, in which programs compile
    assert abs(growth(begins + varies)) < 0.01
    grows = [v + 4 * 10**5 * i for i, v in enumerate(varies)]
    assert 0.09 < growth(begins + grows) < 0.14
