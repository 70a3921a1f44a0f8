"""Any model, tuned on your own videos for some hundred to some thousand steps.

odvae train --config=finetune:decoder --workdir=runs/mine \
    --config.data.path=VIDEOS --config.init.from_pretrained=small

"decoder" leaves the encoder as it is, so that latents that were stored before stay valid, and so
does their scale. "all" tunes the whole model and measures the scale of its latents anew. The
model's kind and size are those of the model that it begins with, whichever that is.
"""

from odvae_jax.training.config import default_config


def get_config(part="decoder"):
    if part not in ("decoder", "all"):
        raise ValueError(f"configs/finetune.py:{part} is not known; there are :decoder and :all.")
    config = default_config()
    config.init.same_model = True
    config.data.frames = 17
    config.data.size = 128
    config.data.short_side = 128
    config.data.short_side_max = 192
    config.data.holdout = 17
    config.batch_size = 8
    config.steps = 500
    if part == "decoder":
        config.freeze = "encoder"
        config.optimizer.learning_rate = 2e-4
    else:
        config.optimizer.learning_rate = 1e-4
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 20
    # A discriminator that begins from nothing learns nothing useful in so few steps.
    config.discriminator.weight = 0.0
    config.ema_warmup = True
    config.log_every = 10
    config.validate_every = 100
    config.checkpoint_every = 100
    return config
