"""Training a video autoencoder: data, losses and measurements of section 4.1."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from odvae_jax.autoencoder import ODVAE
from odvae_jax.calibration import measure
from odvae_jax.checkpoints import native
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.config import ODVAEConfig
from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.files import counted, one_line
from odvae_jax.flops import count_flops
from odvae_jax.inflation import METHODS, inflate
from odvae_jax.latents import Scale
from odvae_jax.metrics.lpips import LPIPS, SMALLEST, load_lpips
from odvae_jax.parameters import abstract_model, named_parameters, with_parameters
from odvae_jax.sharding import LEAST_ROWS, clip_sharding, clip_shards, local_rows, replicated
from odvae_jax.training.config import default_config, model_config
from odvae_jax.training.curves import plot_curves
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.fields import check_fields
from odvae_jax.training.model_folder import save_model
from odvae_jax.training.state import TrainState, create_state, make_optimizers, model_parameters
from odvae_jax.training.step import SeedKey, autoencoder_step, seed_key, update_of_step
from odvae_jax.training.tasks.task import Feeds, Measured, Step, Task
from odvae_jax.training.terms import load_terms
from odvae_jax.training.validation import Validation

logger = logging.getLogger(__name__)

_CHOICES = {
    "loss.reconstruction": ("l1", "l2"),
    "discriminator.loss": ("hinge", "vanilla"),
    "discriminator.turns": ("together", "alternate"),
    "optimizer.decay": ("constant", "cosine"),
    "init.method": METHODS,
    "data.crop": ("random", "centre"),
    "freeze": ("", "encoder"),
}
_AT_LEAST = {
    "batch_size": 1,
    "accumulate": 1,
    "validation_clips": 1,
    "scale_clips": 0,
    "data.holdout": 0,
    "data.short_side_max": 0,
    "data.threads": 1,
    "data.workers": 0,
    "data.stride": 1,
    "data.stride_max": 1,
    "data.fps": 0,
    "data.max_unusable": 0,
    "data.read_timeout": 0,
    "data.image_rate": 0,
    "data.image_batch_size": 1,
    "discriminator.start": 0,
    "discriminator.weight": 0,
    "discriminator.width": 1,
    "loss.kl_weight": 0,
    "loss.perceptual_weight": 0,
    "optimizer.learning_rate": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": 0,
}
_FREE = ("validation_clips", "scale_clips", "model.remat", "init")
_FREE += ("data.threads", "data.workers", "data.in_memory", "data.max_unusable")
_FREE += ("data.read_timeout",)
_FIXED = ("model", "batch_size", "freeze", "loss.train_logvar", "loss.logvar")
_FIXED += ("data.frames", "data.size", "data.short_side", "data.holdout")
_FIXED += ("discriminator.weight", "discriminator.width")


class Autoencoder(Task):
    """An autoencoder, with its discriminator, trained on clips; `default_config` has its fields.

    Its state is `odvae_jax.training.state.TrainState`, and a kind of step says which networks the
    step updates.

    Raises:
      ValueError: for data that cannot be used.
      FileNotFoundError: if the data is missing.
    """

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        super().__init__(config, mesh)
        self._vae = abstract_model(model_config(config))
        if jax.default_backend() == "cpu" and self._vae.config.dtype != "float32":
            logger.warning(
                "config.model.dtype=%s is slow on a CPU; float32 is faster",
                self._vae.config.dtype,
            )
        data = config.data
        self._clips = _clips(config, data.path, data.frames, data.holdout)
        self._pictures = _clips(config, data.image_path, 1) if data.image_rate else None
        self._validation = self._make_validation() if config.validate_every else None

    def _make_validation(self) -> Validation:
        config = self.config
        span = _span(config)
        if config.data.holdout < span:
            logger.warning(
                "config.data.holdout=%d is less than the %s of a clip: what is measured during "
                "training is trained on too",
                config.data.holdout,
                counted(span, "frame"),
            )
        fixed_clips = self._clips.held_out(config.validation_clips)
        lpips = _lpips_for_validation(self.mesh)
        return Validation(self._vae, fixed_clips, lpips, self.mesh)

    @classmethod
    def defaults(cls) -> ml_collections.ConfigDict:
        """Every field of `default_config`, with the defaults of `ODVAEConfig` for the model."""
        config = default_config()
        config.model = ODVAEConfig().to_dict()
        return config

    @classmethod
    def completed(
        cls,
        config: ml_collections.ConfigDict,
        begun: Callable[[], Mapping[str, Any] | None],
    ) -> ml_collections.ConfigDict:
        """The config with the model that is trained on, if `init.same_model` asks for it.

        Raises:
          FileNotFoundError: if that model is missing.
          ValueError: if no model is named, or what is named holds none.
        """
        if not config.init.same_model:
            return config
        if (before := begun()) is not None:
            model = dict(before["model"])
        elif config.init.from_pretrained:
            model = _pretrained(config).config.to_dict()
        else:
            raise ValueError(
                "config.init.same_model needs a model to begin with: give "
                "--config.init.from_pretrained=small, or a path."
            )
        own = ("dtype", "precision", "remat")
        model |= {name: config.model[name] for name in own} | {"param_dtype": "float32"}
        config = copy.deepcopy(config)
        with config.unlocked():
            config.model = ml_collections.ConfigDict(model)
        return config

    @classmethod
    def check(cls, config: ml_collections.ConfigDict, mesh: Mesh) -> None:
        """Raises ValueError for a config that cannot work, naming the field and what would do."""
        check_fields(config, choices=_CHOICES, at_least=_AT_LEAST)
        if not 0 <= config.ema_decay < 1:
            raise ValueError(
                f"config.ema_decay={config.ema_decay} must be at least 0 and less than 1."
            )
        for name in ("b1", "b2"):
            if not 0 <= config.optimizer[name] < 1:
                raise ValueError(
                    f"config.optimizer.{name}={config.optimizer[name]} must be at least 0 and less "
                    "than 1."
                )
        load_terms(config.loss.terms)
        model = model_config(config)
        if model.param_dtype != "float32":
            raise ValueError(
                f"config.model.param_dtype={model.param_dtype!r}: training keeps parameters in "
                "float32, for small steps are lost in fewer bits; config.model.dtype is what is "
                "computed in."
            )
        _check_data(config, model)
        _check_spread(config, model, mesh)

    @classmethod
    def free(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """Fields that may change when a run is continued, because they change no result.

        The number of steps is one of them only if the learning rate does not depend on it.
        """
        return _FREE if config.optimizer.decay == "cosine" else (*_FREE, "steps")

    @classmethod
    def fixed(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """Fields that the shapes of the arrays and the order of the clips depend on."""
        return _FIXED

    def initial(self) -> TrainState:
        """The state before the first step, of random or pretrained weights.

        Raises:
          FileNotFoundError: if the pretrained model is missing.
          ValueError: if it does not fit.
        """
        return self._state(_initial_model(self.config), self.config.seed)

    def abstract(self) -> TrainState:
        """The state's shapes and dtypes; no memory is needed for them."""
        model = model_config(self.config)
        return jax.eval_shape(lambda: self._state(ODVAE(model, rngs=None), None))

    def _state(self, vae: ODVAE, seed: int | None) -> TrainState:
        config = self.config
        adversary = _discriminator(config, seed)
        return create_state(vae, adversary, make_optimizers(config), config)

    def kind(self, step: int) -> str:
        """Which networks the step updates: "both", "generator" or "discriminator"."""
        return update_of_step(self.config, step)

    def step(self, kind: str) -> Step:
        """One step of such a kind; its batch is uint8 clips, its constants are those below."""
        config = self.config
        adversary, optimizers = _discriminator(config, None), make_optimizers(config)
        step = autoencoder_step(config, self._vae, adversary, optimizers, self.mesh, kind)
        return lambda state, clips, constants: step(state, clips, *constants)

    def less_memory(self, share: float) -> dict[str, Any]:
        """The batch in more parts, more that is computed again, and smaller or shorter clips."""
        config, model = self.config, model_config(self.config)
        sizes = {"batch_size": config.batch_size}
        if config.data.image_rate:
            sizes["data.image_batch_size"] = config.data.image_batch_size
        shards, parts = clip_shards(self.mesh), config.accumulate
        fields: dict[str, Any] = {}
        most = math.gcd(*sizes.values()) // shards
        finer = [n for n in range(parts + 1, most + 1) if most % n == 0]
        if finer:
            fields["accumulate"] = next((n for n in finer if parts <= share * n), finer[-1])
        if model.remat != "blocks":
            fields["model.remat"] = "blocks"
        for name, size in sizes.items():
            fields[name] = _shrunk(size, share, shards * parts)
        fields["data.frames"] = _shrunk(config.data.frames - 1, share, model.time_compression) + 1
        height = self.mesh.shape["height"]
        side = model.space_compression * height
        rows = max(
            side * LEAST_ROWS if height > 1 else side,
            SMALLEST["vgg"] if config.loss.perceptual_weight else 0,
        )
        fields["data.size"] = _shrunk(config.data.size, math.sqrt(share), side, rows)
        now = {"data.frames": config.data.frames, "data.size": config.data.size, **sizes}
        return {name: value for name, value in fields.items() if value != now.get(name)}

    def constants(self) -> tuple[LPIPS | None, SeedKey]:
        """LPIPS with VGG-16, where it is part of the loss, and the key of the run's seed.

        Raises:
          FileNotFoundError: if the weights of LPIPS are missing.
        """
        lpips = None
        if self.config.loss.perceptual_weight > 0:
            lpips = load_lpips("vgg", dtype=self._vae.config.dtype)
        key = np.asarray(seed_key(self.config))
        return jax.device_put((lpips, key), replicated(self.mesh))

    def feeds(self, position: dict[str, int]) -> ClipFeeds:
        """Batches of clips, and of pictures among them, from a position on."""
        return ClipFeeds(self.config, self._clips, self._pictures, self.mesh, position)

    def per_step(self) -> dict[str, int]:
        """The number of clips and of frames that a step processes."""
        clips = self.config.batch_size
        return {"clips": clips, "frames": clips * self.config.data.frames}

    def flops(self) -> float:
        """Operations of the model in a step: three times those of one pass forward."""
        data = self.config.data
        shape = (self.config.batch_size, data.frames, data.size, data.size, 3)
        video = jax.ShapeDtypeStruct(shape, jnp.float32)

        def forward(vae, video):
            return vae.decode(vae.encode(video).mode())

        return 3 * count_flops(forward, self._vae, video)

    def validate(self, step: int, state: TrainState) -> Measured:
        """Measures the EMA weights, which pictures are made with, and the raw ones.

        A picture shows a clip's first, middle and last frame, the original above the
        reconstruction.
        """
        numbers, reconstructions = self._validation(state.ema)
        raw, _ = self._validation(state.parameters)
        numbers |= {f"{name}_raw": value for name, value in raw.items()}
        pairs = zip(self._validation.clips, reconstructions, strict=True)
        pictures = {f"clip_{i}": _side_by_side(*pair) for i, pair in enumerate(pairs)}
        return Measured(numbers, pictures)

    def export(self, state: TrainState, workdir: Path) -> None:
        """Saves the EMA weights in `model/`, as `ODVAE.from_pretrained` reads them, and curves.

        If the run has done all its steps, the scale of its latents is measured and saved too.
        """
        gather = jax.jit(lambda ema: ema, out_shardings=replicated(self.mesh))
        whole = gather(model_parameters(state.ema))
        if jax.process_index() > 0:
            return
        trained = with_parameters(self._vae, jax.device_get(whole))
        folder = save_model(trained, workdir, int(state.step))
        curves = workdir / "curves.png"
        try:
            plot_curves([workdir], curves)
        except Exception as error:  # a picture costs no run its model
            logger.error("the curves could not be drawn in %s: %s", curves, one_line(error))
        self._calibrate(trained, folder, finished=int(state.step) >= self.config.steps)
        logger.info("the model is in %s, the curves in %s", folder, curves)

    def _calibrate(self, trained: ODVAE, folder: Path, *, finished: bool) -> None:
        """Measures the latents and writes their scale into the saved model.

        The model is saved before, so that nothing that happens here costs it.
        """
        if not self.config.scale_clips:
            return
        if trained.config.scale.measured:
            logger.info("the encoder was not trained, so the scale of its latents stays as it was")
            return
        if not finished:  # whoever told the run to stop may not wait
            logger.info("the run has steps to do, so the scale of its latents was not measured")
            return
        try:
            clips, of = self._clips_to_measure()
            bar = tqdm(clips, desc="latents", unit="clip", dynamic_ncols=True)
            scale = Scale.of(measure(trained, iter(bar)))
            native.write_scale(folder, scale)
        except Exception as error:
            logger.error(
                "the scale of the latents was not measured (%s): `odvae calibrate %s SOURCE` "
                "measures it",
                one_line(error),
                folder,
            )
            return
        per_channel = zip(scale.mean, scale.std, strict=True)
        logger.info(
            "mean and deviation of the latents per channel, measured on %s: %s",
            of,
            ", ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in per_channel),
        )

    def _clips_to_measure(self) -> tuple[Iterator[np.ndarray], str]:
        """Batches of one clip each, uint8 [1, T, S, S, 3], and what they are in words."""
        config, data = self.config, self.config.data
        span, most = _span(config), config.scale_clips
        if data.holdout >= span:
            held_out = self._clips.each_held_out(data.holdout // span)
            return (clip[None] for clip in itertools.islice(held_out, most)), "held-out frames"
        # No more than the run has seen: a short run is not measured for longer than it took.
        count = min(most, config.steps * config.batch_size)
        options = {"threads": data.threads, "workers": data.workers}

        def drawn():
            with contextlib.closing(batches(self._clips, 1, **options)) as feed:
                yield from itertools.islice(feed, count)

        clips = counted(count, "training clip")
        return drawn(), f"{clips}, since config.data.holdout={data.holdout}"


def _shrunk(size: int, share: float, unit: int, least: int = 1) -> int:
    """The largest multiple of a unit in a share of a size, but at least the least."""
    return min(max(int(size * share) // unit, -(-least // unit)) * unit, size)


def _span(config) -> int:
    """The least number of frames of a video that a clip covers."""
    return (config.data.frames - 1) * (1 if config.data.fps else config.data.stride) + 1


def _check_data(config, model: ODVAEConfig) -> None:
    data, step, side = config.data, model.time_compression, model.space_compression
    if not data.path:
        raise ValueError(
            "config.data.path is empty: give a folder of videos (--config.data.path=DIR), "
            'or "sample-clips".'
        )
    if bool(data.image_path) != bool(data.image_rate) or not data.image_rate <= 1:
        raise ValueError(
            f"config.data.image_rate={data.image_rate} and image_path={data.image_path!r}: for "
            "pictures among the clips give both, the rate between 0 and 1."
        )
    if data.frames < 1 or (data.frames - 1) % step:
        near = step * max(round((data.frames - 1) / step), 0) + 1
        raise ValueError(
            f"config.data.frames={data.frames} is not {step}k + 1; the nearest is {near}."
        )
    if data.size < side or data.size % side:
        near = side * max(round(data.size / side), 1)
        raise ValueError(
            f"config.data.size={data.size} is not a multiple of {side}; the nearest is {near}."
        )
    if config.loss.perceptual_weight and data.size < SMALLEST["vgg"]:
        raise ValueError(
            f"config.data.size={data.size} is too small for the perceptual term; it needs "
            f"{SMALLEST['vgg']}, or config.loss.perceptual_weight=0."
        )
    if data.short_side < data.size:
        raise ValueError(f"config.data.short_side={data.short_side} is less than size={data.size}.")
    if 0 < data.short_side_max < data.short_side:
        raise ValueError(
            f"config.data.short_side_max={data.short_side_max} is less than "
            f"short_side={data.short_side}; expected at least that, or 0 to scale all clips alike."
        )
    if data.in_memory and data.short_side_max > data.short_side:
        raise ValueError(
            f"config.data.in_memory keeps videos at one size, and short_side_max="
            f"{data.short_side_max} gives each clip its own: leave one of them out."
        )


def _check_spread(config, model: ODVAEConfig, mesh: Mesh) -> None:
    """Whether batches divide over the devices, and clips over those that share their rows."""
    shards, parts = clip_shards(mesh), config.accumulate
    sizes = {"batch_size": config.batch_size}
    if config.data.image_rate:
        sizes["data.image_batch_size"] = config.data.image_batch_size
    for name, size in sizes.items():
        if size % (shards * parts):
            near = shards * parts * max(round(size / (shards * parts)), 1)
            raise ValueError(
                f"config.{name}={size} does not divide over {shards} devices"
                + (f" in {parts} parts" if parts > 1 else "")
                + f"; the nearest that does is {near}."
            )
    height = mesh.shape["height"]
    rows = model.space_compression * height
    least = rows * LEAST_ROWS if height > 1 else rows
    if config.data.size % rows or config.data.size < least:
        near = max(rows * round(config.data.size / rows), least)
        raise ValueError(
            f"config.data.size={config.data.size} does not divide over "
            f"mesh.height={height} devices; the nearest that does is {near}."
        )


def _pretrained(config) -> ODVAE:
    """The model that a run begins with, in the dtype that parameters are trained in."""
    init = config.init
    return load_pretrained(
        init.from_pretrained,
        revision=init.revision or None,
        subfolder=init.subfolder or None,
        param_dtype="float32",
    ).odvae


def _initial_model(config) -> ODVAE:
    model = model_config(config)
    init = config.init
    if not init.from_pretrained:
        return ODVAE(model, rngs=config.seed)
    loaded = _pretrained(config)
    if loaded.config.parts.is_image and not model.parts.is_image:
        return inflate(loaded, model, init.method, seed=config.seed)
    differing = [
        f"{name} is {getattr(loaded.config, name)!r} there, {getattr(model, name)!r} here"
        for name in ("structure", "width", "latent_channels", "groups")
        if getattr(loaded.config, name) != getattr(model, name)
    ]
    if differing:
        raise ValueError(
            f"config.init.from_pretrained={init.from_pretrained} holds another model "
            f"({'; '.join(differing)}); a {model.name!r} model starts from its own kind or "
            "from an image model."
        )
    computed = ("upsample", "norm", "time_upsample")
    pairs = [(name, getattr(loaded.config, name), getattr(model, name)) for name in computed]
    if changed := [f"{name} {a!r} becomes {b!r}" for name, a, b in pairs if a != b]:
        logger.warning(
            "the model in %s is trained on otherwise than it was made: %s",
            init.from_pretrained,
            "; ".join(changed),
        )
    return with_parameters(abstract_model(model), named_parameters(loaded))


def _discriminator(config, seed: int | None) -> Discriminator | None:
    if not config.discriminator.weight:
        return None
    return Discriminator(
        config.discriminator.width,
        seed=seed,
        dtype=config.model.dtype,
        precision=config.model.precision,
    )


def _lpips_for_validation(mesh: Mesh) -> LPIPS | None:
    try:
        return jax.device_put(load_lpips("alex"), replicated(mesh))
    except FileNotFoundError as error:
        logger.warning("LPIPS is left out of the validation: %s", error)
        return None


def _clips(config, path: str, frames: int, holdout: int = 0) -> RandomClips:
    data = config.data
    return RandomClips(
        path,
        frames=frames,
        size=data.size,
        short_side=data.short_side,
        short_side_max=data.short_side_max or None,
        seed=config.seed,
        holdout=holdout,
        stride=(data.stride, max(data.stride, data.stride_max)),
        fps=data.fps or None,
        crop=data.crop,
        flip=data.flip,
        max_unusable=data.max_unusable,
        in_memory=data.in_memory,
        timeout=data.read_timeout or None,
    )


def _side_by_side(clip: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    shown = sorted({0, len(clip) // 2, len(clip) - 1})
    columns = [np.concatenate([clip[t], reconstruction[t]], axis=0) for t in shown]
    return np.concatenate(columns, axis=1)


class ClipFeeds(Feeds):
    """Batches of clips or, at the rate that is set, of pictures, on the devices.

    The position is one number for each of the two orders. It does not depend on threads, workers,
    processes or devices. The number of videos and pictures is saved with it. If that number has
    changed, the order has changed, which is reported.

    Args:
      config: the config of the run.
      clips: the clips of the videos.
      pictures: single frames; None if there are only clips.
      mesh: the devices.
      position: where in the data the first batch begins, as the attribute `position` was saved.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        clips: RandomClips,
        pictures: RandomClips | None,
        mesh: Mesh,
        position: dict[str, Any],
    ):
        counts = {"videos": len(clips), "pictures": len(pictures) if pictures else 0}
        before = {name: position.get(name, count) for name, count in counts.items()}
        if before != counts:
            logger.warning(
                "the run reads %s and %s, where %d and %d were read before: their order is another "
                "from here on",
                counted(counts["videos"], "video"),
                counted(counts["pictures"], "picture"),
                *before.values(),
            )
        self._config, self._mesh = config, mesh
        self._rate = config.data.image_rate
        self._sizes = {"clip": config.batch_size, "image": config.data.image_batch_size}
        numbers = {f"next_{kind}": position.get(f"next_{kind}", 0) for kind in self._sizes}
        self.position = numbers | counts
        self._sources = [source for source in (clips, pictures) if source is not None]
        feed = functools.partial(_feed, config, mesh)
        self._feeds = {"clip": feed(clips, self._sizes["clip"], numbers["next_clip"])}
        if pictures is not None:
            self._feeds["image"] = feed(pictures, self._sizes["image"], numbers["next_image"])

    def __call__(self, step: int) -> jax.Array:
        """The batch of the step before which `step` were done: uint8 [B, T, H, W, 3]."""
        kind = self._kind(step)
        batch = next(self._feeds[kind])
        self.position[f"next_{kind}"] += self._sizes[kind]
        return batch

    def stand_in(self, step: int) -> jax.Array:
        """Black clips where the batch after `step` steps would be: uint8 [B, T, H, W, 3]."""
        kind = self._kind(step)
        shape = _shape(self._config, self._sources[kind == "image"], self._sizes[kind])
        return jax.make_array_from_callback(
            shape,
            clip_sharding(self._mesh),
            lambda index: np.zeros(
                [len(range(*part.indices(n))) for part, n in zip(index, shape, strict=True)],
                np.uint8,
            ),
        )

    def _kind(self, step: int) -> str:
        return "image" if int((step + 1) * self._rate) > int(step * self._rate) else "clip"

    def close(self) -> None:
        """Ends the processes that decode, and says which videos could not be used."""
        for feed in self._feeds.values():
            feed.close()
        for source in self._sources:
            if source.skipped:
                names = ", ".join(sorted(source.skipped))
                logger.warning(
                    "%d of %s skipped: %s",
                    len(source.skipped),
                    counted(len(source), "video was", "videos were"),
                    names,
                )


def _shape(config, clips: RandomClips, batch_size: int) -> tuple[int, int, int, int, int]:
    return (batch_size, clips.sampling.frames, config.data.size, config.data.size, 3)


def _feed(
    config, mesh: Mesh, clips: RandomClips, batch_size: int, first: int
) -> Generator[jax.Array, None, None]:
    """Batches on the devices, from clip number `first` on; every process reads its own rows."""
    data = config.data
    shape = _shape(config, clips, batch_size)
    sharding = clip_sharding(mesh)
    rows = local_rows(sharding, shape)
    place = {row: i for i, row in enumerate(rows)}
    local = batches(
        clips, batch_size, first=first, rows=rows, threads=data.threads, workers=data.workers
    )
    with contextlib.closing(local):
        for batch in local:

            def part(index, batch=batch):
                start, stop, _ = index[0].indices(batch_size)
                return batch[place[start] : place[stop - 1] + 1][:, index[1], index[2]]

            yield jax.make_array_from_callback(shape, sharding, part)
