"""The paper's Table 2 in one call, by `odvae table2`: denoisers on latents of several autoencoders.

For each autoencoder, an arm, the videos are encoded, a denoiser is trained on the latents, clips
are sampled and measured. Each of these is a stage, done by a process of its own. The same call
continues what was interrupted, arm by arm and stage by stage.
"""

from odvae_jax.table2.plan import default_table2, list_arms
from odvae_jax.table2.run import compare, do_arm
from odvae_jax.table2.stages import do_stage

__all__ = ["compare", "default_table2", "do_arm", "do_stage", "list_arms"]
