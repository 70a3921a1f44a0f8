"""Config files on the command line: found by path or name, their fields changed by options."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import ml_collections
from absl import flags
from ml_collections import config_flags

from odvae_jax.cli.parsing import full_dtype, with_home
from odvae_jax.shipped import config_path, did_you_mean, folder

_OVERRIDE = re.compile(r"--(?:no)?config\.([^=]+)")


def read_config(
    argv: list[str], error: Callable[[str], NoReturn]
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Reads the config that the arguments name, with the fields that they change.

    Values have the types that the fields have in the config file, as `ml_collections.config_flags`
    parses them: `--config.flag` and `--noconfig.flag` for a bool, a repeated option or
    `"(1, 2)"` for a tuple. Short names of dtypes and the ~ of paths are written out, so that they
    mean the same as their long forms.

    Args:
      argv: the subcommand's arguments.
      error: is called with a message for what cannot be understood, and does not return.

    Returns:
      The config, locked, and the arguments without those that change its fields.
    """
    name = _config_name(argv)
    if name is None:
        error("the option --config is missing: a config file, or the name of a shipped one.")
    try:
        config = load_config(name)
    except (OSError, ValueError) as problem:
        error(str(problem))
    changes = [word for word in argv if _OVERRIDE.match(word)]
    for word in changes:
        _check_field(config, _OVERRIDE.match(word)[1], error)
    options = flags.FlagValues()
    options.set_gnu_getopt(True)  # options may follow arguments that are none
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=options, sys_argv=changes)
        delattr(options, "config")  # argparse reads it; these options are the fields alone
        rest = options(["odvae", *argv], known_only=True)[1:]
    except (flags.Error, TypeError, ValueError) as problem:
        error(str(problem))
    _write_out(config)
    return config, rest


def _config_name(argv: list[str]) -> str | None:
    """What --config says; the last one, if it is given several times."""
    name = None
    for word, after in itertools.zip_longest(argv, argv[1:]):
        if word == "--config":
            name = after
        elif word.startswith("--config="):
            name = word.partition("=")[2]
    return name


def load_config(name: str) -> ml_collections.ConfigDict:
    """The config of a file or of a shipped name, with an argument after a colon, as in quick:image.

    A file of the user's own may import the modules that lie beside it.

    Raises:
      UnknownNameError: if there is no such file and no such name.
      ValueError: if the file has no function `get_config`, or that refuses the argument.
    """
    file, *argument = name.split(":", 1)
    path = config_path(file).absolute()
    if path.parent != folder("configs").absolute() and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = _run_file(path, file)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file} has no function get_config, which every config file needs.")
    if argument and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"{name}: the get_config of {file} takes nothing; leave out the colon.")
    try:
        config = module.get_config(*argument)
    except TypeError as error:
        if "'structure'" not in str(error):
            raise
        raise ValueError(
            f"{file}: {error}. A row of your own replaces the whole model: "
            "config.model = ODVAEConfig(structure=Structure(...)).to_dict()."
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{file}: get_config returned a {type(config).__name__}; expected a ConfigDict."
        )
    return config


def _run_file(path: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("odvae_config", path)
    if spec is None:
        raise ValueError(f"{name} is no Python file; expected a config file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module that defines them
    spec.loader.exec_module(module)
    return module


def _check_field(config: Any, name: str, error: Callable[[str], NoReturn]) -> None:
    """Calls `error`, with the nearest field, if the config has no field of that dotted name."""
    section, above = config, "config"
    for part in name.split("."):
        part = part.partition("[")[0]
        if not isinstance(section, ml_collections.ConfigDict):
            error(f"config.{name} does not exist: {above} has no fields.")
        if part not in section:
            elsewhere = [n for n in _names(config) if n.split(".")[-1] == part]
            hint = did_you_mean(part, section)
            if elsewhere:  # the right word in the wrong section
                hint = f'Did you mean "config.{elsewhere[0]}"? '
            error(
                f"config.{name} does not exist. {hint}{above} has the fields "
                f"{', '.join(sorted(section))}."
            )
        section, above = section[part], f"{above}.{part}"


def _names(config: ml_collections.ConfigDict) -> list[str]:
    """The dotted names of all fields."""
    names = []
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            names += [f"{name}.{below}" for below in _names(value)]
        else:
            names.append(name)
    return names


def _write_out(config: ml_collections.ConfigDict) -> None:
    """Writes out short names of dtypes, and the home folder for the ~ of paths."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            _write_out(value)
        elif isinstance(value, str):
            config[name] = full_dtype(value) if name.endswith("dtype") else with_home(value)
