"""An evaluation from beginning to end: models and data in, tables and pictures out."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from odvae_jax.baselines.base import Baseline
from odvae_jax.checks import check_clip_shape, check_video_shape
from odvae_jax.config import IMAGE_CHANNELS
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.measure import Meters, Reconstructor, measure
from odvae_jax.evaluation.models import BlockMean, Contender, floor
from odvae_jax.evaluation.outside import Outside
from odvae_jax.evaluation.report import write_report
from odvae_jax.evaluation.results import Results, cut_of, summarise
from odvae_jax.files import printable
from odvae_jax.metrics.i3d import TorchI3D, load_i3d
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.tiling import TemporalTiling

logger = logging.getLogger(__name__)
MEASUREMENTS_FOLDER = "measurements"


def load_meters(
    *, fvd: bool = True, i3d: str | os.PathLike | None = None, trust_torchscript: bool = False
) -> Meters:
    """Loads the trained networks that metrics need; what is not installed is noted as missing.

    Args:
      fvd: whether the Fréchet video distance is computed, which takes most of the time.
      i3d: the path of an `i3d_torchscript.pt` to use instead of this package's I3D.
      trust_torchscript: whether that file may run: it is a program.

    Raises:
      FileNotFoundError: if `i3d` is given and cannot be loaded.
      ValueError: if `i3d` is given and is not trusted, or is no TorchScript file.
    """
    lpips, features, missing, left_out = None, None, {}, frozenset()
    try:
        lpips = load_lpips("alex")
    except FileNotFoundError as error:
        missing["lpips"] = str(error).rstrip(".")
    if not fvd:
        left_out = frozenset({"rfvd"})
    elif i3d:
        features = TorchI3D(i3d, trust_torchscript=trust_torchscript)
    else:
        try:
            features = load_i3d()
        except FileNotFoundError as error:
            missing["rfvd"] = str(error).rstrip(".")
    return Meters(lpips, features, missing, left_out)


def evaluate(
    contenders: Sequence[Contender],
    clips: FixedClips,
    meters: Meters,
    *,
    tiling: int | None = None,
    output: str | os.PathLike | None = None,
    batch: int = 1,
    devices: Sequence[jax.Device] | None = None,
    shard: tuple[int, int] = (0, 1),
    with_floor: bool = True,
    strict: bool = False,
    absent: Mapping[str, str] | None = None,
    progress: bool = True,
) -> tuple[Results | None, list[Path]]:
    """Measures models on clips and writes a report (Tables 1 and 4).

    Args:
      contenders: the models.
      clips: the clips that the models reconstruct.
      meters: the trained networks that some metrics need.
      tiling: the number of frames in a group of temporal tiling; None takes clips whole.
      output: the folder of the report and of what was measured so far. The same call continues an
        evaluation that was interrupted. None keeps everything in memory and writes nothing.
      batch: the number of clips per device and call.
      devices: the devices to use; None uses all devices of this process.
      shard: (i, n) measures only part i, counted from 0, of n parts, and writes no report. A last
        call without it writes the report.
      with_floor: whether the mean over the blocks that one latent stands for is added as a model,
        once per compression.
      strict: whether clips that a model takes only a part of are refused. Otherwise the model is
        measured on that part, which the log and the report say.
      absent: the reason why a model is not there, by its label. It gets a row without numbers.
      progress: whether a progress bar is shown.

    Returns:
      The numbers, which are None for one of several parts, and the paths of the files written.

    Raises:
      ValueError: if a model does not take such clips, if a group does not have 4k + 1 frames or a
        model does not take groups, if no clip can be used, or if the output folder holds an
        evaluation on other clips.
    """
    contenders = list(contenders)
    for c in contenders:
        _check(c, clips, tiling, strict)
    if with_floor:
        blocks = {c.compression for c in contenders} - {None}
        contenders += [floor(*sides) for sides in sorted(blocks)]
    tiles = None if tiling is None else TemporalTiling(tiling)
    folder = None if output is None else Path(output) / MEASUREMENTS_FOLDER
    measurements = measure(
        contenders,
        clips,
        meters,
        tiling=tiles,
        folder=folder,
        batch=batch,
        devices=devices,
        shard=shard,
        progress=progress,
    )
    if measurements is None:
        return None, []
    results = dataclasses.replace(summarise(measurements, contenders), absent=dict(absent or {}))
    if output is None:
        return results, []
    models = [c for c in contenders if not isinstance(c.model, BlockMean)]
    written = write_report(
        results, models, clips, measurements.frames, Reconstructor(tiles), Path(output)
    )
    return results, written


def _check(c: Contender, clips: FixedClips, tiling: int | None, strict: bool) -> None:
    """Checks that a model can be measured on clips, and says once if it takes a part of them."""
    if isinstance(c.model, Outside):
        c.model.check(clips)
        return
    config = c.model.config
    is_baseline = isinstance(c.model, Baseline)
    if tiling is not None:
        if is_baseline:
            raise ValueError(
                f"{printable(c.label)} is {config.name}, which takes clips whole or in chunks of "
                "its own: leave out --tiling, or measure it in another call."
            )
        TemporalTiling(tiling).check(config)
    size = c.taken(*clips.shape)
    if size == clips.shape:
        return
    if not strict:
        logger.warning("%s", cut_of(c.label, size, clips.shape))
        return
    shape = (1, *clips.shape, IMAGE_CHANNELS)
    try:
        if is_baseline:
            step, first, side = config.frame_step, config.first_frames, config.space_compression
            check_clip_shape(shape, step, first, side)
        else:
            check_video_shape(shape, config)
    except ValueError as error:
        raise ValueError(f"{printable(c.label)}: {error}") from error
