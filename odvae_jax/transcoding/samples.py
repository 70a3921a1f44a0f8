"""Samples of a denoiser as files: videos and, if wanted, latents."""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from odvae_jax.checkpoints.native import digest
from odvae_jax.diffusion import Latte, process_of, sample
from odvae_jax.diffusion.protocol import Sampler
from odvae_jax.files import one_line, printable, write_whole
from odvae_jax.latents import LatentsInfo, LatentsWriter, Scale, Statistics
from odvae_jax.parameters import Autoencoder, named_parameters
from odvae_jax.sharding import make_mesh
from odvae_jax.tiling import Tiling
from odvae_jax.transcoding.computation import ModelOnDevices, check_finite, computation_of
from odvae_jax.transcoding.digest import described, encoder_digest
from odvae_jax.transcoding.plan import Job
from odvae_jax.transcoding.settings import Outcome, Settings
from odvae_jax.transcoding.videos import is_whole_video, open_video

SETTINGS_FILE = "samples.json"
"""The file in a folder of samples that says how they were made."""
MANIFEST_FILE = "samples.csv"
"""The file in it that lists the videos with their classes; it is a source of videos."""
LATENTS_FOLDER = "latents"
"""The folder in it that holds the latents."""
_FORMAT = "odvae_jax samples 1"
_WORST = 51  # the CRF of the lowest quality
_NO_VARIANCE = -30.0  # the log-variance of what is no posterior, but one sample


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How samples are made.

    Attributes:
      sampler: the name of the sampler; empty for the usual one of the denoiser's process.
      steps: the number of its steps.
      guidance: the strength of guidance; 1 is none.
      interval: the times at which it guides, in the sampler's own time; None for always.
      seed: decides all noise, together with the numbers of the samples.
      classes: sample i is of class `classes[i % len(classes)]`; empty for a denoiser without.
      batch: the number of samples that a device makes together.
      fps: the frames per second of the videos; None takes the denoiser's.
      latents: whether latents are written, too.
      tiling: how latents are cut when they are decoded; None as for files of latents.
      crf: the quality of H.264, from 0 to 51; lower is better and larger.
    """

    sampler: str = ""
    steps: int = 50
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    seed: int = 0
    classes: tuple[int, ...] = ()
    batch: int = 4
    fps: float | None = None
    latents: bool = False
    tiling: tuple[Tiling, ...] | None = None
    crf: int = 16


def decode_sample(
    vae: Autoencoder,
    latents: Float[np.ndarray, "t h w c"],
    *,
    frames: int | None = None,
    tiling: tuple[Tiling, ...] | None = None,
) -> UInt8[np.ndarray, "f y x 3"]:
    """Returns the video of one clip's latents, decoded in parts, uint8 [T, H, W, 3].

    Args:
      vae: the autoencoder.
      latents: the latents, not normalised, [t, h, w, C].
      frames: the number of frames of the video; None for all that the latents decode to.
      tiling: how the latents are cut; None as for files of latents.

    Raises:
      NotFiniteError: if values of the video are not finite.
      ValueError: if the autoencoder cannot be tiled so.
    """
    computation = computation_of(vae, tiling)
    shape = (1, *latents.shape)
    count = vae.config.video_shape(shape)[1] if frames is None else frames
    blocks = _blocks(np.asarray(latents, np.float32), computation.latent_frames_per_block)
    decoded = []
    for part, bad in computation.decode(blocks, lambda: count):
        part = np.asarray(part)
        check_finite(int(bad), part.size, "the decoded frames")
        decoded.append(part[0])
    return np.concatenate(decoded)[:count]


def _blocks(latents: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Latents in blocks [1, n, h, w, C], the first of `length` + 1 latent frames."""
    start, stop = 0, length + 1
    while start < len(latents):
        yield latents[None, start:stop]
        start, stop = stop, stop + length


def check_autoencoder(denoiser: Latte, vae: Autoencoder, name: str) -> Scale:
    """Checks that an autoencoder is the one whose latents a denoiser makes.

    Args:
      denoiser: the denoiser.
      vae: the autoencoder.
      name: what it was loaded from, for messages.

    Returns:
      How the denoiser's latents are normalised.

    Raises:
      ValueError: if it is another autoencoder, or its latents have another number of channels.
    """
    config = denoiser.config
    if vae.config.latent_channels != config.channels:
        raise ValueError(
            f"{printable(name)} has latents of {vae.config.latent_channels} channels, and the "
            f"denoiser makes {config.channels}."
        )
    record = config.trained_on
    if record is None:  # released weights, which were trained with one factor
        return Scale(None, None, vae.config.scale.factor)
    if (found := encoder_digest(vae)) != record.encoder:
        raise ValueError(
            f"{printable(name)} has the encoder {found}, and the denoiser was trained on latents "
            f"of {printable(record.vae)}, encoder {record.encoder}: give that with --vae."
        )
    return record.scale


def sample_files(
    denoiser: Latte,
    vae: Autoencoder,
    name: str,
    output: Path,
    count: int,
    settings: SampleSettings,
    *,
    devices: Sequence[jax.Device] | None = None,
    part: tuple[int, int] = (0, 1),
    bar: bool = True,
) -> Outcome:
    """Makes samples and writes each as `NUMBER.mp4` into a folder.

    What is there already is not made again, so that the same call goes on where it was interrupted,
    and a larger count adds samples. A sample depends on the seed, the settings and its number
    alone, but for rounding.

    Args:
      denoiser: the denoiser.
      vae: the autoencoder that decodes its latents.
      name: what that was loaded from.
      output: the folder.
      count: the number of samples that the folder is to hold.
      settings: how they are made.
      devices: the devices that share a batch, and decode side by side; None for the first one.
      part: which of how many parts of the samples are made.
      bar: whether a progress bar is shown.

    Returns:
      What came of it; `problems` has samples that came to nothing, by their paths. One whose
      latents are not finite is among them, and keeps no other from being made.

    Raises:
      ValueError: if the autoencoder is another than the denoiser was trained with, the folder holds
        samples of other settings, or a setting is impossible.
      OSError: if the folder cannot be written.
    """
    devices = list(devices or jax.local_devices()[:1])
    scale = check_autoencoder(denoiser, vae, name)
    check_settings(denoiser, settings)
    computation_of(vae, settings.tiling)  # what is wrong with it is no sample's problem
    _note_settings(output, _described(denoiser, vae, settings))
    maker = _Maker(denoiser, vae, name, output, settings, scale, devices)
    outcome = Outcome()
    mine = range(part[0], count, part[1])
    todo = [number for number in mine if not maker.is_there(number)]
    outcome.skipped = len(mine) - len(todo)
    together = min(settings.batch, -(-len(todo) // len(devices))) * len(devices)
    try:
        with tqdm(total=len(todo), unit="sample", dynamic_ncols=True, disable=not bar) as shown:
            for start in range(0, len(todo), max(together, 1)):
                numbers = todo[start : start + together]
                maker.make(numbers, together, outcome)
                shown.update(len(numbers))
    finally:
        _write_manifest(output, denoiser, settings)
    return outcome


def check_settings(denoiser: Latte, settings: SampleSettings) -> None:
    """Checks what can be checked of settings without a sample.

    Args:
      denoiser: the denoiser.
      settings: how samples are to be made.

    Raises:
      ValueError: if the sampler or its steps are impossible, or classes are not the denoiser's.
    """
    sampler = _sampler(denoiser, settings)
    classes = denoiser.config.classes
    if bool(settings.classes) != bool(classes):
        has = f"{classes} classes" if classes else "no classes"
        raise ValueError(f"classes are {list(settings.classes)}, and the denoiser has {has}.")
    if wrong := [one for one in settings.classes if not 0 <= one <= classes]:
        raise ValueError(f"the class {wrong[0]} is not known: there are 0 to {classes - 1}.")
    if not math.isfinite(settings.guidance):
        raise ValueError(f"guidance={settings.guidance}: expected a finite number; 1 is none.")
    if settings.interval is not None:
        low, high = settings.interval
        if not low < high < math.inf:
            raise ValueError(f"interval={low, high}: expected two times, the smaller one first.")
        if settings.guidance == 1:
            raise ValueError("an interval says where guidance is used, and guidance=1 is none.")
        _check_within(settings.interval, sampler)
    if not 0 <= settings.crf <= _WORST:
        raise ValueError(f"crf={settings.crf}: expected 0 to {_WORST}; lower is better.")
    if settings.batch < 1:
        raise ValueError(f"batch={settings.batch}: expected at least 1 sample at a time.")
    if settings.guidance != 1 and not classes:
        raise ValueError(
            f"guidance={settings.guidance} needs classes, and this denoiser has none: leave it "
            "at 1."
        )


def _check_within(interval: tuple[float, float], sampler: Sampler) -> None:
    """Whether a sampler has times within an interval, and has all its times between the ends."""
    (low, high), (first, last) = interval, sampler.span
    own = f"the sampler's own time, {sampler.times[0]:g} at noise"
    if low < first or high > last:
        raise ValueError(
            f"interval={low:g}, {high:g}: expected times from {first:g} to {last:g}, in {own}."
        )
    if not any(low <= time <= high for time in sampler.times):
        raise ValueError(
            f"interval={low:g}, {high:g}: none of the {sampler.steps} steps begins in it; its "
            f"ends are in {own}: give a longer one, or more steps."
        )


def _sampler(denoiser, settings):
    process = process_of(denoiser.config)
    return process.sampler(settings.sampler or process.samplers[0], settings.steps)


class _Maker:
    """Makes samples, decodes them and writes them."""

    def __init__(self, denoiser, vae, name, output, settings, scale, devices):
        self._output, self._settings, self._scale = output, settings, scale
        self._name, self._devices = name, devices
        self._denoiser = denoiser
        self._sampler = _sampler(denoiser, settings)
        self._mesh = make_mesh(devices=devices) if len(devices) > 1 else None
        self._models = ModelOnDevices(vae)
        self._encoder = encoder_digest(vae)
        record = denoiser.config.trained_on
        self._frames = record.frames if record else None
        self._fps = settings.fps or (record.fps if record else 8.0)

    def is_there(self, number: int) -> bool:
        """Whether all files of a sample are there."""
        latents = self._latents_of(number)
        return is_whole_video(self._video_of(number)) and (
            not self._settings.latents or latents.is_file()
        )

    def _video_of(self, number: int) -> Path:
        return self._output / _name_of(number)

    def _latents_of(self, number: int) -> Path:
        return self._output / LATENTS_FOLDER / f"{number:06d}.safetensors"

    def make(self, numbers: list[int], together: int, outcome: Outcome) -> None:
        """Makes the samples with some numbers, filled up to a batch of a size."""
        filled = (numbers + [numbers[-1]] * together)[:together]
        settings, labels = self._settings, None
        if settings.classes:
            labels = np.array([_class_of(number, settings) for number in filled], np.int32)
        z = sample(
            self._denoiser,
            self._sampler,
            np.array(filled, np.int32),
            key=jax.random.key(settings.seed),
            labels=labels,
            guidance=settings.guidance,
            interval=settings.interval,
            mesh=self._mesh,
            finite=False,
        )
        latents = self._scale.denormalise(np.asarray(z)[: len(numbers)])
        with concurrent.futures.ThreadPoolExecutor(len(self._devices)) as pool:
            written = [
                pool.submit(self._write, number, one, self._devices[i % len(self._devices)])
                for i, (number, one) in enumerate(zip(numbers, latents, strict=True))
            ]
        for number, future in zip(numbers, written, strict=True):
            path = self._video_of(number)
            try:
                outcome.note_done(path, future.result(), "")
            except Exception as error:
                outcome.note(path, error)
                if outcome.ended:
                    raise OSError(outcome.ended) from error

    def _write(self, number: int, latents: np.ndarray, device: jax.Device) -> int:
        """Writes the files of a sample, the video last; returns its number of frames."""
        if not np.isfinite(latents).all():
            raise ValueError(
                "its latents are not finite: the denoiser diverged, its dtype is too small, or the "
                "guidance is too strong"
            )
        settings = self._settings
        vae = self._models.on(device if len(self._devices) > 1 else None)
        clip = decode_sample(vae, latents, frames=self._frames, tiling=settings.tiling)
        if settings.latents:
            self._write_latents(number, latents, clip.shape, vae)
        target = self._video_of(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        job = Job(target, target, target.name)
        writer = open_video(job, self._fps, Settings(crf=settings.crf), overwrite=True)
        try:
            writer.write(clip)
            writer.finish()
        finally:
            writer.close()
        return len(clip)

    def _write_latents(self, number, latents, shape, vae) -> None:
        path = self._latents_of(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        sums = Statistics()
        sums.add(latents, np.full_like(latents, _NO_VARIANCE))
        computation = computation_of(vae, self._settings.tiling)
        info = LatentsInfo(
            source=_name_of(number),
            model=self._name,
            encoder=self._encoder,
            config=described(vae.config),
            content="sample",
            scaling_factor=vae.config.scale.factor,
            frames=shape[0],
            height=shape[1],
            width=shape[2],
            fps=self._fps,
            tiling=computation.describe(),
            dtype=self._denoiser.config.dtype,
            store="float32",
            seed=self._settings.seed,
            prepared={"short_side": None, "size": None},
            statistics=sums.to_dict(),
        )
        writer = LatentsWriter(path, content="sample")
        try:
            writer.write(latents)
            writer.finish(info)
        finally:
            writer.close()


def _name_of(number: int) -> str:
    return f"{number:06d}.mp4"


def _class_of(number: int, settings: SampleSettings) -> int:
    return settings.classes[number % len(settings.classes)]


def _described(denoiser: Latte, vae: Autoencoder, settings: SampleSettings) -> dict[str, Any]:
    """All that decides what the samples of a folder are."""

    def whole(model):
        return digest(model.config.to_dict(), named_parameters(model))

    tiling = settings.tiling and [repr(one) for one in settings.tiling]
    return {
        "format": _FORMAT,
        "denoiser": whole(denoiser),
        "autoencoder": whole(vae),
        "sampler": settings.sampler or process_of(denoiser.config).samplers[0],
        "steps": settings.steps,
        "guidance": settings.guidance,
        "interval": settings.interval and list(settings.interval),
        "seed": settings.seed,
        "classes": list(settings.classes),
        "fps": settings.fps,
        "tiling": tiling,
        "crf": settings.crf,
    }


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".part"


def _note_settings(output: Path, described: dict[str, Any]) -> None:
    """Writes how samples are made into their folder, or compares with what stands there.

    Raises:
      ValueError: if the folder holds samples that were made otherwise, or other files.
    """
    path = output / SETTINGS_FILE
    if not path.is_file():
        # Another process may be writing the same file, or may have been killed while it did.
        held = [one for one in output.iterdir() if not _is_part(one)] if output.is_dir() else []
        if held and not path.is_file():
            raise ValueError(
                f"{printable(output)} holds other files than samples: choose a new folder."
            )
        output.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(described, indent=1) + "\n")
    try:
        there = json.loads(path.read_text())
        differing = [n for n in described if there.get(n) != described[n]]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is damaged: {one_line(error)}.") from error
    if differing:
        listed = "; ".join(
            f"{n}: {there.get(n)!r:.60} there, {described[n]!r:.60} now" for n in differing
        )
        raise ValueError(
            f"{printable(output)} holds samples that were made otherwise ({listed}): choose "
            "another folder."
        )


def _write_manifest(output: Path, denoiser: Latte, settings: SampleSettings) -> None:
    """Lists the videos that are there, each with its class."""
    record = denoiser.config.trained_on
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *(["label", "class"] if settings.classes else [])])
    for path in sorted(output.glob("*.mp4")):
        if not path.stem.isdigit() or len(path.stem) != 6:
            continue
        row = [path.name]
        if settings.classes:
            label = _class_of(int(path.stem), settings)
            named = record is not None and label < len(record.classes)
            row += [str(label), record.classes[label] if named else str(label)]
        writer.writerow(row)
    write_whole(output / MANIFEST_FILE, text.getvalue())
