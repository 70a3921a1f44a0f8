"""How far bfloat16 is from float32, as the device runs it and by the plain path, in one run.

python benchmarks/rounding.py --work=encode:1x17x128x128,decode:1x17x128x128,train:1x17x128x128

Root mean square of what differs from float32 at highest precision by the plain path, beside the
root mean square of that, for random weights, rounded alike, and random clips. The plain path is the
one of platforms that have no other: no pairs of frames, no kernels. Train is the gradient of L1 in
all parameters. Compiled without autotuning: nothing is timed.
"""

import os
from unittest import mock

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from common import UPSAMPLE, VARIANT, device, function_and_input, model, work_and_shape

from odvae_jax import lowering

_WORK = flags.DEFINE_list(
    "work",
    ["encode:1x17x128x128", "decode:1x17x128x128", "train:1x17x128x128"],
    "encode, decode or train (gradient of L1), a colon, clips, frames, height, width",
)


def outputs(function, vae, x, plain):
    """All values of what it returns, in a row."""
    jax.clear_caches()  # what was traced the other way
    run = jax.jit(function)
    if not plain:
        return flat(run(vae, x))
    with mock.patch.object(lowering, "by_platform", default):
        return flat(run(vae, x))


def default(*arrays, **lowerings):
    return lowerings["default"](*arrays)


def flat(tree):
    return np.concatenate([np.ravel(a).astype(np.float32) for a in jax.tree.leaves(tree)])


def main(_):
    print(f"{device()}, variant {VARIANT.value}, {UPSAMPLE.value} upsampling")
    print(f"{'work':24}{'of the device':>15}{'plain path':>12}{'ratio':>8}")
    vae = model()
    exact = model(dtype="float32", param_dtype="float32", precision="highest")
    parameters = [a.astype(jnp.float32) for a in jax.tree.leaves(vae)]  # the same, as rounded
    exact = jax.tree.unflatten(jax.tree.structure(exact), parameters)
    for text in _WORK.value:
        function, x = function_and_input(vae, *work_and_shape(text))
        x = x.astype(jnp.bfloat16).astype(jnp.float32)
        true = outputs(function, exact, x, plain=True)
        ours, plain = (
            float(np.linalg.norm(outputs(function, vae, x, plain) - true) / np.linalg.norm(true))
            for plain in (False, True)
        )
        print(f"{text:24}{ours:15.5f}{plain:12.5f}{ours / plain:8.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
