"""Sampling: from noise to normalised latents, with guidance, one compiled program.

What comes out is normalised; `Scale.denormalise` (or `vae.denormalise`) makes of it what the
decoder takes.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt32

from odvae_jax.diffusion.config import LatteConfig
from odvae_jax.diffusion.denoiser import Latte
from odvae_jax.diffusion.flow import RectifiedFlow
from odvae_jax.diffusion.process import GaussianProcess
from odvae_jax.diffusion.protocol import Denoise, Process, Sampler
from odvae_jax.files import counted
from odvae_jax.sharding import clip_shards, replicate
from odvae_jax.sharding.placement import place
from odvae_jax.types import AnyArray

PROCESSES = {"gaussian": GaussianProcess(), "flow": RectifiedFlow()}
"""The processes by their names in `LatteConfig`."""
_SLACK = 1e-5  # of an interval: times are sums of steps in float32
Interval = tuple[float, float]
"""The first and the last time at which a sampler guides, both included, in its own time: for DDPM
and DDIM the number of the step, 0 (data) to 999; for Euler and Heun s, 0 (noise) to 1 (data)."""


def process_of(config: LatteConfig) -> Process:
    """Returns the process that a denoiser is made for."""
    return PROCESSES[config.process]


def sample(
    model: Latte,
    sampler: Sampler,
    numbers: Int[AnyArray, "b"],
    *,
    key: PRNGKeyArray,
    labels: Int[AnyArray, "b"] | None = None,
    guidance: float = 1.0,
    interval: Interval | None = None,
    mesh: Mesh | None = None,
    finite: bool = True,
) -> Float[Array, "b f h w c"]:
    """Returns samples of normalised latents, float32 [B, F, H, W, C].

    A sample's noise depends on the key and on the sample's number alone. So a sample is the same
    alone, in any batch, and on any number of devices, but for rounding. It is a pure function and
    works under `jit`; there, samples and labels are not looked at.

    Args:
      model: the denoiser.
      sampler: the steps, from `process_of(model.config).sampler(name, steps)`.
      numbers: the number of each sample, 0 to 2³¹ - 1.
      key: decides all noise, together with the numbers.
      labels: the class of each sample, `classes` for no label; None for a network without labels.
      guidance: 1 takes the labelled prediction as it is. Any other number g takes
        null + g (labelled - null) for the noise or the velocity, on all channels of the latents, at
        twice the work; the variance is the labelled prediction's.
      interval: the times at which the sampler guides, its first and last, in its own time; None
        guides always. Elsewhere the labelled prediction is taken.
      mesh: a mesh (`make_mesh`) whose axes "data" and "fsdp" share the samples.
      finite: whether samples that are not finite are an error. Otherwise they are returned with
        the others.

    Raises:
      ValueError: if a class is not known, labels are missing or not expected, there is guidance
        without labels, the sampler is of another process, the samples do not divide over the mesh,
        or samples are not finite; the message has their numbers.
    """
    numbers = jnp.asarray(numbers)
    _check(model, sampler, numbers, labels, guidance, interval, mesh)
    if labels is not None:
        labels = jnp.asarray(labels, jnp.int32)
    over = None
    if mesh is not None:
        axes = tuple(name for name in ("data", "fsdp") if name in mesh.shape)
        over = NamedSharding(mesh, PartitionSpec(axes or None))
        model, key = replicate((model, key), mesh)
        numbers, labels = jax.tree.map(lambda x: place(x, over), (numbers, labels))
    # Numbers of the program, not of its text: another guidance compiles nothing anew.
    strength = None if guidance == 1 else jnp.float32(guidance)
    limited = strength is not None and interval is not None
    limits = tuple(map(jnp.float32, interval)) if limited else None
    samples = _sample(model, sampler, numbers, key, labels, strength, limits, over)
    if finite:
        check_samples(samples, numbers)
    return samples


def integrate(
    denoise: Denoise,
    sampler: Sampler,
    z: Float[Array, "b *z"],
    keys: Key[Array, "b"] | UInt32[Array, "b n"] | None = None,
) -> Float[Array, "b *z"]:
    """Returns what a sampler makes of noise: all of its steps, as one loop.

    Args:
      denoise: the network, in the sampler's own time.
      sampler: the steps.
      z: Gaussian noise, the latents before the first step.
      keys: one key per sample, [B], from which the noise of each step is drawn; None for samplers
        that add none.

    Raises:
      ValueError: if the sampler adds noise and there are no keys.
    """
    if sampler.stochastic and keys is None:
        raise ValueError("this sampler adds noise in its steps: give one key per sample.")

    def step(z, i):
        noise = _noise(keys, i, z.shape[1:]) if sampler.stochastic else None
        return sampler.step(denoise, z, i, noise), None

    return jax.lax.scan(step, z, jnp.arange(sampler.steps))[0]


def guided(
    model: Latte,
    sampler: Sampler,
    labels: Int[Array, "b"] | None,
    guidance: float | Float[Array, ""] | None = None,
    interval: Interval | tuple[Float[Array, ""], Float[Array, ""]] | None = None,
) -> Denoise:
    """Returns a denoiser with its labels bound, guided, in a sampler's own time.

    Args:
      model: the denoiser.
      sampler: says which time the network is given.
      labels: the class of each clip, or None.
      guidance: how far the prediction goes from the unlabelled to the labelled one, and beyond;
        None takes the labelled one, without a call of the network for the other.
      interval: the times at which it is guided, first and last; None for always.
    """

    def labelled(z, time):
        return model(z, _everywhere(sampler.network_time(time), z), labels)

    if guidance is None:
        return labelled
    channels, none = model.config.channels, model.config.classes

    def both(z, time):
        # Each clip beside its unlabelled twin, so that a batch that is spread stays where it is.
        twice = jnp.repeat(z, 2, axis=0)
        pairs = jnp.stack([labels, jnp.full_like(labels, none)], axis=1).reshape(-1)
        output = model(twice, _everywhere(sampler.network_time(time), twice), pairs)
        output = output.reshape(-1, 2, *output.shape[1:])
        with_label, without = output[:, 0], output[:, 1, ..., :channels]
        mixed = without + guidance * (with_label[..., :channels] - without)
        return jnp.concatenate([mixed, with_label[..., channels:]], axis=-1)

    if interval is None:
        return both
    first, last = interval

    def within(z, time):
        inside = (time >= first - _SLACK) & (time <= last + _SLACK)
        return jax.lax.cond(inside, both, labelled, z, time)

    return within


def check_samples(samples: Float[Array, "b *z"], numbers: Int[Array, "b"]) -> None:
    """Checks that samples are finite; under a trace, or across processes, it does nothing.

    Args:
      samples: the samples.
      numbers: the number of each sample, for the message.

    Raises:
      ValueError: if some are not finite. The message has their numbers.
    """
    if isinstance(samples, jax.core.Tracer) or not samples.is_fully_addressable:
        return
    finite = np.asarray(jnp.isfinite(samples).all(axis=tuple(range(1, samples.ndim))))
    if not finite.all():
        wrong = np.asarray(numbers)[~finite].tolist()
        more = ", ..." if len(wrong) > 8 else ""
        raise ValueError(
            f"{len(wrong)} of {counted(len(finite), 'sample')} are not finite, those with the "
            f"numbers {', '.join(map(str, wrong[:8]))}{more}: the denoiser diverged, its dtype is "
            "too small, or the guidance is too strong."
        )


@functools.partial(jax.jit, static_argnames=("sampler", "over"))
def _sample(model, sampler, numbers, key, labels, guidance, interval, over):
    # Two keys per sample: one for where it starts, one for the noise of its steps.
    keys = jax.vmap(lambda n: jax.random.split(jax.random.fold_in(key, n)))(numbers)
    z = jax.vmap(lambda k: jax.random.normal(k, model.config.latent_shape, jnp.float32))(keys[:, 0])
    z = z if over is None else place(z, over)
    return integrate(guided(model, sampler, labels, guidance, interval), sampler, z, keys[:, 1])


def _noise(keys, i, shape):
    """The noise of step i of each sample; every other sample's leaves it as it is."""

    def one(key):
        return jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32)

    return jax.vmap(one)(keys)


def _everywhere(time, z):
    """One time for every clip of a batch."""
    return jnp.broadcast_to(time, z.shape[:1])


def _check(model, sampler, numbers, labels, guidance, interval, mesh):
    config = model.config
    if numbers.ndim != 1 or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ValueError(
            f"numbers are {numbers.dtype} of the shape {numbers.shape}; expected one whole number "
            "per sample, such as np.arange(8)."
        )
    count = numbers.shape[0]
    model.check((count, *config.latent_shape), labels)
    if sampler.process != config.process:
        usual = process_of(config).samplers
        raise ValueError(
            f"the sampler is of the process {sampler.process!r}, and the denoiser is for "
            f"{config.process!r}: take one of its samplers, {list(usual)}."
        )
    if not isinstance(labels, jax.core.Tracer) and labels is not None:
        _check_classes(np.asarray(labels), config.classes)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance={guidance}: expected a finite number; 1 is none.")
    if guidance != 1 and labels is None:
        raise ValueError(
            f"guidance={guidance} needs labels, and this denoiser has no classes: leave it at 1."
        )
    if interval is not None and not (len(interval) == 2 and interval[0] <= interval[1]):
        raise ValueError(
            f"interval={interval!r:.100}: expected the first and the last time, the lesser first, "
            "in the sampler's own time."
        )
    if mesh is not None and count % clip_shards(mesh):
        raise ValueError(
            f"{counted(count, 'sample does', 'samples do')} not divide over the mesh "
            f"{dict(mesh.shape)}: there must be a multiple of {clip_shards(mesh)}."
        )


def _check_classes(labels, classes):
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; expected whole numbers, one per sample.")
    unknown = sorted({int(label) for label in labels if not 0 <= label <= classes})
    if unknown:
        raise ValueError(
            f"the classes {unknown[:8]} are not known: this denoiser has 0 to {classes - 1}, and "
            f"{classes} means no label."
        )
