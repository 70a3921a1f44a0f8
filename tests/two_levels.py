"""A config whose model compiles soonest, for tests of what does not depend on the model."""

from odvae_jax import ODVAEConfig, Structure
from odvae_jax.training.config import default_config

TWO_LEVELS = Structure(
    encoder_in="2d",
    encoder_levels=("2d", "2d"),
    downsample=("2d",),
    middle="2d",
    decoder_levels=("2d", "2d"),
    upsample=("2d",),
    ends="2d",
    time_strides=(1,),
    space_strides=(2,),
    width_multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
)
"""An image model of two levels."""
CAUSAL = Structure(
    encoder_in="2d",
    encoder_levels=("3d", "mixed"),
    downsample=("3d",),
    middle="3d",
    decoder_levels=("3d", "mixed"),
    upsample=("3d",),
    ends="3d",
    time_strides=(2,),
    space_strides=(2,),
    width_multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
)
"""A causal model of two levels, 2×2×2."""


def get_config():
    config = default_config()
    config.model = ODVAEConfig(structure=TWO_LEVELS, width=8, groups=4).to_dict()
    return config
