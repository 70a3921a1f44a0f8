"""Clips whose rows are spread over devices, as a GPU computes them: the same, without gathering."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from odvae_jax import lowering
from odvae_jax.lowering import norm_kernels
from tests.conftest import full, random_video, small_model
from tests.lowering.test_norm_kernels import clip
from tests.lowering.test_ways import scales
from tests.two_levels import CAUSAL


def mesh(height, data=1):
    devices = jax.devices()[: height * data]
    return jax.make_mesh((data, height), ("data", "height"), (AxisType.Auto,) * 2, devices=devices)


def rows_on(height, x, data=1):
    return jax.device_put(x, NamedSharding(mesh(height, data), P("data", None, "height")))


def kernel(*shape):
    values = np.random.default_rng(0).standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
    return jnp.asarray(values, jnp.float32)


def convolved(x, kernel, small=None, **options):
    return lowering.convolve(x, kernel, scales=small, **options)


CASES = {  # with up to 16 channels out, the places of the kernel are summed afterwards
    "pairs with their norm": ((3, 3, 3, 8, 32), {"with_norm": True}),
    "pairs": ((3, 3, 3, 8, 32), {}),
    "one frame at a time, after a norm": ((1, 3, 3, 8, 16), {"with_norm": True}),
    "few channels in": ((3, 3, 3, 3, 16), {}),
    "few channels out": ((3, 3, 3, 8, 3), {}),
    "few channels out, after a norm": ((3, 3, 3, 8, 16), {"with_norm": True}),
    "a stride in space": ((1, 3, 3, 8, 16), {"strides": (1, 2)}),
    "a stride in time and space": ((3, 3, 3, 8, 16), {"strides": (2, 2)}),
    "pairs with a stride in space": ((3, 3, 3, 8, 32), {"strides": (1, 2), "with_norm": True}),
    "doubled by repetition": ((3, 3, 3, 8, 32), {"doubling": "nearest"}),
    "doubled by interpolation": ((3, 3, 3, 8, 32), {"doubling": "linear"}),
    "after other frames": ((3, 3, 3, 8, 32), {"after": True}),
}


@pytest.mark.parametrize("height", [4, *full(2, 8)])
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_is_that_of_one_device_and_gathers_nothing(gpu, case, height):
    shape, options = CASES[case]
    options = dict(options)
    x = clip(2, 5, 16, 6, shape[3])
    small = scales(2, 1, shape[3]) if options.pop("with_norm", False) else None
    if options.pop("after", False):
        options["before"] = clip(2, 2, 16, 6, shape[3])

    def run(x, kernel, small, **arrays):
        return convolved(x, kernel, small, **options | arrays)

    arrays = {name: a for name, a in options.items() if name == "before"}
    expected = jax.jit(run)(x, kernel(*shape), small, **arrays)
    spread = {name: rows_on(height, a) for name, a in arrays.items()}
    compiled = jax.jit(run).lower(rows_on(height, x), kernel(*shape), small, **spread).compile()
    ours = compiled(rows_on(height, x), kernel(*shape), small, **spread)
    rows = expected.shape[2] // height
    assert ours.sharding.shard_shape(ours.shape)[2] == rows
    if small is not None:
        in_pairs = case.startswith("pairs")
        assert gpu == {norm_kernels._norm_silu_pairs if in_pairs else norm_kernels._norm_silu}
    text = compiled.as_text()
    assert "collective-permute" in text
    assert not re.search("all-gather|all-to-all|all-reduce", text)
    assert float(jnp.std(expected.astype(jnp.float32))) > 0.1
    rounding = 2.0**-7  # of bfloat16, where a sum is taken in another order
    np.testing.assert_allclose(
        *(a.astype(jnp.float32) for a in (ours, expected)), rtol=rounding, atol=rounding / 64
    )


def everything(vae, video):
    moments = vae.encoder(video)
    return moments, vae.decoder(moments[..., : vae.config.latent_channels])


@pytest.mark.parametrize("structure", [CAUSAL, *full("v4")], ids=["small", "v4"])
@pytest.mark.parametrize("upsample", ["linear", *full("nearest")])
def test_a_model_is_that_of_one_device_and_gathers_what_attention_needs_alone(
    gpu, upsample, structure
):
    vae = small_model(structure, upsample=upsample, dtype="bfloat16", width=16)
    video = jnp.asarray(random_video(5, 64, 16))
    spread = rows_on(4, video)
    compiled = jax.jit(everything).lower(vae, spread).compile()
    ours, one = compiled(vae, spread), jax.jit(everything)(vae, video)
    exact = jax.jit(everything)(small_model(structure, upsample=upsample, width=16), video)
    for a, b, true in zip(ours, one, exact, strict=True):
        errors = [float(jnp.sqrt(jnp.mean((y - true) ** 2))) for y in (a, b)]
        assert errors[0] < 1.2 * errors[1] < 0.1 * float(jnp.std(true))
    assert norm_kernels._norm_silu_pairs in gpu
    text = compiled.as_text()
    keys, values = (2, 2)  # of the encoder and of the decoder
    assert len(re.findall(r" all-gather(?:-start)?\(", text)) == keys + values
    assert not re.search(r" all-to-all(-start)?\(", text)


@pytest.mark.parametrize("structure", [CAUSAL, *full("v4")], ids=["small", "v4"])
def test_its_gradient_too(gpu, structure):
    vae = small_model(structure, dtype="bfloat16", width=16)
    exact = small_model(structure, width=16)
    video = jnp.asarray(random_video(5, 32, 16, b=2))

    def loss(vae, video):
        return jnp.mean(jnp.abs(everything(vae, video)[1] - video))

    def gradient(vae, video):
        leaves = jax.tree.leaves(jax.jit(lambda *a: jax.grad(loss)(*a))(vae, video))
        return np.concatenate([np.ravel(leaf) for leaf in leaves])

    true = gradient(exact, video)
    one, ours = gradient(vae, video), gradient(vae, rows_on(2, video, data=2))
    assert norm_kernels._norm_silu_pairs in gpu
    errors = [np.linalg.norm(g - true) for g in (ours, one)]
    assert errors[0] < 1.6 * errors[1] < 0.1 * np.linalg.norm(true)


def test_a_batch_of_kernels_is_one_convolution_per_kernel(gpu):
    x, kernels = clip(2, 5, 8, 6, 8), jnp.stack([kernel(3, 3, 3, 8, 16), -kernel(3, 3, 3, 8, 16)])
    ours = jax.vmap(lowering.convolve, in_axes=(None, 0))(x, kernels)
    for y, one in zip(ours, kernels, strict=True):
        np.testing.assert_array_equal(y, lowering.convolve(x, one))


def spread_inside(x, axes, **sizes):
    """A clip that a program makes, and spreads as JAX does not let arguments be spread."""
    devices = jax.devices()[: np.prod(list(sizes.values()))]
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)
    over = jax.make_mesh(shape, tuple(sizes), types, devices=devices)
    spec = NamedSharding(over, P(None, None, axes))
    x = jax.jit(jnp.exp, out_shardings=NamedSharding(over, P()))(x)
    # What pads the last device's rows is not zero.
    return x, lambda x: jax.lax.with_sharding_constraint(x + 1, spec)


ODD = {
    "12 rows on 8": (12, "height", {"height": 8}),
    "9 rows on 4": (9, "height", {"height": 4}),
    "8 rows on 3": (8, "height", {"height": 3}),
    "16 rows on 3": (16, "height", {"height": 3}),
    "two axes": (16, ("data", "height"), {"data": 2, "height": 4}),
    "two axes in another order": (16, ("height", "data"), {"data": 2, "height": 4}),
}
SOME = {
    "pairs with their norm": CASES["pairs with their norm"],
    "a stride in space": ((1, 3, 3, 8, 16), {"strides": (1, 2)}),
    "doubled by repetition": CASES["doubled by repetition"],
    "doubled by interpolation": CASES["doubled by interpolation"],
}


@pytest.mark.parametrize("odd", ["8 rows on 3", "two axes in another order", *full(*ODD)])
@pytest.mark.parametrize("case", ["pairs with their norm", *full(*SOME)])
def test_rows_that_lie_unevenly_or_in_another_order_are_right_too(gpu, odd, case):
    shape, options = SOME[case]
    rows, axes, sizes = ODD[odd]
    options = dict(options)
    small = scales(1, 1, shape[3]) if options.pop("with_norm", False) else None
    x, spread = spread_inside(clip(1, 5, rows, 6, shape[3]), axes, **sizes)

    def run(x):
        return convolved(spread(x), kernel(*shape), small, **options)

    ours = jax.jit(run)(x).astype(jnp.float32)
    alone = jax.device_put(x, jax.devices()[0])
    expected = convolved(alone + 1, kernel(*shape), small, **options).astype(jnp.float32)
    np.testing.assert_allclose(ours, expected, rtol=2**-6, atol=2**-6)


@pytest.mark.full
@pytest.mark.parametrize("rows", [40, 56])
def test_a_video_whose_latents_have_an_odd_number_of_rows_is_encoded(gpu, rows):
    vae = small_model(dtype="bfloat16")
    video = jnp.asarray(random_video(5, rows, 16))
    run = jax.jit(lambda vae, video: vae.encoder(video))
    ours, one = run(vae, rows_on(2, video)), run(vae, video)
    exact = jax.jit(lambda vae, video: vae.encoder(video))(small_model(), video)
    errors = [float(jnp.sqrt(jnp.mean((y - exact) ** 2))) for y in (ours, one)]
    assert errors[0] < 1.2 * errors[1] < 0.1 * float(jnp.std(exact))


def test_models_that_use_no_kernel_may_use_several_meshes(gpu):
    x = clip(1, 5, 16, 6, 12)
    run = jax.jit(lambda x: lowering.convolve(x, kernel(3, 3, 3, 12, 24)))
    text = run.lower(rows_on(4, x)).as_text()
    assert "CustomSPMDPartitioning" not in text
    powers = jax.jit(lambda x: lowering.convolve(x, kernel(3, 3, 3, 12, 16)))
    assert "CustomSPMDPartitioning" in powers.lower(rows_on(4, x)).as_text()
