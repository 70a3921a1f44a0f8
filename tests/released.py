"""The released implementation's golden numbers, names, and weights by recipe."""

import json
from pathlib import Path

import numpy as np

from odvae_jax.checkpoints import open_sora_plan
from odvae_jax.checkpoints.files import WeightFile
from tests.fixtures import weights_recipe

FIXTURES = Path(__file__).parent / "fixtures"


def golden(case):
    """Video, moments and reconstruction of the mean, channels last."""
    with np.load(FIXTURES / "official_v4.npz") as file:
        names = ("video", "moments", "reconstruction_of_mean")
        return [np.moveaxis(file[f"{case}/{name}"], 1, -1) for name in names]


def released_shapes():
    """Every released parameter's shape, at width 32."""
    shapes = json.loads((FIXTURES / "official_v4.json").read_text())["parameters"]
    return {name: tuple(shape) for name, shape in shapes.items()}


def released_state():
    """The recipe's weights by released name."""
    return {name: weights_recipe.weight(name, shape) for name, shape in released_shapes().items()}


def released_model():
    """Variant 4 at width 32 with these weights."""
    file = WeightFile(FIXTURES / "official_v4.json", released_state())
    return open_sora_plan.load(file, precision="highest")[0]


def released_config():
    """Version 1.2's config.json as the specification lists it, at width 32."""
    three, two = "ResnetBlock3D", "ResnetBlock2D"
    return {
        "_class_name": "CausalVAEModel",
        "hidden_size": 32,
        "z_channels": 4,
        "embed_dim": 4,
        "hidden_size_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "double_z": True,
        "dropout": 0.0,
        "resolution": 256,
        "attn_resolutions": [],
        "use_quant_layer": True,
        "q_conv": "CausalConv3d",
        "encoder_conv_in": "Conv2d",
        "encoder_conv_out": "CausalConv3d",
        "encoder_attention": "AttnBlock3DFix",
        "encoder_mid_resnet": three,
        "encoder_resnet_blocks": [two, two, three, three],
        "encoder_spatial_downsample": [
            "Downsample",
            "Spatial2xTime2x3DDownsample",
            "Spatial2xTime2x3DDownsample",
            "",
        ],
        "encoder_temporal_downsample": ["", "", "", ""],
        "decoder_conv_in": "CausalConv3d",
        "decoder_conv_out": "CausalConv3d",
        "decoder_attention": "AttnBlock3DFix",
        "decoder_mid_resnet": three,
        "decoder_resnet_blocks": [three] * 4,
        "decoder_spatial_upsample": [
            "",
            "SpatialUpsample2x",
            "Spatial2xTime2x3DUpsample",
            "Spatial2xTime2x3DUpsample",
        ],
        "decoder_temporal_upsample": ["", "", "", ""],
    }
