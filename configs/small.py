"""A model of width 32 on one GPU in 20 minutes: the paper's road, and its whole loss.

First a 2D model on single frames, then variant 4 started from it by tail initialisation. Norms are
per frame, so that the model can also be streamed:

odvae train --config=small:image --workdir=runs/small/image \
    --config.data.path=VIDEOS
odvae train --config=small:video --workdir=runs/small/video \
    --config.data.path=VIDEOS --config.init.from_pretrained=runs/small/image
"""

from odvae_jax.config import ODVAEConfig
from odvae_jax.training.config import default_config


def get_config(stage="video"):
    if stage not in ("image", "video"):
        raise ValueError(f"configs/small.py:{stage} is not known; there are :image and :video.")
    config = default_config()
    size = {"width": 32, "groups": 8, "norm": "frame", "dtype": "bfloat16"}
    if stage == "image":
        config.model = ODVAEConfig.image(**size).to_dict()
        config.data.frames = 1
        config.batch_size = 32
        config.steps = 6000
        config.optimizer.learning_rate = 5e-4
        config.discriminator.weight = 0.0
        config.validate_every = 1000
    else:
        config.model = ODVAEConfig.variant(4, **size, remat="convolutions").to_dict()
        config.data.frames = 17
        config.batch_size = 8
        config.steps = 9000
        config.optimizer.learning_rate = 1.5e-4
        config.discriminator.start = 1000
        config.discriminator.weight = 0.2
        config.validate_every = 500
    config.data.size = 128
    config.data.short_side = 144
    config.data.holdout = 33
    config.data.threads = 8
    config.optimizer.decay = "cosine"
    config.optimizer.warmup_steps = 100
    config.log_every = 25
    config.validation_clips = 6
    config.checkpoint_every = 500
    return config
