"""Trains a model:

`python train.py --config=configs/v4.py --workdir=runs/v4 --config.data.path=VIDEOS`.

Every field of the config can be changed on the command line. Run the same command again to
continue.
"""

import logging as std_logging

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "what to train", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the model go")


def main(_):
    from odvae_jax.training.loop import train

    logging.set_verbosity(logging.WARNING)  # orbax reports every file that it writes
    std_logging.getLogger("odvae_jax").setLevel(std_logging.INFO)

    try:
        train(_CONFIG.value, _WORKDIR.value)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"train.py: {error}") from error


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
