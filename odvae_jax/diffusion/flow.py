"""Rectified flow: straight lines from noise to data, and a network that learns their velocity.

At the time s, from 0 (noise) to 1 (data), z = (1 - s) noise + s x, and the velocity is x - noise.
The network is given 1000 (1 - s), so that its times are those of the Gaussian process.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real

from odvae_jax.diffusion.protocol import Denoise, Network, check_sampler

_NETWORK_TIMES = 1000


@dataclasses.dataclass(frozen=True)
class FlowSampler:
    """Equal steps of s from 0 to 1, by Euler's method or by Heun's, whose last step is Euler's.

    Attributes:
      steps: the number of steps.
      second_order: whether the steps are Heun's, with two calls of the network each.
    """

    steps: int
    second_order: bool = False

    @property
    def process(self) -> str:
        """The name of the process in the config of a denoiser."""
        return "flow"

    @property
    def stochastic(self) -> bool:
        """Whether a step adds noise; none does."""
        return False

    @property
    def span(self) -> tuple[float, float]:
        """The least and the greatest s: 0 is noise, 1 is data."""
        return 0.0, 1.0

    @property
    def times(self) -> tuple[float, ...]:
        """The s at which each step begins, rising from 0."""
        return tuple(i / self.steps for i in range(self.steps))

    def network_time(self, time: Real[Array, ""]) -> Real[Array, ""]:
        """Returns the time that the network is given, 1000 (1 - s)."""
        return _NETWORK_TIMES * (1 - time)

    def step(
        self,
        denoise: Denoise,
        z: Float[Array, "b *z"],
        i: Int[Array, ""],
        noise: Float[Array, "b *z"] | None = None,
    ) -> Float[Array, "b *z"]:
        """Returns the latents after step `i`.

        Args:
          denoise: the network; it is called with s.
          z: the latents before the step.
          i: the number of the step, from 0.
          noise: unused; it is there as for other samplers.
        """
        length = 1 / self.steps
        s = jnp.asarray(i, jnp.float32) * length
        velocity = denoise(z, s)
        after = z + length * velocity
        if not self.second_order:
            return after

        def corrected(after):
            return z + length / 2 * (velocity + denoise(after, s + length))

        # At s = 1 the network was hardly trained, so the last step stays as it is.
        return jax.lax.cond(i < self.steps - 1, corrected, lambda after: after, after)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """Rectified flow with times that are the sigmoid of a standard normal; C outputs.

    Attributes:
      samplers: "euler" and "heun"; the latter calls the network twice in each step but the last.
    """

    samplers = ("euler", "heun")

    def sampler(self, name: str, steps: int) -> FlowSampler:
        """Returns the sampler of a name that takes so many steps.

        Raises:
          ValueError: if the name is not known, or the number of steps is impossible.
        """
        check_sampler(name, self.samplers, steps)
        return FlowSampler(steps, second_order=name == "heun")

    def noised(
        self, x: Float[Array, "b *z"], noise: Float[Array, "b *z"], s: Float[Array, "b"]
    ) -> Float[Array, "b *z"]:
        """Returns the point at time s on the line from noise to data, for each clip."""
        s = s.reshape(s.shape + (1,) * (x.ndim - 1))
        return (1 - s) * noise + s * x

    def loss(
        self, network: Network, x: Float[Array, "b *z"], key: PRNGKeyArray
    ) -> dict[str, Float[Array, "b"]]:
        """Returns "loss" of each clip, the mean of the squared error of the velocity.

        Args:
          network: the network; it is called with noisy latents and 1000 (1 - s).
          x: normalised latents, [B, F, H, W, C].
          key: draws times and noise.
        """
        of_times, of_noise = jax.random.split(key)
        s = jax.nn.sigmoid(jax.random.normal(of_times, x.shape[:1], jnp.float32))
        noise = jax.random.normal(of_noise, x.shape, jnp.float32)
        x = x.astype(jnp.float32)
        output = network(self.noised(x, noise, s), _NETWORK_TIMES * (1 - s))
        return self.terms(output, x, noise)

    def terms(
        self, output: Float[Array, "b *o"], x: Float[Array, "b *z"], noise: Float[Array, "b *z"]
    ) -> dict[str, Float[Array, "b"]]:
        """Returns "loss" of each clip, for an output of the network.

        Args:
          output: the velocity that the network predicts.
          x: the data, normalised latents.
          noise: the noise that was mixed in.

        Raises:
          ValueError: if the output has not the shape of the data.
        """
        if output.shape != x.shape:
            raise ValueError(
                f"the network gives {output.shape[-1]} channels for latents with {x.shape[-1]}; "
                'rectified flow needs as many: a denoiser with process="flow".'
            )
        error = jnp.square(x - noise - output)
        return {"loss": jnp.mean(error, axis=tuple(range(1, error.ndim)))}
