"""Whether one version of the package is as fast as another: time, compile time and memory.

python benchmarks/versions.py --version=before=FOLDER --version=after=FOLDER \
    --work=encode:1x81x256x256,decode:1x81x256x256

A FOLDER holds a package `odvae_jax`, such as an unpacked wheel. The versions take turns, each time
in a process of their own. Each has its own compilation cache, which is empty in the first round.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from common import function_and_input, model, work_and_shape

_VERSION = flags.DEFINE_multi_string("version", [], "LABEL=FOLDER")
_WORK = flags.DEFINE_list(
    "work",
    ["encode:1x81x256x256", "decode:1x81x256x256"],
    "encode, decode or train (gradient of L1), a colon, clips, frames, height, width",
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "turns of each version")
_REPEATS = flags.DEFINE_integer("repeats", 20, "timed calls per turn")
_MEASURE = flags.DEFINE_bool("measure", False, "be one turn, and print what it found as JSON")


def measure(text):
    """One turn: compiles, calls, and prints."""
    import jax

    # Training rematerialises as the paper's configs do.
    work, clips = work_and_shape(text)
    vae = model(**({"remat": "convolutions", "param_dtype": "float32"} if work == "train" else {}))
    function, x = function_and_input(vae, work, clips)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(vae, x).compile()
    seconds = time.perf_counter() - start
    times = []
    for _ in range(_REPEATS.value + 3):
        start = time.perf_counter()
        jax.block_until_ready(compiled(vae, x))
        times.append((time.perf_counter() - start) * 1e3)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(json.dumps({"compile": seconds, "ms": times[3:], "temporary": temporary}))
    print(jax.devices()[0].device_kind, file=sys.stderr)


def turn(folder, cache, text):
    """What another process measures of the package in a folder."""
    arguments = [f for f in sys.argv[1:] if not f.startswith(("--version", "--work", "--rounds"))]
    environment = {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(folder).absolute()), os.environ.get("PYTHONPATH", "")]
        ),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--measure", f"--work={text}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(_):
    if _MEASURE.value:
        return measure(_WORK.value[0])
    versions = dict(text.split("=", 1) for text in _VERSION.value)
    if len(versions) < 2:
        raise SystemExit("give --version=LABEL=FOLDER twice: there is nothing to compare.")
    print(
        f"{'work':24}{'version':10}{'median ms':>10}{'spread':>18}{'of the first':>14}"
        f"{'cold compile s':>16}{'temporary GiB':>15}"
    )
    with tempfile.TemporaryDirectory() as caches:
        for text in _WORK.value:
            found = {label: [] for label in versions}
            for _ in range(_ROUNDS.value):
                for label, folder in versions.items():
                    found[label].append(turn(folder, f"{caches}/{label}", text))
            first = None
            for label, turns in found.items():
                medians = [statistics.median(t["ms"]) for t in turns]
                median = statistics.median(medians)
                first = first or median
                print(
                    f"{text:24}{label:10}{median:10.2f}"
                    f"{f'{min(medians):.2f}-{max(medians):.2f}':>18}{median / first:14.3f}"
                    f"{turns[0]['compile']:16.1f}{turns[-1]['temporary'] / 2**30:15.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
