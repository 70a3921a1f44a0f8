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
    """A kernel of `length` in time from a 2D one.

    "tail" gives the last time slice the 2D kernel and the others zero (Eq. 3); "average" gives
    every slice the 2D kernel divided by `length` (Eq. 5). A kernel that stays 2D is copied.
    """
    if length == 1:
        return jnp.asarray(kernel)
    if method == "average":
        return jnp.broadcast_to(kernel / length, (length, *kernel.shape[1:]))
    return jnp.concatenate([jnp.zeros((length - 1, *kernel.shape[1:]), kernel.dtype), kernel])


def inflate(image: ODVAE, config: ODVAEConfig, method: Method = "tail", *, seed: int = 0) -> ODVAE:
    """The video model `config` started from a 2D one (section 3.3).

    After "tail" or "average" with `upsample="nearest"`, an image and each frame of a still clip go
    through it as through `image` (Eq. 4). Biases and norms are copied by every method except
    "random", which takes nothing from `image` but its shapes.

    Args:
      image: a model of `ODVAEConfig.image()`, of the same width and latent channels.
      config: the model to make; its levels must be those of `image`.
      method: "tail", "average" or "random".
      seed: for the random method.

    Raises:
      ValueError: if the method is unknown, or the two models' levels or sizes differ.
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
