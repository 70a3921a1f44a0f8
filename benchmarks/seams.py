"""What tiling costs: reconstructions in parts against those of whole clips, on real videos.

python benchmarks/seams.py --output=docs/seams.png [--work=time,space,bfloat16]

"time": PSNR of the tiled reconstruction against the whole one's, and of both against the video, by
the frame's place in its group. "space": the same over whole frames. Both in float32. "bfloat16":
how far streaming in it is from whole clips in it.
"""

import jax
import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odvae_jax import ODVAE, SpatialTiling, Streaming, TemporalTiling, decode, encode
from odvae_jax.evaluation.clips import FixedClips
from odvae_jax.pixels import to_unit_range

_WORK = flags.DEFINE_list("work", ["time", "space", "bfloat16"], "what to measure")
_CKPT = flags.DEFINE_string("ckpt", "models/small", "a model with norms per frame")
_DATA = flags.DEFINE_string("data", "sample-clips", "a source of videos (docs/data.md)")
_FRAMES = flags.DEFINE_integer("frames", 97, "of a clip")
_SIZE = flags.DEFINE_integer("size", 128, "side of a clip")
_GROUP = flags.DEFINE_integer("group", 33, "frames of a group")
_SPATIAL = flags.DEFINE_integer("spatial", 256, "side of the clips that are tiled in space")
_OUTPUT = flags.DEFINE_string("output", "seams.png", "the plot")
_MOST = 120.0  # dB, beyond which nothing is told apart


def reconstruct(vae, video, tiling=None):
    latents = encode(vae, video, tiling=tiling).mean
    return np.clip(decode(vae, latents, tiling=tiling), -1, 1)


def decibels(a, b):
    """By frame; [T]. Frames that are equal but for rounding count as `_MOST`."""
    error = np.mean((np.asarray(a[0], np.float64) - b[0]) ** 2, axis=(1, 2, 3)) / 4
    return np.minimum(-10 * np.log10(np.maximum(error, 1e-30)), _MOST)


def clips_of(size, frames):
    clips = FixedClips(_DATA.value, frames=frames, size=size)
    for clip in clips.read_all(range(len(clips))):
        if clip.frames is None:
            print(f"{clip.name} is left out: {clip.reason}")
        else:
            yield np.asarray(to_unit_range(clip.frames))[None]


def in_time(models):
    """{name: ([clips, T] against the whole, [clips, T] against the video)}."""
    step = _GROUP.value - 1
    kinds = [
        ("groups, norms per frame", "frame", TemporalTiling(_GROUP.value)),
        ("groups, norms over the clip", "clip", TemporalTiling(_GROUP.value)),
        ("streamed, norms per frame", "frame", Streaming(step)),
        ("whole, norms per frame", "frame", None),
        ("whole, norms over the clip", "clip", None),
    ]
    rows = {name: ([], []) for name, *_ in kinds}
    for video in clips_of(_SIZE.value, _FRAMES.value):
        whole = {norm: reconstruct(vae, video) for norm, vae in models.items()}
        for name, norm, tiling in kinds:
            ours = whole[norm] if tiling is None else reconstruct(models[norm], video, tiling)
            rows[name][0].append(decibels(ours, whole[norm]))
            rows[name][1].append(decibels(ours, video))
    return {name: tuple(map(np.stack, both)) for name, both in rows.items()}


def by_place(values, step):
    """[clips, T] to means over the frames at each place of a group, from the second group on.

    A group's first frame is the last that the group before it gives.
    """
    means, frames = values.mean(axis=0), np.arange(values.shape[1])
    return np.array([means[(frames > step) & (frames % step == i)].mean() for i in range(step)])


def in_space(vae):
    print(f"{'tiles, 17 frames':34}{'against the whole':>20}{'against the video':>20}")
    side = _SPATIAL.value
    kinds = [None, SpatialTiling(side // 2, side // 8)]
    rows = {tiling: ([], []) for tiling in kinds}
    for video in clips_of(side, 17):
        whole = reconstruct(vae, video)
        for tiling in kinds:
            ours = whole if tiling is None else reconstruct(vae, video, tiling)
            rows[tiling][0].append(decibels(ours, whole).mean())
            rows[tiling][1].append(decibels(ours, video).mean())
    for tiling, (whole, video) in rows.items():
        name = "whole" if tiling is None else f"{tiling.tile}, overlap {tiling.overlap}"
        against = "" if tiling is None else f"{np.mean(whole):.2f} dB"
        print(f"{name:34}{against:>20}{f'{np.mean(video):.2f} dB':>20}", flush=True)


def report_time(models):
    step = _GROUP.value - 1
    rows = in_time(models)
    print(
        f"{_CKPT.value}, {_DATA.value}, clips of {_FRAMES.value}×{_SIZE.value}×{_SIZE.value}, "
        f"groups of {_GROUP.value}, {jax.devices()[0].device_kind}"
    )
    print(f"{'PSNR':34}{'against the whole':>20}{'after a seam':>18}{'against the video':>20}")
    for name, (whole, video) in rows.items():
        seams = by_place(whole, step)[[0, 1]]
        cells = (f"{whole.mean():.2f} dB", f"{seams[1]:.2f} dB")
        cells = ("", "") if name.startswith("whole") else cells
        print(f"{name:34}{cells[0]:>20}{cells[1]:>18}{f'{video.mean():.2f} dB':>20}", flush=True)
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    titles = ("against the whole clip's", "against the video")
    for which, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for name, values in rows.items():
            if which == 1 or not name.startswith("whole"):
                style = "--" if name.startswith("whole") else "-"
                axes.plot(by_place(values[which], step), style, label=name, marker=".")
        axes.set(
            xlabel="frame in its group, from the second group on",
            ylabel="PSNR [dB]",
            title=f"reconstruction {title}",
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(_OUTPUT.value, dpi=120)
    print(_OUTPUT.value)


def in_bfloat16():
    vae = ODVAE.from_pretrained(_CKPT.value, norm="frame", dtype="bfloat16")
    tiling, shares = Streaming(_GROUP.value - 1), {"latents": [], "frames": []}
    for video in clips_of(_SIZE.value, _FRAMES.value):
        latents = np.asarray(encode(vae, video).mean)
        frames = np.asarray(decode(vae, latents))
        streamed = {
            "latents": encode(vae, video, tiling=tiling).mean,
            "frames": decode(vae, latents, tiling=tiling),
        }
        for name, whole in (("latents", latents), ("frames", frames)):
            shares[name].append(np.std(streamed[name] - whole) / np.std(whole))
    cells = ", ".join(f"{name} {np.mean(values):.4f}" for name, values in shares.items())
    print(f"streamed in bfloat16, rms of the difference over the standard deviation: {cells}")


def main(_):
    fields = {"dtype": "float32", "precision": "highest"}
    models = {n: ODVAE.from_pretrained(_CKPT.value, norm=n, **fields) for n in ("frame", "clip")}
    if "time" in _WORK.value:
        report_time(models)
    if "space" in _WORK.value:
        in_space(models["frame"])
    if "bfloat16" in _WORK.value:
        in_bfloat16()


if __name__ == "__main__":
    app.run(main)
