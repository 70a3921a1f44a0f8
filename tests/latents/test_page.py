"""What docs/latents.md prints runs."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from odvae_jax.latents import LatentDataset
from tests.conftest import full
from tests.latents.making import make_dataset
from tests.test_readme import ROOT, blocks


def printed(words):
    (code,) = (c for c in blocks(ROOT / "docs" / "latents.md", "python") if words in c)
    return code


def test_the_page_s_batches_are_on_all_devices_and_normalised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_dataset("DEST", buckets={"17x32x32": 10, "9x64x32": 9}, store="bfloat16")
    names = {}
    exec(printed("make_array_from_process_local_data"), names)
    z, batch = names["z"], names["batch"]
    assert z.shape[:2] == (16, 3) and z.shape[-1] == 4 and batch["number"] == 9
    assert len(z.sharding.device_set) == jax.device_count() == 8
    assert z.addressable_shards[0].data.shape[0] == 2
    mean = names["dataset"].normalise(batch["latents"][..., :4].astype(np.float32) * 0)
    assert mean.shape == z.shape
    drawn = [names["sample"](batch["latents"], jax.random.key(i)) for i in range(20)]
    found = np.stack(drawn).reshape(-1, 4)
    np.testing.assert_allclose(found.mean(0), 0, atol=0.2)
    np.testing.assert_allclose(found.std(0), 1, atol=0.1)


@pytest.mark.parametrize("workers", [1, *full(2)])
def test_grain_reads_a_dataset_in_processes_as_the_page_says(workers, tmp_path):
    made = make_dataset(tmp_path / "DEST", buckets={"17x128x128": 7, "9x16x16": 2})
    code = printed("import grain").replace("num_workers=2", f"num_workers={workers}")
    code += "batch = next(iter(batches))\n"
    code += 'print(*batch["entry"])\nprint(batch["latents"].sum(dtype="float64"))\n'
    main = "from absl import flags\nfrom odvae_jax.latents import LatentDataset\n"
    main += 'if __name__ == "__main__":\n    flags.FLAGS.mark_as_parsed()\n'
    Path(tmp_path / "reads.py").write_text(main + textwrap.indent(code, "    "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "reads.py"]
    how = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path}
    done = subprocess.run(command, env=environment, **how)
    assert done.returncode == 0, done.stderr
    entries, total = done.stdout.splitlines()
    entries = [int(entry) for entry in entries.split()]
    assert sorted(entries[:7]) == sorted(entries[7:14]) == list(range(7)), "two epochs and more"
    assert len(LatentDataset(tmp_path / "DEST", buckets="17x128x128")) == 7
    expected = sum(made[entry].sum(dtype=float) for entry in entries)
    np.testing.assert_allclose(float(total), expected, rtol=1e-5)
