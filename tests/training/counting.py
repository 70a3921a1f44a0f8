"""A task that compiles in no time, for tests of what does not depend on what is trained."""

import queue
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from odvae_jax.data.processes import WorkerError
from odvae_jax.sharding import replicated
from odvae_jax.training.fields import loop_config
from odvae_jax.training.tasks import Feeds, Task, counters


def get_config():
    config = loop_config()
    config.task = "tests.training.counting:Counting"
    config.update(
        steps=6,
        log_every=1,
        checkpoint_every=2,
        validate_every=0,
        blocks_at=-1,  # the step whose batch never comes
        fails_at=-1,  # the step whose batch raises an error
        only_in=-1,  # the process whose batches do that; -1 is all of them
        stands_in=True,  # whether the feeds have a stand-in
        size=5000,
    )
    return config


class State(NamedTuple):
    numbers: jax.Array
    step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


class Numbers(Feeds):
    """The number of every batch; it is counted before the batch is there, as a reader would."""

    def __init__(self, config, mesh, position):
        self._config, self._mesh = config, mesh
        self.position = {"next": position.get("next", 0)}

    def __call__(self, step):
        number = self.position["next"]
        self.position["next"] += 1
        affected = self._config.only_in in (-1, jax.process_index())
        if affected and step + 1 == self._config.blocks_at:
            print("blocked", flush=True)
            queue.Queue().get()
        if affected and step + 1 == self._config.fails_at:
            raise WorkerError("workers died 4 times; give the run more memory")
        return self._placed(number)

    def stand_in(self, step):
        return self._placed(-1) if self._config.stands_in else None

    def _placed(self, number):
        number = np.float32(number)
        return jax.make_array_from_callback((), replicated(self._mesh), lambda _: number)


class Counting(Task):
    """Its state is all that it needs memory for."""

    @classmethod
    def defaults(cls):
        return get_config()

    @classmethod
    def free(cls, config):
        return ("steps", "blocks_at", "fails_at", "only_in", "stands_in")

    def initial(self):
        numbers = jax.random.normal(jax.random.key(self.config.seed), (self.config.size,))
        return State(numbers, **counters())

    def step(self, kind):
        def step(state, batch, constants):
            numbers = jnp.sin(state.numbers * 1.5 + batch)
            return state._replace(numbers=numbers), {"loss": jnp.mean(numbers**2)}

        return step

    def less_memory(self, share):
        return {"size": int(self.config.size * share)}

    def feeds(self, position):
        return Numbers(self.config, self.mesh, position)

    def per_step(self):
        return {"numbers": 1}

    def export(self, state, workdir):
        if jax.process_index() == 0:
            np.save(workdir / "numbers.npy", np.asarray(state.numbers))


class Greedy(Counting):
    """From the second batch on, more memory is asked for than addresses there are."""

    def feeds(self, position):
        class Large(Numbers):
            def __call__(self, step):
                if step == 1:
                    jnp.zeros((2**50,), jnp.uint8)
                return super().__call__(step)

        return Large(self.config, self.mesh, position)
