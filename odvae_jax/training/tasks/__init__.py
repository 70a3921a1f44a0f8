"""Tasks: what a training run can train. The loop knows none of them."""

from odvae_jax.training.tasks.task import Feeds, Measured, Metrics, Step, Task, counters

__all__ = ["Feeds", "Measured", "Metrics", "Step", "Task", "counters"]
