"""Saving and restoring a training run, as one atomic unit per step."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath

from odvae_jax import digests
from odvae_jax.files import one_line, printable, write_whole
from odvae_jax.training.agreement import told

logger = logging.getLogger(__name__)
T = TypeVar("T")
FOLDER = "checkpoints"
CONFIG_FILE = "config.json"
DIGESTS_FILE = "digests.json"
"""The file in a checkpoint that has the size and the digest of each of its other files."""
_DAMAGED = "damaged"
_NOTES = ("_CHECKPOINT_METADATA",)
_SHOWN = 3  # files that a message names


class Checkpoints:
    """The checkpoints in a run's folder: the state, and where in the data it stands.

    A save that fails, as on a full disk, is reported and the run goes on; of several processes,
    which save together, it is raised.

    They are written in the background, with the run's config and the digests of all their files; a
    step's folder gets its name once it is whole. The last `config.keep_checkpoints` are kept, and
    for ever those of steps that `config.keep_every` divides. To be used in a `with` statement.
    """

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict):
        self.folder = workdir / FOLDER
        self._config = config
        self._asked: int | None = None
        self._saving: int | None = None
        self._ours = True
        if jax.process_index() == 0:
            _remove_damaged_notes(self.folder)
        told("looked")
        self._open()

    def _open(self):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._config.keep_checkpoints,
            keep_period=self._config.keep_every or None,
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(
                # What waits for a folder that cannot be made would keep the program from ending.
                create_directories_asynchronously=False,
                post_finalization_callback=self._complete,
            ),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        if not self._ours:
            with contextlib.suppress(Exception):
                self._manager.close()
            return
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
        self._asked = step
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), run=ocp.args.JsonSave(run)
        )
        self._attempt(f"the checkpoint before step {step}", self._manager.wait_until_finished)
        self._saving = step
        self._attempt(
            f"the checkpoint of step {step}",
            lambda: self._manager.save(step, args=args, force=True),
        )

    def _complete(self) -> None:
        """Adds the config and the digests to a checkpoint that is written and has no name yet."""
        (folder,) = self.folder.glob(f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}*")
        write_whole(folder / CONFIG_FILE, self._config.to_json(indent=2) + "\n")
        found = digests.of_folder(folder)
        # The library writes into its own notes, which restoring does not need, until the end.
        kept = {name: value for name, value in found.items() if name not in _NOTES}
        write_whole(folder / DIGESTS_FILE, json.dumps(kept, indent=0) + "\n")

    def wait(self) -> None:
        """Waits until the save that was begun is written."""
        self._attempt("the last checkpoint", self._manager.wait_until_finished)

    def abandon(self) -> None:
        """Leaves the folder to another run: nothing there is removed any more."""
        self._ours = False

    def check_saved(self) -> None:
        """Raises OSError, naming the last good checkpoint, if the last save has failed."""
        if self._asked is not None and self._asked not in steps(self.folder.parent):
            raise OSError(
                f"the last checkpoint, of step {self._asked}, could not be saved in "
                f"{printable(self.folder)}; the last good one is {self._kept()}. Make room or mend "
                "the disk, and run the same command again."
            )

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the newest checkpoint that is whole: its state, spread as `abstract` says, and
        its `run`.

        Newer ones, which are damaged, are moved aside. The first of several processes decides.

        Args:
          abstract: a NamedTuple of the kind that was saved, of `jax.ShapeDtypeStruct`s.

        Raises:
          ValueError: if no checkpoint is whole, which moves none aside, or if the state was saved
            by a run of other shapes.
          OSError: if a file is there and cannot be read, which moves none aside either.
        """
        step, restored, left = read_newest(
            self.folder.parent,
            lambda step: self._read(step, abstract),
            verify=self._config.verify_checkpoints,
        )
        if jax.process_index() == 0:
            _move_aside(self.folder, left)
        told("moved")  # nobody looks at the folder before
        self._manager.reload()  # it still counts those that were moved
        logger.info("continuing from step %d of %s", step, self.folder.parent)
        return type(abstract)(**restored.state), restored.run

    def _read(self, step: int, abstract: Any) -> ocp.args.Composite:
        _check_shapes(self.folder / str(step), abstract)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract._asdict()), run=ocp.args.JsonRestore()
        )
        return self._manager.restore(step, args=args)

    def _kept(self) -> str:
        kept = [step for step in steps(self.folder.parent) if step != self._saving]
        return f"step {kept[-1]}" if kept else "none yet"

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # the writer's library passes on whatever its layers raise
            if jax.process_count() > 1:
                raise  # the others wait for this process inside the same save
            self._remove_unfinished()
            with contextlib.suppress(OSError):
                self._open()  # a manager that failed once keeps failing
            logger.error(
                "%s could not be saved (%s: %s); is the disk of %s full? "
                "The run goes on; the last good checkpoint: %s.",
                what,
                type(error).__name__,
                one_line(error, 300),
                self.folder,
                self._kept(),
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


def steps(workdir: Path) -> list[int]:
    """Returns the steps whose checkpoints lie in a run's folder, in order, whole or damaged."""
    names = [path.name for path in (workdir / FOLDER).glob("*")]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def read_newest(
    workdir: Path, read: Callable[[int], T], *, verify: bool = True
) -> tuple[int, T, dict[int, str]]:
    """Reads the newest checkpoint of a run that is whole.

    Of several processes, which all call it, the first decides which it is. Nothing is moved.

    Args:
      workdir: the run's folder.
      read: reads the checkpoint of a step.
      verify: whether digests are compared before a checkpoint is read.

    Returns:
      The step, what `read` returned, and for every newer step the reason why it is not whole.

    Raises:
      ValueError: if no checkpoint is whole, or by `read`, for a state of other shapes.
      OSError: if a file is there and cannot be read, a second time a second later. That is no
        damage.
    """
    left: dict[int, str] = {}
    waiting = steps(workdir)
    while True:
        found = _next_whole(workdir, waiting, left, verify) if jax.process_index() == 0 else ""
        first, _, rest = told(found).partition(" ")
        if first == "unread":
            raise OSError(rest)
        if first == "none":
            raise ValueError(
                f"no checkpoint in {printable(workdir / FOLDER)} is whole: "
                f"{rest or 'there is none'}. Put back a copy of one, or begin anew in another "
                "workdir."
            )
        try:
            return int(first), _read_twice(workdir / FOLDER / first, read), left
        except Exception as error:  # whatever the layers of the reader's library raise
            # What is verified, too large for the memory or of other shapes is not damaged.
            kinds = (OtherShapesError, _UnreadError, MemoryError, jax.errors.JaxRuntimeError)
            if rest == "1" or isinstance(error, kinds) or jax.process_count() > 1:
                raise
            left[int(first)] = f"it cannot be read ({type(error).__name__}: {one_line(error, 200)})"


def _next_whole(workdir: Path, waiting: list[int], left: dict[int, str], verify: bool) -> str:
    """The newest of the waiting steps that is whole, and whether digests say so; as text."""
    try:
        while waiting:
            step = waiting.pop()
            reason, verified = _damage(workdir / FOLDER / str(step), verify)
            if not reason:
                return f"{step} {int(verified)}"
            left[step] = reason
    except OSError as error:
        return f"unread {_unread(error.filename or workdir / FOLDER, error.strerror or error)}"
    return f"none {_listed(left)}"


def _read_twice(folder: Path, read: Callable[[int], T]) -> T:
    """Reads a checkpoint; if the disk fails, as a network's may for a moment, once more."""
    try:
        return read(int(folder.name))
    except Exception as error:
        if _failure_of_the_disk(error, folder) is None:
            raise
        logger.warning("%s; trying once more", _failure_of_the_disk(error, folder))
    time.sleep(digests.RETRY_AFTER)
    try:
        return read(int(folder.name))
    except Exception as error:
        if text := _failure_of_the_disk(error, folder):
            raise _UnreadError(text) from error
        raise


class _UnreadError(OSError):
    """A checkpoint is there, and its files cannot be read now."""


def _failure_of_the_disk(error: BaseException | None, folder: Path) -> str | None:
    """What the system said when a file that is there could not be read; None if it said nothing.

    The reader's library writes the system's error into the text of its own.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno not in (None, *digests.GONE):
            return _unread(error.filename or folder, error.strerror)
        found = re.search(r"os_error_code='(\d+)'", text)
        if found and int(found[1]) not in digests.GONE:
            names = re.findall('"(/[^"]*)"', text)
            return _unread(names[-1] if names else folder, os.strerror(int(found[1])))
        if isinstance(error, MemoryError):
            return _unread(folder, "not enough memory")
        error = error.__cause__ or error.__context__
    return None


def _unread(path: str | os.PathLike, reason: Any) -> str:
    return (
        f"{printable(path)} cannot be read ({reason}); nothing was changed. Run the same command "
        "again once it can be."
    )


class OtherShapesError(ValueError):
    """A checkpoint was saved by a run whose state has other arrays."""


def begun_config(workdir: Path) -> dict[str, Any] | None:
    """Returns the config of the run in a folder; None if it holds none that is whole.

    If `config.json` is missing or damaged, it is that of the newest checkpoint that holds one.

    Raises:
      OSError: if such a file is there and cannot be read.
    """
    path = workdir / CONFIG_FILE
    copies = [workdir / FOLDER / str(step) / CONFIG_FILE for step in reversed(steps(workdir))]
    for place in (path, *copies):
        config, reason = read_json_object(place)
        if config is None:
            if place == path and path.exists():
                logger.warning("%s is damaged (%s)", printable(path), reason)
            continue
        if place != path:
            logger.warning("the run's config is taken from %s", printable(place))
        return config
    return None


def _damage(folder: Path, verify: bool) -> tuple[str, bool]:
    """Why a checkpoint is not whole, or nothing, and whether digests say so."""
    if not _is_folder(folder):
        return "it is no folder", False
    if missing := [name for name in ("state", "run") if not _is_folder(folder / name)]:
        return f"{missing[0]} is missing", False
    if not verify:
        return "", False
    path = folder / DIGESTS_FILE
    if not os.path.lexists(path):
        logger.warning(
            "%s has no digests, as checkpoints of earlier versions; it is read unverified",
            printable(folder),
        )
        return "", False
    recorded, reason = read_json_object(path)
    if recorded is None or not all(map(_is_record, recorded.values())):
        return f"{DIGESTS_FILE} is damaged ({reason or 'it holds something else'})", False
    found = digests.differences(folder, recorded)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more, True


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in digests.GONE:
            return False
        raise


def _is_record(value: Any) -> bool:
    return isinstance(value, list) and [type(part) for part in value] == [int, str]


def read_json_object(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns the JSON object in a file, or None and the reason why there is none.

    Raises:
      OSError: if the file is there and cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        if error.errno not in digests.GONE:
            raise
        return None, one_line(error, 100)
    except (ValueError, RecursionError) as error:
        return None, one_line(error, 100)
    if not isinstance(found, dict):
        return None, f"it holds a {type(found).__name__}"
    return found, ""


def _check_shapes(folder: Path, abstract: Any) -> None:
    """Whether the arrays of a checkpoint are those of this run; else another config is at fault."""
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        saved = handler.metadata(epath.Path(folder / "state")).tree
    there, here = _shapes(saved), _shapes(abstract._asdict())
    differing = [
        f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} now"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise OtherShapesError(
            f"{printable(folder)} was saved by a run with another model or optimizer "
            f"({'; '.join(differing[:_SHOWN])}): continue it with its own config, or choose "
            "another workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's arrays by path; names of fields and keys of dicts are alike."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if getattr(leaf, "shape", None) is not None
    }


def _remove_damaged_notes(folder: Path) -> None:
    """Removes the library's notes where they are no object, for it would open no checkpoint."""
    for path in folder.glob(f"*/{_NOTES[0]}"):
        if path.stat().st_size and read_json_object(path)[1].startswith("it holds"):
            path.unlink()


def _move_aside(folder: Path, left: dict[int, str]) -> None:
    """Renames damaged checkpoints, so that they are kept but counted nowhere."""
    for step, reason in left.items():
        name = f"{_DAMAGED}-{step}-{time.strftime('%Y%m%dT%H%M%S')}"
        names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
        to = next(folder / n for n in names if not (folder / n).exists())
        (folder / str(step)).rename(to)
        logger.warning(
            "the checkpoint of step %d is damaged: %s. It was moved to %s",
            step,
            reason,
            printable(to),
        )


def _listed(left: dict[int, str]) -> str:
    return "; ".join(f"step {step}: {reason}" for step, reason in left.items())


def has_checkpoint(workdir: Path) -> bool:
    """Says whether a checkpoint lies in a run's folder, whole or damaged."""
    return bool(steps(workdir))
