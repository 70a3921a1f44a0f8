"""Makes the pictures of README and of the gallery with the small model, in some minutes on a CPU.

python docs/gallery.py --output=docs [--only=demo,clips,models,seams,latents,shapes]

Each is a WebP file, moving or not, of what is installed along: no video and no model is needed.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import odvae_jax
from odvae_jax.data.sources import open_source
from odvae_jax.data.sources.base import Sampling
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.evaluation.models import block_mean
from odvae_jax.evaluation.pictures import MAGNIFIED

GAP = 4  # pixels between pictures
HEADER = 18  # pixels above a column, for its name
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_reconstruct = jax.jit(lambda vae, clips: odvae_jax.decode_uint8(vae, _means(vae, clips)))


def _means(vae, clips):
    return odvae_jax.encode_uint8(vae, clips).mean


def reconstruct(name, clips):
    """What a model that comes with the package makes of uint8 clips [T, H, W, 3], one by one."""
    vae = odvae_jax.from_pretrained(name, dtype="float32")
    return [np.asarray(_reconstruct(vae, clip[None])[0]) for clip in clips]


def sample_clips(frames, size, start):
    clips = FixedClips("sample-clips", frames=frames, size=size, start=start)
    return [clip.frames for clip in clips.read_all(range(len(clips)))]


def difference(original, made):
    apart = np.abs(made.astype(np.int16) - original)
    return np.minimum(apart * MAGNIFIED, 255).astype(np.uint8)


def named(name, frames):
    """Frames with a name above them."""
    header = Image.new("RGB", (frames.shape[2], HEADER), "white")
    font = ImageFont.truetype(str(FONT), 11)
    ImageDraw.Draw(header).text((2, 2), name, fill="black", font=font)
    strip = np.broadcast_to(np.asarray(header), (len(frames), HEADER, frames.shape[2], 3))
    return np.concatenate([strip, frames], axis=1)


def joined(parts, axis):
    """Clips beside (axis 2) or below (axis 1) each other, with a white gap between them."""
    t, h, w, _ = parts[0].shape
    gap = np.full((t, h, GAP, 3) if axis == 2 else (t, GAP, w, 3), 255, np.uint8)
    rest = [piece for part in parts[1:] for piece in (gap, part)]
    return np.concatenate([parts[0], *rest], axis=axis)


def save(path, frames, *, fps=12, quality=60):
    first, *rest = map(Image.fromarray, frames)
    moving = {"save_all": True, "append_images": rest, "duration": round(1000 / fps), "loop": 0}
    first.save(path, quality=quality, method=6, **(moving if rest else {}))
    print(f"{path}: {len(frames)} frames of {first.width}×{first.height}, {path.stat().st_size} B")


def demo(path):
    """Three clips above what the small model makes of them."""
    clips = sample_clips(33, 160, -33)
    made = reconstruct("small", clips)
    rows = [joined(row, 2) for row in (clips, made)]
    save(path, joined(rows, 1), quality=55)


def clips(path):
    """A clip, its reconstruction, and the magnified difference."""
    (original, *_) = sample_clips(17, 160, 0)
    (made,) = reconstruct("small", [original])
    shown = {"original": original, "small": made}
    shown[f"difference ×{MAGNIFIED}"] = difference(original, made)
    save(path, joined([named(*item) for item in shown.items()], 2), quality=25)


def models(path):
    """The last frame of a clip beside what both models and the mean of blocks make of it."""
    original = sample_clips(17, 192, -17)[1]
    blocks = np.asarray(block_mean(original.astype(np.float32), 4, 8)).round().astype(np.uint8)
    shown = {"original": original, "mean of 4×8×8 blocks": blocks}
    shown |= {name: reconstruct(name, [original])[0] for name in ("small-image", "small")}
    save(path, joined([named(name, clip[-1:]) for name, clip in shown.items()], 2), quality=80)


def seams(path):
    """A frame after a seam: how far it is from that of the whole clip, in groups and in chunks."""
    clip = sample_clips(33, 160, 0)[0]
    vae = odvae_jax.from_pretrained("small", dtype="float32")

    def made(tiling):
        z = odvae_jax.encode_uint8(vae, clip[None], tiling=tiling).mean
        return np.asarray(odvae_jax.decode_uint8(vae, z, tiling=tiling)[0])

    whole = made(None)
    tilings = {"groups": odvae_jax.TemporalTiling(17), "streamed": odvae_jax.Streaming(16)}
    parts = {name: made(tiling) for name, tiling in tilings.items()}
    shown = {"whole clip": whole}
    shown |= {f"{name}: difference ×{MAGNIFIED}": difference(whole, p) for name, p in parts.items()}
    save(path, joined([named(name, frames[17:18]) for name, frames in shown.items()], 2))


def latents(path):
    """A clip beside its latents: three of their four channels as red, green and blue."""
    clip = sample_clips(33, 160, 0)[0]
    vae = odvae_jax.from_pretrained("small", dtype="float32")
    z = vae.normalise(np.asarray(odvae_jax.encode_uint8(vae, clip[None]).mean[0]))
    colours = ((np.clip(z[..., :3], -2.5, 2.5) + 2.5) * 51).astype(np.uint8)
    large = colours.repeat(8, axis=1).repeat(8, axis=2)
    in_time = large[(np.arange(len(clip)) + 3) // 4]  # latent frame j stands for 4 j - 3 to 4 j
    save(path, joined([named("video", clip), named("latents", in_time)], 2)[::2], fps=8, quality=30)


def shapes(path):
    """The eight classes of moving-shapes."""
    source = open_source("moving-shapes:clips=8")
    sampling = Sampling(17, short_side=104, stride=(2, 2))
    shown = [
        named(source.columns(i)["motion"], source.read(i, sampling, 2, lambda _: 0))
        for i in range(8)
    ]
    rows = [joined(shown[:4], 2), joined(shown[4:], 2)]
    save(path, joined(rows, 1), fps=10, quality=20)


PICTURES = {
    "demo": demo, "clips": clips, "models": models, "seams": seams, "latents": latents,
    "shapes": shapes,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="docs", help="the folder of the pictures")
    parser.add_argument("--only", default=",".join(PICTURES), help="their names, with commas")
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only.split(","):
        stem = name if name == "demo" else f"gallery-{name}"
        PICTURES[name](folder / f"{stem}.webp")


if __name__ == "__main__":
    main()
