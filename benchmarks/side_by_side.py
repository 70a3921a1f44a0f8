"""What the benchmarks share that put ours beside PyTorch's: processes, timings, and the table."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np


def hand_over(result):
    """Prints what a process has measured, as `measured` reads it."""
    print("\n" + json.dumps(result))


def measured(name, *, cached=False, **environment):
    """What a process of its own hands over that runs this benchmark with --child; None if it fails.

    Nothing is found compiled there, unless it is `cached`. `environment` are further variables of
    it.
    """
    environment = {**os.environ, **environment}
    if not cached:
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryDirectory() as environment["TORCHINDUCTOR_CACHE_DIR"]:
        process = subprocess.run(
            [sys.executable, *sys.argv, f"--child={name}"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or ["no message"]
        print(f"{name}: {last[0][:300]}", file=sys.stderr)
        return None
    return json.loads(process.stdout.splitlines()[-1])


def timed(run, wait, *, calls, repeats, warm):
    """Seconds per call, and the seconds until the first `warm` calls were done.

    Each of the `repeats` timings is of `calls` calls, of which the last is waited for.
    """
    ready = _seconds(run, wait, warm)
    return [_seconds(run, wait, calls) / calls for _ in range(repeats)], ready


def _seconds(run, wait, calls):
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return time.perf_counter() - start


def time_torch(run, device, *, calls, repeats, warm, trials):
    """What is measured of a function of PyTorch: seconds, memory in bytes, seconds until ready.

    Memory is the peak after the first `trials` calls, in which algorithms are chosen.
    """
    import torch

    on_gpu = device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    ready = _seconds(run, wait, trials)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()  # without what trials of algorithms took
    seconds, more = timed(run, wait, calls=calls, repeats=repeats, warm=warm)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {"seconds": seconds, "memory": peak, "ready": ready + more}


def time_jax(function, *arguments, repeats):
    """What is measured of a function of JAX: seconds, the program's memory, seconds to compile."""
    import jax

    from odvae_jax.compilation import bytes_needed
    from odvae_jax.evaluation.speed import time_calls

    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    ready = time.perf_counter() - start
    seconds = time_calls(compiled, *arguments, repeats=repeats)
    return {"seconds": seconds, "memory": bytes_needed(compiled), "ready": ready}


class Table:
    """Lines of what was measured, printed as soon as they are known.

    Args:
      rate: operations per second of a matrix product, beside which those of a line stand; None
        leaves these columns out.
      peak: whether there is a column with the runtime's own peak of memory.
      environment: further variables of the processes.
    """

    def __init__(self, rate=None, *, peak=False, **environment):
        self._rate, self._peak, self._environment = rate, peak, environment
        peaks = f"{'peak':>8}" if peak else ""
        products = f"{'matrix ms':>10}{'share':>7}" if rate else ""
        print(
            f"{'work':24}{'':16}{'ms':>10}{'spread':>20}{'GiB':>8}{peaks}{'ready s':>9}"
            f"{'times':>7}{products}"
        )

    def measure(self, work, kinds):
        """Measures kinds of one work, and says how many times as fast as "compiled" they are."""
        first = None
        for kind in kinds:
            result = measured(f"{kind}:{work}", **self._environment)
            if result is None:
                print(f"{work:24}{kind:16}{'failed':>10}", flush=True)
                continue
            if kind == "compiled":
                first = statistics.median(result["seconds"])
            print(self._line(work, kind, result, first), flush=True)

    def _line(self, work, kind, result, first):
        seconds = result["seconds"]
        median = statistics.median(seconds)
        low, high = np.percentile(seconds, [10, 90])
        spread = f"{low * 1e3:.1f}–{high * 1e3:.1f}"
        peak = f"{result.get('peak', 0) / 2**30:8.2f}" if self._peak else ""
        times = f"{first / median:.2f}" if first else ""
        best = (result.get("flops") or 0) / self._rate if self._rate else 0
        product = f"{best * 1e3:10.1f}{best / median:7.2f}" if best else ""
        return (
            f"{work:24}{kind:16}{median * 1e3:10.1f}{spread:>20}{result['memory'] / 2**30:8.2f}"
            f"{peak}{result['ready']:9.1f}{times:>7}{product}"
        )
