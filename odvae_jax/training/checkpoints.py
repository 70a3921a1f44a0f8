"""Saving and restoring a training run, as one atomic unit per step."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

logger = logging.getLogger(__name__)
FOLDER = "checkpoints"
CONFIG_FILE = "config.json"


class Checkpoints:
    """The checkpoints in a run's folder: the state, and where in the data it stands.

    A save that fails, as on a full disk, is reported and the run goes on; of several processes,
    which save together, it is raised.

    They are written in the background; a step's folder gets its name once it is whole. The last
    `config.keep_checkpoints` are kept, and for ever those of steps that `config.keep_every`
    divides. To be used in a `with` statement.
    """

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict):
        self.folder = workdir / FOLDER
        self._config = config
        self._open()

    def _open(self):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._config.keep_checkpoints,
            keep_period=self._config.keep_every or None,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.wait()
        self._attempt("the last checkpoint", self._manager.close)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint; one that is still being written may count as it."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, run: dict[str, Any]) -> None:
        """Starts to save.

        Args:
          step: steps done.
          state: a NamedTuple of pytrees; it may be donated as soon as this returns.
          run: what JSON can hold: the position in the data.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), run=ocp.args.JsonSave(run)
        )
        self._attempt(f"the checkpoint before step {step}", self._manager.wait_until_finished)
        self._attempt(
            f"the checkpoint of step {step}",
            lambda: self._manager.save(step, args=args, force=True),
        )

    def wait(self) -> None:
        """Waits until the save that was begun is written."""
        self._attempt("the last checkpoint", self._manager.wait_until_finished)

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the last checkpoint: its state, spread as `abstract` says, and its `run`.

        `abstract` is a NamedTuple of the kind that was saved, of `jax.ShapeDtypeStruct`s.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract._asdict()), run=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(self.latest, args=args)
        return type(abstract)(**restored.state), restored.run

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # the writer's library passes on whatever its layers raise
            if jax.process_count() > 1:
                raise  # the others wait for this process inside the same save
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
            self._remove_unfinished()
            self._open()  # a manager that failed once keeps failing
            kept = "none yet" if self.latest is None else f"step {self.latest}"
            logger.error(
                "%s could not be saved (%s: %s); is the disk of %s full? "
                "The run goes on; the last good checkpoint: %s.",
                what,
                type(error).__name__,
                reason,
                self.folder,
                kept,
            )

    def _remove_unfinished(self) -> None:
        """What a failed save has left; its writers may go on for a moment and make it anew."""
        deadline, absent = time.monotonic() + 10, 0
        while absent < 5 and time.monotonic() < deadline:
            unfinished = list(self.folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
            absent = 0 if unfinished else absent + 1
            for path in unfinished:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.1)


def has_checkpoint(workdir: Path) -> bool:
    """Says whether a whole checkpoint lies in a run's folder."""
    return any(path.name.isdigit() for path in (workdir / FOLDER).glob("*"))
