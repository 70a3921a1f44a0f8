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


def get_config():
    config = default_config()
    config.model = ODVAEConfig(structure=TWO_LEVELS, width=8, groups=4).to_dict()
    return config
