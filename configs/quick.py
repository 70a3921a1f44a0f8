"""A small model on three short real clips, in minutes on two CPU cores: the paper's recipe.

First a 2D model on single frames, then variant 4 started from it by tail initialisation:

odvae train --config=quick:image --workdir=runs/quick/image
odvae train --config=quick:video --workdir=runs/quick/video \
    --config.init.from_pretrained=runs/quick/image
"""

from odvae_jax.config import ODVAEConfig
from odvae_jax.training.config import default_config


def get_config(stage="video"):
    if stage not in ("image", "video"):
        raise ValueError(f"configs/quick.py:{stage} is not known; there are :image and :video.")
    config = default_config()
    size = {"width": 16, "groups": 8, "norm": "frame"}
    config.batch_size = 4
    if stage == "image":
        config.model = ODVAEConfig.image(**size).to_dict()
        config.data.frames = 1
        config.steps = 800
        config.optimizer.learning_rate = 2e-3
        config.validate_every = 200
    else:
        config.model = ODVAEConfig.variant(4, **size).to_dict()
        config.data.frames = 5
        config.steps = 120
        config.optimizer.learning_rate = 3e-4
        config.validate_every = 40
    config.data.path = "sample-clips"
    config.data.size = 64
    config.data.short_side = 128
    config.data.holdout = 17
    config.data.in_memory = True
    config.data.threads = 1
    config.loss.reconstruction = "l2"
    config.loss.perceptual_weight = 0.0
    config.discriminator.weight = 0.0
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = "cosine"
    config.ema_decay = 0.98
    config.log_every = 10
    config.checkpoint_every = 200
    return config
