"""Variant 1 with the paper's settings (section 4.1); the data comes on the command line:

python train.py --config=configs/v1.py --workdir=runs/v1 --config.data.path=VIDEOS
"""

from odvae_jax.config import ODVAEConfig
from odvae_jax.training.config import default_config


def get_config():
    config = default_config()
    config.model = ODVAEConfig.variant(1, dtype="bfloat16").to_dict()
    return config
