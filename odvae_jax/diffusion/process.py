"""The Gaussian process with a learned variance: what it adds, what is learned, the ways back.

Linear betas, prediction of the noise, the plain mean of squares plus the variational bound (Nichol
and Dhariwal, arXiv 2102.09672). The schedule is computed in float64. The network is given the
original number of a step, 0 (data) to 999 (noise), however many of them a sampler takes.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real

from odvae_jax.diffusion.protocol import Denoise, Network, check_sampler

STEPS = 1000
_FIRST_BETA, _LAST_BETA = 1e-4, 0.02
_BIN = 1 / 255  # half the width of a bin of 8-bit data in [-1, 1]
_LEAST_PROBABILITY = 1e-12


class Schedule:
    """The numbers of a Gaussian process at each of its steps, float64 [steps].

    Args:
      betas: the variance that each step adds.

    Attributes:
      betas: the variance that each step adds.
      kept: the running product of 1 - beta, the share of the data's variance that is left.
      kept_before: the same before the step; 1 before the first one.
      posterior_variance: the variance of a step back from noisy latents, given the data.
      posterior_log_variance: its logarithm; at step 0, where it is 0, that of step 1.
      from_data: how much of the data is in the mean of a step back.
      from_noisy: how much of the noisy latents is in the mean of a step back.
    """

    def __init__(self, betas: Float[np.ndarray, "n"]):
        self.betas = betas
        self.kept = np.cumprod(1 - betas)
        self.kept_before = np.append(1.0, self.kept[:-1])
        self.posterior_variance = betas * (1 - self.kept_before) / (1 - self.kept)
        least = self.posterior_variance[min(1, len(betas) - 1)]
        # A process of one step has no step 1; its only step adds no noise.
        at_0 = least if least > 0 else betas[0]
        self.posterior_log_variance = np.log(np.append(at_0, self.posterior_variance[1:]))
        self.from_data = betas * np.sqrt(self.kept_before) / (1 - self.kept)
        self.from_noisy = (1 - self.kept_before) * np.sqrt(1 - betas) / (1 - self.kept)

    def predicted_data(
        self, z: Float[Array, "b *z"], noise: Float[Array, "b *z"], t: Int[Array, "..."]
    ) -> Float[Array, "b *z"]:
        """Returns the data that noisy latents were made of if `noise` is in them; not clipped."""
        multiplier, subtrahend = np.sqrt(1 / self.kept), np.sqrt(1 / self.kept - 1)
        return at(multiplier, t, z) * z - at(subtrahend, t, z) * noise

    def step_back(
        self, z: Float[Array, "b *z"], output: Float[Array, "b *o"], t: Int[Array, "..."]
    ) -> tuple[Float[Array, "b *z"], Float[Array, "b *z"]]:
        """Returns the mean and the log-variance of the step back that a network's output says.

        Args:
          z: noisy latents.
          output: the predicted noise, and where the log-variance lies between its bounds, with the
            channels of both one after the other.
          t: the number of the step in this schedule, one for all clips or one for each.
        """
        noise, v = jnp.split(output, 2, axis=-1)
        data = self.predicted_data(z, noise, t)
        mean = at(self.from_data, t, z) * data + at(self.from_noisy, t, z) * z
        share = (v + 1) / 2
        most, least = at(np.log(self.betas), t, z), at(self.posterior_log_variance, t, z)
        return mean, share * most + (1 - share) * least


def at(
    values: Float[np.ndarray, "n"], t: Int[Array, "..."], like: Float[Array, "b *z"]
) -> Float[Array, "..."]:
    """Returns a schedule's values at steps, in float32, in a shape that goes with an array.

    Args:
      values: the values of each step.
      t: the number of a step, or one for each clip.
      like: the array that the result is combined with.
    """
    chosen = jnp.asarray(values, jnp.float32)[t]
    return chosen.reshape(chosen.shape + (1,) * (like.ndim - chosen.ndim))


@functools.cache
def _schedule(original: tuple[int, ...]) -> Schedule:
    """The schedule of some of the original steps, by their numbers; betas from ratios of `kept`."""
    kept = np.cumprod(1 - np.linspace(_FIRST_BETA, _LAST_BETA, STEPS))[list(original)]
    return Schedule(1 - kept / np.append(1.0, kept[:-1]))


def spaced(steps: int) -> tuple[int, ...]:
    """Returns the numbers of so many original steps, evenly from 0 to 999, halves to even."""
    if steps == 1:
        return (0,)
    return tuple(round(i * (STEPS - 1) / (steps - 1)) for i in range(steps))


def strided(steps: int) -> tuple[int, ...]:
    """Returns the numbers of so many original steps in whole strides from 0, as "ddimN" means it.

    Raises:
      ValueError: if no whole stride gives so many.
    """
    for stride in range(1, STEPS + 1):
        if len(numbers := range(0, STEPS, stride)) == steps:
            return tuple(numbers)
    raise ValueError(
        f"steps={steps}: no whole stride through {STEPS} steps gives so many; take a divisor of "
        f"{STEPS}, such as 50."
    )


@dataclasses.dataclass(frozen=True)
class GaussianSampler:
    """Steps back through some of the original steps, as DDPM or as DDIM takes them.

    Attributes:
      original: the numbers of the original steps, from data to noise.
      implicit: whether the steps are DDIM's; else they are DDPM's.
      eta: how much noise DDIM's steps add; 0 is none, which makes them deterministic.

    Raises:
      ValueError: if the numbers do not rise within 0 to 999, or `eta` is negative.
    """

    original: tuple[int, ...]
    implicit: bool = False
    eta: float = 0.0

    def __post_init__(self):
        rising = all(a < b for a, b in zip(self.original[:-1], self.original[1:], strict=True))
        if not self.original or not rising or self.original[0] < 0 or self.original[-1] >= STEPS:
            raise ValueError(
                f"original={self.original!r:.100}: expected rising numbers of steps, 0 to "
                f"{STEPS - 1}."
            )
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta={self.eta!r:.100}: expected 0 or a positive number.")

    @property
    def process(self) -> str:
        """The name of the process in the config of a denoiser."""
        return "gaussian"

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.original)

    @property
    def stochastic(self) -> bool:
        """Whether a step adds noise."""
        return not self.implicit or self.eta > 0

    @property
    def schedule(self) -> Schedule:
        """The schedule of these steps."""
        return _schedule(self.original)

    @property
    def span(self) -> tuple[float, float]:
        """The least and the greatest number of an original step: 0 is next to data."""
        return 0.0, STEPS - 1.0

    @property
    def times(self) -> tuple[float, ...]:
        """The number of the original step that each step is, falling towards 0."""
        return tuple(map(float, reversed(self.original)))

    def network_time(self, time: Real[Array, ""]) -> Real[Array, ""]:
        """Returns the time that the network is given: the sampler's own is the original number."""
        return time

    def step(
        self,
        denoise: Denoise,
        z: Float[Array, "b *z"],
        i: Int[Array, ""],
        noise: Float[Array, "b *z"] | None,
    ) -> Float[Array, "b *z"]:
        """Returns the latents after step `i`; the steps go from noise to data.

        Args:
          denoise: the network; it is called with the original number of the step.
          z: the latents before the step.
          i: the number of the step, from 0.
          noise: Gaussian noise of the shape of `z`; None if the sampler is not stochastic.
        """
        k = self.steps - 1 - i
        output = denoise(z, jnp.asarray(self.original, jnp.int32)[k])
        take = self._ddim if self.implicit else self._ddpm
        mean, deviation = take(z, output, k)
        if noise is None:
            return mean
        return mean + jnp.where(k > 0, deviation, 0) * noise  # no noise in the last step

    def _ddpm(self, z, output, k):
        mean, log_variance = self.schedule.step_back(z, output, k)
        return mean, jnp.exp(log_variance / 2)

    def _ddim(self, z, output, k):
        schedule = self.schedule
        kept, before = schedule.kept, schedule.kept_before
        data = schedule.predicted_data(z, jnp.split(output, 2, axis=-1)[0], k)
        ratio = at(np.sqrt(1 / kept), k, z), at(np.sqrt(1 / kept - 1), k, z)
        noise = (ratio[0] * z - data) / ratio[1]
        sigma = self.eta * np.sqrt((1 - before) / (1 - kept)) * np.sqrt(1 - kept / before)
        rest = np.sqrt(1 - before - sigma**2)
        return at(np.sqrt(before), k, z) * data + at(rest, k, z) * noise, at(sigma, k, z)


@dataclasses.dataclass(frozen=True)
class GaussianProcess:
    """The paper's process: 1,000 steps, linear betas, a learned variance.

    The network has 2 C outputs: the noise, and where the log-variance lies between its bounds.

    Attributes:
      samplers: "ddpm" (250 steps are the paper's), "ddim" with evenly spaced steps, and
        "ddim-strided" with whole strides from 0.
    """

    samplers = ("ddpm", "ddim", "ddim-strided")

    def sampler(self, name: str, steps: int) -> GaussianSampler:
        """Returns the sampler of a name that takes so many steps.

        Raises:
          ValueError: if the name is not known, or the number of steps is impossible.
        """
        check_sampler(name, self.samplers, steps, STEPS)
        chosen = strided(steps) if name == "ddim-strided" else spaced(steps)
        return GaussianSampler(chosen, implicit=name != "ddpm")

    def noised(
        self, x: Float[Array, "b *z"], noise: Float[Array, "b *z"], t: Int[Array, "b"]
    ) -> Float[Array, "b *z"]:
        """Returns what data has become after the steps 0 to `t`."""
        kept = _schedule(tuple(range(STEPS))).kept
        return at(np.sqrt(kept), t, x) * x + at(np.sqrt(1 - kept), t, x) * noise

    def loss(
        self, network: Network, x: Float[Array, "b *z"], key: PRNGKeyArray
    ) -> dict[str, Float[Array, "b"]]:
        """Returns "loss", "mse" and "vb" of each clip, at times that are uniform over 0 to 999.

        Args:
          network: the network; it is called with noisy latents and times.
          x: normalised latents, [B, F, H, W, C].
          key: draws times and noise.
        """
        of_times, of_noise = jax.random.split(key)
        t = jax.random.randint(of_times, x.shape[:1], 0, STEPS)
        noise = jax.random.normal(of_noise, x.shape, jnp.float32)
        x = x.astype(jnp.float32)
        output = network(self.noised(x, noise, t), t)
        return self.terms(output, x, noise, t)

    def terms(
        self,
        output: Float[Array, "b *o"],
        x: Float[Array, "b *z"],
        noise: Float[Array, "b *z"],
        t: Int[Array, "b"],
    ) -> dict[str, Float[Array, "b"]]:
        """Returns "loss", "mse" and "vb" of each clip, for an output of the network.

        Args:
          output: the output, with 2 C channels.
          x: the data, normalised latents with C channels.
          noise: the noise that was added.
          t: the step of each clip.

        Raises:
          ValueError: if the output has not two channels for each of the data's.
        """
        if output.shape[-1] != 2 * x.shape[-1]:
            raise ValueError(
                f"the network gives {output.shape[-1]} channels for latents with {x.shape[-1]}; "
                'the Gaussian process needs two for each: a denoiser with process="gaussian".'
            )
        predicted, v = jnp.split(output, 2, axis=-1)
        mse = _mean(jnp.square(noise - predicted))
        # The bound trains the variance alone.
        frozen = jnp.concatenate([jax.lax.stop_gradient(predicted), v], axis=-1)
        vb = self._bound(frozen, x, self.noised(x, noise, t), t)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _bound(self, output, x, z, t):
        """The term of the variational bound at step t of each clip, in bits per value."""
        schedule = _schedule(tuple(range(STEPS)))
        true_mean = at(schedule.from_data, t, x) * x + at(schedule.from_noisy, t, x) * z
        true_log_variance = at(schedule.posterior_log_variance, t, x)
        mean, log_variance = schedule.step_back(z, output, t)
        divergence = _divergence(true_mean, true_log_variance, mean, log_variance)
        # Later steps are left out before, too: what overflows there would make gradients NaN.
        first = (t == 0).reshape(t.shape + (1,) * (x.ndim - 1))
        likelihood = _discrete_log_likelihood(x, jnp.where(first, mean, x), log_variance / 2)
        return jnp.where(t == 0, -_mean(likelihood), _mean(divergence)) / math.log(2)


def _mean(values):
    """The mean of each clip."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def _divergence(mean_1, log_variance_1, mean_2, log_variance_2):
    """The Kullback-Leibler divergence of two Gaussians, in nats."""
    ratio = log_variance_2 - log_variance_1
    distance = jnp.square(mean_1 - mean_2) * jnp.exp(-log_variance_2)
    return 0.5 * (ratio - 1 + jnp.exp(-ratio) + distance)


def _discrete_log_likelihood(x, mean, log_deviation):
    """The log-likelihood of data as if it were 8-bit in [-1, 1], with open tails."""
    inverse = jnp.exp(-log_deviation)

    def log(probability):
        return jnp.log(jnp.maximum(probability, _LEAST_PROBABILITY))

    above, below = (_normal_cdf(inverse * (x - mean + side)) for side in (_BIN, -_BIN))
    inside = jnp.where(x > 0.999, log(1 - below), log(above - below))
    return jnp.where(x < -0.999, log(above), inside)


def _normal_cdf(x):
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
