"""Variant 3 with the paper's settings (section 4.1); the data comes on the command line:

python train.py --config=configs/v3.py --workdir=runs/v3 --config.data.path=VIDEOS
"""

from odvae_jax.config import ODVAEConfig
from odvae_jax.training.config import default_config


def get_config():
    config = default_config()
    config.model = ODVAEConfig.variant(3, dtype="bfloat16").to_dict()
    return config
