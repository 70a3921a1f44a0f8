"""What one stage of an arm does: encode, train, sample or measure."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections

from odvae_jax.baselines.base import Baseline
from odvae_jax.checks import check_continuous
from odvae_jax.diffusion import Latte
from odvae_jax.evaluation.drawn import DrawnClips, GeneratedClips
from odvae_jax.evaluation.generated import FEATURES_FOLDER, as_json, evaluate_generated, notes
from odvae_jax.evaluation.table1 import Listed, load_listed
from odvae_jax.files import counted, one_line, printable, write_whole
from odvae_jax.latents.entries import Cut
from odvae_jax.metrics.clip_sets import Networks
from odvae_jax.metrics.feature_cache import FeatureCache
from odvae_jax.parameters import Autoencoder, named_parameters
from odvae_jax.table2.plan import (
    ENCODE,
    MEASURE,
    SAMPLE,
    TRAIN,
    arm_config,
    folder_name,
    list_arms,
    milestones,
    stages,
)
from odvae_jax.tiling import TemporalTiling
from odvae_jax.training.checkpoints import read_json_object
from odvae_jax.training.curves import METRICS_FILE, read_metrics
from odvae_jax.training.loop import train
from odvae_jax.transcoding import DatasetSettings, encode_dataset
from odvae_jax.transcoding.samples import SampleSettings, sample_files

LATENTS, RUN = "latents", "denoiser"
"""What an arm's folder calls the dataset of latents, and the folder of the training."""
MEASURED = "measured"
"""What an arm's folder calls the report of its measurements."""
_FAILED = "failed.json"


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an arm could not be finished.

    Attributes:
      stage: the name of the stage that came to nothing.
      reason: what was wrong, in a line.
      missing: whether the weights of the autoencoder are not there, which is no failure.
    """

    stage: str
    reason: str
    missing: bool = False


def note_of(folder: Path, stage: str) -> dict[str, Any] | None:
    """Returns what a stage left behind when it was done; None if it is not done.

    Args:
      folder: the arm's folder.
      stage: the name of the stage.
    """
    return read_json_object(_note_file(folder, stage))[0]


def _note_file(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.json"


def failure_of(folder: Path) -> Failure | None:
    """Returns why the last stage that an arm began came to nothing; None if it did not.

    Args:
      folder: the arm's folder.
    """
    found = read_json_object(folder / _FAILED)[0]
    try:
        return None if found is None else Failure(**found)
    except TypeError:
        return None


def forget_failure(folder: Path) -> None:
    """Removes what an arm's folder says of an earlier failure.

    Args:
      folder: the arm's folder.
    """
    (folder / _FAILED).unlink(missing_ok=True)


def note_failure(folder: Path, failure: Failure) -> None:
    """Writes into an arm's folder why it could not be finished.

    Args:
      folder: the arm's folder.
      failure: the failure.
    """
    write_whole(folder / _FAILED, json.dumps(dataclasses.asdict(failure)) + "\n")


def is_done(
    config: ml_collections.ConfigDict,
    folder: Path,
    arm: Listed,
    stage: str,
    networks: dict[str, Any],
) -> bool:
    """Whether a stage is done, and nothing more is asked of it than when it was done.

    Args:
      config: the config of the table.
      folder: the arm's folder.
      arm: the arm.
      stage: the name of the stage.
      networks: what names the networks of the metrics, as values that JSON can hold.
    """
    note = note_of(folder, stage)
    return note is not None and note.get("asked") == _asked(config, arm, stage, networks)


def _asked(config, arm: Listed, stage: str, networks: dict[str, Any]) -> dict[str, Any]:
    """What decides a stage's result, beside what the table's settings hold."""
    # Where the model lies does not decide it. But behind another name may be another model, which
    # the dataset and the samples refuse when their stages are done again.
    model = {"source": arm.source, **arm.arguments}
    if stage == ENCODE:
        return {"model": model}
    if stage.startswith(SAMPLE):
        return {"count": config.table2.count, "model": model}
    if stage == MEASURE:
        return {"count": config.table2.count, "steps": milestones(config), **networks}
    return {}


def do_stage(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str,
    stage: str,
    *,
    networks: dict[str, Any],
    load_networks: Callable[[], Networks],
) -> None:
    """Does one stage of one arm, and notes in the arm's folder that it is done.

    If the weights of the autoencoder are not there, that is noted, and nothing is done.

    Args:
      config: the config of the table.
      workdir: the folder of the table.
      label: the name of the arm.
      stage: the name of the stage, one of `stages`.
      networks: what names the networks of the metrics, as values that JSON can hold.
      load_networks: loads them.

    Raises:
      ValueError: if there is no such arm or stage, or it cannot be done.
      FileNotFoundError: if something that it needs is missing.
      InterruptedError: if it was told to stop.
    """
    arm = arm_of(config, label)
    if stage not in stages(config):
        raise ValueError(f"the stage {stage!r} is not known; there are {stages(config)}.")
    folder = Path(workdir) / folder_name(arm.label)
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(config, arm, folder)
    start = time.monotonic()
    try:
        if stage == ENCODE:
            result = work.encode()
        elif stage.startswith(TRAIN):
            result = work.train(int(stage.removeprefix(TRAIN)))
        elif stage.startswith(SAMPLE):
            result = work.sample(int(stage.removeprefix(SAMPLE)))
        else:
            result = work.measure(load_networks())
    except _MissingError as error:
        return note_failure(folder, Failure(stage, str(error), missing=True))
    except InterruptedError:
        raise
    except Exception as error:
        note_failure(folder, Failure(stage, one_line(error)))
        raise
    asked = {"asked": _asked(config, arm, stage, networks)}
    spent = {"stage_seconds": time.monotonic() - start}
    text = json.dumps({**asked, **spent, **result}, indent=1) + "\n"
    return write_whole(_note_file(folder, stage), text)


def arm_of(config: ml_collections.ConfigDict, label: str) -> Listed:
    """Returns the arm of a name.

    Args:
      config: the config of the table.
      label: the name.

    Raises:
      ValueError: if there is no such arm.
    """
    arms = list_arms(config)
    found = next((arm for arm in arms if label == arm.label), None)
    if found is None:
        raise ValueError(f"the arm {label!r} is not known; there are {[a.label for a in arms]}.")
    return found


class _MissingError(Exception):
    """The weights of an autoencoder are not there."""


class _Work:
    """The stages of an arm."""

    def __init__(self, config: ml_collections.ConfigDict, arm: Listed, folder: Path):
        self._config, self._arm, self._folder = config, arm, folder

    def _load(self, dtype: str) -> tuple[Autoencoder, tuple[str, ...]]:
        """The autoencoder, and what a reader of the table has to know about it."""
        contenders, absent = load_listed([self._arm], dtype=dtype)
        if not contenders:
            raise _MissingError(absent[printable(self._arm.label)])
        return contenders[0].model, contenders[0].remarks

    def _tiling(self, vae: Autoencoder, *, whole: bool) -> tuple[TemporalTiling, ...] | None:
        """How clips are cut in time; `whole` is for what would cut them if nothing is said."""
        group = self._config.table2.tiling or (self._config.data.frames if whole else 0)
        if isinstance(vae, Baseline) and not self._config.table2.tiling:
            return None
        return (TemporalTiling(group),) if group else None

    def encode(self) -> dict[str, Any]:
        """Makes the dataset of latents."""
        data, table = self._config.data, self._config.table2
        vae, remarks = self._load(self._config.vae_dtype)
        check_continuous(vae.config)
        clip = (data.frames, data.size, data.size)
        if (taken := vae.config.clip_size(*clip)) != clip:
            raise ValueError(
                f"config.data.frames={data.frames} and size={data.size} are no clip that "
                f"{vae.config.name} encodes; the next that is has {taken[0]} frames of "
                f"{taken[1]}×{taken[2]}."
            )
        shape = list(vae.config.latent_shape((1, *clip, 3))[1:])
        cut = Cut(
            frames=data.frames,
            stride=data.stride,
            spread=data.spread,
            clips_per_video=table.clips_per_video,
            short_side=data.short_side,
            size=data.size,
            mirror=data.flip,
        )
        settings = DatasetSettings(
            cut=cut,
            content="moments" if data.sampled else "mean",
            store=table.store,
            seed=self._config.seed,
            tiling=self._tiling(vae, whole=False),
            workers=data.workers,
            threads=data.threads,
            read_timeout=data.read_timeout or None,
        )
        dataset = str(self._folder / LATENTS)
        summary = encode_dataset(vae, self._arm.source, data.path, dataset, settings)
        return {
            "model": vae.config.name,
            "parameters": sum(v.size for v in named_parameters(vae).values()),
            "latent_shape": shape,
            "clips": summary.clips + summary.there,
            "left_out": summary.left_out,
            "problems": list(summary.problems.values()),
            "remarks": list(remarks),
        }

    def train(self, steps: int) -> dict[str, Any]:
        """Trains the denoiser up to a step, and keeps it as it is then."""
        shape = tuple((note_of(self._folder, ENCODE) or {})["latent_shape"])
        run = self._folder / RUN
        state = train(arm_config(self._config, shape, self._folder / LATENTS, steps), run)
        if int(state.step) < steps:
            raise InterruptedError(
                f"{printable(run)} stopped after step {int(state.step)}; the same command goes on."
            )
        denoiser = Latte.from_pretrained(run)
        kept, part = self._denoiser(steps), self._denoiser(steps).with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        denoiser.save_pretrained(part)
        shutil.rmtree(kept, ignore_errors=True)
        part.rename(kept)
        return {
            "seconds": training_seconds(run, steps),
            "denoiser_parameters": sum(v.size for v in named_parameters(denoiser).values()),
        }

    def _denoiser(self, steps: int) -> Path:
        return self._folder / f"{RUN}-{steps}"

    def _samples(self, steps: int) -> Path:
        return self._folder / f"samples-{steps}"

    def sample(self, steps: int) -> dict[str, Any]:
        """Makes clips with the denoiser of a step."""
        table = self._config.table2
        vae, _ = self._load(table.dtype)
        denoiser = Latte.from_pretrained(self._denoiser(steps), dtype=table.dtype)
        settings = SampleSettings(
            sampler=table.sampler,
            steps=table.sampling_steps,
            guidance=table.guidance,
            seed=self._config.seed,
            classes=tuple(range(denoiser.config.classes or 0)),
            batch=table.batch,
            tiling=self._tiling(vae, whole=True),
        )
        devices = jax.local_devices()
        output, name = self._samples(steps), self._arm.source
        given = (denoiser, vae, name, output, table.count, settings)
        outcome = sample_files(*given, devices=devices)
        problems = list(outcome.problems.values())
        if not outcome.done + outcome.skipped:
            raise ValueError(
                f"none of {counted(len(problems), 'sample')} came to anything: {problems[0]}"
            )
        return {"videos": outcome.done + outcome.skipped, "problems": problems}

    def measure(self, networks: Networks) -> dict[str, Any]:
        """Compares the samples of all steps with real clips."""
        config, table = self._config, self._config.table2
        shape = {"frames": config.data.frames, "size": config.data.size}
        shape["timeout"] = config.data.read_timeout or None
        how = {"stride": config.data.stride, "spread": config.data.spread}
        steps = milestones(config)
        results, _ = evaluate_generated(
            {counted(n, "step"): GeneratedClips(self._samples(n), **shape) for n in steps},
            DrawnClips(table.reals or config.data.path, **how, **shape),
            networks,
            count=table.count,
            output=self._folder / MEASURED,
            cache=FeatureCache(self._folder.parent / FEATURES_FOLDER),
        )
        found = as_json(results)
        return {
            "sets": {str(n): one for n, one in zip(steps, found["sets"], strict=True)},
            "notes": notes(results),
            "complaints": list(results.complaints),
        }


def training_seconds(run: Path, steps: int) -> float:
    """Returns how long a run trained up to a step: without compiling, measuring and saving.

    Args:
      run: the folder of the run.
      steps: the step.
    """
    seconds, last = 0.0, 0
    for record in read_metrics(run / METRICS_FILE):
        if "seconds_per_step" in record and last < record["step"] <= steps:
            seconds += record["seconds_per_step"] * (record["step"] - last)
            last = record["step"]
    return seconds
