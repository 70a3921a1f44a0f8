"""Variants, initialisations and tiling compared in one run (Fig. 4, Table 4), by `odvae ablate`.

Every variant is trained from the same 2D model by tail initialisation, and one variant by each
initialisation, all with the same data and seed. Then they are measured on the held-out ends of the
videos, whole and tiled. The same call continues what was interrupted, run by run and step by step.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checks import check_video_shape
from odvae_jax.config import ODVAEConfig
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.models import contender, load_contenders
from odvae_jax.evaluation.results import Results, as_markdown, as_text, notes, table
from odvae_jax.evaluation.run import evaluate, load_meters
from odvae_jax.files import write_whole
from odvae_jax.tiling import TemporalTiling
from odvae_jax.training import config as config_lib
from odvae_jax.training.checkpoints import begun_config, read_json_object
from odvae_jax.training.curves import METRICS_FILE, read_metrics
from odvae_jax.training.lock import RunLock
from odvae_jax.training.loop import train

logger = logging.getLogger("odvae_jax.ablate")
IMAGE_RUN = "image"
_SETTINGS = "settings.json"
_TRAINED = "trained.json"  # in a training's folder once it is done


def default_ablation() -> ml_collections.ConfigDict:
    """Returns the config section `ablation`, which says what is compared."""
    return ml_collections.ConfigDict(
        {
            "variants": (1, 2, 3, 4),  # each from the 2D model by tail initialisation
            "initialisations": ("tail", "average", "random"),  # each with the variant below
            "variant": 4,
            "image_steps": 100_000,  # of training the 2D model, if none is given
            "image_batch_size": 64,
            "image_learning_rate": 1e-4,
            "frames": 97,  # per clip that all are measured on in the end
            "tiling": 33,  # frames per group
            "fvd": True,
        }
    )


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the trainings that are compared.

    Attributes:
      structure: the variant, "v1" to "v4".
      method: the initialisation: "tail", "average" or "random".
    """

    structure: str
    method: str

    @property
    def name(self) -> str:
        """The name of the training's folder, which also stands in tables."""
        return f"{self.structure}-{self.method}"


def arms(config: ml_collections.ConfigDict) -> list[Arm]:
    """Returns the trainings that a config asks for, each of them once.

    Raises:
      ValueError: if a variant or an initialisation does not exist.
    """
    ablation = config.ablation
    structures = [f"v{i}" for i in ablation.variants]
    if unknown := {*structures, f"v{ablation.variant}"} - {"v1", "v2", "v3", "v4"}:
        raise ValueError(f"config.ablation: {sorted(unknown)} are no variants; there are 1 to 4.")
    if unknown := set(ablation.initialisations) - set(config_lib.METHODS):
        raise ValueError(
            f"config.ablation.initialisations: {sorted(unknown)} are not known; there are "
            f"{list(config_lib.METHODS)}."
        )
    chosen = [Arm(structure, "tail") for structure in structures]
    chosen += [Arm(f"v{ablation.variant}", method) for method in ablation.initialisations]
    return list(dict.fromkeys(chosen))


def ablate(
    config: ml_collections.ConfigDict, workdir: str | Path, *, init: str | None = None
) -> tuple[Results, Results]:
    """Trains several models, measures them, and compares them.

    A signal to stop lets the current training save, and ends everything; the same call then
    continues. The folder gets one folder per training, `whole/` and `tiled/` with the evaluations,
    and `ablation.json`, `ablation.md` and `ablation.png`.

    Args:
      config: the config of a training run, with a section `ablation`.
      workdir: the folder.
      init: the 2D model that every training starts from; None first trains one on single frames of
        the same videos.

    Returns:
      The results on whole clips and on tiled clips.

    Raises:
      ValueError: before anything is trained, if something cannot be trained or measured, or if the
        folder holds another ablation.
      FileNotFoundError: if a model or the data is missing.
      FloatingPointError: if a training has too many steps in a row that are not finite.
      InterruptedError: if a training was told to stop.
      BusyError: if another ablation or training is in the folder.
    """
    if not os.fspath(workdir):
        raise ValueError("workdir is empty; expected the path of a folder for the ablation.")
    workdir, chosen = Path(workdir), arms(config)
    ablation = config.ablation
    for arm in chosen:
        config_lib.check(_arm_config(config, arm, init or ""))
    if init is None:
        config_lib.check(_image_config(config))
    if not config.validate_every:
        raise ValueError("config.validate_every=0: the curves are of what is measured meanwhile.")
    TemporalTiling(ablation.tiling).check(ODVAEConfig.variant(4))
    clips = _clips(config)
    with RunLock(workdir):
        return _ablate(config, workdir, init, clips)


def _ablate(config, workdir: Path, init: str | None, clips: FixedClips) -> tuple[Results, Results]:
    ablation, chosen = config.ablation, arms(config)
    _begin(config, workdir, init)
    if init is None:
        image = _image_config(config)
        _train(image, workdir / IMAGE_RUN)
        init = str(workdir / IMAGE_RUN)
    for arm in chosen:
        _train(_arm_config(config, arm, init), workdir / arm.name)
    contenders = load_contenders(
        [f"{a.name}={workdir / a.name}" for a in chosen],
        dtype="float32",
        precision="highest",
    )
    meters = load_meters(fvd=ablation.fvd)
    both = [
        evaluate(contenders, clips, meters, tiling=tiling, output=workdir / folder)[0]
        for folder, tiling in (("whole", None), ("tiled", ablation.tiling))
    ]
    _report(chosen, both, workdir)
    return both[0], both[1]


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


def _train(config: ml_collections.ConfigDict, folder: Path) -> None:
    """Trains a model and notes that it is done, unless it is done already."""
    if (folder / _TRAINED).exists():
        if (begun := begun_config(folder)) is not None:
            config_lib.check_continues(begun, config, str(folder))
        logger.info("%s is trained already", folder)
        return
    logger.info("training %s", folder)
    done = int(train(config, folder).step)
    if done < config.steps:
        raise InterruptedError(f"{folder} stopped after step {done}; the same command goes on.")
    write_whole(folder / _TRAINED, json.dumps({"step": done}) + "\n")
    jax.clear_caches()  # the next training needs other programs, and memory


def _training_config(config, structure: str) -> ml_collections.ConfigDict:
    """Returns the config without the section `ablation`, with the model's structure put in."""
    fields = config.to_dict()
    del fields["ablation"]
    model = fields["model"] | {"structure": structure}
    if structure == "image":
        model = ODVAEConfig.image(
            **{n: model[n] for n in ("width", "groups", "dtype", "remat", "latent_channels")}
        ).to_dict()
    fields["model"] = ODVAEConfig.from_dict(model).to_dict()
    return ml_collections.ConfigDict(fields)


def _image_config(config) -> ml_collections.ConfigDict:
    changed = _training_config(config, "image")
    changed.data.frames = 1
    changed.steps = config.ablation.image_steps
    changed.batch_size = config.ablation.image_batch_size
    changed.optimizer.learning_rate = config.ablation.image_learning_rate
    changed.discriminator.weight = 0.0
    return changed


def _arm_config(config, arm: Arm, init: str) -> ml_collections.ConfigDict:
    changed = _training_config(config, arm.structure)
    changed.init.from_pretrained = init
    changed.init.method = arm.method
    return changed


def _report(chosen: list[Arm], both: list[Results], workdir: Path) -> None:
    curves = {arm.name: _curve(workdir / arm.name) for arm in chosen}
    _plot(chosen, curves, workdir / "ablation.png")
    steps = max(curve[-1]["step"] for curve in curves.values() if curve)
    titles, rows = _joined(*both)
    whole, tiled = both
    said = [f"{steps} steps each.", *notes(whole)]
    said.append(f"Tiled: temporal tiling in groups of {tiled.settings['tiling']} frames.")
    said += [f"Tiled: {line}" for line in notes(tiled) if line not in said and "finite" in line]
    text = "\n\n".join([as_markdown(titles, rows), "\n".join(f"- {line}" for line in said)])
    write_whole(workdir / "ablation.md", text + "\n")
    write_whole(workdir / "ablation.json", json.dumps({"curves": curves}, indent=1) + "\n")
    print("\n".join([as_text(titles, rows), "", *said]))
    for name in ("ablation.md", "ablation.json", "ablation.png"):
        print(workdir / name)


def _curve(folder: Path) -> list[dict[str, float]]:
    """Returns what a training measured on its fixed clips with the EMA weights."""
    keep = ("step", "psnr", "ssim", "lpips")
    records = [r for r in read_metrics(folder / METRICS_FILE) if "psnr" in r]
    return [{name: r[name] for name in keep if name in r} for r in records]


def _joined(whole: Results, tiled: Results) -> tuple[list[str], list[list[str]]]:
    """Returns the table on whole clips, with PSNR and LPIPS on tiled clips next to it."""
    titles, rows = table(whole)
    _, tiled_rows = table(tiled)
    columns = [i for i, title in enumerate(titles) if title.startswith(("PSNR", "LPIPS"))]
    return (
        [*titles, *(f"tiled: {titles[i]}" for i in columns)],
        [[*a, *(b[i] for i in columns)] for a, b in zip(rows, tiled_rows, strict=True)],
    )


def _plot(chosen: list[Arm], curves: dict[str, Any], output: Path) -> None:
    """Plots PSNR and LPIPS by step: the variants above, the initialisations below."""
    metrics = [
        m for m in ("psnr", "lpips") if any(m in p for points in curves.values() for p in points)
    ]
    structures = {arm.structure: arm for arm in chosen if arm.method == "tail"}
    several = {a.structure for a in chosen if a.method != "tail"} or {chosen[-1].structure}
    groups = [
        ("variants, tail initialisation", list(structures.values())),
        ("initialisations", [a for a in chosen if a.structure in several]),
    ]
    figure = Figure(figsize=(6 * len(metrics), 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(metrics), squeeze=False)
    for row, (title, group) in zip(panels, groups, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            for arm in group:
                points = [(p["step"], p[metric]) for p in curves[arm.name] if metric in p]
                axes.plot(*zip(*points, strict=True), label=arm.name, marker="o", markersize=3)
            label = {"psnr": "PSNR [dB]", "lpips": "LPIPS"}[metric]
            axes.set(xlabel="step", ylabel=label, title=title)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    figure.savefig(output, dpi=120)
