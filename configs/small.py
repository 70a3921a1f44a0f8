"""The recipe of the small model, on GPUs: that of the paper, with its whole loss.

First a 2D model is trained on pictures. Then variant 4 starts from it by tail initialisation. The
same run continues with a lower learning rate and a longer average. The last two parts each start
from the average of the part before, and have an L2 loss with little LPIPS:

odvae data collect COLLECTED
odvae train --config=small:image --workdir=runs/small/image \
    --config.data.path=images:COLLECTED/train-pictures
odvae train --config=small:video --workdir=runs/small/video --config.data.path=CLIPS \
    --config.init.from_pretrained=runs/small/image
odvae train --config=small:end --workdir=runs/small/video --config.data.path=CLIPS
odvae train --config=small:last --workdir=runs/small/last --config.data.path=CLIPS \
    --config.init.from_pretrained=runs/small/video
odvae train --config=small:final --workdir=runs/small/final --config.data.path=CLIPS \
    --config.init.from_pretrained=runs/small/last

CLIPS is "0.6*motion:COLLECTED/train-pictures; 0.25*folder:COLLECTED/train-clips/real;
0.15*folder:COLLECTED/train-clips/drawn".
Norms are per frame, so that the model can also be streamed. The training does not measure the
model; `odvae eval` measures it on clips that were not trained on. docs/results.md has the results.
"""

from odvae_jax.config import ODVAEConfig
from odvae_jax.training.config import default_config


def get_config(stage="video"):
    if stage not in ("image", "video", "end", "last", "final"):
        raise ValueError(
            f"configs/small.py:{stage} is not known; there are :image, :video, :end, :last and "
            ":final."
        )
    config = default_config()
    size = {"width": 32, "groups": 8, "norm": "frame", "dtype": "bfloat16"}
    if stage == "image":
        config.model = ODVAEConfig.image(**size).to_dict()
        config.data.frames = 1
        config.data.size = 256
        config.data.short_side = 256
        config.data.short_side_max = 448
        config.batch_size = 64
        config.steps = 3900
        config.optimizer.learning_rate = 5e-4
        config.discriminator.weight = 0.0
    else:
        config.model = ODVAEConfig.variant(4, **size, remat="convolutions").to_dict()
        config.data.frames = 17
        config.data.size = 128
        config.data.short_side = 128
        config.data.short_side_max = 192
        config.batch_size = 32
        config.steps = 4028
        config.optimizer.learning_rate = 2e-4
        config.discriminator.start = 1500
        config.discriminator.weight = 0.2
    if stage == "end":
        config.steps = 8640
        config.optimizer.learning_rate = 5e-5
        config.ema_decay = 0.9995
        config.continue_with_changes = True
    if stage in ("last", "final"):
        config.data.short_side_max = 152
        config.steps = 3065 if stage == "last" else 6500
        config.optimizer.learning_rate = 5e-4
        config.optimizer.decay = "cosine"
        config.loss.reconstruction = "l2"
        config.loss.perceptual_weight = 0.02 if stage == "last" else 0.05
        config.discriminator.weight = 0.0
        config.ema_warmup = True
    config.data.threads = 8
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 200
    config.log_every = 50
    config.validate_every = 0
    config.checkpoint_every = 500
    return config
