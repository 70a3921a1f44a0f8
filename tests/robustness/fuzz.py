"""Gives damaged files to everything that reads files, and looks for what is not refused cleanly.

python -m tests.robustness.fuzz --minutes=60
python -m tests.robustness.fuzz --case=latents:1234

A damaged file must be read as if it were whole, or refused with a short line that names it. All
else is a finding: another exception, a crash of the process, more than 20 seconds, more than a
gigabyte. Each finding is printed with the command that repeats it. The exit status is 1 if there
is one.
"""

from __future__ import annotations

import argparse
import collections
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

SECONDS = 20
"""The time that one case may take."""
TARGETS = "tests.robustness.targets"
_CASES = 3000  # after which a process is replaced
_START = 300  # seconds that a process may take to begin
_ENDED = ""


class Process:
    """A process that runs cases, and is replaced when one ends it.

    Args:
      folder: where the corpus and the process's log are.
      module: the module with `TARGETS`.
    """

    def __init__(self, folder: Path, module: str = TARGETS):
        self._folder, self._module, self._process = folder, module, None

    def run(self, target: str, seed: int, seconds: float = SECONDS) -> dict:
        """Runs a case and returns its "kind" (taken, refused or finding), "said" and "seconds"."""
        if self._process is None:
            self._start()
        self._left -= 1
        self._process.stdin.write(f"{target} {seed}\n")
        self._process.stdin.flush()
        answer = self._answer(seconds)
        if not answer:
            # The end of its output comes a moment before its status.
            said = f"no answer after {seconds} s"
            if answer == _ENDED:
                said = f"it died ({self._process.wait()})"
            self.close()
            return {"kind": "finding", "said": f"{said}: {self._log()}", "seconds": seconds}
        if self._left == 0:
            self.close()
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self):
        command = [sys.executable, "-m", "tests.robustness.worker", self._module]
        self._errors = (self._folder / "worker.log").open("w+")
        self._process = subprocess.Popen(
            [*command, str(self._folder / "corpus")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answers: queue.Queue = queue.Queue()
        threading.Thread(
            target=self._collect, args=(self._process.stdout, self._answers), daemon=True
        ).start()
        self._left = _CASES
        if not self._answer(_START):
            raise RuntimeError(f"the process did not begin: {self._log()}")

    @staticmethod
    def _collect(lines, answers):
        for line in lines:
            answers.put(line)
        answers.put(_ENDED)

    def _answer(self, seconds):
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def _log(self):
        self._errors.flush()
        return (self._folder / "worker.log").read_text(errors="replace")[-1500:]


def search(
    names: list[str], seed: int, seconds: float, folder: Path, module: str = TARGETS
) -> tuple[dict[str, collections.Counter], list[str]]:
    """Runs cases of each target in turn until the time is over.

    Returns:
      By target, the number of cases by kind; and a text for each finding.
    """
    counts = {name: collections.Counter() for name in names}
    findings: list[str] = []
    process, end = Process(folder, module), time.monotonic() + seconds
    with tqdm(unit="case", dynamic_ncols=True, total=round(seconds)) as bar:
        bar.unit, start = "s", time.monotonic()
        while time.monotonic() < end:
            for name in names:
                found = process.run(name, seed)
                counts[name][found["kind"]] += 1
                if found["kind"] == "finding":
                    repeat = f"python -m tests.robustness.fuzz --case={name}:{seed}"
                    findings.append(f"{repeat}\n    {found['said']}")
                    tqdm.write(findings[-1])
            seed += 1
            bar.update(round(time.monotonic() - start) - bar.n)
            bar.set_postfix_str(f"{sum(sum(c.values()) for c in counts.values())} cases")
    process.close()
    return counts, findings


def table(counts: dict[str, collections.Counter]) -> str:
    """Returns the counts of a search as a Markdown table."""
    kinds = ("refused", "taken", "finding")
    lines = [
        "| target | cases | refused | read as if whole | findings |",
        "|---|---|---|---|---|",
    ]
    rows = [*counts.items(), ("all", sum(counts.values(), collections.Counter()))]
    for name, count in rows:
        numbers = " | ".join(f"{n:,}" for n in (count.total(), *(count[k] for k in kinds)))
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def main() -> int:
    """Searches, or repeats one case; returns the exit status."""
    from tests.robustness.targets import TARGETS as targets

    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=60, help="How long to search.")
    parser.add_argument("--seed", type=int, default=0, help="The first seed.")
    parser.add_argument("--target", action="append", choices=list(targets), help="Only these.")
    parser.add_argument("--case", metavar="TARGET:SEED", help="Repeat one case.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if given.case:
            name, _, seed = given.case.partition(":")
            process = Process(Path(folder))
            found = process.run(name, int(seed))
            process.close()
            print(f"{found['kind']} in {found['seconds']:.2f} s: {found['said']}")
            return 1 if found["kind"] == "finding" else 0
        names = given.target or list(targets)
        counts, findings = search(names, given.seed, given.minutes * 60, Path(folder))
    print("\n".join([*findings, table(counts), f"{len(findings)} findings"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
