"""Variant 1 with the paper's settings (section 4.1), in its two phases.

Name the data and the SD-VAE to start from on the command line. The second phase uses other data:

odvae train --config=v1:phase1 --workdir=runs/v1-phase1 \\
    --config.data.path=VIDEOS --config.init.from_pretrained=SD_VAE
odvae train --config=v1:phase2 --workdir=runs/v1-phase2 \\
    --config.data.path=OTHER_VIDEOS --config.init.from_pretrained=runs/v1-phase1
"""

from odvae_jax.training.config import paper_config


def get_config(phase="phase1"):
    return paper_config(1, phase)
