"""Figure 4 and Table 4 of the paper on a small scale: variants, initialisations and tiling.

odvae ablate --config=ablation --workdir=runs/ablation --config.data.path=VIDEOS

All runs have the same data and seed. The command first trains a 2D model on the same frames. To
start from an existing 2D model instead, give --init=SD_VAE and the width and groups of that model:
--config.model.width=128 --config.model.groups=32. Norms are over the clip, as in the paper.
"""

from odvae_jax.ablate import default_ablation
from odvae_jax.config import ODVAEConfig
from odvae_jax.training.config import default_config


def get_config():
    config = default_config()
    config.model = ODVAEConfig.variant(
        4, width=16, groups=8, upsample="nearest", dtype="bfloat16", remat="none"
    ).to_dict()
    config.data.frames = 9
    config.data.size = 64
    config.data.short_side = 96
    config.data.holdout = 33
    config.data.threads = 8
    config.batch_size = 8
    config.steps = 2000
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 50
    config.discriminator.weight = 0.0
    config.ema_decay = 0.99
    config.log_every = 50
    config.validate_every = 250
    config.validation_clips = 6
    config.checkpoint_every = 1000
    config.keep_checkpoints = 1
    config.ablation = default_ablation()
    config.ablation.image_steps = 3000
    config.ablation.image_batch_size = 32
    config.ablation.image_learning_rate = 1e-3
    config.ablation.frames = 33
    config.ablation.tiling = 9
    return config
