"""The weights that a run trains, not their average, out of its last checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from odvae_jax.autoencoder import ODVAE
from odvae_jax.config import ODVAEConfig
from odvae_jax.files import printable
from odvae_jax.parameters import abstract_model, named_parameters, with_parameters
from odvae_jax.training.checkpoints import (
    CONFIG_FILE,
    FOLDER,
    begun_config,
    has_checkpoint,
    read_newest,
)

logger = logging.getLogger(__name__)


def load_raw(workdir: str | os.PathLike, **overrides: Any) -> ODVAE:
    """Loads the raw weights, not their average, out of the last checkpoint of a training run.

    If the last checkpoint is damaged, the newest whole one is taken, and the log says so.

    Args:
      workdir: the run's folder.
      **overrides: config fields to change that change no parameter's shape, such as `dtype`.

    Raises:
      FileNotFoundError: if the folder holds no checkpoint of a run.
      ValueError: if no checkpoint is whole, or the run's config is damaged or unknown here.
      OSError: if a file of the run is there and cannot be read.
    """
    workdir = Path(workdir).absolute()
    config = begun_config(workdir) if has_checkpoint(workdir) else None
    if config is None and not (has_checkpoint(workdir) and (workdir / CONFIG_FILE).exists()):
        raise FileNotFoundError(
            f"{printable(workdir)} holds no checkpoint of a training run; raw weights are kept "
            "there alone."
        )
    fields = (config or {}).get("model")
    if not isinstance(fields, dict):
        raise ValueError(
            f"{printable(workdir / CONFIG_FILE)} is damaged, and no checkpoint holds another."
        )
    try:
        model = ODVAEConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{printable(workdir / CONFIG_FILE)}: {error}") from error
    vae = abstract_model(dataclasses.replace(model, **overrides))
    wanted = {
        "parameters": {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype)
            for name, value in named_parameters(vae).items()
        }
    }
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    part = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    with ocp.CheckpointManager(workdir / FOLDER) as manager:

        def read(step):
            return manager.restore(step, args=ocp.args.Composite(state=part)).state

        step, state, left = read_newest(workdir, read)
    for damaged, reason in left.items():
        logger.warning(
            "%s: the checkpoint of step %d is damaged: %s; the weights are those of step %d",
            printable(workdir),
            damaged,
            reason,
            step,
        )
    return with_parameters(vae, jax.tree.map(jax.numpy.asarray, state["parameters"]))
