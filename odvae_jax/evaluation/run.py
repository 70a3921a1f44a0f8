"""An evaluation from beginning to end: models and data in, tables and pictures out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jax

from odvae_jax.checks import check_video_shape
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.measure import Meters, Reconstructor, measure
from odvae_jax.evaluation.models import BlockMean, Contender, floor
from odvae_jax.evaluation.report import write_report
from odvae_jax.evaluation.results import Results, summarise
from odvae_jax.metrics.i3d import TorchI3D, load_i3d
from odvae_jax.metrics.lpips import load_lpips
from odvae_jax.tiling import TemporalTiling

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
    lpips, features, missing = None, None, {}
    try:
        lpips = load_lpips("alex")
    except FileNotFoundError as error:
        missing["lpips"] = str(error).rstrip(".")
    if not fvd:
        missing["rfvd"] = "it was not asked for"
    elif i3d:
        features = TorchI3D(i3d, trust_torchscript=trust_torchscript)
    else:
        try:
            features = load_i3d()
        except FileNotFoundError as error:
            missing["rfvd"] = str(error).rstrip(".")
    return Meters(lpips, features, missing)


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
      with_floor: whether the mean over the blocks that one latent stands for is added as a model.
      progress: whether a progress bar is shown.

    Returns:
      The numbers, which are None for one of several parts, and the paths of the files written.

    Raises:
      ValueError: if a model does not take such clips, if a group does not have 4k + 1 frames, if no
        clip can be used, or if the output folder holds an evaluation on other clips.
    """
    shape = (1, clips.sampling.frames, clips.size, clips.size, 3)
    for c in contenders:
        check_video_shape(shape, c.model.config)
        if tiling is not None:
            TemporalTiling(tiling).check(c.model.config)
    contenders = list(contenders)
    if with_floor:
        blocks = {(c.time_compression, c.space_compression) for c in contenders}
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
    results = summarise(measurements, contenders)
    if output is None:
        return results, []
    models = [c for c in contenders if not isinstance(c.model, BlockMean)]
    written = write_report(
        results, models, clips, measurements.frames, Reconstructor(tiles), Path(output)
    )
    return results, written
