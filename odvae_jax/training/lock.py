"""The lock of a run's folder: one run at a time writes there, on whatever host it is."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from odvae_jax.files import BusyError, WholeFile, one_line, printable
from odvae_jax.training.agreement import told

logger = logging.getLogger(__name__)
LOCK_FILE = "run.lock"
RENEW_EVERY = 15.0
"""Seconds after which the holder touches its lock."""
WAIT = 60.0
"""Seconds in which the lock of another host must be touched, or it is taken over."""
LOOK_EVERY = 2.0
"""Seconds between two looks at the lock of another host."""
SETTLE = 1.0
"""Seconds after taking over in which a disk without file locks shows who came last."""
_TAKEN = "taken"


class RunLock:
    """The lock of a folder, which is held while a run writes there. To be used in a `with`.

    The first of several processes holds it for all of them. It is a file that names host and
    process of its holder. If the holder was a process of this host, it is seen at once whether it
    lives. The holder on another host touches the file from time to time, which needs no room on the
    disk, so whoever wants the lock waits for the file to change. Clocks of hosts are never
    compared.

    What killed runs have left there of files that they were writing is removed.

    If there is no folder, it is made; if nothing else was written there, it is removed again.

    Args:
      folder: the folder.

    Attributes:
      lost: whether this process has noticed, when it renewed the lock, that another run took it.

    Raises:
      BusyError: when the context is entered, in all processes, if another run holds the lock.
      OSError: if the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOCK_FILE
        self._holds = jax.process_index() == 0
        self._me = {**_this_process(), "token": secrets.token_hex(8)}
        self.lost = False
        self._made: list[Path] = []
        self._renewed_at = time.time()
        self._ended = threading.Event()
        self._writing = threading.Lock()

    def __enter__(self) -> RunLock:
        try:
            self._enter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _enter(self) -> None:
        taking = self._taking() if self._holds else None
        said = ""
        while said != _TAKEN:  # every process learns of every look: no collective waits for long
            problem = None
            if taking is not None:
                try:
                    next(taking)
                except StopIteration:
                    said = _TAKEN
                except OSError as error:
                    said, problem = one_line(error), error
            said = told(said)
            if said not in ("", _TAKEN):
                raise problem or BusyError(said)
        if self._holds:
            self._renewed_at = time.time()
            _remove_parts(self._path.parent)
            threading.Thread(target=self._renew_until_the_end, daemon=True).start()

    def __exit__(self, *_) -> None:
        self._ended.set()
        if not self._holds:
            return
        try:
            with self._writing:
                if (_read(self._path) or {}).get("token") == self._me["token"]:
                    self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed (%s)", printable(self._path), one_line(error))
        self._remove_folders()

    def taken_by(self) -> str | None:
        """Who has taken the lock from this run, as text; None if this run still holds it.

        Only the first process knows; for the others it is None.
        """
        if not self._holds:
            return None
        try:
            seen = _seen(self._path)
        except OSError:  # not to be seen now
            return None
        found = _parsed(seen)
        if seen is None:
            # Somebody removed it. Who took it over and has ended already came after a silence.
            silent = time.time() - self._renewed_at > WAIT
            return "which has ended already" if silent else None
        if found is None or found.get("token") == self._me["token"]:
            return None
        return _named(found)

    def check(self) -> None:
        """Raises BusyError, naming the other run, if it has taken the lock from this one.

        Of several processes each must call it, and it raises in all of them.
        """
        if other := told(self.taken_by() or ""):
            raise BusyError(taken_message(self._path.parent, other))

    def _taking(self) -> Iterator[None]:
        """Takes the lock; yields between two looks while it waits for another host's."""
        self._made = [p for p in (self._path.parent, *self._path.parents) if not p.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        seen, since, said = None, time.monotonic(), False
        while True:
            found = _seen(self._path)
            holder = _parsed(found)
            if found is None:
                if self._take(found):
                    return
            elif holder is not None and _is_here(holder):
                if _lives(holder):
                    raise self._refusal(holder)
                if self._take(found):
                    logger.warning(
                        "%s was held by %s, which is not there any more; its lock is taken over",
                        printable(self._path.parent),
                        _named(holder),
                    )
                    return
            elif seen is not None and found != seen:
                raise self._refusal(holder)
            elif time.monotonic() - since >= WAIT and seen is not None:
                if self._take(found):
                    time.sleep(SETTLE)
                    if self.taken_by():
                        raise self._refusal(_read(self._path))
                    logger.warning(
                        "%s was held by %s, which has shown no sign of life for %g s; its lock is "
                        "taken over",
                        printable(self._path.parent),
                        _named(holder),
                        WAIT,
                    )
                    return
            elif not said:
                seen, since, said = found, time.monotonic(), True
                logger.warning(
                    "%s is held by %s; waiting up to %g s for a sign of its life",
                    printable(self._path.parent),
                    _named(holder),
                    WAIT,
                )
            time.sleep(LOOK_EVERY)
            yield

    def _refusal(self, holder: dict | None) -> BusyError:
        return BusyError(
            f"{printable(self._path.parent)} is in use by another run, {_named(holder)}; wait for "
            "its end, stop it, or choose another workdir."
        )

    def _take(self, expected: _Seen | None) -> bool:
        """Writes this run into the lock, unless the lock is not any more what it was."""
        try:
            whole = WholeFile(self._path)
        except BusyError:  # somebody else is taking it at this moment
            return False
        try:
            if _seen(self._path) != expected:
                return False
            whole.file.write(self._text())
            whole.finish()
            return True
        finally:
            whole.close()

    def _text(self) -> bytes:
        self._me["time"] = time.strftime("%Y-%m-%d %H:%M:%S %z")  # for people
        return (json.dumps(self._me, indent=1) + "\n").encode()

    def _renew_until_the_end(self) -> None:
        complained = False
        while not self._ended.wait(RENEW_EVERY):
            try:
                with self._writing:
                    if self._ended.is_set():
                        return
                    if not self._renew():
                        self.lost = True
                        return
            except OSError as error:
                if not complained:
                    logger.warning(
                        "%s cannot be renewed (%s); another host may take the run for dead",
                        printable(self._path),
                        one_line(error),
                    )
                complained = True

    def _renew(self) -> bool:
        """Touches the lock; says whether it is still this run's."""
        if self.taken_by():
            return False
        seen = _seen(self._path)
        found = _parsed(seen)
        if found is None:  # removed by hand, or not to be understood
            if not self._take(seen):
                return True
        elif found.get("token") != self._me["token"]:
            return False
        else:
            os.utime(self._path)  # not written anew: on a full disk a living run would look dead
        self._renewed_at = time.time()
        return True

    def _remove_folders(self) -> None:
        for folder in self._made:  # the innermost first
            try:
                folder.rmdir()
            except OSError:  # it holds something
                return


def _remove_parts(folder: Path) -> None:
    """Removes what processes that are dead have left of `odvae_jax.files.write_whole`."""
    for pattern in (".*.part", "checkpoints/[0-9]*/.*.part"):
        for path in folder.glob(pattern):
            found = re.fullmatch(r"\..+\.([0-9]+)\.part", path.name)
            # This process writes nothing yet; in a container the next one often has the same id.
            if found and (int(found[1]) == os.getpid() or not _lives({"pid": int(found[1])})):
                with contextlib.suppress(OSError):
                    path.unlink()


def taken_message(folder: Path, other: str) -> str:
    """Returns what a run says that has lost its folder to another run."""
    return (
        f"{printable(folder)} was taken over by another run, {other}, while this run showed no "
        "sign of life; this run ends and saves nothing more."
    )


def _this_process() -> dict:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _text_of("/proc/sys/kernel/random/boot_id"),
        "pids": _namespace(),
        "pid": pid,
        "started": _started(pid),
    }


def _is_here(holder: dict) -> bool:
    """Whether a holder's process id is one of those that this process sees."""
    mine = _this_process()
    return all(holder.get(name) == mine[name] for name in ("host", "boot", "pids"))


def _lives(holder: dict) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    started = _started(pid)
    if started is not None:
        return holder.get("started") in (None, started)
    if _started(os.getpid()) is not None:  # there is /proc, and no such process in it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the host did; None if it is dead or cannot be seen."""
    text = _text_of(f"/proc/{pid}/stat")
    if text is None:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _namespace() -> str | None:
    """The namespace of process ids: that of a container is its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _text_of(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


class _Seen(NamedTuple):
    """What a lock looks like; it changes whenever it is written or touched."""

    content: bytes
    changed: int


def _seen(path: Path) -> _Seen | None:
    try:
        with path.open("rb") as file:  # network disks look for changes when a file is opened
            return _Seen(file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _parsed(seen: _Seen | None) -> dict | None:
    try:
        found = json.loads(seen.content) if seen else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _read(path: Path) -> dict | None:
    return _parsed(_seen(path))


def _named(holder: dict | None) -> str:
    if not holder:
        return "a run that its lock does not name"
    return f"process {holder.get('pid', '?')} on host {holder.get('host', '?')}"
