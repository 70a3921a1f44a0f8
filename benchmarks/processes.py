"""Whether several processes of one machine train as one process with the same devices.

python benchmarks/processes.py --devices=4 --processes=2   # on four GPUs, two per process
python benchmarks/processes.py --devices=4 --processes=2 --platform=cpu

Tunes the small model on the sample clips for some steps, in float32 with full products, with the
reconstruction, LPIPS, KL and adversarial losses: once in one process with all devices, once in
several that `jax.distributed` connects. Prints the largest relative difference of each metric over
all steps, of the averaged weights as a whole, and the seconds per step of both. The exit status is
1 if a loss or the weights differ by more than --tolerance.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from safetensors.numpy import load_file

_DEVICES = flags.DEFINE_integer("devices", 4, "of all processes together")
_PROCESSES = flags.DEFINE_integer("processes", 2, "that share the devices")
_PLATFORM = flags.DEFINE_enum("platform", "cuda", ["cuda", "cpu"], "what the devices are")
_STEPS = flags.DEFINE_integer("steps", 20, "of training")
_SIZE = flags.DEFINE_integer("size", 64, "rows and columns of the clips, of 9 frames")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "the largest relative difference that passes")
_OPTIONS = (
    "--config=finetune:all", "--config.init.from_pretrained=small",
    "--config.data.path=sample-clips", "--config.model.dtype=float32",
    "--config.model.precision=highest", "--config.data.frames=9", "--config.log_every=1",
    "--config.discriminator.weight=0.1", "--config.discriminator.start=0",
    "--config.validate_every=0", "--config.scale_clips=0",
)  # fmt: skip


def command(workdir, *more):
    return [
        sys.executable, "-m", "odvae_jax", "train", *_OPTIONS, f"--workdir={workdir}",
        f"--config.steps={_STEPS.value}", f"--config.batch_size={2 * _DEVICES.value}",
        f"--config.data.size={_SIZE.value}", f"--config.data.short_side={_SIZE.value}",
        f"--config.data.short_side_max={2 * _SIZE.value}", *more,
    ]  # fmt: skip


def environment(devices):
    """That of a process which sees some of the devices."""
    if _PLATFORM.value == "cpu":
        flag = f"--xla_force_host_platform_device_count={len(devices)}"
        return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def train(folder, processes):
    """Trains in so many processes; returns the records of the steps, and the averaged weights."""
    workdir = folder / f"of-{processes}"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    each = _DEVICES.value // processes
    running = []
    for i in range(processes):
        more = (f"--coordinator={address}", f"--processes={processes}", f"--process={i}")
        log = (folder / f"of-{processes}-{i}.log").open("w")
        running.append(
            subprocess.Popen(
                command(workdir, *(more if processes > 1 else ())),
                env=environment(range(i * each, (i + 1) * each)),
                stdout=log,
                stderr=log,
            )
        )
    if any([process.wait() for process in running]):
        for i in range(processes):
            print((folder / f"of-{processes}-{i}.log").read_text()[-2000:], file=sys.stderr)
        raise SystemExit(f"processes.py: the training failed, processes: {processes}.")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], load_file(workdir / "model/model.safetensors")


def main(_):
    if _DEVICES.value % _PROCESSES.value:
        raise SystemExit("processes.py: --devices must be a multiple of --processes.")
    with tempfile.TemporaryDirectory() as folder:
        one, of_one = train(Path(folder), 1)
        several, of_several = train(Path(folder), _PROCESSES.value)
    print(
        f"{_STEPS.value} steps of {2 * _DEVICES.value} clips on {_DEVICES.value} devices "
        f"({_PLATFORM.value}); one process against {_PROCESSES.value}"
    )
    worst = 0.0
    names = [n for n in one[0] if not any(word in n for word in ("second", "fraction", "memory"))]
    for name in names:
        pairs = [(a[name], b[name]) for a, b in zip(one, several, strict=True) if name in b]
        difference = max((abs(a - b) / max(abs(a), 1e-12) for a, b in pairs), default=0.0)
        worst = max(worst, difference if name.startswith("loss") else 0)
        print(f"  {name:40}{difference:10.1e}")
    squares = sum(np.sum(np.square(of_one[n].astype(np.float64))) for n in of_one)
    apart = sum(np.sum(np.square(of_one[n].astype(np.float64) - of_several[n])) for n in of_one)
    weights = float(np.sqrt(apart / squares))
    print(f"  {'averaged weights':40}{weights:10.1e}")
    for name, records in (("one process", one), (f"{_PROCESSES.value} processes", several)):
        seconds = np.median([r["seconds_per_step"] for r in records[2:]])
        print(f"  {name}: {seconds * 1e3:.1f} ms per step")
    return int(max(worst, weights) > _TOLERANCE.value)


if __name__ == "__main__":
    app.run(main)
