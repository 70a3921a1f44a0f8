"""The weights that a run trains, not their average, out of its last checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from odvae_jax.autoencoder import ODVAE
from odvae_jax.config import ODVAEConfig
from odvae_jax.parameters import abstract_model, named_parameters, with_parameters
from odvae_jax.training.checkpoints import CONFIG_FILE, FOLDER, has_checkpoint


def load_raw(workdir: str | os.PathLike, **overrides: Any) -> ODVAE:
    """Loads the raw weights, not their average, out of the last checkpoint of a training run.

    Args:
      workdir: the run's folder.
      **overrides: config fields to change that change no parameter's shape, such as `dtype`.

    Raises:
      FileNotFoundError: if the folder holds no checkpoint of a run.
    """
    workdir = Path(workdir).absolute()
    if not has_checkpoint(workdir) or not (workdir / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint of a training run; raw weights are kept there alone."
        )
    fields = json.loads((workdir / CONFIG_FILE).read_text())["model"]
    vae = abstract_model(ODVAEConfig.from_dict(fields | overrides))
    wanted = {
        "parameters": {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype)
            for name, value in named_parameters(vae).items()
        }
    }
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    part = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    with ocp.CheckpointManager(workdir / FOLDER) as manager:
        state = manager.restore(manager.latest_step(), args=ocp.args.Composite(state=part)).state
    return with_parameters(vae, jax.tree.map(jax.numpy.asarray, state["parameters"]))
