"""What a training task and a sampler need to know of a process: the common face of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray, Real

Network = Callable[[Float[Array, "b *z"], Real[Array, "b"]], Float[Array, "b *o"]]
"""A network that is called with noisy latents and the time of each clip, as `Latte` is; labels are
bound to it before."""

Denoise = Callable[[Float[Array, "b *z"], Real[Array, ""]], Float[Array, "b *o"]]
"""A network, perhaps guided, that is called with noisy latents and one time for all clips, in the
sampler's own time."""


@runtime_checkable
class Sampler(Protocol):
    """Steps from noise to latents, as a process gives them; it is hashable, static under `jit`.

    Its attributes cannot be changed.
    """

    @property
    def process(self) -> str:
        """The name of the process in the config of a denoiser."""
        ...

    @property
    def steps(self) -> int:
        """The number of steps."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether a step adds noise."""
        ...

    @property
    def span(self) -> tuple[float, float]:
        """The least and the greatest time that there is, in the sampler's own time."""
        ...

    @property
    def times(self) -> tuple[float, ...]:
        """The time at which each step begins, in the sampler's own time."""
        ...

    def network_time(self, time: Real[Array, ""]) -> Real[Array, ""]:
        """Returns the time that the network is given, for one of the sampler's own."""
        ...

    def step(
        self,
        denoise: Denoise,
        z: Float[Array, "b *z"],
        i: Real[Array, ""],
        noise: Float[Array, "b *z"] | None,
    ) -> Float[Array, "b *z"]:
        """Returns the latents after step `i`, which counts from 0.

        Args:
          denoise: the network, in the sampler's own time.
          z: the latents before the step; before the first one they are Gaussian noise.
          i: the number of the step.
          noise: Gaussian noise of the shape of `z`; None if the sampler is not stochastic.
        """
        ...


@runtime_checkable
class Process(Protocol):
    """A way from latents to noise, what a network learns about it, and the ways back.

    Attributes:
      samplers: the names of its samplers, the usual one first.
    """

    samplers: tuple[str, ...]

    def loss(
        self, network: Network, x: Float[Array, "b *z"], key: PRNGKeyArray
    ) -> dict[str, Float[Array, "b"]]:
        """Returns the loss of each clip as "loss", and the terms that it consists of by name.

        Args:
          network: the network.
          x: normalised latents, [B, F, H, W, C].
          key: draws times and noise.
        """
        ...

    def sampler(self, name: str, steps: int) -> Sampler:
        """Returns the sampler of a name that takes so many steps.

        Raises:
          ValueError: if the name is not known, or the number of steps is impossible.
        """
        ...


def check_sampler(name: str, names: tuple[str, ...], steps: int, most: int | None = None) -> None:
    """Checks the name of a sampler and its number of steps.

    Args:
      name: the name.
      names: the names that there are.
      steps: the number of steps.
      most: the largest number of steps; None for no limit.

    Raises:
      ValueError: if the name is not among them, or the number is no positive integer or too large.
    """
    if name not in names:
        raise ValueError(f"the sampler {name!r:.100} is not known here; there are {list(names)}.")
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    if not whole or steps < 1 or (most is not None and steps > most):
        limit = "" if most is None else f", at most {most}"
        raise ValueError(f"steps={steps!r:.100}: expected a positive whole number{limit}.")
