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

from odvae_jax.training.denoising import recipe_config


def get_config(name="quick"):
    if name not in ("ucf101", "sky", "quick"):
        raise ValueError(
            f"configs/latte.py:{name} is not known; there are :ucf101, :sky and :quick."
        )
    config = recipe_config("shapes" if name == "quick" else name)
    if name == "ucf101":
        config.data.max_unusable = 1.0
        config.samples.guidance = 7.0
    if name == "quick":
        config.vae = "small"
        config.data.stride_max = config.data.stride
        config.data.holdout = 64
        config.samples.steps = 25
        config.samples.guidance = 4.0
        config.samples.count = 8
        config.validate_every = 250
        config.checkpoint_every = 250
    return config
