"""Table 2: trains a denoiser for each of several autoencoders, and measures its samples.

odvae table2 --config=table2:ucf101 --workdir=runs/ucf101 --config.data.path=ucf101:UCF-101 \
    --config.table2.arms=weights.json --c3d=conv3d_deepnetA_ucf.npz

`:sky` is SkyTimelapse. For Fig. 4c and 4f, the arms are variants and initialisations: the trained
runs of an ablation, --config.table2.ablation=runs/ablation. `:small` is for autoencoders like the
small model, with clips of 17 frames of 64×64 and a denoiser of 4 million parameters.

odvae table2 --config=table2:small --workdir=runs/table2 \
    --config.table2.arms=small=small,random=RUN "--config.table2.measure_at=(1000, 2000)"
"""

from odvae_jax.diffusion import LatteConfig
from odvae_jax.table2 import default_table2
from odvae_jax.training.denoising import denoiser_config


def get_config(name="ucf101"):
    names = {"ucf101": _ucf101, "sky": _sky, "small": _small}
    if name not in names:
        raise ValueError(f"configs/table2.py:{name} is not known; there are {list(names)}.")
    config = denoiser_config()
    config.validate_every = 0
    config.batch_size = 1
    config.table2 = default_table2()
    names[name](config)
    return config


def _ucf101(config):
    config.model.classes = 101
    config.data.path = "ucf101:UCF-101"
    config.data.label = "label"
    config.data.names = "class"
    # Most videos are too short for 81 frames at a stride of 3.
    config.data.stride = 1
    config.optimizer.clip_from = 100_000
    config.table2.dataset = "UCF101"
    config.table2.guidance = 7.0


def _sky(config):
    config.data.path = "sky-timelapse:sky_train:least=244"
    config.data.flip = False
    config.optimizer.clip_from = 20_000
    config.table2.dataset = "SkyTimelapse"


def _small(config):
    config.model = LatteConfig(
        depth=6, width=192, heads=6, frames=5, rows=8, columns=8, classes=8, process="flow"
    ).to_dict()
    config.data.path = "moving-shapes"
    config.data.frames = 17
    config.data.size = 64
    config.data.short_side = 64
    config.data.stride = 2
    config.data.flip = False  # left and right are classes
    config.data.scale = "channels"
    config.data.label = "label"
    config.data.names = "motion"
    config.batch_size = 32
    config.steps = 2000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.optimizer.clip_from = 0
    config.optimizer.warmup_steps = 50
    config.optimizer.moment_dtype = "bfloat16"
    config.ema_decay = 0.995
    config.ema_warmup = True
    config.log_every = 25
    config.checkpoint_every = 500
    config.table2.count = 512
    config.table2.sampling_steps = 50
    config.table2.guidance = 4.0
    config.table2.batch = 32
    config.table2.dtype = "float32"
