"""Tunes any model on your own videos, in hundreds to thousands of steps.

odvae train --config=finetune:decoder --workdir=runs/mine \
    --config.data.path=VIDEOS --config.init.from_pretrained=small

"decoder" does not change the encoder, so stored latents and their scale stay valid. "all" tunes the
whole model, and measures the scale of its latents again. The tuned model has the kind and size of
the model that it starts from.
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
    # With the paper's LPIPS weight of 1, a model forgets more of what it was not tuned on, and has
    # a lower PSNR on what it was tuned on (docs/fine-tuning.md).
    config.loss.perceptual_weight = 0.1
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 20
    # A discriminator with random weights learns nothing useful in so few steps.
    config.discriminator.weight = 0.0
    config.ema_warmup = True
    config.log_every = 10
    config.validate_every = 100
    config.checkpoint_every = 100
    return config
