"""A denoiser's training run: the fields of its config, its state, and one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from odvae_jax.data import READ_TIMEOUT
from odvae_jax.diffusion import Latte, LatteConfig, drop_labels, process_of
from odvae_jax.parameters import named_parameters, with_parameters
from odvae_jax.pixels import to_unit_range
from odvae_jax.scale import Scale
from odvae_jax.sharding import gathered
from odvae_jax.training.fields import loop_config
from odvae_jax.training.state import Parameters, ema_step
from odvae_jax.training.tasks.task import Metrics, Step, counters

Batch = dict[str, jax.Array]
"""What a step is given: "latents", normalised, or "clips" of uint8; and "labels" with classes."""
Constants = tuple[jax.Array, Any]
"""What every step is given: the data of the run's key, and the autoencoder or None."""


def denoiser_config() -> ml_collections.ConfigDict:
    """Latte-XL/2 as in Table 2; what each field means stands beside it.

    The fields that every run has, such as `seed` and `mesh`, are those of
    `odvae_jax.training.fields.loop_config`.
    """
    config = loop_config()
    config.task = "denoiser"
    config.update(
        {
            # Every field of LatteConfig; `classes` 0 is a denoiser without labels.
            "model": LatteConfig.of("XL/2").to_dict() | {"classes": 0},
            # The autoencoder: whatever odvae_jax.from_pretrained takes. For a dataset of latents it
            # may be empty, and then validation shows no samples.
            "vae": "",
            "vae_dtype": "float32",  # that it computes in
            "data": {
                # A dataset of latents (odvae encode --to=shards), or with `vae` any source of
                # videos, which are then encoded in every step.
                "path": "",
                "label": "",  # the column with the number of a clip's class; empty without classes
                "names": "",  # the column with the name of its class; empty takes the numbers
                "sampled": True,  # sample the posterior; else take its mean
                # How latents are normalised: "factor" is the autoencoder's one factor, as in the
                # paper; "channels" is by mean and deviation per channel.
                "scale": "factor",
                "holdout": 0,  # records of a dataset of latents that are kept for validation
                # Latent frames between two windows of a record (0: windows do not overlap).
                "window_stride": 0,
                # All below is of videos, as in an autoencoder's training.
                "validation_path": "",  # the videos of validation; empty takes those of training
                "frames": 81,
                "size": 256,
                "short_side": 256,
                "stride": 3,
                "stride_max": 3,
                # Latte's rule: the frames of a clip are evenly spread over a window of `frames`
                # times the stride frames of the video, or over all of a shorter video.
                "spread": False,
                "crop": "centre",
                "flip": True,
                "max_unusable": 0.2,
                "read_timeout": READ_TIMEOUT,
                # Of both.
                "workers": 0,  # processes that read; 0 reads in threads of the training process
                "threads": 2,  # threads that read, per process
            },
            "drop_labels": 0.1,  # the share of labels that become "no label", for guidance
            "optimizer": {  # AdamW
                "learning_rate": 1e-4,
                "b1": 0.9,
                "b2": 0.999,
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 0.1,  # gradients longer than this are shortened to it (0: never),
                "clip_from": 100_000,  # after so many steps
                "warmup_steps": 0,
                # Of the average of gradients; "bfloat16" makes a checkpoint smaller.
                "moment_dtype": "float32",
            },
            "ema_decay": 0.9999,
            "ema_warmup": False,  # a lower decay in the first steps, for short runs
            "batch_size": 8,  # clips per step, over all devices
            "steps": 200_000,
            "validation_clips": 64,  # fixed clips that the loss is measured on
            # What validation shows of the averaged weights, if there is an autoencoder.
            "samples": {
                "count": 4,
                "sampler": "",  # empty takes the usual one of the process
                "steps": 50,
                "guidance": 1.0,
            },
        }
    )
    return config


def recipe_config(name: str) -> ml_collections.ConfigDict:
    """The fields with which a denoiser is trained on one set of videos, with any autoencoder.

    "ucf101" and "sky" are the paper's Latte-XL/2 on UCF101 and SkyTimelapse. "shapes" is a denoiser
    of 4 million parameters on drawn clips of 17 frames of 64×64. Every other field is that of
    `denoiser_config`.

    Args:
      name: "ucf101", "sky" or "shapes".

    Raises:
      ValueError: if there is no recipe of this name.
    """
    recipes = {"ucf101": _ucf101, "sky": _sky, "shapes": _shapes}
    if name not in recipes:
        raise ValueError(f"recipe {name!r} is not known; there are {list(recipes)}.")
    config = denoiser_config()
    recipes[name](config)
    return config


def _ucf101(config):
    config.model.classes = 101
    config.data.path = "ucf101:UCF-101"
    config.data.label = "label"
    config.data.names = "class"
    # Most videos are too short for 81 frames at a stride of 3.
    config.data.stride = 1
    config.optimizer.clip_from = 100_000


def _sky(config):
    config.data.path = "sky-timelapse:sky_train:least=244"
    config.data.flip = False
    config.optimizer.clip_from = 20_000


def _shapes(config):
    config.model = LatteConfig(
        depth=6, width=192, heads=6, frames=5, rows=8, columns=8, classes=8, process="flow"
    ).to_dict()
    config.data.path = "moving-shapes"
    config.data.frames = 17
    config.data.size = 64
    config.data.short_side = 64
    config.data.stride = 2
    config.data.flip = False  # left and right are classes
    config.data.scale = "channels"
    config.data.label = "label"
    config.data.names = "motion"
    config.batch_size = 32
    config.steps = 2000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.optimizer.clip_from = 0
    config.optimizer.warmup_steps = 50
    config.ema_decay = 0.995
    config.ema_warmup = True
    config.log_every = 25


def denoiser_model_config(config: ml_collections.ConfigDict) -> LatteConfig:
    """The config of the denoiser that a run trains.

    Raises:
      ValueError: if a field is unknown or impossible.
    """
    fields = config.model.to_dict()
    return LatteConfig.from_dict({**fields, "classes": fields.get("classes") or None})


class DenoiserState(NamedTuple):
    """Everything that the next step depends on, except for the data.

    Attributes:
      step: the number of steps done, with those that the guard skipped.
      parameters: the parameters of the denoiser by name.
      ema: the exponential moving average of `parameters`; it starts from them.
      optimizer: Adam's state.
      skipped: the number of steps that changed nothing because a loss or a gradient was not finite.
      skipped_in_a_row: how many of the last steps were skipped without a good one between them.
    """

    step: Int[Array, ""]
    parameters: Parameters
    ema: Parameters
    optimizer: optax.OptState
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


def initial_state(model: Latte, config: ml_collections.ConfigDict) -> DenoiserState:
    """Returns the state before the first step.

    Args:
      model: the denoiser with its initial parameters.
      config: the run's config.
    """
    parameters = named_parameters(model)
    return DenoiserState(
        **counters(),
        parameters=parameters,
        ema=jax.tree.map(jnp.copy, parameters),
        optimizer=adam(config).init(parameters),
    )


def adam(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns Adam with the betas of `config.optimizer`, without learning rate and decay."""
    o = config.optimizer
    return optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.epsilon, mu_dtype=o.moment_dtype)


def normalised_latents(
    batch: Batch, vae: Any, scale: Scale, key: PRNGKeyArray, *, sampled: bool
) -> Float[Array, "b f h w c"]:
    """Returns what the denoiser is trained on, float32; clips are encoded here.

    Args:
      batch: normalised "latents", or "clips" of uint8.
      vae: the autoencoder; unused for latents.
      scale: how latents of clips are normalised.
      key: draws samples of the posterior.
      sampled: whether they are samples; else they are the posterior's mean.
    """
    if "latents" in batch:
        return batch["latents"].astype(jnp.float32)
    posterior = vae.encode(to_unit_range(batch["clips"]))
    z = posterior.sample(key) if sampled else posterior.mode()
    return jax.lax.stop_gradient(scale.normalise(z.astype(jnp.float32)))


def denoiser_step(
    config: ml_collections.ConfigDict, model: Latte, scale: Scale, mesh: Mesh
) -> Step:
    """Returns the function that does one step of training.

    It maps (state, batch, constants) to (state, metrics), and neither counts steps nor checks
    whether its results are finite; `odvae_jax.training.guard.guarded` does both. Gradients are
    clipped only from the step `optimizer.clip_from` on, as in the released implementation; their
    norm is a metric from the first.

    Args:
      config: the run's config, see `denoiser_config`.
      model: the denoiser, of which only the structure matters.
      scale: how latents are normalised, for clips that are encoded in the step.
      mesh: the devices, of `odvae_jax.sharding.make_mesh`.
    """
    loss_of = denoiser_loss(model)

    def step(state: DenoiserState, batch: Batch, constants: Constants):
        seed, vae = constants
        key = jax.random.fold_in(jax.random.wrap_key_data(seed), state.step)
        of_latents, of_labels, of_process = jax.random.split(key, 3)
        x = normalised_latents(batch, vae, scale, of_latents, sampled=config.data.sampled)
        labels = batch.get("labels")
        if labels is not None:
            classes = model.config.classes
            labels = drop_labels(labels, of_labels, rate=config.drop_labels, classes=classes)
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        whole = gathered(state.parameters, mesh)
        (_, metrics), gradients = gradient_of(whole, x, labels, of_process)
        new, more = apply_gradients(config, state, gradients)
        return new, metrics | more

    return step


def denoiser_loss(model: Latte) -> Callable[..., tuple[Float[Array, ""], Metrics]]:
    """Returns a function of (parameters, x, labels, key) to the mean loss and its terms by name.

    Args:
      model: the denoiser, of which only the structure matters.
    """
    process = process_of(model.config)

    def loss(parameters, x, labels, key):
        network = with_parameters(model, parameters)
        terms = process.loss(lambda z, t: network(z, t, labels), x, key)
        means = {name: jnp.mean(each) for name, each in terms.items()}
        return means["loss"], means

    return loss


def apply_gradients(
    config: ml_collections.ConfigDict, state: DenoiserState, gradients: Parameters
) -> tuple[DenoiserState, Metrics]:
    """Returns the state after AdamW and the average, with the counters as they were.

    Args:
      config: the run's config.
      state: the state before.
      gradients: the gradient of every parameter by name.

    Returns:
      The state, and the gradient's norm before clipping and the learning rate by name.
    """
    o = config.optimizer
    warmed = jnp.minimum((state.step + 1) / o.warmup_steps, 1.0) if o.warmup_steps else 1.0
    rate = jnp.asarray(o.learning_rate * warmed, jnp.float32)
    norm = optax.global_norm(gradients)
    if o.clip_norm:
        shorter = jnp.minimum(1.0, o.clip_norm / (norm + 1e-6))  # as PyTorch shortens
        factor = jnp.where(state.step >= o.clip_from, shorter, 1.0)
        gradients = jax.tree.map(lambda g: factor * g, gradients)
    updates, optimizer = adam(config).update(gradients, state.optimizer)
    parameters = jax.tree.map(
        lambda p, u: p - rate * (u + o.weight_decay * p), state.parameters, updates
    )
    ema = optax.incremental_update(parameters, state.ema, ema_step(config, state.step))
    new = state._replace(parameters=parameters, ema=ema, optimizer=optimizer)
    return new, {"gradient_norm": norm, "learning_rate": rate}
