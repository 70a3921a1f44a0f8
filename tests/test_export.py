"""Lowering for platforms that this machine does not have."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odvae_jax import ODVAEConfig, decode, encode
from odvae_jax.parameters import abstract_model
from tests.conftest import full, random_video, small_model


def latents(vae, video):
    return encode(vae, video).mean


@pytest.mark.parametrize("structure", ["v4", *full("v1", "v2", "v3")])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_full_size_model_lowers_for_each_platform_its_own_way(platform, structure):
    vae = abstract_model(ODVAEConfig(structure=structure, dtype="bfloat16"))
    video = jax.ShapeDtypeStruct((1, 33, 512, 512, 3), jnp.bfloat16)
    z = jax.ShapeDtypeStruct((1, 9, 64, 64, 4), jnp.float32)
    for function, x, shape in ((latents, video, (1, 9, 64, 64, 4)), (decode, z, video.shape)):
        exported = jax.export.export(jax.jit(function), platforms=[platform])(vae, x)
        assert exported.out_avals[0].shape == shape
        # A convolution over three spatial axes is XLA's own 3D one: for the TPU alone.
        three_axes = re.findall(
            r"stablehlo\.convolution[^\n]*\[b, 0, 1, 2, f\]", exported.mlir_module()
        )
        assert bool(three_axes) == (platform == "tpu")


def test_an_exported_encoder_computes_the_same():
    vae, video = small_model(), random_video(5, 16, 24, b=2)
    exported = jax.export.export(jax.jit(latents), platforms=["cpu"])(vae, video)
    np.testing.assert_allclose(exported.call(vae, video), latents(vae, video), atol=1e-6)
