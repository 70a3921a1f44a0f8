"""Trains a model:

`python train.py --config=configs/v4.py --workdir=runs/v4 --config.data.path=VIDEOS`.

Every field of the config can be changed on the command line. Run the same command again to
continue. On several machines, run it on each with --coordinator, --processes and --process.
"""

import logging as std_logging

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "what to train", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the model go")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    'of several processes, where the first listens (host:port); "auto" on Slurm, TPU pods and '
    "other clusters that JAX knows",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "how many processes there are")
_PROCESS = flags.DEFINE_integer("process", None, "which of them this one is, from 0")


def main(_):
    import jax

    from odvae_jax.compilation import use_compilation_cache
    from odvae_jax.training.loop import train

    use_compilation_cache()
    if _COORDINATOR.value == "auto":
        jax.distributed.initialize()
    elif _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    logging.set_verbosity(logging.WARNING)  # orbax reports every file that it writes
    # And, where a disk is full, asyncio a traceback for every array; the library reports it once.
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)
    level = std_logging.INFO if jax.process_index() == 0 else std_logging.ERROR
    std_logging.getLogger("odvae_jax").setLevel(level)

    try:
        train(_CONFIG.value, _WORKDIR.value)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"train.py: {error}") from error


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
