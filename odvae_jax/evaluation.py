"""Reconstructing clips with a model, and measuring how close they come."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from PIL import Image

from odvae_jax.autoencoder import ODVAE, check_video_shape
from odvae_jax.config import SPACE_COMPRESSION
from odvae_jax.data.sources import resolve
from odvae_jax.data.video import VideoError, centre_crop, inspect_video, read_frames, write_video
from odvae_jax.inference import to_uint8, to_unit_range
from odvae_jax.metrics.psnr import psnr


@dataclasses.dataclass(frozen=True)
class ClipResult:
    """One clip through a model: uint8 frames [T, H, W, 3], and PSNR in dB, a mean over frames.

    `block_mean_psnr` is that of the clip averaged over the blocks of pixels that one latent stands
    for: what a model must beat to be of any use.
    """

    path: str
    fps: float
    original: np.ndarray
    reconstruction: np.ndarray
    psnr: float
    block_mean_psnr: float


def evaluate(
    vae: ODVAE, path: str | os.PathLike, *, frames: int = 25, size: int = 256, start: int = 0
) -> Iterator[ClipResult]:
    """One clip of every video: the short side scaled to `size`, the centre cropped (section 4.1).

    Args:
      vae: the model; latents are the posterior's mean.
      path: what `odvae_jax.data.clips.resolve` takes.
      frames: length of a clip, 4k + 1.
      size: side of the square clips, a multiple of 8.
      start: first frame; negative counts from the video's end.

    Raises:
      ValueError: for a file that is not a video or has too few frames, named, before any is
        evaluated; or a clip size that the model does not take.
      FileNotFoundError: if the data is missing.
    """
    check_video_shape((1, frames, size, size, 3), vae.config)
    infos = []
    for file in resolve(path):
        info = inspect_video(file)
        first = start if start >= 0 else info.frames + start
        if first < 0 or first + frames > info.frames:
            raise VideoError(
                f"{file} has {info.frames} frames; {frames} from frame {start} on were asked for."
            )
        infos.append((info, first))
    reconstruct = jax.jit(_reconstruct)
    for info, first in infos:
        clip = centre_crop(read_frames(info, first, frames, short_side=size), size, size)
        reconstruction, quality = jax.device_get(reconstruct(vae, clip[None]))
        blocks = block_mean(clip / 255.0, vae.config.time_compression)
        yield ClipResult(
            path=info.path,
            fps=info.fps,
            original=clip,
            reconstruction=reconstruction[0],
            psnr=float(quality.mean()),
            block_mean_psnr=float(psnr(jnp.asarray(clip / 255.0), jnp.asarray(blocks)).mean()),
        )


def _reconstruct(vae, clips):
    video = to_unit_range(clips)
    reconstruction = jnp.clip(vae.decode(vae.encode(video).mode()), -1.0, 1.0)
    return to_uint8(reconstruction), psnr((video + 1.0) / 2.0, (reconstruction + 1.0) / 2.0)


def block_mean(
    clip: Float[np.ndarray, "t h w c"], time: int, space: int = SPACE_COMPRESSION
) -> Float[np.ndarray, "t h w c"]:
    """The clip with each block of `time` × `space` × `space` pixels averaged.

    The first frame's blocks are 1 × `space` × `space`.
    """
    parts = [clip[:1]] if time > 1 else []
    grid = dict(y=space, x=space)
    means = [
        repeat(
            reduce(part, "(n t) (h y) (w x) c -> n h w c", "mean", t=t, **grid),
            "n h w c -> (n t) (h y) (w x) c",
            t=t,
            **grid,
        )
        for part, t in [(p, 1) for p in parts] + [(clip[len(parts) :], time)]
        if len(part)
    ]
    return np.concatenate(means)


def save_pictures(results: list[ClipResult], output: str | os.PathLike) -> list[Path]:
    """Writes each clip beside its reconstruction as an mp4, and one PNG with frames of all of them.

    Returns the paths written: original left, reconstruction right; in `frames.png` original above.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    stems = [Path(result.path).stem for result in results]
    for i, (result, stem) in enumerate(zip(results, stems, strict=True)):
        path = output / (f"{stem}.mp4" if stems.count(stem) == 1 else f"{stem}_{i}.mp4")
        write_video(
            path, np.concatenate([result.original, result.reconstruction], axis=2), result.fps
        )
        written.append(path)
    rows = []
    for result in results:
        shown = np.linspace(
            0, len(result.original) - 1, num=min(4, len(result.original)), dtype=int
        )
        pair = np.stack([result.original[shown], result.reconstruction[shown]])
        rows.append(rearrange(pair, "pair n h w c -> (pair h) (n w) c"))
    width = max(row.shape[1] for row in rows)
    rows = [
        np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    path = output / "frames.png"
    Image.fromarray(np.concatenate(rows)).save(path)
    return [*written, path]
