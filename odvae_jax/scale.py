"""The scale of latents: what a diffusion model is given, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)
LEAST_STD = 1e-6
"""The least deviation that a measured channel may have. The clamped variance of a posterior alone
leaves 3e-7."""


@runtime_checkable
class Measured(Protocol):
    """What the scale is computed from; `odvae_jax.latents.Statistics` is such a class."""

    count: int

    def per_channel(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the mean, the deviation of means and that of samples, each float64 [C]."""

    def spread(self) -> float:
        """Returns the deviation of the samples of all channels about their common mean."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How latents are normalised for a diffusion model: per channel, or by one factor.

    With a mean and a deviation per channel, normalised latents are (z - mean) / std. Without, as
    for models whose latents were never measured, they are z * factor.

    Attributes:
      mean: the mean of sampled latents per channel; None if it was not measured.
      std: the standard deviation of sampled latents per channel, greater than 0; None if it was not
        measured.
      factor: one number for all channels, greater than 0: 1 over the deviation of all sampled
        latents together. It is what programs use that know no scale per channel.

    Raises:
      ValueError: if only one of mean and std is given, if they have different lengths, or if a
        value is not finite or not greater than 0. The message names the field.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    factor: float

    def __post_init__(self):
        object.__setattr__(self, "factor", _factor(self.factor))
        if self.mean is None and self.std is None:
            return
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std has {len(self.std)}; expected one of "
                "each per channel of the latents."
            )
        if wrong := [f"channel {i}: {s!r}" for i, s in enumerate(self.std) if np.float32(s) <= 0]:
            raise ValueError(f"std must be greater than 0 in float32 ({'; '.join(wrong[:4])}).")

    @property
    def measured(self) -> bool:
        """Whether there is a mean and a deviation per channel."""
        return self.mean is not None

    @classmethod
    def of(cls, statistics: Measured) -> Scale:
        """Returns the scale that gives sampled latents mean 0 and deviation 1 per channel.

        Args:
          statistics: the sums over the latents, `odvae_jax.latents.Statistics`.

        Raises:
          ValueError: if there are no latents, if their sums are not finite, or if a channel never
            changes. The message names the channels.
        """
        if not statistics.count:
            raise ValueError("no latents were measured; expected at least one clip.")
        mean, _, std = statistics.per_channel()
        if not np.isfinite([mean, std]).all():
            raise ValueError("the latents hold values that are not finite, so they have no scale.")
        if still := [f"{i} (always {m:.4g})" for i, m in enumerate(mean) if std[i] < LEAST_STD]:
            raise ValueError(
                f"these channels of the latents never change: {', '.join(still[:8])}. They cannot "
                "be scaled to a deviation of 1: measure other videos, or train the model further."
            )
        return cls(tuple(mean.tolist()), tuple(std.tolist()), 1 / statistics.spread())

    def normalise(self, z: Any) -> Any:
        """Returns what a diffusion model is given of latents.

        Args:
          z: latents as the encoder gives them, [..., C]; a JAX or a NumPy array of floating point.

        Returns:
          An array of the same kind and shape. It is float32, or float64 if `z` is.

        Raises:
          ValueError: if the last axis of `z` has not one entry per channel.
        """
        z = _wide(z)
        if not self.measured:
            return z * z.dtype.type(self.factor)
        mean, std = self._like(z)
        return (z - mean) / std

    def denormalise(self, z: Any) -> Any:
        """Returns the latents that the decoder takes; the inverse of `normalise`.

        Args:
          z: what a diffusion model gives, [..., C]; a JAX or a NumPy array of floating point.

        Returns:
          An array of the same kind and shape. It is float32, or float64 if `z` is.

        Raises:
          ValueError: if the last axis of `z` has not one entry per channel.
        """
        z = _wide(z)
        if not self.measured:
            return z / z.dtype.type(self.factor)
        mean, std = self._like(z)
        return z * std + mean

    def _like(self, z) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and deviation of the dtype and the rank of an array, for JAX's strict modes.

        Raises:
          ValueError: if the array has not one channel for each.
        """
        channels = len(self.mean)
        if z.shape[-1:] != (channels,):
            raise ValueError(
                f"latents of the shape {tuple(z.shape)} cannot be scaled with {channels} means and "
                f"deviations: expected [..., {channels}]."
            )
        shape = (1,) * (z.ndim - 1) + (channels,)
        return tuple(np.asarray(v, z.dtype).reshape(shape) for v in (self.mean, self.std))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as values that JSON can hold."""
        listed = {n: None if v is None else list(v) for n, v in vars(self).items() if n != "factor"}
        return {**listed, "factor": self.factor}

    @classmethod
    def from_dict(cls, fields: Any) -> Scale:
        """Returns the scale with these fields, as `to_dict` returned them or JSON holds them.

        Args:
          fields: the fields by name; what a file holds there may be anything.

        Raises:
          ValueError: if a field is missing or not known, or has a value that it cannot have. The
            message names the field.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"a scale is {fields!r:.100}; expected a JSON object.")
        known = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in known if name not in fields]:
            raise ValueError(f"the fields {missing} of the scale are missing.")
        if unknown := [str(name) for name in fields if name not in known]:
            raise ValueError(f"the fields {unknown[:4]} of the scale are not known; {known} are.")
        channels = {
            n: None if fields[n] is None else _numbers(n, fields[n]) for n in ("mean", "std")
        }
        return cls(**channels, factor=_factor(fields["factor"]))


def _wide(z: Any) -> Any:
    """Returns an array in float32, or as it is if it is float64."""
    return z if z.dtype in (np.float32, np.float64) else z.astype(np.float32)


def _factor(value: Any) -> float:
    """Returns a positive number as a float."""
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"factor={value!r:.100} must be a positive number.")
    return float(value)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """Returns finite numbers as a tuple of floats."""
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    listed = isinstance(plain, Sequence) and not isinstance(plain, str) and len(plain) > 0
    if not listed or not all(map(_is_finite, plain)):
        raise ValueError(
            f"{name}={values!r:.100} must be finite numbers, one per channel of the latents; mean "
            "and std are given together or not at all."
        )
    return tuple(map(float, plain))


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that float32 can hold."""
    plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return plain and bool(-_LARGEST <= value <= _LARGEST)
