"""A Table 2 from beginning to end: every stage of every arm in a process, then the report."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from odvae_jax.ablate.side_by_side import carry_out, with_parent
from odvae_jax.evaluation.drawn import DrawnClips
from odvae_jax.evaluation.table1 import Listed
from odvae_jax.files import BusyError, one_line, printable, write_whole
from odvae_jax.table2 import plan
from odvae_jax.table2.report import report
from odvae_jax.table2.stages import (
    Failure,
    arm_of,
    failure_of,
    forget_failure,
    is_done,
    note_failure,
)
from odvae_jax.training.checkpoints import read_json_object
from odvae_jax.training.lock import RunLock

logger = logging.getLogger("odvae_jax.table2")
_SETTINGS = "settings.json"


def compare(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    command: Sequence[str],
    *,
    networks: dict[str, Any],
) -> int:
    """Does all stages of all arms, each in a process, and reports what came of them.

    This process computes nothing; JAX has to be confined to the CPU before it is used. What is done
    already is not done again. An arm whose weights are missing, or which fails, does not end the
    others. The folder gets one folder per arm, `features` (what the networks of the metrics made of
    clips), and `table2.md`, `table2.json`, `table2.html` and `table2.png`.

    Args:
      config: the config of a denoiser's training, with a section `table2`.
      workdir: the folder of the table.
      command: the words of a command that does one stage if `--arm=NAME` and `--stage=NAME` are
        added to it.
      networks: what names the networks of the metrics, as values that JSON can hold.

    Returns:
      The exit status: 1 if an arm failed, or something was wrong with clips that were measured.

    Raises:
      ValueError: before anything is done, if something cannot be done, or if the folder holds
        another table.
      FileNotFoundError: if the list of autoencoders or the data is missing.
      InterruptedError: if a signal to stop came; what was done is kept.
      BusyError: if another process makes a table in the folder.
    """
    workdir, arms = _checked(config, workdir)
    with RunLock(workdir):
        _begin(config, workdir)
        failures = {}
        for arm in arms:
            failure = _arm(config, workdir, arm, command, networks)
            if failure is not None:
                failures[arm.label] = failure
        complaints = report(config, workdir, arms, failures, networks)
    for line in complaints:
        logger.error("%s", line)
    return int(bool(complaints) or any(not f.missing for f in failures.values()))


def do_arm(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str,
    command: Sequence[str],
    *,
    networks: dict[str, Any],
) -> int:
    """Does all stages of one arm, each in a process, and reports nothing.

    Several machines can share the arms so.

    Args:
      config: the config of the table.
      workdir: the folder of the table.
      label: the name of the arm.
      command: the words of a command that does one stage, as for `compare`.
      networks: what names the networks of the metrics, as values that JSON can hold.

    Returns:
      The exit status: 1 if the arm failed or its weights are missing.

    Raises:
      ValueError: if there is no such arm, or for what `compare` refuses.
      FileNotFoundError: if the list of autoencoders or the data is missing.
      InterruptedError: if a signal to stop came; what was done is kept.
    """
    workdir, _ = _checked(config, workdir)
    arm = arm_of(config, label)
    workdir.mkdir(parents=True, exist_ok=True)
    _begin(config, workdir)
    return int(_arm(config, workdir, arm, command, networks) is not None)


def _checked(config, workdir) -> tuple[Path, list]:
    """Returns the folder and the arms, if nothing speaks against the table."""
    if not os.fspath(workdir):
        raise ValueError("workdir is empty; expected the path of a folder for the table.")
    plan.check(config)
    arms = plan.list_arms(config)
    data = config.data
    clips = {"frames": data.frames, "size": data.size, "stride": data.stride, "spread": data.spread}
    for path in dict.fromkeys((data.path, config.table2.reals or data.path)):
        DrawnClips(path, **clips)  # opens it, and reads nothing
    return Path(workdir), arms


def _begin(config, workdir: Path) -> None:
    """Notes what decides the table's results, or compares it with what a former call noted."""
    path = workdir / _SETTINGS
    before, reason = read_json_object(path)
    if before is not None:
        plan.check_continues(before, config, printable(workdir))
    elif path.exists():
        logger.warning("%s is damaged (%s), and written anew", path, reason)
    write_whole(path, json.dumps(plan.as_json(config), indent=1) + "\n")


def _arm(config, workdir: Path, arm: Listed, command, networks) -> Failure | None:
    """Does what is left of an arm, and returns why it could not be finished, if so."""
    label, folder = arm.label, workdir / plan.folder_name(arm.label)
    try:
        with RunLock(folder):
            forget_failure(folder)
            for stage in plan.stages(config):
                if is_done(config, folder, arm, stage, networks):
                    continue
                logger.info("%s: %s", label, stage)
                failure = _stage(folder, label, stage, command)
                if failure is not None:
                    said = "is missing" if failure.missing else f"failed ({stage})"
                    logger.warning("%s %s: %s", label, said, failure.reason)
                    return failure
    except BusyError as error:
        return Failure("", one_line(error))
    return None


def _stage(folder: Path, label: str, stage: str, command) -> Failure | None:
    """Does a stage in a process of its own."""
    status = carry_out([*command, f"--arm={label}", f"--stage={stage}"], with_parent(os.environ))
    failure = failure_of(folder)
    if status and failure is None:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        failure = Failure(stage, f"its process ended with {how}")
        note_failure(folder, failure)
    return failure
