"""Where a run leaves its model."""

from __future__ import annotations

import logging
from pathlib import Path

from odvae_jax.checkpoints.pretrained import RUN_MODEL_FOLDER
from odvae_jax.diffusion import Latte
from odvae_jax.files import one_line
from odvae_jax.parameters import Autoencoder

logger = logging.getLogger(__name__)


def save_model(model: Autoencoder | Latte, workdir: Path, step: int) -> Path:
    """Saves a run's model, and returns where: beside the usual folder if that holds other files.

    Args:
      model: the model.
      workdir: the folder of the run.
      step: the number of steps done, for the name of a folder beside the usual one.
    """
    usual = workdir / RUN_MODEL_FOLDER
    try:
        model.save_pretrained(usual, overwrite=True)
        return usual
    except FileExistsError as error:
        folder = model_beside(workdir, step)
        logger.warning("%s The model is saved in %s.", one_line(error), folder)
        model.save_pretrained(folder, overwrite=True)
        return folder


def model_beside(workdir: Path, step: int) -> Path:
    """Returns where a run saves its model if `model/` holds files that are not the run's."""
    return workdir / f"{RUN_MODEL_FOLDER}-{step}"
