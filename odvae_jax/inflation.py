"""Making a 3D model from a 2D one (section 3.3: Eq. 3, Eq. 4, Eq. 5)."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.autoencoder import ODVAE
from odvae_jax.config import LEVELS, ODVAEConfig
from odvae_jax.parameters import abstract_model, differences, named_parameters, with_parameters
from odvae_jax.types import AnyArray

Method = Literal["tail", "average", "random"]
METHODS: tuple[str, ...] = get_args(Method)


def inflate_kernel(
    kernel: Float[AnyArray, "1 k k c d"], length: int, method: Literal["tail", "average"]
) -> Float[Array, "kt k k c d"]:
    """Returns a kernel of some length in time made from a 2D one.

    Args:
      kernel: the 2D kernel, [1, k, k, C, D].
      length: the length kt in time; for 1 the kernel is copied.
      method: "tail" puts the 2D kernel into the last place in time and zeros into the others (Eq.
        3). "average" puts the 2D kernel divided by `length` into every place (Eq. 5).
    """
    if length == 1:
        return jnp.asarray(kernel)
    if method == "average":
        return jnp.broadcast_to(kernel / length, (length, *kernel.shape[1:]))
    return jnp.concatenate([jnp.zeros((length - 1, *kernel.shape[1:]), kernel.dtype), kernel])


def inflate(image: ODVAE, config: ODVAEConfig, method: Method = "tail", *, seed: int = 0) -> ODVAE:
    """Returns a video model whose parameters start from those of a 2D model (section 3.3).

    After "tail" or "average" with `upsample="nearest"`, the video model reconstructs an image, and
    each frame of a still clip, as the 2D model does (Eq. 4). "tail" and "average" copy biases and
    norms. "random" uses nothing of the 2D model; it only checks that the shapes fit.

    Args:
      image: a model of `ODVAEConfig.image()`, of the same width and number of latent channels.
      config: the config of the video model; its levels must be those of the 2D model.
      method: "tail", "average" or "random".
      seed: decides the initial parameters with "random".

    Raises:
      ValueError: if the method is unknown, or the levels or sizes of the two models differ.
    """
    if method not in METHODS:
        raise ValueError(f"initialisation {method!r} is not known; there are {list(METHODS)}.")
    if not image.config.parts.is_image:
        raise ValueError(
            f"the model to start from is {image.config.name!r}; expected an image model."
        )
    for field in LEVELS:
        theirs, ours = (getattr(c.parts, field) for c in (image.config, config))
        if theirs != ours:
            raise ValueError(
                f"structure.{field} is {theirs!r} in the 2D model and {ours!r} in the video model: "
                "initialisation from 2D needs the same levels in both."
            )
    if image.config.groups != config.groups:
        raise ValueError(
            f"the 2D model's norms have {image.config.groups} groups, the video model's "
            f"{config.groups}: the same weights would be another function."
        )
    target = {n: v.shape for n, v in named_parameters(abstract_model(config)).items()}
    source = named_parameters(image)
    flattened = {n: (1, *s[1:]) if n.endswith(".kernel") else s for n, s in target.items()}
    if problems := differences(flattened, {n: v.shape for n, v in source.items()}):
        raise ValueError(f"the 2D model does not fit (another width or latent size?): {problems}.")
    if method == "random":
        return ODVAE(config, rngs=seed)
    parameters = {
        name: (
            inflate_kernel(value, target[name][0], method) if name.endswith(".kernel") else value
        ).astype(config.param_dtype)
        for name, value in source.items()
    }
    return with_parameters(abstract_model(config), parameters)
