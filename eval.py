"""Compares models on videos: `python eval.py --ckpt=A --ckpt=B --data=VIDEOS --output=OUT`.

Prints a table of PSNR, SSIM, LPIPS and Fréchet video distance, and writes it with figures, the best
and the worst clip and a page that shows all (results.html) into OUT. The same command continues
what was interrupted. `python eval.py --speed` times encoding and decoding instead.
"""

import re

from absl import app, flags, logging

_CKPT = flags.DEFINE_multi_string(
    "ckpt",
    [],
    "a model, whatever ODVAE.from_pretrained takes (docs/weights.md), of training runs the EMA "
    "weights; LABEL=PATH names it in the tables; may be given several times",
)
_DATA = flags.DEFINE_string("data", None, "a source of videos (docs/data.md)")
_FRAMES = flags.DEFINE_integer("frames", 25, "length of a clip, 4k + 1")
_SIZE = flags.DEFINE_integer("size", 256, "side of the square clips, a multiple of 8")
_START = flags.DEFINE_integer("start", 0, "first frame of the clip; negative counts from the end")
_STRIDE = flags.DEFINE_integer("stride", 1, "distance of a clip's frames", lower_bound=1)
_FPS = flags.DEFINE_float("fps", None, "frames a second of the clips, instead of a stride")
_CLIPS = flags.DEFINE_integer(
    "clips", 0, "use the first so many videos only; 0 uses all", lower_bound=0
)
_TILING = flags.DEFINE_integer("tiling", None, "frames of a group of temporal tiling, such as 33")
_OUTPUT = flags.DEFINE_string("output", None, "folder for results and for going on")
_BATCH = flags.DEFINE_integer("batch", 1, "clips a device at once", lower_bound=1)
_RAW = flags.DEFINE_bool("raw", False, "training runs' raw weights, from their last checkpoints")
_DTYPE = flags.DEFINE_string("dtype", None, "of the computation: float32; bfloat16 for --speed")
_FVD = flags.DEFINE_bool("fvd", True, "compute the Fréchet video distance")
_I3D = flags.DEFINE_string("i3d", None, "an i3d_torchscript.pt for it, run by PyTorch on the CPU")
_FLOOR = flags.DEFINE_bool("floor", True, "add the mean over each latent's block of pixels")
_SHARD = flags.DEFINE_string("shard", "0/1", "measure the i-th of n parts of the clips, as in 0/4")
_SPEED = flags.DEFINE_bool("speed", False, "time --ckpt, or else the four variants at random")
_WORK = flags.DEFINE_multi_enum(
    "work", ["encode", "decode"], ["encode", "decode"], "what --speed times"
)


def compare():
    from odvae_jax.evaluation.clips import FixedClips
    from odvae_jax.evaluation.models import load_contenders
    from odvae_jax.evaluation.results import as_text, first_and_rest, notes, table
    from odvae_jax.evaluation.run import evaluate, load_meters

    if not _CKPT.value or not _DATA.value:
        raise ValueError("--ckpt and --data are needed: a model, and the videos to measure it on.")
    shard = re.fullmatch(r"(\d+)/(\d+)", _SHARD.value)
    if not shard or not int(shard[1]) < int(shard[2]):
        raise ValueError(f"--shard={_SHARD.value} is not i/n with i from 0 to n - 1.")
    shard = int(shard[1]), int(shard[2])
    if shard[1] > 1 and not _OUTPUT.value:
        raise ValueError("--shard needs --output: the parts meet there.")
    clips = FixedClips(
        _DATA.value,
        frames=_FRAMES.value,
        size=_SIZE.value,
        start=_START.value,
        stride=_STRIDE.value,
        fps=_FPS.value,
        limit=_CLIPS.value,
    )
    # In full float32 results do not depend on the batch.
    overrides = {"dtype": _DTYPE.value or "float32", "precision": "highest"}
    contenders = load_contenders(_CKPT.value, raw=_RAW.value, **overrides)
    results, written = evaluate(
        contenders,
        clips,
        load_meters(fvd=_FVD.value, i3d=_I3D.value),
        tiling=_TILING.value,
        output=_OUTPUT.value,
        batch=_BATCH.value,
        shard=shard,
        with_floor=_FLOOR.value,
    )
    if shard[1] > 1:
        print(f"part {_SHARD.value} is measured; without --shard the same command reports all.")
        return 0
    print(as_text(*table(results)))
    if len(results.rows[0].by_frame):
        print("\n" + as_text(*first_and_rest(results)))
    print("\n" + "\n".join(notes(results)))
    for path in written:
        print(path)
    return int(any(row.not_finite for row in results.rows))


def speed():
    import jax

    from odvae_jax import ODVAE, ODVAEConfig
    from odvae_jax.evaluation.models import load_contenders
    from odvae_jax.evaluation.speed import best_of, speeds

    if _TILING.value is not None or _DATA.value:
        raise ValueError("--speed times whole random clips: leave out --tiling and --data.")
    frames = _FRAMES.value if flags.FLAGS["frames"].present else 81  # the paper's for speed
    dtype = _DTYPE.value or "bfloat16"
    same = {"dtype": dtype, "param_dtype": dtype}
    models = [(c.label, c.model) for c in load_contenders(_CKPT.value, **same)] or (
        (f"variant {i}", ODVAE(ODVAEConfig.variant(i, **same), rngs=0)) for i in range(1, 5)
    )
    print(
        f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {dtype}, clips of "
        f"{frames}×{_SIZE.value}×{_SIZE.value}; clips a second: median (10th–90th percentile)"
    )
    print(
        f"{'model':24}{'work':>8}{'batch 1':>26}{'GB':>8}{'best batch':>12}{'':>26}{'GB':>8}"
        f"{'compile s':>11}"
    )
    for label, vae in models:
        for work in _WORK.value:
            measured = list(speeds(vae, work, frames, _SIZE.value))
            cells = []
            for s in (measured[0], best_of(measured)):
                rate = f"{s.clips_per_second:.2f} ({s.spread[0]:.2f}–{s.spread[1]:.2f})"
                cells.append(f"{rate:>26}{s.gigabytes:8.2f}")
            print(
                f"{label:24}{work:>8}{cells[0]}{best_of(measured).batch:12}{cells[1]}"
                f"{measured[0].compile_seconds:11.1f}",
                flush=True,
            )
    return 0


def main(_):
    from odvae_jax.compilation import use_compilation_cache

    logging.set_verbosity(logging.WARNING)
    use_compilation_cache()
    try:
        status = speed() if _SPEED.value else compare()
    except (ValueError, OSError) as error:
        raise SystemExit(f"eval.py: {error}") from error
    except RuntimeError as error:  # JAX's, which has no class of its own for it
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise SystemExit(
            "eval.py: the device's memory does not suffice: try --batch=1, --tiling, shorter or "
            "smaller clips, or --dtype=bfloat16."
        ) from error
    except KeyboardInterrupt:
        raise SystemExit("eval.py: interrupted; the same command goes on.") from None
    raise SystemExit(status)


if __name__ == "__main__":
    app.run(main)
