"""The guard around every training step.

Without finite metrics a step changes nothing, and neither does it if one of several processes has
no batch for it.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from odvae_jax.sharding import replicated, state_shardings
from odvae_jax.training.tasks.task import Step

FAILS, STOPS, GOES_ON = range(3)
"""What a process says with a step: its data failed, it was told to stop, or that all is well."""


def guarded(step: Step, mesh: Mesh) -> Callable:
    """Makes a task's step safe, and counts.

    What is returned is a function like the step, with one more argument that may be left out:
    `said`, int32 [devices], in which each of several processes gives `GOES_ON` or another word for
    its own devices.

    The step's new state is taken only if each of its metrics is finite; else the state stays as it
    was. The fields `step`, `skipped` and `skipped_in_a_row` of the state are written here alone.
    The metrics get "skipped_steps" and "skipped_in_a_row". If a process does not say that it goes
    on, the state stays as it was with its counters too; the least word is the metric "said".

    Args:
      step: a pure function of (state, batch, constants) to (state, metrics).
      mesh: that the arrays are spread over, with Auto or Explicit axes.

    Raises:
      AssertionError: when it is traced, if the step changes a shape or dtype of the state.
    """

    def run(state, batch, constants, said=None):
        new, metrics = step(state, batch, constants)
        # While it is traced: a state of another form could not be given to the next step.
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        finite = jnp.all(jnp.isfinite(jnp.stack([*metrics.values()])))
        new = _chosen(finite, new, state)
        skipped = jnp.where(finite, 0, 1)
        new = new._replace(
            step=state.step + 1,
            skipped=state.skipped + skipped,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        if said is not None:
            least = jnp.min(said)
            new = _chosen(least == GOES_ON, new, state)
            metrics = metrics | {"said": least}
        counted = {"skipped_steps": new.skipped, "skipped_in_a_row": new.skipped_in_a_row}
        return new, metrics | counted

    if AxisType.Explicit not in mesh.axis_types:
        return run

    def on_explicit_axes(*arguments):
        # XLA spreads what stands inside by itself, which explicit axes forbid.
        shardings = (state_shardings(mesh, arguments[0]), replicated(mesh))
        return jax.sharding.auto_axes(run, out_sharding=shardings)(*arguments)

    return on_explicit_axes


def _chosen(condition, new, before):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, before)
