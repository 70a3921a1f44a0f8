"""Denoisers on latents: Table 2's Latte-XL/2 on UCF101 and SkyTimelapse, and a small one.

In the paper, each clip is encoded in every step. It is faster to encode once:

odvae encode ucf101:UCF-101 LATENTS --ckpt=MODEL --to=shards --content=moments \
    --frames=81 --size=256 --clips-per-video=1 --mirror
odvae train --config=latte:ucf101 --workdir=runs/ucf101 --config.data.path=LATENTS

This trains from videos, as in the paper:

odvae train --config=latte:sky --workdir=runs/sky \
    --config.data.path=sky-timelapse:sky_train:least=244 --config.vae=MODEL

The small one takes about ten minutes on two CPU cores:

odvae encode moving-shapes LATENTS --ckpt=small --to=shards --content=moments \
    --buckets=17x64x64 --clips-per-video=1 --stride=2
odvae train --config=latte:quick --workdir=runs/latte --config.data.path=LATENTS
"""

from odvae_jax.diffusion import LatteConfig
from odvae_jax.training.denoising import denoiser_config


def get_config(name="quick"):
    names = {"ucf101": _ucf101, "sky": _sky, "quick": _quick}
    if name not in names:
        raise ValueError(f"configs/latte.py:{name} is not known; there are {list(names)}.")
    config = denoiser_config()
    names[name](config)
    return config


def _ucf101(config):
    config.model.classes = 101
    config.data.path = "ucf101:UCF-101"
    config.data.label = "label"
    config.data.names = "class"
    # Most videos are too short for 81 frames at a stride of 3.
    config.data.stride = 1
    config.data.max_unusable = 1.0
    config.optimizer.clip_from = 100_000
    config.samples.guidance = 7.0


def _sky(config):
    config.data.path = "sky-timelapse:sky_train:least=244"
    config.data.flip = False
    config.optimizer.clip_from = 20_000


def _quick(config):
    config.model = LatteConfig(
        depth=6, width=192, heads=6, frames=5, rows=8, columns=8, classes=8, process="flow"
    ).to_dict()
    config.vae = "small"
    config.data.path = "moving-shapes"
    config.data.frames = 17
    config.data.size = 64
    config.data.short_side = 64
    config.data.stride = 2
    config.data.stride_max = 2
    config.data.flip = False  # left and right are classes
    config.data.scale = "channels"
    config.data.label = "label"
    config.data.names = "motion"
    config.data.holdout = 64
    config.batch_size = 32
    config.steps = 2000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.optimizer.clip_from = 0
    config.optimizer.warmup_steps = 50
    config.ema_decay = 0.995
    config.ema_warmup = True
    config.samples.steps = 25
    config.samples.guidance = 4.0
    config.samples.count = 8
    config.log_every = 25
    config.validate_every = 250
    config.checkpoint_every = 250
