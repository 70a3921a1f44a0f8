"""A config of a Table 2 that is done in seconds; the videos and the arms are for the tests."""

from odvae_jax.table2 import default_table2
from tests.training.denoisers import tiny


def get_config():
    config = tiny("VIDEOS")
    config.data.frames = 17
    config.steps = 4
    config.table2 = default_table2()
    config.table2.measure_at = (2,)
    config.table2.count = 4
    config.table2.sampling_steps = 2
    config.table2.guidance = 2.0
    config.table2.dtype = "float32"
    return config
