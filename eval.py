"""Evaluates a model on a folder of videos: `python eval.py --ckpt=runs/v4 --data=VIDEOS`.

Prints the PSNR of one clip of every video; with --output also writes each clip beside its
reconstruction (mp4) and a picture of frames (PNG) there.
"""

from pathlib import Path

from absl import app, flags, logging

_CKPT = flags.DEFINE_string("ckpt", None, "whatever ODVAE.from_pretrained takes (docs/weights.md)")
_DATA = flags.DEFINE_string("data", None, 'a folder of videos, a video, or "sample-clips"')
_FRAMES = flags.DEFINE_integer("frames", 25, "length of a clip, 4k + 1")
_SIZE = flags.DEFINE_integer("size", 256, "side of the square clips, a multiple of 8")
_START = flags.DEFINE_integer("start", 0, "first frame of the clip; negative counts from the end")
_OUTPUT = flags.DEFINE_string("output", None, "folder for the pictures")


def main(_):
    logging.set_verbosity(logging.WARNING)
    import numpy as np
    from tqdm import tqdm

    from odvae_jax import ODVAE
    from odvae_jax.evaluation import evaluate, save_pictures

    try:
        vae = ODVAE.from_pretrained(_CKPT.value)
        clips = evaluate(
            vae, _DATA.value, frames=_FRAMES.value, size=_SIZE.value, start=_START.value
        )
        results = list(tqdm(clips, unit="clip", dynamic_ncols=True))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"eval.py: {error}") from error
    blocks = f"{vae.config.time_compression}×8×8 blocks' mean"
    print(f"{'clip':30} {'PSNR [dB]':>10} {blocks:>20}")
    for r in results:
        print(f"{Path(r.path).stem:30} {r.psnr:10.2f} {r.block_mean_psnr:20.2f}")
    mean, floor = (np.mean([getattr(r, n) for r in results]) for n in ("psnr", "block_mean_psnr"))
    print(f"{'mean':30} {mean:10.2f} {floor:20.2f}")
    if _OUTPUT.value:
        for path in save_pictures(results, _OUTPUT.value):
            print(path)


if __name__ == "__main__":
    flags.mark_flags_as_required(["ckpt", "data"])
    app.run(main)
