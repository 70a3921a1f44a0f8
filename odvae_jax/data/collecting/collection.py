"""Everything that is collected, written into a folder: what is set aside first, then the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from odvae_jax import digests
from odvae_jax.data import motion
from odvae_jax.data.collecting import drawings
from odvae_jax.data.collecting.origins import HELD_OUT, ORIGINS_FILE, TRAIN, Origin, read_origins
from odvae_jax.data.collecting.packages import MissingError, default_cache, folder_of
from odvae_jax.data.processes import in_processes
from odvae_jax.data.sources.images import IMAGE_ERRORS, decode_image
from odvae_jax.data.video import (
    VideoError,
    VideoReader,
    encode_h264,
    inspect_video,
    read_frames,
    to_rgb,
)
from odvae_jax.files import one_line, printable, write_whole

LIST_FILE = "collected.json"
"""The file that says of every file where it comes from, and under which licence."""
FOLDERS = tuple(f"{part}-{what}" for part in (HELD_OUT, TRAIN) for what in ("pictures", "clips"))
_PICTURE_SIDE = 512  # the most pixels along the shorter side of a picture
_LEAST_SIDE = 300  # smaller pictures are not filmed
_PART, _PARTS = 96, 6  # a clip for training is cut into parts of so many frames, so many at most
_DRAWN_EVERY = 5  # one made clip in so many is drawn
_PICTURES_PER_DRAWING = 8
_MADE = "made by this program"


@dataclasses.dataclass(frozen=True)
class Report:
    """What was collected.

    Attributes:
      text: a summary for people.
      whole: whether nothing was missing, and everything was as recorded.
    """

    text: str
    whole: bool


def collect(
    dest: str | os.PathLike,
    *,
    cache: str | os.PathLike | None = None,
    clips: int = 600,
    seed: int = 0,
    size: int = 256,
    pictures_only: bool = False,
    workers: int = 1,
    origins: str | os.PathLike = ORIGINS_FILE,
    offline: bool = False,
) -> Report:
    """Collects pictures and clips for training, and others that are set aside for testing.

    Writes the folders `train-pictures`, `train-clips`, `held-out-pictures` and `held-out-clips`,
    and `collected.json`. What is missing is named in the report, and the rest is collected.

    Args:
      dest: the folder to write: a new or empty one, or one that holds a collection, which is
        replaced.
      cache: the folder in which unpacked packages are kept (`default_cache` unless given).
      clips: the number of clips that are made by camera motion, one in five of them from drawings.
      seed: the seed of what is made.
      size: the shorter side of clips in pixels.
      pictures_only: whether clips for training are left out.
      workers: the number of processes.
      origins: the list of packages and their files.
      offline: whether nothing may be downloaded.

    Raises:
      ValueError: if the folder holds something else, or nothing at all could be collected.
    """
    dest = Path(dest)
    _begin(dest)
    listed = sorted(read_origins(origins), key=lambda o: o.part != HELD_OUT)
    folders, complaints = _fetch(listed, Path(cache or default_cache()), offline)
    how = {"dest": str(dest), "size": size, "seed": seed}
    jobs = [job for o in listed if o in folders for job in _jobs(o, folders[o], pictures_only)]
    if not jobs:
        raise ValueError("\n  ".join(["nothing could be collected:", *complaints]))
    records, faults = _work(how, jobs, workers)
    pictures = sum(r["part"] == TRAIN and "side" in r for r in records)
    jobs = [{"do": "drawing", "number": i} for i in range(-(-pictures // _PICTURES_PER_DRAWING))]
    if not pictures_only:
        jobs += _motion_jobs(records, clips, seed)
    made, more = _work(how, jobs, workers)
    records, complaints = records + made, complaints + faults + more
    options = {"seed": seed, "size": size, "clips": clips, "pictures_only": pictures_only}
    packages = [
        {"package": o.name, "registry": o.registry, "version": o.version, "licence": o.licence,
         "part": o.part, "collected": o in folders} for o in listed
    ]  # fmt: skip
    content = {**options, "complaints": complaints, "packages": packages, "files": records}
    write_whole(dest / LIST_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return Report(_summary(dest, records, complaints), not complaints)


def _begin(dest: Path) -> None:
    """Makes the folder, or empties it of an earlier collection."""
    if dest.exists() and any(dest.iterdir()):
        if not (dest / LIST_FILE).is_file():
            raise ValueError(
                f"{printable(dest)} holds other files; choose an empty folder, or a new one."
            )
        for name in FOLDERS:
            if (dest / name).is_dir():
                shutil.rmtree(dest / name)
    dest.mkdir(parents=True, exist_ok=True)
    write_whole(dest / LIST_FILE, "{}\n")  # so that an interrupted collection is known as one


def _fetch(
    origins: list[Origin], cache: Path, offline: bool
) -> tuple[dict[Origin, Path], list[str]]:
    """Returns the folders with the packages' files, and what is missing or other than recorded."""
    folders, complaints = {}, []
    for origin in tqdm(origins, unit="package", dynamic_ncols=True):
        try:
            folders[origin] = folder_of(origin, cache, offline=offline)
        except MissingError as error:
            complaints.append(
                f"{origin.name} ({origin.part}) is missing: {one_line(error)}. Install it by: "
                f"{origin.install}"
            )
            continue
        recorded = {f.path: [f.size, f.digest] for f in [*origin.pictures, *origin.clips]}
        found = digests.differences(folders[origin], recorded)
        complaints += [f"{origin.name} ({origin.part}): {text}" for text in found]
    return folders, complaints


def _jobs(origin: Origin, folder: Path, pictures_only: bool) -> list[dict]:
    """Returns what is to be done with a package's files that are there."""
    jobs = []
    name = origin.name.replace("/", "+")
    for i, file in enumerate(origin.pictures):
        out = f"{origin.part}-pictures/{name}/{i:03d}-{Path(file.path).stem}"
        jobs.append({"do": "picture", "file": file, "out": out})
    for i, file in enumerate(origin.clips):
        real = "" if origin.part == HELD_OUT else "real/"
        out = f"{origin.part}-clips/{real}{name}/{i:03d}-{Path(file.path).stem}"
        jobs.append({"do": "held-out clip" if file.start is not None else "clip", "file": file,
                     "out": out})  # fmt: skip
    jobs = [job for job in jobs if (folder / job["file"].path).is_file()]
    if pictures_only:
        jobs = [job for job in jobs if job["do"] != "clip"]
    said = {"package": origin.name, "licence": origin.licence, "part": origin.part}
    return [{**job, "source": str(folder / job["file"].path), "said": said} for job in jobs]


def _motion_jobs(records: list[dict], clips: int, seed: int) -> list[dict]:
    """Returns the clips to make; every photograph is filmed three times as often as art."""
    pictures = [r for r in records if r["part"] == TRAIN and r.get("side", 0) >= _LEAST_SIDE]
    pool = [r for r in pictures for _ in range(3 if r["kind"] == "photograph" else 1)]
    rng = np.random.default_rng([seed, 2**20])
    order: list[dict] = []
    while len(order) < clips and pool:
        order += [pool[i] for i in rng.permutation(len(pool))]
    jobs = []
    for i in range(clips):
        if i % _DRAWN_EVERY == _DRAWN_EVERY - 1 or not pool:
            jobs.append({"do": "drawn clip", "number": i})
        else:
            pair = [order[i], pool[rng.integers(len(pool))]]
            jobs.append({"do": "motion", "number": i, "pictures": pair})
    return jobs


def _work(how: dict, jobs: list[dict], workers: int) -> tuple[list[dict], list[str]]:
    """Does the jobs in processes; returns the records of the files, and what went wrong."""
    records, complaints = [], []
    done = in_processes(_do, how, jobs, workers, _lost)
    bar = tqdm(total=len(jobs), unit="file", dynamic_ncols=True)
    with bar, contextlib.closing(done):
        for found, complaint in done:
            records += found
            complaints += [complaint] if complaint else []
            bar.update()
    return records, complaints


def _do(how: dict, job: dict) -> tuple[list[dict], str]:
    """Does one job; returns the records of its files, and what went wrong, "" for nothing."""
    try:
        return _DO[job["do"]](how, job), ""
    except (VideoError, *IMAGE_ERRORS) as error:
        file = job["file"].path
        return [], f"{job['said']['package']}: {file} cannot be read: {one_line(error)}"


def _lost(job: dict, reason: str) -> tuple[list[dict], str]:
    """What comes of a job that a process died of."""
    what = job["file"].path if "file" in job else f"{job['do']} {job['number']}"
    return [], f"{what} came to nothing: {reason}"


def _write(how: dict, name: str, content: bytes, **said: Any) -> dict:
    path = Path(how["dest"], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"path": name, **said, "size": len(content), "digest": digests.of_bytes(content)}


def _picture(how: dict, job: dict) -> list[dict]:
    """Scales a picture; what is set aside is stored without loss."""
    image = _opened(job["source"])
    short = min(image.size)
    if short > _PICTURE_SIDE:
        sides = tuple(max(round(s * _PICTURE_SIDE / short), 1) for s in image.size)
        image = image.resize(sides, Image.Resampling.LANCZOS)
    lossless = job["said"]["part"] == HELD_OUT
    name = job["out"] + (".png" if lossless else ".jpg")
    content = _encoded(image, lossless)
    said = {"kind": job["file"].kind, "from": job["file"].path, **job["said"]}
    return [_write(how, name, content, **said, side=min(image.size))]


def _opened(path: str) -> Image.Image:
    """Reads a picture as RGB; where it is transparent, a pale sky is seen."""
    image = Image.open(path)
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = ImageOps.exif_transpose(image).convert("RGBA")
        sky = np.linspace([120, 160, 210], [225, 232, 240], image.height)[:, None]
        sky = np.broadcast_to(sky, (image.height, image.width, 3)).round().astype(np.uint8)
        return Image.alpha_composite(Image.fromarray(sky).convert("RGBA"), image).convert("RGB")
    return Image.fromarray(decode_image(path, None))


def _encoded(image: Image.Image, lossless: bool) -> bytes:
    file = io.BytesIO()
    if lossless:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _held_out_clip(how: dict, job: dict) -> list[dict]:
    """Takes the frames that are set aside, nearly without loss."""
    info, start = inspect_video(job["source"]), job["file"].start
    count = min(motion.FRAMES, info.frames - start)
    side = min(how["size"], info.width, info.height)
    frames = read_frames(info, start, count, short_side=side)
    said = {"kind": "clip", "from": job["file"].path, **job["said"], "frames": count}
    content = _encoded_clip(frames, info.fps, crf=8)
    return [_write(how, f"{job['out']}-{start}.mp4", content, **said, start=start, fps=info.fps)]


def _real_clip(how: dict, job: dict) -> list[dict]:
    """Cuts a clip into parts, so that long clips are not drawn as rarely as short ones."""
    records, said = [], {"kind": "clip", "from": job["file"].path, **job["said"]}
    with VideoReader(job["source"]) as video:
        waiting, first = [], 0
        fps, side = video.fps, how["size"]
        for number, (_, frame) in enumerate(video.frames_from(None)):
            short = min(side, frame.width, frame.height)
            waiting.append(to_rgb([frame], short)[0])
            if len(waiting) == _PART:
                records.append(_part(how, job, np.stack(waiting), first, fps, said))
                waiting, first = [], number + 1
            if len(records) == _PARTS:
                break
        if len(waiting) >= motion.FRAMES:
            records.append(_part(how, job, np.stack(waiting), first, fps, said))
    return records


def _part(how, job, frames, first, fps, said) -> dict:
    name, content = f"{job['out']}-{first:04d}.mp4", _encoded_clip(frames, fps, crf=12)
    return _write(how, name, content, **said, frames=len(frames), start=first, fps=fps)


def _motion(how: dict, job: dict) -> list[dict]:
    """Films two photographs."""
    rng = np.random.default_rng([how["seed"], job["number"]])
    images = []
    for picture in job["pictures"]:
        with Image.open(Path(how["dest"], picture["path"])) as image:
            images.append(image.convert("RGB"))
    frames = motion.clip_of_pictures(rng, images, size=how["size"])
    used = {r["path"]: r for r in job["pictures"]}.values()
    said = {
        "kind": "motion",
        "part": TRAIN,
        "from": [r["path"] for r in used],
        "package": sorted({r["package"] for r in used}),
        "licence": sorted({r["licence"] for r in used}),
    }
    return [_made(how, job, "motion", frames, said)]


def _drawn_clip(how: dict, job: dict) -> list[dict]:
    rng = np.random.default_rng([how["seed"], job["number"]])
    frames = drawings.clip_of_drawings(rng, size=how["size"])
    return [_made(how, job, "drawn", frames, {"kind": "drawn", "part": TRAIN, "from": _MADE})]


def _encoded_clip(frames: np.ndarray, fps: float, crf: int) -> bytes:
    """Encodes slowly: with threads or assembler, the same frames may give other bytes."""
    exact = {"threads": "1", "bf": "0", "x264-params": "asm=0"}
    return encode_h264(frames, fps, crf=crf, **exact)


def _made(how, job, folder, frames, said) -> dict:
    name = f"train-clips/{folder}/{job['number']:05d}.mp4"
    content = _encoded_clip(frames, motion.FPS, crf=12)
    return _write(how, name, content, **said, frames=len(frames), fps=motion.FPS)


def _drawing(how: dict, job: dict) -> list[dict]:
    kinds = list(drawings.KINDS)
    rng = np.random.default_rng([how["seed"], 2**21 + job["number"]])
    image = drawings.drawing(rng, 384, 384, kinds[job["number"] % len(kinds)])
    said = {"kind": "drawn", "part": TRAIN, "from": _MADE}
    return [_write(how, f"train-pictures/drawn/{job['number']:03d}.jpg", _encoded(image, False),
                   **said)]  # fmt: skip


_DO = {
    "picture": _picture,
    "held-out clip": _held_out_clip,
    "clip": _real_clip,
    "motion": _motion,
    "drawn clip": _drawn_clip,
    "drawing": _drawing,
}


def _summary(dest: Path, records: list[dict], complaints: list[str]) -> str:
    """Returns a summary for people."""
    lines = [f"{printable(dest)}: {sum(r['size'] for r in records) / 1e6:.1f} MB"]
    for part in (HELD_OUT, TRAIN):
        mine = [r for r in records if r["part"] == part]
        count = Counter(r["kind"] for r in mine)
        seconds = Counter()
        for r in mine:
            if "frames" in r:
                seconds[r["kind"]] += r["frames"] / r["fps"]
        texts = [
            f"{count[kind]} {name}" + (f" ({seconds[kind]:.0f} s)" if seconds[kind] else "")
            for kind, name in (
                ("photograph", "photographs"),
                ("art", "rendered or painted pictures"),
                ("drawn", "drawings, still and moving"),
                ("clip", "real clips"),
                ("motion", "clips made from photographs"),
            )
            if count[kind]
        ]
        lines.append(f"{part}: {', '.join(texts) or 'nothing'}")
    if complaints:
        lines.append(f"{len(complaints)} missing or other than recorded:")
    return "\n  ".join([*lines, *complaints])
