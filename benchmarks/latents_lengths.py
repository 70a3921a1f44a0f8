"""What videos of many sizes and lengths cost: programs that are compiled, and time.

python benchmarks/latents_lengths.py

First 60 videos of 12 frame sizes and 20 lengths become a dataset of latents, in buckets and as they
are, each in a new process that has compiled nothing before. Then a folder of 60 short videos of one
size and 20 lengths is encoded into files by `odvae encode`, twice, each time in a new process; the
second finds its programs in JAX's cache. All with a model with random weights and norms per frame.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SIDES = [(256, 256), (240, 320), (320, 240), (256, 384), (384, 256), (224, 224)]
_SIDES += [(272, 480), (480, 272), (288, 288), (240, 432), (320, 320), (256, 448)]
_BUCKETS = "17x256x256,17x208x272,17x272x208,17x192x320,17x320x192"


def write_videos(folder: Path, sides: list[tuple[int, int]]) -> None:
    """Writes 60 real H.264 files of 20 lengths from 20 to 77 frames."""
    import numpy as np

    from odvae_jax.data.video import write_video

    folder.mkdir()
    for number in range(60):
        height, width = sides[number % len(sides)]
        rng = np.random.default_rng(number)
        y, x = np.mgrid[:height, :width]
        waves = rng.uniform(0.02, 0.2, (3, 3))
        noise = rng.normal(0, 6, (height, width, 3))
        video = [
            np.stack([np.sin(a * x + b * y + c * t) for a, b, c in waves], -1) * 100 + noise + 128
            for t in range(20 + 3 * (number // 3))
        ]
        write_video(folder / f"{number:02}.mp4", np.clip(video, 0, 255).astype(np.uint8), 24)


def save_model(folder: str, width: str) -> None:
    """Saves a model with random weights and norms per frame."""
    from odvae_jax import ODVAE, ODVAEConfig

    width = int(width)
    ODVAE(
        ODVAEConfig.variant(4, width=width, groups=min(width // 4, 32), norm="frame")
    ).save_pretrained(folder)


def _dtype() -> str:
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def write_dataset(source: str, model: str, dest: str, buckets: str) -> None:
    """Encodes a dataset; prints programs and seconds as JSON."""
    import jax

    from odvae_jax import ODVAE
    from odvae_jax.latents.shards import ShardWriter
    from odvae_jax.transcoding import Cut, DatasetSettings, encode_dataset, parse_buckets

    vae = ODVAE.from_pretrained(model, dtype=_dtype())
    names, first = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **more: (
            names.append(str(more.get("fun_name")))
            if name.endswith("backend_compile_duration")
            else None
        )
    )
    add = ShardWriter.add

    def noted(*given):
        first.append(time.perf_counter())
        return add(*given)

    ShardWriter.add = noted
    sizes = parse_buckets(buckets, time=4, space=8) if buckets else ()
    start = time.perf_counter()
    summary = encode_dataset(
        vae,
        model,
        source,
        dest,
        DatasetSettings(cut=Cut(buckets=sizes), workers=0 if not buckets else 4),
        devices=jax.local_devices()[:1],
        bar=False,
    )
    if summary.problems:
        sys.exit("\n".join(list(summary.problems.values())[:5]))
    programs = [name for name in names if "encode_unit" in name or "encode_part" in name]
    print(
        json.dumps(
            {
                "records": summary.clips,
                "buckets": len(summary.description.buckets),
                "programs": len(programs),
                "first": first[0] - start,
                "all": time.perf_counter() - start,
            }
        )
    )


def own_rate(model: str) -> None:
    """Prints the frames per second of the device for chunks of 32 frames that are there already."""
    import jax
    import numpy as np

    from odvae_jax import ODVAE
    from odvae_jax.layers.carry import START
    from odvae_jax.tiling.from_host import encode_part

    step = jax.jit(encode_part, static_argnames=("final", "space"))
    vae = ODVAE.from_pretrained(model, dtype=_dtype())
    video = jax.device_put(np.zeros((1, 33, 256, 256, 3), np.uint8))
    _, state = step(vae, video, START, space=None)
    chunk = video[:, 1:]
    jax.block_until_ready(step(vae, chunk, state, space=None))
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 5:
        jax.block_until_ready([step(vae, chunk, state, space=None)[0] for _ in range(8)])
        rounds += 8
    print(rounds * 32 / (time.perf_counter() - start))


def _run(*given: str, cache: Path, **more: str) -> tuple[str, float]:
    """Runs something in a new process; returns what it printed, and the seconds that it took."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), **more}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, *given], capture_output=True, text=True, env=environment
    )
    if ended.returncode:
        sys.exit(ended.stdout[-2000:] + ended.stderr[-4000:])
    return ended.stdout, time.perf_counter() - start


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--width", type=int, default=128, help="The model's width.")
    parser.add_argument("--only", choices=("sizes", "lengths"), help="One of the tables.")
    parser.add_argument("--do", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.do:
        name, *more = given.do
        return {"save": save_model, "write": write_dataset, "own": own_rate}[name](*more)
    with tempfile.TemporaryDirectory() as name:
        # In a process of its own, and on the CPU: this one must leave the GPU's memory to others.
        made = ["--do", "save", str(Path(name) / "model"), str(given.width)]
        _run(__file__, *made, cache=Path(name) / "cache", JAX_PLATFORMS="cpu")
        if given.only != "lengths":
            _sizes(Path(name))
        if given.only != "sizes":
            _lengths(Path(name))


def _sizes(folder: Path) -> None:
    """Prints the table of a dataset of many frame sizes."""
    write_videos(folder / "many", _SIDES)
    print("60 videos of 12 frame sizes and 20 lengths")
    print("| | records | programs | s to the first record | s in all |\n|---|---|---|---|---|")
    for label, buckets in (("5 buckets", _BUCKETS), ("whole videos", "")):
        where = (str(folder / "many"), str(folder / "model"), str(folder / label))
        said, _ = _run(__file__, "--do", "write", *where, buckets, cache=folder / f"cache {label}")
        row = json.loads(said.splitlines()[-1])
        print(
            f"| {label} | {row['records']} | {row['programs']} | {row['first']:.1f} | "
            f"{row['all']:.1f} |",
            flush=True,
        )


def _lengths(folder: Path) -> None:
    """Prints the table of a folder of videos of one size and many lengths."""
    write_videos(folder / "one", [(256, 256)])
    model, cache = str(folder / "model"), folder / "cache"
    print("60 videos of 256×256 and 20 lengths, `odvae encode` to files")
    print("| call | frames/s | of the device's own rate | s from its start to its end |")
    print("|---|---|---|---|")
    rows = []
    for call in ("first", "second"):
        command = ["-m", "odvae_jax", "encode", str(folder / "one"), str(folder / call)]
        said, seconds = _run(*command, f"--ckpt={model}", cache=cache)
        rows.append((call, float(re.search(r"([\d.]+) frames/s", said)[1]), seconds))
    own = float(_run(__file__, "--do", "own", model, cache=cache)[0].splitlines()[-1])
    for call, rate, seconds in rows:
        print(f"| {call} | {rate:.0f} | {rate / own:.0%} | {seconds:.1f} |")
    print(f"the device's own rate: {own:.0f} frames/s")


if __name__ == "__main__":
    main()
