"""An ablation from beginning to end: trainings one after another or side by side, then numbers."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from odvae_jax.ablate.plan import IMAGE_RUN, Run, image_config, run_config, runs
from odvae_jax.ablate.report import report
from odvae_jax.ablate.side_by_side import Child, carry_out, train_side_by_side
from odvae_jax.autoencoder import ODVAE
from odvae_jax.checks import check_video_shape
from odvae_jax.config import ODVAEConfig
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.models import contender, load_contenders
from odvae_jax.evaluation.results import Results
from odvae_jax.evaluation.run import evaluate, load_meters
from odvae_jax.files import printable, write_whole
from odvae_jax.tiling import TemporalTiling
from odvae_jax.training import config as config_lib
from odvae_jax.training.checkpoints import begun_config, read_json_object
from odvae_jax.training.lock import RunLock
from odvae_jax.training.loop import train

logger = logging.getLogger("odvae_jax.ablate")
_SETTINGS = "settings.json"
_TRAINED = "trained.json"  # in a training's folder once it is done


def ablate(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    init: str | None = None,
    seeds: int = 1,
) -> tuple[Results, Results]:
    """Trains several models one after another, measures them, and compares them.

    A signal to stop lets the current training save, and ends everything; the same call then
    continues. So does a call with more seeds. The folder gets one folder per training, `whole/` and
    `tiled/` with the evaluations, and `ablation.json`, `ablation.md` and `ablation.png`; with
    several seeds `seeds.png` too.

    Args:
      config: the config of a training run, with a section `ablation`.
      workdir: the folder.
      init: the 2D model that every training starts from; None first trains one on single frames of
        the same videos, once for all seeds.
      seeds: how often each configuration is trained, with `config.seed` and the seeds after it.

    Returns:
      The results on whole clips and on tiled clips, with one row per training.

    Raises:
      ValueError: before anything is trained, if something cannot be trained or measured, or if the
        folder holds another ablation.
      FileNotFoundError: if a model or the data is missing.
      FloatingPointError: if a training has too many steps in a row that are not finite.
      InterruptedError: if a training was told to stop.
      BusyError: if another ablation or training is in the folder.
    """
    workdir, planned = _checked(config, workdir, init, seeds)
    clips = _clips(config)
    with RunLock(workdir):
        _begin(config, workdir, init)
        _check_begun(config, workdir, init, planned)
        if init is None:
            _train(image_config(config), workdir / IMAGE_RUN)
        for run in planned:
            _train(run_config(config, run, _start(workdir, init)), workdir / run.name)
        whole, tiled = _measured(config, workdir, planned, clips)
        report(config, planned, whole, tiled, workdir)
        return whole, tiled


def train_only(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    name: str,
    *,
    init: str | None = None,
    seeds: int = 1,
) -> None:
    """Trains one of the models of an ablation, or goes on with it, and compares nothing.

    Several processes can call it at the same time with the same folder, each with another name.

    Args:
      config: the config of the ablation.
      workdir: the folder of the ablation.
      name: the name of the training, such as "v4-tail-seed1"; "image" for the 2D model.
      init: the 2D model that every training starts from; None takes the one called "image".
      seeds: the number of seeds of the ablation.

    Raises:
      ValueError: if there is no such training, if the 2D model is not trained, if something cannot
        be trained, or if the folder holds another ablation.
      FileNotFoundError: if a model or the data is missing.
      FloatingPointError: if too many steps in a row are not finite.
      InterruptedError: if the training was told to stop.
      BusyError: if another process trains it.
    """
    workdir, planned = _checked(config, workdir, init, seeds)
    configs = {run.name: run_config(config, run, _start(workdir, init)) for run in planned}
    if init is None:
        configs = {IMAGE_RUN: image_config(config), **configs}
    if name not in configs:
        raise ValueError(f"the run {name!r} is not known; there are {', '.join(configs)}.")
    if init is None and name != IMAGE_RUN and not _is_trained(workdir / IMAGE_RUN):
        raise ValueError(
            f"{printable(workdir / IMAGE_RUN)} is not trained, and the others start from it: train "
            f"it first, by --only={IMAGE_RUN}."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    _begin(config, workdir, init)
    _train(configs[name], workdir / name)


def ablate_side_by_side(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    command: Sequence[str],
    *,
    at_once: int,
    init: str | None = None,
    seeds: int = 1,
) -> int:
    """Trains several models at the same time, each in a process, then measures in another one.

    This process computes nothing. It should not hold a GPU: JAX has to be confined to the CPU
    before it is used. The log of each process is `train.log` in the folder of its training.

    Args:
      config: the config of the ablation.
      workdir: the folder of the ablation.
      command: the words of a command that does `ablate`, and `train_only` if `--only=NAME` is added
        to it.
      at_once: the number of processes that train at the same time.
      init: the 2D model that every training starts from; None first trains one.
      seeds: how often each configuration is trained.

    Returns:
      The exit status: 1 if a training failed, and nothing is compared then; else that of the
      process which measures.

    Raises:
      ValueError: before anything is trained, if something cannot be trained or measured, or if the
        folder holds another ablation.
      FileNotFoundError: if a model or the data is missing.
      InterruptedError: if a signal to stop came; the trainings have saved what they did.
      BusyError: if another ablation is in the folder.
    """
    if at_once < 1:
        raise ValueError(f"at_once={at_once} must be at least 1: how many train at the same time.")
    workdir, planned = _checked(config, workdir, init, seeds)
    _clips(config)
    with RunLock(workdir):
        _begin(config, workdir, init)
        _check_begun(config, workdir, init, planned)
        image = [Child(IMAGE_RUN, "image", config.ablation.image_steps)] if init is None else []
        others = [Child(run.name, run.arm.structure, config.steps) for run in planned]
        for children in (image, others):
            left = [child for child in children if not _is_trained(workdir / child.name)]
            done = len(children) - len(left)  # by earlier calls
            if left and train_side_by_side(left, command, workdir, at_once, done=done):
                return 1
    return carry_out(command)


def _checked(config, workdir, init: str | None, seeds: int) -> tuple[Path, list[Run]]:
    """Returns the folder and the trainings, if all could be trained and measured."""
    if not os.fspath(workdir):
        raise ValueError("workdir is empty; expected the path of a folder for the ablation.")
    planned = runs(config, seeds)
    for run in planned:
        config_lib.check(run_config(config, run, init or ""))
    if init is None:
        config_lib.check(image_config(config))
    if not config.validate_every:
        raise ValueError("config.validate_every=0: the curves are of what is measured meanwhile.")
    TemporalTiling(config.ablation.tiling).check(ODVAEConfig.variant(4))
    return Path(workdir), planned


def _start(workdir: Path, init: str | None) -> str:
    """The 2D model that the trainings start from."""
    return str(workdir / IMAGE_RUN) if init is None else init


def _clips(config) -> FixedClips:
    """Returns the last clips of the videos, if models can take them and a video holds one."""
    ablation, data = config.ablation, config.data
    clips = FixedClips(
        data.path,
        frames=ablation.frames,
        size=data.size,
        start=None,
        stride=data.stride,
        fps=data.fps or None,
    )
    check_video_shape((1, ablation.frames, data.size, data.size, 3), ODVAEConfig.variant(4))
    some = next((c for c in map(clips.read, range(len(clips))) if c.frames is not None), None)
    if some is None:
        raise ValueError(
            f"no video of {data.path} holds a clip of config.ablation.frames={ablation.frames}: "
            f"{clips.read(0).reason}"
        )
    span = clips.span(clips.rate(some.index))
    if data.holdout < span:
        logger.warning(
            "config.data.holdout=%d is less than the %d frames of a clip: what is measured is "
            "trained on too",
            data.holdout,
            span,
        )
    return clips


def _begin(config, workdir: Path, init: str | None) -> None:
    """Notes what all trainings share, so that a later call compares none with others."""
    if init is None:
        image = config.ablation
        start = {n: image[n] for n in image if n.startswith("image_")}
    else:
        start = {"init": contender("", init, ODVAE.from_pretrained(init)).digest}
    settings = {"steps": config.steps, **start}
    path = workdir / _SETTINGS
    before, reason = read_json_object(path)
    if before is None:
        if path.exists():
            logger.warning("%s is damaged (%s), and written anew", path, reason)
        write_whole(path, json.dumps(settings) + "\n")
    elif before != settings:
        raise ValueError(
            f"{workdir} holds ablations with {before}, not with {settings}: go on with theirs, or "
            "choose another workdir."
        )


def _check_begun(config, workdir: Path, init: str | None, planned: list[Run]) -> None:
    """Raises ValueError if a training that was begun cannot be continued with its config."""
    configs = {run.name: run_config(config, run, _start(workdir, init)) for run in planned}
    if init is None:
        configs[IMAGE_RUN] = image_config(config)
    for name, own in configs.items():
        if (begun := begun_config(workdir / name)) is not None:
            config_lib.check_continues(begun, own, str(workdir / name))


def trained_runs(workdir: str | Path) -> list[str]:
    """Returns the names of an ablation's trainings that are done, without the 2D model's, sorted.

    Args:
      workdir: the folder of the ablation.

    Raises:
      FileNotFoundError: if it holds none.
    """
    folders = [path.parent for path in Path(workdir).glob(f"*/{_TRAINED}")]
    names = sorted(folder.name for folder in folders if folder.name != IMAGE_RUN)
    if not names:
        raise FileNotFoundError(
            f"{printable(workdir)} holds no training of an ablation that is done; `odvae ablate` "
            "trains them."
        )
    return names


def _is_trained(folder: Path) -> bool:
    return (folder / _TRAINED).exists()


def _train(config: ml_collections.ConfigDict, folder: Path) -> None:
    """Trains a model and notes that it is done, unless it is done already."""
    if _is_trained(folder):
        logger.info("%s is trained already", folder)
        return
    logger.info("training %s", folder)
    done = int(train(config, folder).step)
    if done < config.steps:
        raise InterruptedError(f"{folder} stopped after step {done}; the same command goes on.")
    write_whole(folder / _TRAINED, json.dumps({"step": done}) + "\n")
    jax.clear_caches()  # the next training needs other programs, and memory


def _measured(config, workdir: Path, planned: list[Run], clips: FixedClips) -> list[Results]:
    """Returns the results on whole clips and on tiled ones."""
    contenders = load_contenders(
        [f"{run.name}={workdir / run.name}" for run in planned],
        dtype="float32",
        precision="highest",
    )
    meters = load_meters(fvd=config.ablation.fvd)
    return [
        evaluate(contenders, clips, meters, tiling=tiling, output=workdir / folder)[0]
        for folder, tiling in (("whole", None), ("tiled", config.ablation.tiling))
    ]
