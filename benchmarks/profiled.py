"""What the benchmarks share that say where the device's time goes: a profile, by kinds of work."""

import collections
import re
import tempfile
from pathlib import Path

REST = "copies, residuals and the rest"


def bodies_of(text):
    """Of a compiled program's text: each instruction's name, its line, and what it calls."""
    bodies, name = collections.defaultdict(list), None
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = opened[1]
        elif line.startswith("}"):
            name = None
        elif name:
            bodies[name].append(line)
    for line in (line for body in bodies.values() for line in body):
        if found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line):
            called = re.search(r"calls=%?([\w.\-]+)", line)
            yield found[1], line, "\n".join(bodies[called[1]]) if called else line


def device_seconds(run, calls, count=1):
    """Seconds of a device per call, by instruction, while `run` is called so often.

    With several devices, `count` of them, it is their mean.

    CUDA graphs have to be off, or their kernels have no names:
    XLA_FLAGS=--xla_gpu_enable_command_buffer=
    """
    import jax

    seconds = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(run())
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue  # summaries of the same
            for event in line.events:
                stats = dict(event.stats)
                if devices or "hlo_op" in stats:
                    name = str(stats.get("hlo_op", event.name))
                    seconds[name] += event.duration_ns / 1e9 / calls / count
    if not seconds:
        raise SystemExit("The profile names no kernels of this device: a GPU's and a CPU's do.")
    return seconds


def by_kind(seconds, kinds):
    """Seconds and the number of instructions, by kind of work, the longest first."""
    sums, counts = collections.Counter(), collections.Counter()
    for name, value in seconds.items():
        sums[kinds.get(name, REST)] += value
        counts[kinds.get(name, REST)] += 1
    return [(kind, value, counts[kind]) for kind, value in sums.most_common()]


def print_kinds(title, seconds, kinds):
    """Prints a line per kind of work."""
    total = sum(seconds.values())
    print(f"{title}: {total * 1e3:.1f} ms of the device")
    for name, value, count in by_kind(seconds, kinds):
        print(f"  {name:70}{value * 1e3:9.2f} ms{value / total:8.1%}{count:6} instructions")
