"""What a Table 2 consists of: its arms, the stages of each, and the config of each training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import ml_collections

from odvae_jax.ablate.run import trained_runs
from odvae_jax.config import ODVAEConfig
from odvae_jax.diffusion import process_of
from odvae_jax.evaluation.paper import TABLE_2
from odvae_jax.evaluation.table1 import Listed, read_list
from odvae_jax.files import printable
from odvae_jax.latents.records import NUMPY
from odvae_jax.training import fields
from odvae_jax.training.denoising import denoiser_config, denoiser_model_config

ENCODE, MEASURE = "encode", "measure"
"""The first and the last stage of an arm."""
TRAIN, SAMPLE = "train-", "sample-"
"""What the names of the stages between begin with; the number of steps follows."""
_WHOLE_NUMBERS = {"clips_per_video": 1, "count": 2, "sampling_steps": 1, "batch": 1, "tiling": 0}
# What may be another when a table is continued, since it changes no result, or is measured anew.
_FREE = ("steps", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "mesh")
_FREE += ("validate_every", "validation_clips", "verify_checkpoints", "data.threads")
_FREE += ("data.workers", "data.read_timeout", "data.max_unusable", "samples", "model.remat")
_FREE += tuple(f"table2.{n}" for n in ("arms", "ablation", "dataset", "measure_at", "count"))
_FREE += ("table2.batch",)


def default_table2() -> ml_collections.ConfigDict:
    """Returns the config section `table2`, which says what is compared and how."""
    return ml_collections.ConfigDict(
        {
            # The autoencoders: NAME=MODEL,NAME=MODEL, or a file as `odvae table1 --models` takes.
            "arms": "",
            "ablation": "",  # the folder of an ablation, whose trained runs become arms too
            # UCF101 or SkyTimelapse: whose figures of the paper stand beside; empty for neither.
            "dataset": "",
            "reals": "",  # the source of the real clips; empty takes data.path
            "clips_per_video": 1,  # that are encoded, evenly spread over the video
            "store": "float32",  # the dtype in which latents are stored
            # Frames per group of temporal tiling, in encoding and decoding; 0 takes clips whole.
            "tiling": 0,
            "measure_at": (),  # steps of the training that are measured beside the last one
            "count": 2048,  # clips that are sampled, and real ones, at each of these steps
            "sampler": "",  # empty takes the usual one of the process
            "sampling_steps": 250,
            "guidance": 1.0,
            "batch": 4,  # samples that a device makes together
            "dtype": "bfloat16",  # that samples are computed and decoded in
        }
    )


def list_arms(config: ml_collections.ConfigDict) -> list[Listed]:
    """Returns the autoencoders that a config compares, those of the paper's table first.

    Args:
      config: the config of a denoiser's training, with a section `table2`.

    Raises:
      FileNotFoundError: if the list or the ablation does not exist.
      ValueError: if there is no autoencoder, or two have one name or one folder.
    """
    table = config.table2
    listed = read_list(table.arms, "config.table2.arms") if table.arms else []
    if table.ablation:
        folder = Path(table.ablation).expanduser()
        listed += [Listed(name, str(folder / name), {}) for name in trained_runs(folder)]
    if not listed:
        raise ValueError(
            "config.table2.arms is empty: name the autoencoders, as in "
            "--config.table2.arms=SD-VAE=FOLDER,OD-VAE=FOLDER, or a file (docs/table2.md)."
        )
    folders = [folder_name(one.label) for one in listed]
    if doubled := sorted({name for name in folders if folders.count(name) > 1}):
        raise ValueError(
            f"several arms are called {', '.join(map(printable, doubled))}: give each its own name."
        )
    order = [row.name for row in TABLE_2]
    return sorted(listed, key=lambda one: order.index(one.label) if one.label in order else 99)


def folder_name(label: str) -> str:
    """Returns the name of an arm's folder."""
    return re.sub(r"[^\w.-]+|^\.+", "_", label) or "_"


def milestones(config: ml_collections.ConfigDict) -> list[int]:
    """Returns the steps of the training after which samples are made and measured, in order."""
    return sorted({*config.table2.measure_at, config.steps})


def stages(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the names of an arm's stages, in their order."""
    between = [f"{kind}{n}" for n in milestones(config) for kind in (TRAIN, SAMPLE)]
    return [ENCODE, *between, MEASURE]


def arm_config(
    config: ml_collections.ConfigDict,
    latent_shape: tuple[int, int, int, int],
    dataset: str | Path,
    steps: int,
) -> ml_collections.ConfigDict:
    """Returns the config of an arm's training.

    Args:
      config: the config of the table.
      latent_shape: the frames, rows, columns and channels of a clip's latents.
      dataset: the dataset of the latents.
      steps: the number of steps.
    """
    values = config.to_dict()
    del values["table2"]
    shape = dict(zip(("frames", "rows", "columns", "channels"), latent_shape, strict=True))
    values["model"] = values["model"] | shape
    changed = ml_collections.ConfigDict(values)
    changed.data.path = str(dataset)
    changed.steps = steps
    return changed


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked of a table before its autoencoders are loaded.

    Args:
      config: the config of a denoiser's training, with a section `table2`.

    Raises:
      ValueError: if something of it cannot be. The message names the field.
    """
    if "table2" not in config:
        raise ValueError(
            "the config has no section `table2`, so that it says nothing about a table: take "
            "--config=table2, or add default_table2() to your own."
        )
    table = config.table2
    for name, least in _WHOLE_NUMBERS.items():
        value = table[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"config.table2.{name}={value!r} must be a whole number of at least {least}."
            )
    choices = {"dataset": [*TABLE_2[0].scores, ""], "dtype": NUMPY, "store": NUMPY}
    for name, known in choices.items():
        if table[name] not in known:
            raise ValueError(f"config.table2.{name}={table[name]!r} is none of {[*known]}.")
    if not math.isfinite(table.guidance):
        raise ValueError(
            f"config.table2.guidance={table.guidance} must be a finite number; 1 is none."
        )
    wrong = [n for n in table.measure_at if type(n) is not int or not 1 <= n <= config.steps]
    if wrong:
        raise ValueError(
            f"config.table2.measure_at has {wrong[0]!r}; expected steps from 1 to config.steps="
            f"{config.steps}."
        )
    if config.vae:
        raise ValueError(
            "config.vae is one autoencoder, and a table compares several: name them in "
            "config.table2.arms, and leave config.vae empty."
        )
    if not config.data.path:
        raise ValueError("config.data.path is empty: give the videos, --config.data.path=SOURCE.")
    # The shape of the paper's latents stands for those of the arms, which nobody has loaded yet.
    size = (1, config.data.frames, config.data.size, config.data.size, 3)
    shape = ODVAEConfig.variant(4).latent_shape(size)[1:]
    fields.check(likely := arm_config(config, shape, "LATENTS", config.steps))
    model = denoiser_model_config(likely)
    process = process_of(model)
    process.sampler(table.sampler or process.samplers[0], table.sampling_steps)
    if table.guidance != 1 and not model.classes:
        raise ValueError(
            f"config.table2.guidance={table.guidance} needs classes, and config.model.classes is "
            "0: leave it at 1."
        )


def check_continues(begun: dict, config: ml_collections.ConfigDict, where: str) -> None:
    """Checks that a table that was begun is continued with what decides its results.

    More steps, more samples, and other arms are no hindrance.

    Args:
      begun: the config that it was begun with, as JSON holds it.
      config: the config that it is to be continued with.
      where: the table's folder, for the error.

    Raises:
      ValueError: if they differ. The message lists the fields.
    """
    # A field that there was not yet has its default.
    usual = denoiser_config()
    usual.table2 = default_table2()
    before = fields.flat(as_json(usual)) | fields.flat(begun)
    now = fields.flat(as_json(config))
    differing = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and not any(name == free or name.startswith(f"{free}.") for free in _FREE)
    ]
    if differing:
        listed = "; ".join(f"{n}: {before.get(n)!r} there, {now.get(n)!r} now" for n in differing)
        raise ValueError(
            f"{where} holds a table with another config ({listed}): go on with its own, or choose "
            "another workdir."
        )


def as_json(config: ml_collections.ConfigDict) -> dict:
    """Returns a config as JSON gives it back, in which a tuple is a list."""
    return json.loads(config.to_json())
