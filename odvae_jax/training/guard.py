"""The guard around every training step: without finite metrics a step changes nothing."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from odvae_jax.sharding import replicated, state_shardings
from odvae_jax.training.tasks.task import Step


def guarded(step: Step, mesh: Mesh) -> Step:
    """Makes a task's step safe, and counts.

    The step's new state is taken only if each of its metrics is finite; else the state stays as it
    was. The fields `step`, `skipped` and `skipped_in_a_row` of the state are written here alone.
    The metrics get "skipped_steps" and "skipped_in_a_row".

    Args:
      step: a pure function of (state, batch, constants) to (state, metrics).
      mesh: that the arrays are spread over, with Auto or Explicit axes.

    Raises:
      AssertionError: when it is traced, if the step changes a shape or dtype of the state.
    """

    def run(state, batch, constants):
        new, metrics = step(state, batch, constants)
        # While it is traced: a state of another form could not be given to the next step.
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        finite = jnp.all(jnp.isfinite(jnp.stack([*metrics.values()])))
        new = jax.tree.map(lambda now, before: jnp.where(finite, now, before), new, state)
        skipped = jnp.where(finite, 0, 1)
        new = new._replace(
            step=state.step + 1,
            skipped=state.skipped + skipped,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        counted = {"skipped_steps": new.skipped, "skipped_in_a_row": new.skipped_in_a_row}
        return new, metrics | counted

    if AxisType.Explicit not in mesh.axis_types:
        return run

    def on_explicit_axes(state, batch, constants):
        # XLA spreads what stands inside by itself, which explicit axes forbid.
        shardings = (state_shardings(mesh, state), replicated(mesh))
        return jax.sharding.auto_axes(run, out_sharding=shardings)(state, batch, constants)

    return on_explicit_axes
