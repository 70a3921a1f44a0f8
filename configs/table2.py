"""Table 2: trains a denoiser for each of several autoencoders, and measures its samples.

odvae table2 --config=table2:ucf101 --workdir=runs/ucf101 --config.data.path=ucf101:UCF-101 \
    --config.table2.arms=weights.json --c3d=conv3d_deepnetA_ucf.npz

`:sky` is SkyTimelapse. For Fig. 4c and 4f, the arms are variants and initialisations: the trained
runs of an ablation, --config.table2.ablation=runs/ablation. `:small` is for autoencoders like the
small model, with clips of 17 frames of 64×64 and a denoiser of 4 million parameters.

odvae table2 --config=table2:small --workdir=runs/table2 \
    --config.table2.arms=small=small,random=RUN "--config.table2.measure_at=(1000, 2000)"
"""

from odvae_jax.table2 import default_table2
from odvae_jax.training.denoising import recipe_config


def get_config(name="ucf101"):
    if name not in ("ucf101", "sky", "small"):
        raise ValueError(
            f"configs/table2.py:{name} is not known; there are :ucf101, :sky and :small."
        )
    config = recipe_config("shapes" if name == "small" else name)
    config.validate_every = 0
    config.table2 = default_table2()
    if name == "small":
        config.optimizer.moment_dtype = "bfloat16"
        config.checkpoint_every = 500
        config.table2.count = 512
        config.table2.sampling_steps = 50
        config.table2.guidance = 4.0
        config.table2.batch = 32
        config.table2.dtype = "float32"
    else:
        config.batch_size = 1
        config.table2.dataset = {"ucf101": "UCF101", "sky": "SkyTimelapse"}[name]
    if name == "ucf101":
        config.table2.guidance = 7.0
    return config
