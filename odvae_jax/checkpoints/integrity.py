"""Digests of a model's config and tensors, which are written with it and verified when it is read.

They are a text of JSON in the metadata of the safetensors file, which other readers ignore.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from odvae_jax import digests
from odvae_jax.checkpoints.files import WeightFile, metadata_of, parts_of, read_json, shown
from odvae_jax.files import printable

logger = logging.getLogger(__name__)

KEY = "digests"
"""The name of the entry of the metadata."""
_THREADS = 4
_ADVICE = (
    "Download, copy or export it anew; verify=False (the commands' option --no-verify) loads it "
    "as it is."
)


def recorded(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the digests of a config and of arrays, as they are written into the metadata.

    Args:
      config: the content of `config.json`.
      arrays: the arrays of the safetensors file by name.
    """
    tensors = {name: digests.of_bytes(_bytes(value)) for name, value in sorted(arrays.items())}
    return json.dumps({"config": _of_config(config), "tensors": tensors})


def verify(file: WeightFile, config: Path | None) -> None:
    """Compares a file of weights, and the config beside it, with the digests in its metadata.

    A file without digests, such as one of another program, passes, and the log says so.

    Args:
      file: the opened file.
      config: the path of the model's `config.json`; None if it is read without one.

    Raises:
      ValueError: if the bytes of some tensors have changed since they were written, or the config
        is not the one that they were written with. The message names the tensors.
    """
    metadata = metadata_of(file)
    text = metadata.get(KEY)
    if text is None:
        # A bit of the entry's name may have changed.
        if near := difflib.get_close_matches(KEY, metadata, n=1, cutoff=0.7):
            raise ValueError(
                f"{printable(file.path)}: its header is damaged: it has the entry "
                f"{shown(near[0])} where {KEY!r} is expected. {_ADVICE}"
            )
        logger.info("%s has no digests, so it was not verified", printable(file.path))
        return
    try:
        expected = json.loads(text)
        of_config, tensors = str(expected["config"]), dict(expected["tensors"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{printable(file.path)}: the digests in its header are damaged. {_ADVICE}"
        ) from error
    parts = parts_of(file.path)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(parts, pool.map(digests.of_bytes, parts.values()), strict=True))
    changed = sorted(n for n in found.keys() | tensors.keys() if found.get(n) != tensors.get(n))
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        names = ", ".join(map(shown, changed[:4]))
        raise ValueError(
            f"{printable(file.path)} is damaged: the bytes of {len(changed)} of {len(found)} "
            f"tensors are not those that were written ({names}{more}). {_ADVICE}"
        )
    if config is not None and _of_config(read_json(config)) != of_config:
        raise ValueError(
            f"{printable(config)} is not the config that {printable(file.path.name)} was written "
            "with: it is damaged or was edited, or an export over this folder was killed. To load "
            f"with other switches, pass them as arguments. {_ADVICE}"
        )


def _of_config(config: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(config))  # as it is read again, tuples are lists
    return digests.of_bytes(json.dumps(plain, sort_keys=True).encode())


def _bytes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
