"""The fields of a config that every training run has, whatever it trains, and their checks."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from odvae_jax.sharding import make_mesh
from odvae_jax.training.importing import import_named, nearest
from odvae_jax.training.tasks.task import Task

TASKS = {
    "autoencoder": "odvae_jax.training.tasks.autoencoder:Autoencoder",
    "denoiser": "odvae_jax.training.tasks.denoiser:Denoiser",
}
"""The tasks of this package by name. A task is imported when a config names it, not before."""
DEFAULT_TASK = "autoencoder"
_TYPES = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}
_TYPES |= {dict: "fields", tuple: "a tuple", list: "a list"}

_AT_LEAST = {
    "steps": 1,
    "seed": 0,
    "log_every": 1,
    "validate_every": 0,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "keep_every": 0,
    "max_skipped_in_a_row": 1,
}
# What a run may be continued with though it was begun otherwise: how, how long and how often.
_FREE = ("log_every", "validate_every", "checkpoint_every", "mesh")
_FREE += ("keep_checkpoints", "keep_every", "max_skipped_in_a_row", "continue_with_changes")
_FREE += ("verify_checkpoints",)
# What it must agree in, changes asked for or not.
_FIXED = ("task", "seed")


def loop_config() -> ml_collections.ConfigDict:
    """The fields that every run has, with their defaults; a task adds its own."""
    d = ml_collections.ConfigDict
    return d(
        {
            # What is trained: a name in TASKS, or "package.module:Class" of your own
            # (docs/tasks.md).
            "task": DEFAULT_TASK,
            "steps": 10_000,
            "seed": 0,
            # Devices that share the clips of a batch (-1: all the others leave), that share clips
            # and keep a part of the parameters each, and that share the rows of a clip.
            "mesh": {"data": -1, "fsdp": 1, "height": 1},
            "max_skipped_in_a_row": 100,  # steps without finite loss and gradient that end the run
            "log_every": 50,  # steps between lines of metrics
            "validate_every": 1000,  # steps between measurements (0: never)
            "checkpoint_every": 1000,
            "keep_checkpoints": 3,  # the last ones
            "keep_every": 0,  # and for ever those of steps that this divides (0: none)
            "verify_checkpoints": True,  # compare the files' digests before going on from one
            # Continue a run with other losses or another optimizer than it was begun with.
            "continue_with_changes": False,
        }
    )


def task_class(config: ml_collections.ConfigDict) -> type[Task]:
    """The class of what a config's run trains.

    Raises:
      ValueError: if `config.task` names no task, naming the nearest that exists.
    """
    name = config.get("task", DEFAULT_TASK)
    if not isinstance(name, str) or (":" not in name and name not in TASKS):
        raise ValueError(
            f"config.task={name!r} is not known; {nearest(str(name), TASKS)}There are "
            f"{list(TASKS)}, "
            'and "package.module:Class" names a task of your own (docs/tasks.md).'
        )
    found = import_named(TASKS.get(name, name), "config.task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(
            f"config.task={name!r} is no task; expected a class that inherits from "
            "odvae_jax.training.tasks.Task."
        )
    return found


def filled(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of a config in which fields that it lacks have their task's defaults.

    So a config from before a field existed means what it meant.
    """
    defaults = task_class(config).defaults().to_dict()
    return ml_collections.ConfigDict(_merged(defaults, config.to_dict()))


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            both[name] = _merged(below[name], above[name])
    return both


def check(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The run's mesh, if the run could work: the loop's own fields are checked, then the task's.

    Raises:
      ValueError: naming the field and what would do.
    """
    config = filled(config)
    _check_names_and_types(config.to_dict(), task_class(config).defaults().to_dict())
    check_fields(config, at_least=_AT_LEAST)
    try:
        mesh = make_mesh(**config.mesh, devices=devices)
    except ValueError as error:
        raise ValueError(f"config.mesh: {error}") from error
    task_class(config).check(config, mesh)
    return mesh


def _check_names_and_types(
    given: dict[str, Any], defaults: dict[str, Any], where: str = "config."
) -> None:
    """Raises ValueError for a field without a default, or of another type than its default."""
    if where == "config.model.":  # the model checks its own fields
        return
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(
                f"{where}{name} is not known; {nearest(str(name), defaults)}There are "
                f"{sorted(defaults)}."
            )
        default = defaults[name]
        if isinstance(default, dict) and isinstance(value, dict):
            _check_names_and_types(value, default, f"{where}{name}.")
        elif not _is_like(value, default):
            shown = list(default) if isinstance(default, dict) else default
            raise ValueError(
                f"{where}{name}={value!r} is of the type {type(value).__name__}; expected "
                f"{_TYPES.get(type(default), type(default).__name__)}, such as {shown!r}."
            )


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has a default's type; a number may be whole, and a tuple a list."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    like = {float: (int, float), tuple: (tuple, list)}.get(type(default), type(default))
    return isinstance(value, like)


def check_fields(
    config: ml_collections.ConfigDict,
    *,
    choices: Mapping[str, Sequence[str]] | None = None,
    at_least: Mapping[str, float] | None = None,
) -> None:
    """Checks single fields, by dotted name such as "data.path".

    Args:
      config: the config of the run.
      choices: the values that a field may have.
      at_least: the least value of a field, which must be finite.

    Raises:
      ValueError: if a field has another value. The message names the field and what would do.
    """
    for name, allowed in (choices or {}).items():
        if _get(config, name) not in allowed:
            raise ValueError(
                f"config.{name}={_get(config, name)!r} is not known; there are {list(allowed)}."
            )
    for name, bound in (at_least or {}).items():
        if not bound <= _get(config, name) < math.inf:
            raise ValueError(
                f"config.{name}={_get(config, name)} must be finite and at least {bound}."
            )


def check_continues(begun: dict[str, Any], config: ml_collections.ConfigDict, where: str) -> None:
    """Raises ValueError, listing the fields, if a run cannot be continued with this config.

    A field that one of the two lacks has its default there. What is imported is named by `config`
    and never by `begun`.

    Args:
      begun: the config that it was begun with.
      config: the one that it is to be continued with.
      where: the run's folder, for the error.
    """
    config = filled(config)
    task = task_class(config)
    before = {"task": DEFAULT_TASK, **begun}
    if before["task"] == config.task:
        before = _merged(task.defaults().to_dict(), begun)
    # As JSON has them: a tuple is a list there.
    before, now = (flat(json.loads(json.dumps(c))) for c in (before, config.to_dict()))
    free = (*_FREE, *task.free(config))

    def under(name, prefixes):
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)

    differing = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not under(name, free)
    ]
    fixed = [name for name in differing if under(name, (*_FIXED, *task.fixed(config)))]
    if not differing or (config.continue_with_changes and not fixed):
        return
    listed = "; ".join(f"{n}: {before.get(n)!r} there, {now.get(n)!r} now" for n in differing)
    advice = "continue it with its own, or choose another workdir"
    if not fixed:
        advice += ", or ask for it: --config.continue_with_changes"
    raise ValueError(f"{where} holds a run with another config ({listed}): {advice}.")


def _get(config, name):
    return functools.reduce(lambda section, field: section[field], name.split("."), config)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's fields by dotted name, such as "data.path"."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields
