"""The compilation cache of programs."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from odvae_jax.compilation import bytes_needed

_ANOTHER_PROCESS = """
import jax, jax.numpy as jnp
from odvae_jax.compilation import use_compilation_cache
from odvae_jax.lowering.norm_kernels import norm_silu_pairs

use_compilation_cache()
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
over_clips = jax.NamedSharding(mesh, jax.P("data"))
x = jax.device_put(jnp.ones((2, 5, 4, 4, 8), jnp.bfloat16), over_clips)
scale = jnp.ones((2, 1, 8))
events.clear()
jax.block_until_ready(jax.jit(norm_silu_pairs)(x, scale, scale))
print(sum(event.endswith("cache_misses") for event in events))
"""


def test_what_a_program_writes_into_its_argument_is_counted_once():
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    add_one = lambda x: x + 1  # noqa: E731
    assert bytes_needed(jax.jit(add_one).lower(x).compile()) == 8_000_000
    assert bytes_needed(jax.jit(add_one, donate_argnums=0).lower(x).compile()) == 4_000_000


@pytest.mark.full
def test_another_process_finds_a_compiled_program_over_several_devices(tmp_path):
    settings = {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    missed = [
        subprocess.run(
            [sys.executable, "-c", _ANOTHER_PROCESS], env={**inherited, **settings},
            capture_output=True, text=True, check=True,
        ).stdout.split()[-1]
        for _ in range(2)
    ]  # fmt: skip
    assert int(missed[0]) > 0
    assert missed[1] == "0"
