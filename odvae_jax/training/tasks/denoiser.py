"""Training a denoiser on latents: Table 2's video diffusion model."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from odvae_jax.diffusion import Latte, process_of, sample
from odvae_jax.files import one_line
from odvae_jax.flops import count_flops
from odvae_jax.latents.chosen import is_dataset
from odvae_jax.parameters import abstract_model, with_parameters
from odvae_jax.sharding import clip_shards, gathered, replicated
from odvae_jax.training.denoiser_data import DenoiserFeeds, open_data, shards_of
from odvae_jax.training.denoising import (
    DenoiserState,
    denoiser_config,
    denoiser_loss,
    denoiser_model_config,
    denoiser_step,
    initial_state,
    normalised_latents,
)
from odvae_jax.training.fields import check_fields
from odvae_jax.training.model_folder import save_model
from odvae_jax.training.tasks.task import Measured, Step, Task
from odvae_jax.transcoding.samples import decode_sample

logger = logging.getLogger(__name__)

_CHOICES = {
    "data.scale": ("factor", "channels"),
    "data.crop": ("random", "centre"),
    "vae_dtype": ("float32", "bfloat16", "float16"),
    "optimizer.moment_dtype": ("float32", "bfloat16"),
}
_AT_LEAST = {
    "batch_size": 1,
    "validation_clips": 1,
    "drop_labels": 0,
    "samples.count": 0,
    "samples.steps": 1,
    "data.holdout": 0,
    "data.window_stride": 0,
    "data.frames": 1,
    "data.size": 1,
    "data.short_side": 1,
    "data.stride": 1,
    "data.stride_max": 1,
    "data.max_unusable": 0,
    "data.read_timeout": 0,
    "data.threads": 1,
    "data.workers": 0,
    "optimizer.learning_rate": 0,
    "optimizer.epsilon": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
    "optimizer.clip_from": 0,
    "optimizer.warmup_steps": 0,
}
_FREE = ("steps", "validation_clips", "samples", "model.remat", "data.validation_path")
_FREE += ("data.threads", "data.workers", "data.max_unusable", "data.read_timeout")
_FIXED = ("model", "batch_size", "data.holdout", "data.window_stride", "data.size", "data.frames")
_OF_VALIDATION, _OF_SAMPLES = 1, 2  # what is folded into a key, so that each has its own


class Denoiser(Task):
    """A denoiser, trained on latents; `denoiser_config` has its fields.

    Its state is `odvae_jax.training.denoising.DenoiserState`, and all steps are of one kind.

    Raises:
      ValueError: for data that cannot be used, or that is not what the denoiser is made for.
      FileNotFoundError: if data or autoencoder are missing.
    """

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        super().__init__(config, mesh)
        self._model: Latte = abstract_model(denoiser_model_config(config))
        self._data = open_data(config, mesh)
        self._measure = self._validation() if config.validate_every else None
        self._fixed = self._data.fixed() if config.validate_every else []
        self._sample = self._sampling()
        self._constants: tuple[jax.Array, Any] | None = None

    @classmethod
    def defaults(cls) -> ml_collections.ConfigDict:
        """Every field of `denoiser_config`."""
        return denoiser_config()

    @classmethod
    def check(cls, config: ml_collections.ConfigDict, mesh: Mesh) -> None:
        """Raises ValueError for a config that cannot work, naming the field and what would do."""
        check_fields(config, choices=_CHOICES, at_least=_AT_LEAST)
        for name, value in (
            ("ema_decay", config.ema_decay),
            ("optimizer.b1", config.optimizer.b1),
            ("optimizer.b2", config.optimizer.b2),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"config.{name}={value} must be at least 0 and less than 1.")
        if config.drop_labels > 1:
            raise ValueError(f"config.drop_labels={config.drop_labels} must be at most 1.")
        model = denoiser_model_config(config)
        if model.param_dtype != "float32":
            raise ValueError(
                f"config.model.param_dtype={model.param_dtype!r}: training keeps parameters in "
                "float32, for small steps are lost in fewer bits; config.model.dtype is what is "
                "computed in."
            )
        _check_labels(config, model)
        process = process_of(model)
        process.sampler(config.samples.sampler or process.samplers[0], config.samples.steps)
        if not config.data.path:
            raise ValueError(
                "config.data.path is empty: give a dataset of latents, which `odvae encode SOURCE "
                "FOLDER --to=shards` makes, or a source of videos."
            )
        if mesh.shape["height"] > 1:
            raise ValueError(
                f"config.mesh.height={mesh.shape['height']}: a denoiser's clips are spread over "
                "data and fsdp alone."
            )
        if config.batch_size % clip_shards(mesh):
            raise ValueError(
                f"config.batch_size={config.batch_size} does not divide over {clip_shards(mesh)} "
                f"devices; the nearest that does is {shards_of(mesh, config.batch_size)}."
            )

    @classmethod
    def free(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """Fields that may change when a run is continued, because they change no result.

        The autoencoder is one of them only if it just shows what was sampled.
        """
        return (*_FREE, "vae", "vae_dtype") if is_dataset(config.data.path) else _FREE

    @classmethod
    def fixed(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """Fields that the shapes of the arrays and the order of the data depend on."""
        return _FIXED

    def initial(self) -> DenoiserState:
        """The state before the first step, of random weights."""
        return initial_state(Latte(self._model.config, rngs=self.config.seed), self.config)

    def abstract(self) -> DenoiserState:
        """The state's shapes and dtypes; no memory is needed for them."""
        config = self._model.config
        return jax.eval_shape(lambda: initial_state(Latte(config, rngs=None), self.config))

    def step(self, kind: str) -> Step:
        """One step; its batch is what the feeds give, its constants are those below."""
        return denoiser_step(self.config, self._model, self._data.scale, self.mesh)

    def less_memory(self, share: float) -> dict[str, Any]:
        """More that is computed again, and fewer clips."""
        fields: dict[str, Any] = {}
        if self._model.config.remat != "blocks":
            fields["model.remat"] = "blocks"
        shards, size = clip_shards(self.mesh), self.config.batch_size
        smaller = max(int(size * share) // shards, 1) * shards
        if smaller < size:
            fields["batch_size"] = smaller
        if self._model.config.dtype == "float32":
            fields["model.dtype"] = "bfloat16"
        return fields

    def constants(self) -> tuple[jax.Array, Any]:
        """The key of the run's seed and, if the step encodes, the autoencoder."""
        if self._constants is None:
            key = np.asarray(jax.random.key_data(jax.random.key(self.config.seed)))
            vae = self._data.vae if self._data.encodes else None
            self._constants = jax.device_put((key, vae), replicated(self.mesh))
        return self._constants

    def feeds(self, position: dict[str, int]) -> DenoiserFeeds:
        """Batches from a position on."""
        return self._data.feeds(position)

    def per_step(self) -> dict[str, int]:
        """The number of clips and of latent frames that a step processes."""
        clips = self.config.batch_size
        return {"clips": clips, "latent_frames": clips * self._model.config.frames}

    def flops(self) -> float:
        """Operations of the denoiser in a step: three times those of one pass forward."""
        config, clips = self._model.config, self.config.batch_size
        z = jax.ShapeDtypeStruct((clips, *config.latent_shape), jnp.float32)
        t = jax.ShapeDtypeStruct((clips,), jnp.float32)
        labels = jax.ShapeDtypeStruct((clips,), jnp.int32) if config.classes else None
        return 3 * count_flops(lambda m, z, t, y: m(z, t, y), self._model, z, t, labels)

    def _validation(self):
        """The compiled loss of a batch, with noise that its number decides."""
        loss_of, data, mesh = denoiser_loss(self._model), self._data, self.mesh

        def measure(parameters, batch, constants, number):
            key = jax.random.fold_in(jax.random.wrap_key_data(constants[0]), _OF_VALIDATION)
            of_latents, of_process = jax.random.split(jax.random.fold_in(key, number))
            x = normalised_latents(batch, constants[1], data.scale, of_latents, sampled=False)
            whole = gathered(parameters, mesh)
            return loss_of(whole, x, batch.get("labels"), of_process)[0]

        return jax.jit(measure, out_shardings=replicated(mesh))

    def _sampling(self):
        """The compiled sampling for what validation shows; None if it shows nothing."""
        shown = self.config.samples
        if self._data.vae is None or not shown.count or not self.config.validate_every:
            return None
        process = process_of(self._model.config)
        sampler = process.sampler(shown.sampler or process.samplers[0], shown.steps)
        mesh = self.mesh

        def run(parameters, numbers, labels, seed):
            model = with_parameters(self._model, gathered(parameters, mesh))
            key = jax.random.fold_in(jax.random.wrap_key_data(seed), _OF_SAMPLES)
            guided = {"guidance": shown.guidance, "labels": labels}
            return sample(model, sampler, numbers, key=key, mesh=mesh, **guided)

        return jax.jit(run, out_shardings=replicated(mesh))

    def validate(self, step: int, state: DenoiserState) -> Measured:
        """Measures the loss of fixed clips, of the averaged weights and the raw ones.

        With an autoencoder it shows samples of the averaged weights: as a picture with the first,
        the middle and the last frame of each, and as videos.
        """
        constants = self.constants()
        numbers = {}
        for name, parameters in (("", state.ema), ("_raw", state.parameters)):
            values = [
                self._measure(parameters, batch, constants, np.int32(i))
                for i, batch in enumerate(self._fixed)
            ]
            numbers[f"validation_loss{name}"] = float(np.mean(jax.device_get(values)))
        if self._sample is None:
            return Measured(numbers)
        clips = self._samples(state, constants[0])
        fps = self._data.record.fps
        videos = {f"sample_{i}": (clip, fps) for i, clip in enumerate(clips)}
        return Measured(numbers, {"samples": _sheet(clips)} if clips else {}, videos)

    def _samples(self, state: DenoiserState, seed: jax.Array) -> list[np.ndarray]:
        """Decoded samples of fixed numbers; none if they are not finite."""
        count, classes = self.config.samples.count, self._model.config.classes
        numbers = np.arange(shards_of(self.mesh, count), dtype=np.int32)
        labels = None
        if classes:  # spread over the classes, if there are more of them
            labels = (numbers * max(classes // count, 1) % classes).astype(np.int32)
        z = np.asarray(self._sample(state.ema, numbers, labels, seed))[:count]
        if jax.process_index() > 0:
            return []
        record = self._data.record
        try:
            latents = self._data.scale.denormalise(z)
            return [decode_sample(self._data.vae, one, frames=record.frames) for one in latents]
        except Exception as error:  # a picture costs no run its steps
            logger.error("the samples could not be shown: %s", one_line(error))
            return []

    def export(self, state: DenoiserState, workdir: Path) -> None:
        """Saves the averaged weights in `model/`, as `Latte.from_pretrained` reads them.

        Its config says what it was trained on, so that `odvae sample` can make videos with it.
        """
        gather = jax.jit(lambda ema: ema, out_shardings=replicated(self.mesh))
        whole = gather(state.ema)
        if jax.process_index() > 0:
            return
        config = dataclasses.replace(self._model.config, trained_on=self._data.record)
        trained = with_parameters(abstract_model(config), jax.device_get(whole))
        folder = save_model(trained, workdir, int(state.step))
        logger.info("the denoiser is in %s", folder)


def _check_labels(config, model) -> None:
    """Whether labels are read if, and only if, the denoiser has classes."""
    if model.classes and not config.data.label:
        raise ValueError(
            f"config.model.classes={model.classes} needs labels: name the column that holds them, "
            "such as --config.data.label=label."
        )
    if config.data.label and not model.classes:
        raise ValueError(
            f"config.data.label={config.data.label!r}, and the denoiser has no classes: give "
            "their number, --config.model.classes."
        )
    if config.samples.guidance != 1 and not model.classes:
        raise ValueError(
            f"config.samples.guidance={config.samples.guidance} needs classes: leave it at 1."
        )


def _sheet(clips: list[np.ndarray]) -> np.ndarray:
    """A picture of clips, one below the other: the first, the middle and the last frame of each."""
    rows = []
    for clip in clips:
        shown = sorted({0, len(clip) // 2, len(clip) - 1})
        rows.append(np.concatenate([clip[t] for t in shown], axis=1))
    return np.concatenate(rows, axis=0)
