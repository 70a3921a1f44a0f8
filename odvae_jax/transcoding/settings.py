"""What is told to a run over files, and what came of it."""

from __future__ import annotations

import dataclasses

from odvae_jax.data.latents import Statistics
from odvae_jax.tiling import Tiling


@dataclasses.dataclass(frozen=True)
class Settings:
    """How files are read, computed and written.

    Attributes:
      tiling: how clips are cut in time, and perhaps frames in space. None takes what the latents
        were made with when they are decoded. For videos, None takes `Streaming(32)` for models that
        can be streamed and `TemporalTiling(33)` for others.
      short_side: the length in pixels to which the shorter side of videos is scaled; None keeps the
        size.
      size: the number of rows and columns that are cut from the centre of videos; None keeps the
        whole frame.
      content: what files of latents hold: "mean", "moments" or "sample" of the posterior.
      store: the dtype of latents in files: "float32", "float16" or "bfloat16".
      seed: the seed of samples.
      crf: the quality of H.264 in written videos, from 0 to 51; lower is better and larger.
      alone: whether reconstructions are written alone, not beside the originals.
      readers: the number of files that are read at the same time.
      threads: the number of threads that scale the frames of one file.
    """

    tiling: tuple[Tiling, ...] | None = None
    short_side: int | None = None
    size: int | None = None
    content: str = "mean"
    store: str = "float32"
    seed: int = 0
    crf: int = 16
    alone: bool = False
    readers: int = 2
    threads: int = 2


@dataclasses.dataclass
class Outcome:
    """What came of a run over files.

    Attributes:
      done: the number of files written.
      skipped: the number of files that were there already.
      frames: the number of frames of the videos that were read or written.
      seconds: the time that the run took.
      problems: what is wrong with a file, by the path of the file that was read.
      statistics: the statistics of the latents, of files that were there already too.
      psnr: the PSNR of each reconstruction in dB, a mean over its frames, by the path of the video.
    """

    done: int = 0
    skipped: int = 0
    frames: int = 0
    seconds: float = 0.0
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    psnr: dict[str, float] = dataclasses.field(default_factory=dict)
