"""Whether several processes of one machine train as one process with the same devices.

python benchmarks/processes.py --devices=4 --processes=2   # on four GPUs, two per process
python benchmarks/processes.py --devices=4 --processes=2 --platform=cpu

Tunes the small model on the sample clips for some steps, in float32 with full products, with L2,
LPIPS and KL, and in the last four steps the adversarial loss: in one process with all devices, in
several that `jax.distributed` connects, and again in one, from weights whose last binary digit is
changed. The third run says how far rounding alone goes: its difference grows with each step, and
fastest with the adversarial loss. Prints the relative differences from the first run: of the loss
in each step, the largest of each loss before the adversarial one enters, and that of the averaged
weights as a whole. The exit status is 1 if the loss of a step before the adversarial one enters, or
the weights, differ by more than --tolerance and by more than twice what rounding does until then.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from safetensors.numpy import load_file

from odvae_jax import ODVAE

_DEVICES = flags.DEFINE_integer("devices", 4, "of all processes together")
_PROCESSES = flags.DEFINE_integer("processes", 2, "that share the devices")
_PLATFORM = flags.DEFINE_enum("platform", "cuda", ["cuda", "cpu"], "what the devices are")
_STEPS = flags.DEFINE_integer("steps", 20, "of training")
_SIZE = flags.DEFINE_integer("size", 64, "rows and columns of the clips, of 9 frames")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "a relative difference up to this always passes")
_OPTIONS = (
    "--config=finetune:all", "--config.loss.reconstruction=l2",
    "--config.data.path=sample-clips", "--config.model.dtype=float32",
    "--config.model.precision=highest", "--config.data.frames=9", "--config.log_every=1",
    "--config.discriminator.weight=0.1",
    "--config.validate_every=0", "--config.scale_clips=0",
)  # fmt: skip
ADVERSARIAL = 4  # steps, the last ones
ROUNDING = 2  # times the third run's difference may be that of several processes


def initial_weights(folder):
    """Writes the small model in float32 as it is, and with each last binary digit changed."""
    rng = np.random.default_rng(0)

    def changed(x):
        x = np.asarray(x)
        return np.nextafter(x, np.where(rng.random(x.shape) < 0.5, np.inf, -np.inf), dtype=x.dtype)

    vae = ODVAE.from_pretrained("small", dtype="float32", param_dtype="float32")
    vae.save_pretrained(folder / "initial")
    jax.tree.map(changed, vae).save_pretrained(folder / "changed")


def command(workdir, *more):
    return [
        sys.executable, "-m", "odvae_jax", "train", *_OPTIONS, f"--workdir={workdir}",
        f"--config.steps={_STEPS.value}", f"--config.batch_size={2 * _DEVICES.value}",
        f"--config.discriminator.start={_STEPS.value - ADVERSARIAL}",
        f"--config.data.size={_SIZE.value}", f"--config.data.short_side={_SIZE.value}",
        f"--config.data.short_side_max={2 * _SIZE.value}", *more,
    ]  # fmt: skip


def environment(devices):
    """That of a process which sees some of the devices."""
    if _PLATFORM.value == "cpu":
        flag = f"--xla_force_host_platform_device_count={len(devices)}"
        return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def train(folder, processes, initial="initial"):
    """Trains in so many processes; returns the records of the steps, and the averaged weights."""
    name = f"{initial}-{processes}"
    workdir = folder / f"run-{name}"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    each = _DEVICES.value // processes
    running = []
    for i in range(processes):
        more = (f"--coordinator={address}", f"--processes={processes}", f"--process={i}")
        log = (folder / f"{name}-{i}.log").open("w")
        running.append(
            subprocess.Popen(
                command(
                    workdir,
                    f"--config.init.from_pretrained={folder / initial}",
                    *(more if processes > 1 else ()),
                ),
                env=environment(range(i * each, (i + 1) * each)),
                stdout=log,
                stderr=log,
            )
        )
    if any([process.wait() for process in running]):
        for i in range(processes):
            print((folder / f"{name}-{i}.log").read_text()[-2000:], file=sys.stderr)
        raise SystemExit(f"processes.py: the training failed, processes: {processes}.")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], load_file(workdir / "model/model.safetensors")


def difference(name, a, b):
    """The relative difference of a metric in one step's records."""
    return abs(a[name] - b[name]) / max(abs(a[name]), 1e-12)


def weights_difference(one, other):
    """The relative difference of all weights together."""
    one, other = (np.concatenate([np.ravel(w[n]) for n in one]) for w in (one, other))
    one, other = one.astype(np.float64), other.astype(np.float64)
    return np.linalg.norm(one - other) / np.linalg.norm(one)


def main(_):
    if _DEVICES.value % _PROCESSES.value:
        raise SystemExit("processes.py: --devices must be a multiple of --processes.")
    if _STEPS.value <= ADVERSARIAL:
        raise SystemExit(f"processes.py: --steps must be more than {ADVERSARIAL}.")
    jax.config.update("jax_platforms", "cpu")  # of this process: the devices are the runs'
    with tempfile.TemporaryDirectory() as folder:
        initial_weights(Path(folder))
        one, of_one = train(Path(folder), 1)
        several, of_several = train(Path(folder), _PROCESSES.value)
        changed, of_changed = train(Path(folder), 1, "changed")
    start = _STEPS.value - ADVERSARIAL
    print(
        f"{_STEPS.value} steps of {2 * _DEVICES.value} clips on {_DEVICES.value} devices "
        f"({_PLATFORM.value}); relative differences from one process; the adversarial loss enters "
        f"after step {start}"
    )
    print(f"{'':24}{'loss':>10}{f'{_PROCESSES.value} processes':>16}{'digits changed':>16}")
    passed, rounding = True, 0.0
    for i, (a, b, c) in enumerate(zip(one, several, changed, strict=True)):
        apart, control = (difference("loss", a, other) for other in (b, c))
        rounding = max(rounding, control)
        passed &= i >= start or apart <= max(_TOLERANCE.value, ROUNDING * rounding)
        print(f"{f'step {i + 1}':24}{a['loss']:10.4f}{apart:16.1e}{control:16.1e}")
    for name in ("loss", "reconstruction", "perceptual", "kl"):
        apart, control = (
            max(difference(name, a, b) for a, b in zip(one[:start], other, strict=False))
            for other in (several, changed)
        )
        print(f"{f'{name}, to step {start}':34}{apart:16.1e}{control:16.1e}")
    apart, control = (weights_difference(of_one, other) for other in (of_several, of_changed))
    passed &= apart <= max(_TOLERANCE.value, ROUNDING * control)
    print(f"{'averaged weights, at the end':34}{apart:16.1e}{control:16.1e}")
    return int(not passed)


if __name__ == "__main__":
    app.run(main)
