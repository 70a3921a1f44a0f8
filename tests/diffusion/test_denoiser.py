"""The denoiser, against the released implementation's numbers."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from odvae_jax.diffusion import Latte, LatteConfig, drop_labels, positions
from odvae_jax.diffusion.attention import attend
from odvae_jax.flops import count_flops
from odvae_jax.parameters import abstract_model, named_parameters, with_parameters
from tests.conftest import full
from tests.diffusion.released import golden, released_model

TOLERANCE = 4e-5
SMALL = {"depth": 2, "width": 8, "heads": 2, "frames": 3, "rows": 4, "columns": 4}


def small(**fields):
    """A random denoiser whose output is not zero."""
    model = Latte(LatteConfig(**{**SMALL, "classes": 3, "precision": "highest", **fields}))
    rng = np.random.default_rng(1)
    noisy = {
        n: jnp.asarray(p + 0.2 * rng.standard_normal(p.shape), p.dtype)
        for n, p in ((n, np.asarray(p)) for n, p in named_parameters(model).items())
    }
    return with_parameters(model, noisy)


call = jax.jit(Latte.__call__)


def latents(model, clips=2, seed=0):
    shape = (clips, *model.config.latent_shape)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("kind", ["cond", "uncond"])
def test_the_output_is_the_released_implementation_s(kind):
    model = released_model(kind)
    labels = golden("cond_y") if kind == "cond" else None
    output = call(model, golden(f"{kind}_x"), golden(f"{kind}_t"), labels)
    np.testing.assert_allclose(output, golden(f"{kind}_out"), atol=TOLERANCE, rtol=0)


def test_what_is_embedded_and_the_first_two_blocks_are_the_released_implementation_s():
    model = released_model("cond")
    for kind, frames in (("cond", 5), ("uncond", 3)):
        width = released_model(kind).config.width
        places, times = positions.of_places(4, 4, width), positions.of_frames(frames, width)
        np.testing.assert_allclose(places, golden(f"{kind}_pos_embed")[0], atol=1e-6)
        np.testing.assert_allclose(times, golden(f"{kind}_temp_embed")[0], atol=1e-6)
    t, labels = jnp.asarray(golden("cond_t")), jnp.asarray(golden("cond_y"))
    embedded = positions.of_times(t)
    np.testing.assert_allclose(embedded, golden("timestep_embedding"), atol=1e-4)
    c = jax.jit(type(model.conditioning).__call__)(model.conditioning, t, labels)
    expected = golden("cond_t_emb") + golden("cond_y_emb")
    np.testing.assert_allclose(c, expected, atol=TOLERANCE)

    @jax.jit
    def tapped(model, x):
        found = []
        blocks = [lambda x, c, b=b: found.append(b(x, c)) or found[-1] for b in model.blocks]
        object.__setattr__(model, "blocks", blocks)
        model(x, t, labels)
        return found

    found = tapped(model, golden("cond_x"))
    np.testing.assert_allclose(found[0][0], golden("cond_block0"), atol=TOLERANCE)
    temporal = np.swapaxes(found[1][0], 0, 1)  # [token, frame, width]
    np.testing.assert_allclose(temporal, golden("cond_block1"), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("size", "labelled", "unlabelled", "frames_21", "frames_81"),
    [
        ("S/2", 32_519_840, 32_480_672, 121, 473),
        pytest.param("B/2", 129_625_376, 129_547_040, 471, 1_826, marks=pytest.mark.full),
        pytest.param("L/2", 456_920_096, 456_815_648, 1_661, 6_435, marks=pytest.mark.full),
        ("XL/2", 673_799_072, 673_681_568, 2_446, 9_473),
    ],
)
def test_sizes_have_the_parameters_and_operations_of_the_table(
    size, labelled, unlabelled, frames_21, frames_81
):
    def parameters(**fields):
        model = abstract_model(LatteConfig.of(size, **fields))
        return sum(p.size for p in named_parameters(model).values())

    assert parameters(classes=101) == labelled
    assert parameters() == parameters(frames=81) == unlabelled
    for frames, expected in ((21, frames_21), (81, frames_81)):
        model = abstract_model(LatteConfig.of(size, frames=frames))
        z = jax.ShapeDtypeStruct((1, *model.config.latent_shape), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        assert count_flops(Latte.__call__, model, z, t) / 2e9 == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_other_patches_differ_in_the_first_and_the_last_product_alone(patch):
    shapes = {
        n: p.shape
        for n, p in named_parameters(
            abstract_model(LatteConfig(**{**SMALL, "patch": patch}))
        ).items()
    }
    assert shapes["patches.kernel"] == (4 * patch**2, 8)
    assert shapes["last.linear.kernel"] == (8, 8 * patch**2)
    model = abstract_model(LatteConfig(**{**SMALL, "patch": patch}))
    z = jax.ShapeDtypeStruct((2, 3, 4, 4, 4), jnp.float32)
    output = jax.eval_shape(Latte.__call__, model, z, jax.ShapeDtypeStruct((2,), jnp.int32))
    assert output.shape == (2, 3, 4, 4, 8)


def test_an_untrained_network_returns_exactly_0():
    model = Latte(LatteConfig(**SMALL))
    output = call(model, latents(model), np.array([3, 900]))
    assert output.dtype == jnp.float32 and not np.any(output)


def test_initial_parameters_have_the_released_implementation_s_distributions():
    config = LatteConfig(**{**SMALL, "width": 64, "classes": 50})
    numpy = named_parameters(Latte(config, rngs=0))
    traced = named_parameters(nnx.jit(lambda: Latte(config, rngs=nnx.Rngs(0)))())
    for found in (numpy, traced):
        for name, value in found.items():
            if name.endswith("bias") or "modulation" in name or name.startswith("last"):
                assert not np.any(value), name
            elif name.startswith("conditioning"):
                assert np.std(value) == pytest.approx(0.02, rel=0.05), name
            else:  # qkv as one matrix of 3 W × W
                limit = np.sqrt(6 / sum(value.shape))
                assert 0.95 * limit < np.abs(value).max() <= limit, name
                assert np.std(value) == pytest.approx(limit / np.sqrt(3), rel=0.1), name


def test_time_embeddings_take_fractions_and_frames_know_their_place():
    model = small(classes=None)
    x = latents(model)
    between = [call(model, x, np.full(2, t, np.float32)) for t in (10, 10.5, 11)]
    assert np.abs(between[1] - between[0]).max() > 1e-4
    t = np.full(2, 10, np.float32)
    assert np.abs(call(model, x[:, ::-1], t)[:, ::-1] - between[0]).max() > 1e-3


@pytest.mark.parametrize("remat", ["products", *full("blocks")])
def test_gradients_do_not_depend_on_what_is_computed_again(remat):
    def gradient(model, x):
        def loss(model):
            return jnp.sum(jnp.sin(model(x, jnp.array([7, 800]), jnp.array([1, 3]))))

        return jax.jit(jax.grad(loss))(model)

    model = small()
    again = with_parameters(
        abstract_model(dataclasses.replace(model.config, remat=remat)), named_parameters(model)
    )
    x = latents(model)
    expected, found = (named_parameters(gradient(m, x)) for m in (model, again))
    chex.assert_trees_all_close(found, expected, atol=1e-5, rtol=1e-5)


def test_more_is_computed_again_where_less_is_kept():
    def flops(remat):
        model = abstract_model(LatteConfig(**{**SMALL, "width": 64, "remat": remat}))
        z = jax.ShapeDtypeStruct((1, *model.config.latent_shape), jnp.float32)
        loss = lambda model, z: jnp.sum(model(z, jnp.zeros(1)))  # noqa: E731
        return count_flops(jax.grad(loss), model, z)

    none, products, blocks = map(flops, ("none", "products", "blocks"))
    assert none <= products < 1.05 * none and 1.25 * none < blocks < 1.4 * none


def test_attention_is_softmax_of_scaled_scores_and_so_are_its_gradients():
    q, k, v, dy = np.random.default_rng(0).standard_normal((4, 3, 5, 2, 4))

    def reference(q, k, v):
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / 2
        return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), v)

    def ours(q, k, v):
        return attend(q, k, v, precision="highest")

    arrays = [jnp.asarray(a, jnp.float32) for a in (q, k, v)]
    expected, pull = jax.vjp(reference, *arrays)
    found, our_pull = jax.vjp(ours, *arrays)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    dy = jnp.asarray(dy, jnp.float32)
    chex.assert_trees_all_close(our_pull(dy), pull(dy), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", *full("float16")])
def test_half_precision_is_close_to_float32_and_the_output_is_float32(dtype):
    model = small()
    half = with_parameters(
        abstract_model(dataclasses.replace(model.config, dtype=dtype)), named_parameters(model)
    )
    x, t, labels = latents(model), np.array([7, 800]), np.array([1, 3])
    expected, found = (call(m, x, t, labels) for m in (model, half))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())


def test_labels_are_dropped_as_often_as_asked():
    labels = jnp.arange(20_000, dtype=jnp.int32) % 7
    dropped = np.asarray(drop_labels(labels, jax.random.key(0), rate=0.1, classes=7))
    assert np.mean(dropped == 7) == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(dropped[dropped != 7], np.asarray(labels)[dropped != 7])


@pytest.mark.parametrize(
    ("axis", "size", "words"),
    [
        (1, 5, "5 latent frames, and this denoiser is for 3"),
        (2, 6, "6 rows, and this denoiser is for 4"),
        (4, 3, "3 channels, and this denoiser is for 4"),
    ],
)
def test_latents_of_another_shape_are_refused(axis, size, words):
    model = small()
    shape = [2, *model.config.latent_shape]
    shape[axis] = size
    with pytest.raises(ValueError, match=words):
        model(np.zeros(shape, np.float32), np.array([1, 2]), np.array([0, 1]))


def test_a_class_that_there_is_not_gives_nan_and_none_counts_from_the_end():
    model = small()
    c = model.conditioning(jnp.array([1, 2, 3, 4]), jnp.array([3, 4, -1, -3]))
    assert np.isfinite(c).all(-1).tolist() == [True, False, False, False]


@pytest.mark.usefixtures("unchecked_types")
def test_labels_that_are_missing_or_not_expected_are_refused():
    model = small()
    x, t = latents(model), np.array([1, 2])
    with pytest.raises(ValueError, match="labels are missing: this denoiser knows 3 classes"):
        model(x, t)
    with pytest.raises(ValueError, match="this denoiser has no classes"):
        small(classes=None)(x, t, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"labels have the shape \(1,\)"):
        model(x, t, np.array([0]))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"depth": 3}, "depth=3 must be even"),
        ({"width": 10}, "width=10 must be a multiple of heads=2, and of 4"),
        ({"rows": 5}, "rows=5 must be a multiple of patch=2"),
        ({"frames": 0}, "frames=0.*whole number of latent frames, at least 1"),
        ({"channels": True}, "channels=True"),
        ({"classes": 2**20}, "classes=1048576 is more than"),
        ({"process": "edm"}, "process='edm'.*'gaussian', 'flow'"),
        ({"dtype": "bfloat"}, "dtype='bfloat'.*[Dd]id you mean 'bfloat16'"),
        ({"remat": "all"}, "remat='all'"),
    ],
)
def test_impossible_configs_are_refused_by_field(fields, words):
    with pytest.raises(ValueError, match=words):
        LatteConfig(**{**SMALL, **fields})


def test_sizes_are_known_by_their_names():
    config = LatteConfig.of("XL/2", classes=101, dtype="bfloat16")
    assert (config.depth, config.width, config.heads, config.patch) == (28, 1152, 16, 2)
    assert config == LatteConfig.of("Latte-XL/2", classes=101, dtype=jnp.bfloat16)
    assert config.name == "Latte-XL/2" and config.outputs == 8
    assert LatteConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(LatteConfig.from_dict(config.to_dict()))
    for size, words in (("XXL/2", "'XXL/2' is not known"), ("XL", "side after a slash")):
        with pytest.raises(ValueError, match=words):
            LatteConfig.of(size)
    with pytest.raises(ValueError, match=r"\['depth'\] are decided by the size"):
        LatteConfig.of("S/2", depth=2)
    with pytest.raises(ValueError, match="'frame' is not known; did you mean 'frames'"):
        LatteConfig.of("S/2", frame=2)
