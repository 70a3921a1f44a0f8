"""What the training loop asks of the thing that is trained."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

Metrics = dict[str, jax.Array]
"""Numbers by name that a step reports; each is a float32 scalar."""
Step = Callable[[Any, Any, Any], tuple[Any, Metrics]]
"""A pure function of (state, batch, constants) to (state, metrics)."""


def counters() -> dict[str, jax.Array]:
    """The three fields of a state that the loop counts in, before the first step.

    `step` counts the steps that are done, `skipped` those of them that changed nothing since a
    metric was not finite, and `skipped_in_a_row` how many of these the last steps were.
    """
    return {n: jnp.zeros((), jnp.int32) for n in ("step", "skipped", "skipped_in_a_row")}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a validation found.

    Attributes:
      numbers: metrics by name.
      pictures: uint8 images [H, W, 3] by name, which TensorBoard shows.
      videos: by name, uint8 frames [T, H, W, 3] and their number per second; each becomes
        `samples/NAME-STEP.mp4` in the run's folder.
    """

    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    videos: dict[str, tuple[np.ndarray, float]] = dataclasses.field(default_factory=dict)


class Feeds(abc.ABC):
    """Batches in an order that the position alone decides.

    Attributes:
      position: where in the data the next batch begins: numbers by name, saved with every
        checkpoint.
    """

    position: dict[str, int]

    @abc.abstractmethod
    def __call__(self, step: int) -> Any:
        """The batch for the step that comes after `step` steps: a pytree of arrays on the mesh."""

    def stand_in(self, step: int) -> Any | None:
        """Arrays of any content that are spread as the batch after `step` steps is.

        If the data of one of several processes fails, or blocks while a signal comes, it takes part
        in a step with them. The step then counts in no process, and all save together. Neither this
        nor a batch may wait for other processes, as `jax.device_put` over several does.

        With None, which is the default, the run ends without a save if one process has no batch.
        One process alone needs none.
        """
        return None

    def close(self) -> None:  # noqa: B027 (often there is nothing to end)
        """Ends the threads and processes that read."""


class Task(abc.ABC):
    """Something that can be trained. The loop makes one per run and asks it for everything else.

    The state is a NamedTuple of pytrees of arrays. Its fields are the items of a checkpoint. Three
    of them, which `counters` makes, belong to the loop: a step reads them, and the loop writes
    them. All random numbers of a step come from `config.seed` and the state's `step`, so that a run
    that was interrupted goes on as if it had not been. A task's constructor opens the data, so that
    missing data is reported before anything is written.

    Args:
      config: the config of the run; it has passed `check`, and lacks no field.
      mesh: the devices, of `odvae_jax.sharding.make_mesh`.
    """

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        self.config = config
        self.mesh = mesh

    @classmethod
    @abc.abstractmethod
    def defaults(cls) -> ml_collections.ConfigDict:
        """Every field of such a run's config: `loop_config`'s and the task's own.

        A field that a config lacks, since it is from before the field existed, has this value.
        """

    @classmethod
    def completed(
        cls,
        config: ml_collections.ConfigDict,
        begun: Callable[[], Mapping[str, Any] | None],
    ) -> ml_collections.ConfigDict:
        """A config with the fields that depend on something outside it, such as a saved model.

        It is called before `check`, and what it returns is the config of the run.

        Args:
          config: the config that was given; it lacks no field.
          begun: reads the config of the run that is to be continued; it returns None for a new
            run.
        """
        return config

    @classmethod  # noqa: B027 (optional)
    def check(cls, config: ml_collections.ConfigDict, mesh: Mesh) -> None:
        """Raises ValueError for a config that cannot work, naming the field and what would do."""

    @classmethod
    def free(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """Fields, or sections, that may change when a run is continued: they change no result.

        The default is "steps", how long the run is.
        """
        return ("steps",)

    @classmethod
    def fixed(cls, config: ml_collections.ConfigDict) -> tuple[str, ...]:
        """Fields that may not change though `config.continue_with_changes` is set.

        The shapes of the state's arrays and the order of the data depend on them.
        """
        return ()

    @abc.abstractmethod
    def initial(self) -> Any:
        """The state before the first step; the loop spreads it over the mesh."""

    def abstract(self) -> Any:
        """The state's shapes and dtypes, as a checkpoint is restored to."""
        return jax.eval_shape(self.initial)

    def kind(self, step: int) -> str:
        """Which kind of step comes after `step` steps. The default is one kind."""
        return "step"

    @abc.abstractmethod
    def step(self, kind: str) -> Step:
        """The pure function that one kind of step is.

        It returns the new state, and metrics that tell whether the step is good: if one of them is
        not finite, the loop keeps the state of before. So the loss and the gradient's norm belong
        to them. It is compiled once for each kind and shape of batch.
        """

    def less_memory(self, share: float) -> Mapping[str, Any]:
        """Fields of the config whose values here make a step need less memory, the best first.

        It is asked where the memory of a device does not suffice; the message has what it returns.

        Args:
          share: the share of what a step needs now that there is room for, between 0 and 1.

        Returns:
          Values by the dotted name of the field; each of them alone helps.
        """
        return {}

    def constants(self) -> Any:
        """Arrays on the mesh that every step is given and none changes, such as a frozen model."""
        return None

    @abc.abstractmethod
    def feeds(self, position: dict[str, int]) -> Feeds:
        """Batches from a position on; the position is empty at the beginning of a run."""

    @abc.abstractmethod
    def per_step(self) -> Mapping[str, int]:
        """What a step processes, such as {"clips": 8, "frames": 200}.

        Each is reported per second, the first one beside the progress bar too.
        """

    def flops(self) -> float:
        """Operations of a step on all devices, for the device's utilisation; 0 leaves it out."""
        return 0.0

    def validate(self, step: int, state: Any) -> Measured:
        """Measures the state after `step` steps, every `config.validate_every` of them.

        If there are several processes, each calls it, and the first one writes what it returns.
        """
        return Measured()

    def export(self, state: Any, workdir: Path) -> None:  # noqa: B027 (optional)
        """Writes the result of the run into its folder, at its end and when it is told to stop.

        If there are several processes, each calls it; only the first one may write.
        """
