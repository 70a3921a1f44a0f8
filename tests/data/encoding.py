"""Sources encoded into datasets of latents, for tests of what travels with them."""

import jax

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.latents import LatentDataset
from odvae_jax.latents.buckets import Size
from odvae_jax.transcoding import Cut, DatasetSettings, encode_dataset
from tests.two_levels import CAUSAL


def encoded_columns(source, dest):
    """The columns of each video's record, by the video's number."""
    vae = ODVAE(ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm="frame"))
    cut = Cut(buckets=(Size(5, 16, 16),), clips_per_video=1)
    settings = DatasetSettings(cut=cut, batch=2)
    given = {"devices": jax.devices()[:1], "bar": False}
    summary = encode_dataset(vae, "m", source, str(dest), settings, **given)
    assert not summary.problems
    dataset = LatentDataset(dest)
    return {
        item["place"]["video"]: item["columns"]
        for item in map(dataset.__getitem__, range(len(dataset)))
    }
