"""What an ablation trains: which configurations, with which seeds and configs."""

from __future__ import annotations

import dataclasses

import ml_collections

from odvae_jax.config import ODVAEConfig
from odvae_jax.training import config as config_lib

IMAGE_RUN = "image"
"""The name of the folder of the 2D model that all trainings start from."""


def default_ablation() -> ml_collections.ConfigDict:
    """Returns the config section `ablation`, which says what is compared."""
    return ml_collections.ConfigDict(
        {
            "variants": (1, 2, 3, 4),  # each from the 2D model by tail initialisation
            "initialisations": ("tail", "average", "random"),  # each with the variant below
            "variant": 4,
            "image_steps": 100_000,  # of training the 2D model, if none is given
            "image_batch_size": 64,
            "image_learning_rate": 1e-4,
            "frames": 97,  # per clip that all are measured on in the end
            "tiling": 33,  # frames per group
            "fvd": True,
        }
    )


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the configurations that are compared.

    Attributes:
      structure: the variant, "v1" to "v4".
      method: the initialisation: "tail", "average" or "random".
    """

    structure: str
    method: str

    @property
    def name(self) -> str:
        """The configuration's name in tables."""
        return f"{self.structure}-{self.method}"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a configuration with one seed.

    Attributes:
      arm: the configuration.
      seed: the seed of the training.
      is_first: whether the seed is the one that the ablation's config names.
    """

    arm: Arm
    seed: int
    is_first: bool

    @property
    def name(self) -> str:
        """The name of the training's folder; with the first seed it is the configuration's."""
        return self.arm.name if self.is_first else f"{self.arm.name}-seed{self.seed}"


def arms(config: ml_collections.ConfigDict) -> list[Arm]:
    """Returns the configurations that a config asks for, each of them once.

    Raises:
      ValueError: if a variant or an initialisation does not exist.
    """
    ablation = config.ablation
    structures = [f"v{i}" for i in ablation.variants]
    if unknown := {*structures, f"v{ablation.variant}"} - {"v1", "v2", "v3", "v4"}:
        raise ValueError(f"config.ablation: {sorted(unknown)} are no variants; there are 1 to 4.")
    if unknown := set(ablation.initialisations) - set(config_lib.METHODS):
        raise ValueError(
            f"config.ablation.initialisations: {sorted(unknown)} are not known; there are "
            f"{list(config_lib.METHODS)}."
        )
    chosen = [Arm(structure, "tail") for structure in structures]
    chosen += [Arm(f"v{ablation.variant}", method) for method in ablation.initialisations]
    return list(dict.fromkeys(chosen))


def runs(config: ml_collections.ConfigDict, seeds: int = 1) -> list[Run]:
    """Returns all trainings: each configuration with each seed, all of one seed together.

    Args:
      config: the config of a training run, with a section `ablation`. The seeds are `config.seed`
        and the numbers after it.
      seeds: the number of seeds.

    Raises:
      ValueError: if there is no seed, or a variant or an initialisation does not exist.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1: how often each is trained.")
    chosen = arms(config)
    return [Run(arm, config.seed + i, i == 0) for i in range(seeds) for arm in chosen]


def image_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of the training of the 2D model, which has the first seed."""
    changed = _training_config(config, "image")
    changed.data.frames = 1
    changed.steps = config.ablation.image_steps
    changed.batch_size = config.ablation.image_batch_size
    changed.optimizer.learning_rate = config.ablation.image_learning_rate
    changed.discriminator.weight = 0.0
    return changed


def run_config(config: ml_collections.ConfigDict, run: Run, init: str) -> ml_collections.ConfigDict:
    """Returns the config of one training.

    Args:
      config: the ablation's config.
      run: the training.
      init: the 2D model that it starts from.
    """
    changed = _training_config(config, run.arm.structure)
    changed.init.from_pretrained = init
    changed.init.method = run.arm.method
    changed.seed = run.seed
    return changed


def _training_config(config, structure: str) -> ml_collections.ConfigDict:
    """Returns the config without the section `ablation`, with the model's structure put in."""
    fields = config.to_dict()
    del fields["ablation"]
    model = fields["model"] | {"structure": structure}
    if structure == "image":
        model = ODVAEConfig.image(
            **{n: model[n] for n in ("width", "groups", "dtype", "remat", "latent_channels")}
        ).to_dict()
    fields["model"] = ODVAEConfig.from_dict(model).to_dict()
    return ml_collections.ConfigDict(fields)
