"""What `fuzz` damages, and what must be true of the result.

A target is a function of a source of randomness, the folder of whole files and an empty folder.
It returns the name that an error must show (None for any), and a function that uses the damaged
thing and returns None, or a sentence about what is wrong with the result.
"""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.robustness.mutations import ODD_VALUES, damaged_bytes, damaged_json, deep_json

Target = Callable[[random.Random, Path, Path], tuple[str | None, Callable[[], str | None]]]


def make_corpus(corpus: Path) -> None:
    """Writes the whole files that the targets damage, unless they are there already."""
    if (corpus / "whole").exists():
        return
    shutil.rmtree(corpus, ignore_errors=True)
    for name in ("videos", "pictures", "pickles", "model", "run"):
        (corpus / name).mkdir(parents=True)
    _write_videos(corpus / "videos")
    _write_pictures(corpus / "pictures")
    _write_pickles(corpus / "pickles")
    _write_model_and_latents(corpus)
    _write_packed(corpus)
    _write_run(corpus / "run")
    (corpus / "whole").touch()


def _frames(count, height, width):
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([x * 4 + i * 9, y * 5, (x + y + i) * 3], -1) % 256 for i in range(count)]
    return np.stack(frames).astype(np.uint8)


def _write_videos(folder):
    kinds = {
        "a.mp4": ("libx264", "yuv420p"),
        "b.mkv": ("libx264", "yuv444p"),
        "c.avi": ("mpeg4", "yuv420p"),
        "d.webm": ("libvpx-vp9", "yuv420p"),
        "e.gif": ("gif", "rgb8"),
        "f.ts": ("mpeg2video", "yuv420p"),
        "g.mov": ("mjpeg", "yuvj420p"),
        "h.flv": ("flv", "yuv420p"),
    }
    for name, (codec, pixels) in kinds.items():
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
            for frame in _frames(9, 32, 48):
                picture = av.VideoFrame.from_ndarray(frame, "rgb24")
                container.mux(stream.encode(picture.reformat(format=pixels)))
            container.mux(stream.encode())


def _write_pictures(folder):
    (frame,) = _frames(1, 40, 56)
    for suffix in ("png", "jpg", "webp", "bmp", "tiff"):
        Image.fromarray(frame).save(folder / f"p.{suffix}")
    deep = frame[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")


def _write_pickles(folder):
    values = {f"layer{i}.weight": np.full((3, i + 1), i, np.float32) for i in range(4)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps({"state_dict": values, "epoch": 3}, protocol)
        (folder / f"numpy{protocol}.ckpt").write_bytes(content)
    try:
        import torch
    except ImportError:
        return
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    tensors["half"] = torch.ones(4, dtype=torch.bfloat16)
    whole = {"state_dict": tensors, "note": ["a", ("b", 2)]}
    torch.save(whole, folder / "zip.ckpt")
    torch.save(whole, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)


def _write_model_and_latents(corpus):
    from odvae_jax import ODVAE, ODVAEConfig
    from odvae_jax.cli import main
    from tests.two_levels import CAUSAL

    config = ODVAEConfig(structure=CAUSAL, width=8, groups=4, norm="frame")
    ODVAE(config, rngs=0).save_pretrained(corpus / "model", overwrite=True)
    for content in ("mean", "moments", "sample"):
        for store in ("float32", "bfloat16"):
            target = str(corpus / "latents" / f"{content}-{store}.safetensors")
            given = [f"--content={content}", f"--store={store}", f"--ckpt={corpus / 'model'}"]
            assert main(["encode", str(corpus / "videos" / "a.mp4"), target, *given]) == 0


def _write_packed(corpus):
    from odvae_jax.cli import main

    for kind in ("h264", "raw"):
        given = [f"--kind={kind}", "--short-side=32", "--workers=1"]
        source = str(corpus / "videos" / "a.mp4")
        assert main(["data", "pack", source, str(corpus / "packed" / kind), *given]) == 0


def _write_run(workdir):
    import jax

    from odvae_jax.training.loop import train
    from tests.two_levels import get_config

    config = get_config()
    config.data.update({"path": "sample-clips", "frames": 1, "size": 16, "short_side": 16})
    config.loss.perceptual_weight = config.discriminator.weight = 0.0
    config.update({"batch_size": 2, "steps": 2, "validate_every": 0, "log_every": 1})
    train(config, workdir, devices=jax.devices()[:1])


# ---------------------------------------------------------------- weights


def weights(rng, corpus, scratch):
    """A model of the own layout: the same parameters and config, or refused."""
    from odvae_jax import ODVAE
    from odvae_jax.parameters import named_parameters

    folder = scratch / "model"
    shutil.copytree(corpus / "model", folder)
    file = folder / rng.choice(("config.json", "model.safetensors", "model.safetensors"))
    if file.suffix == ".json" and rng.random() < 0.8:
        file.write_text(_json_text(rng, json.loads(file.read_text())))
    else:
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))

    def use():
        found = ODVAE.from_pretrained(folder)
        whole = ODVAE.from_pretrained(corpus / "model")
        if found.config != whole.config:
            return f"another config was taken: {found.config}"
        ours, theirs = named_parameters(whole), named_parameters(found)
        return _difference({n: ours[n][...] for n in ours}, {n: theirs[n][...] for n in theirs})

    return "model", use


def safetensors_headers(rng, corpus, scratch):
    """A file of weights whose header is odd: read, or refused."""
    from odvae_jax.checkpoints.files import read_weight_file

    content = (corpus / "model" / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = _json_text(rng, json.loads(content[8 : 8 + length])).encode("utf-8", "replace")
    path = scratch / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])

    def use():
        for value in dict(read_weight_file(path).content).values():
            np.asarray(value).sum()

    return "odd.safetensors", use


def pickles(rng, corpus, scratch):
    """A damaged checkpoint of PyTorch or NumPy: read, or refused."""
    files = sorted((corpus / "pickles").iterdir())
    path = scratch / "odd.ckpt"
    others = [f.read_bytes() for f in files]
    path.write_bytes(damaged_bytes(rng, rng.choice(others), others))
    return "odd.ckpt", lambda: _read_weights(path)


def pickle_programs(rng, corpus, scratch):
    """A pickle of random instructions: read, or refused."""
    path = scratch / "odd.ckpt"
    path.write_bytes(_random_program(rng))
    return "odd.ckpt", lambda: _read_weights(path)


def _read_weights(path):
    from odvae_jax.checkpoints.files import read_weight_file

    read_weight_file(path)


def _random_program(rng):
    text = lambda: rng.choice((b"a", b"torch", b"numpy", b"x" * 300))  # noqa: E731
    names = (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"ccollections\nOrderedDict\n",
        b"cbuiltins\nlist\n",
        b"cos\nsystem\n",
        b"ctorch\nFloatStorage\n",
    )
    number = lambda: rng.choice((0, 1, 3, 255, 2**16, 2**31 - 1))  # noqa: E731
    parts = [
        lambda: b"K" + bytes([rng.randrange(256)]),
        lambda: b"J" + struct.pack("<i", rng.choice((-1, number()))),
        lambda: b"\x8a" + bytes([4]) + rng.randbytes(4),
        lambda: b"X" + struct.pack("<I", len(t := text())) + t,
        lambda: b"B" + struct.pack("<I", rng.choice((number(), 3))) + b"abc",
        lambda: b"q" + bytes([rng.randrange(8)]),
        lambda: b"h" + bytes([rng.randrange(8)]),
        lambda: b"r" + struct.pack("<I", number()),
        lambda: b"j" + struct.pack("<I", number()),
        lambda: b"\x94",
        lambda: rng.choice(names),
        lambda: b"I" + b"9" * rng.choice((1, 30, 5000)) + b"\n",
        *(lambda c=c: c for c in (b"(", b")", b"]", b"}", b"t", b"l", b"d", b"R", b"b", b"\x81")),
        *(
            lambda c=c: c
            for c in (b"a", b"e", b"s", b"u", b"0", b"1", b"2", b"N", b"\x85", b"\x86")
        ),
        *(lambda c=c: c for c in (b"\x87", b"\x88", b"Q", b"\x93", b"\x8f", b"\x90", b"\x91")),
    ]
    program = b"".join(rng.choice(parts)() for _ in range(rng.choice((5, 20, 200, 3000))))
    return rng.choice((b"\x80\x02", b"\x80\x04", b"")) + program + b"."


# ---------------------------------------------------------------- configs


def model_configs(rng, corpus, scratch):
    """The fields of a model's config: a config, or refused."""
    from odvae_jax import ODVAEConfig

    fields = damaged_json(rng, json.loads((corpus / "model" / "config.json").read_text()))

    def use():
        if isinstance(fields, dict):
            fields.pop("format", None)
            json.dumps(ODVAEConfig.from_dict(fields).to_dict())

    return None, use


def run_configs(rng, corpus, scratch):
    """The fields of a training run: taken, or refused before anything begins."""
    import jax
    import ml_collections

    from odvae_jax.training import fields
    from tests.two_levels import get_config

    config = get_config().to_dict()
    config["data"]["path"] = "sample-clips"
    config = damaged_json(rng, json.loads(json.dumps(config)))

    def use():
        filled = fields.filled(ml_collections.ConfigDict(config, convert_dict=True))
        fields.check(filled, jax.devices()[:1])

    return None, use


def saved_runs(rng, corpus, scratch):
    """The checkpoint of a run: the same weights, or refused."""
    from odvae_jax.parameters import named_parameters
    from odvae_jax.training.raw_weights import load_raw

    workdir = scratch / "run"
    shutil.copytree(corpus / "run", workdir)
    files = [p for p in (workdir / "checkpoints").rglob("*") if p.is_file()]
    path = rng.choice([*files, workdir / "config.json"])
    kind = rng.random()
    if kind < 0.1:
        path.unlink()
    elif kind < 0.2:
        path.write_bytes(b"")
    else:
        path.write_bytes(damaged_bytes(rng, path.read_bytes() or b"\0"))

    def use():
        found = named_parameters(load_raw(workdir))
        whole = named_parameters(load_raw(corpus / "run"))
        if path.name == "config.json":
            return None  # another model may be asked for, and has its own parameters
        return _difference({n: whole[n][...] for n in whole}, {n: found[n][...] for n in found})

    return "run", use


# ---------------------------------------------------------------- latents, packed videos


def latents(rng, corpus, scratch):
    """A file of latents: the same latents, or refused."""
    from odvae_jax.latents import LatentsFile

    whole = rng.choice(sorted((corpus / "latents").glob("*.safetensors")))
    content, path = whole.read_bytes(), scratch / "odd.safetensors"
    if rng.random() < 0.5:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        metadata = {n: json.loads(v) for n, v in header["__metadata__"].items() if n != "format"}
        odd = damaged_json(rng, metadata)
        if isinstance(odd, dict):
            odd = {str(n): json.dumps(v) for n, v in odd.items()}
            odd["format"] = header["__metadata__"]["format"]
        header["__metadata__"] = odd
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    else:
        path.write_bytes(damaged_bytes(rng, content))

    def use():
        found, expected = LatentsFile(path), LatentsFile(whole)
        found.info.frames.bit_length()
        return _difference({"latents": expected.read()}, {"latents": found.read()})

    return "odd.safetensors", use


def packed(rng, corpus, scratch):
    """Packed videos: the same frames, or refused."""
    from odvae_jax.data.sources import Sampling, open_source

    kind = rng.choice(("h264", "raw"))
    folder = scratch / "packed"
    shutil.copytree(corpus / "packed" / kind, folder)
    (path,) = folder.glob("*.array_record")
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))

    def use():
        found = open_source(f"array_record:{folder}")
        whole = open_source(f"array_record:{corpus / 'packed' / kind}")
        how = (Sampling(frames=2), 1, lambda n: 0)
        for index in range(len(found)):
            ours = found.read(index, *how)
            if index >= len(whole):
                return f"{len(found)} records of {len(whole)}"
            if wrong := _difference({"frames": whole.read(index, *how)}, {"frames": ours}):
                return wrong

    return "packed", use


# ---------------------------------------------------------------- videos, pictures, manifests


def videos(rng, corpus, scratch):
    """A video file: frames of one size, or refused."""
    from odvae_jax.data.video import FrameBlocks, inspect_video, read_frames

    files = sorted((corpus / "videos").iterdir())
    source = rng.choice(files)
    path = scratch / f"odd{source.suffix}"
    path.write_bytes(damaged_bytes(rng, source.read_bytes(), [f.read_bytes() for f in files]))
    how = rng.choice(("blocks", "frames"))

    def use():
        if how == "blocks":
            blocks = FrameBlocks(path, 4, short_side=rng.choice((None, 16)))
            shapes = {block.shape[1:] for block in blocks}
            if len(shapes) > 1:
                return f"blocks of several sizes: {shapes}"
        else:
            info = inspect_video(path)
            if read_frames(info, 0, 1).shape[0] != 1:
                return "another number of frames than asked for"

    return path.name, use


def pictures(rng, corpus, scratch):
    """A picture file: one frame, or refused."""
    from odvae_jax.data.sources import Sampling, open_source

    files = sorted((corpus / "pictures").iterdir())
    source = rng.choice(files)
    path = scratch / f"odd{source.suffix}"
    path.write_bytes(damaged_bytes(rng, source.read_bytes(), [f.read_bytes() for f in files]))

    def use():
        found = open_source(f"images:{path}").read(0, Sampling(frames=1), 1, lambda n: 0)
        return None if found.dtype == np.uint8 and found.shape[-1] == 3 else f"{found.shape}"

    return path.name, use


def manifests(rng, corpus, scratch):
    """A list of videos: entries, or refused."""
    from odvae_jax.data.sources import Sampling, open_source

    rows = [{"path": str(corpus / "videos" / "a.mp4"), "start": 0.04 * i} for i in range(3)]
    rows = [{**row, "end": 0.3} for row in rows]
    suffix = rng.choice((".csv", ".jsonl"))
    path = scratch / f"odd{suffix}"
    if suffix == ".csv":
        lines = ["path,start,end", *(f"{r['path']},{r['start']},{r['end']}" for r in rows)]
        content = "\n".join(lines).encode()
    else:
        odd = [damaged_json(rng, r) if rng.random() < 0.5 else r for r in copy.deepcopy(rows)]
        content = "\n".join(map(json.dumps, odd)).encode()
        if rng.random() < 0.1:
            content += deep_json(rng).encode()
    if suffix == ".csv" or rng.random() < 0.4:
        content = damaged_bytes(rng, content)
    path.write_bytes(content)

    def use():
        from odvae_jax.data.video import VideoError

        source = open_source(str(path))
        for index in range(min(len(source), 4)):
            try:
                source.read(index, Sampling(frames=1), 1, lambda n: 0)
            except VideoError as error:
                if not str(error):
                    return "an error that says nothing"

    return path.name, use


def metrics_files(rng, corpus, scratch):
    """The metrics of a run: the records that are whole."""
    from odvae_jax.training.curves import plot_curves, read_metrics

    path = scratch / "run" / "metrics.jsonl"
    path.parent.mkdir()
    records = [{"step": i, "reconstruction": 3.0 / (i + 1), "psnr": 20.0} for i in range(5)]
    lines = [json.dumps(damaged_json(rng, r) if rng.random() < 0.3 else r) for r in records]
    path.write_bytes(damaged_bytes(rng, "\n".join([*lines, ""]).encode()))

    def use():
        if any(not isinstance(record, dict) for record in read_metrics(path)):
            return "a record that is no object"
        plot_curves([path.parent], scratch / "curves.png")

    return None, use


def _json_text(rng, value):
    if rng.random() < 0.05:
        return deep_json(rng)
    text = json.dumps(damaged_json(rng, value))
    return text if rng.random() < 0.9 else text + str(rng.choice(ODD_VALUES)).replace("\udcff", "?")


def _difference(whole, found):
    """What differs between two dictionaries of arrays; None if nothing does."""
    if whole.keys() != found.keys():
        return f"other names: {sorted(whole.keys() ^ found.keys())[:5]}"
    for name, value in whole.items():
        ours, theirs = np.asarray(value), np.asarray(found[name])
        if ours.shape != theirs.shape or ours.tobytes() != theirs.tobytes():
            return f"{name} was read as something else without a word"
    return None


TARGETS: dict[str, Target] = {
    function.__name__: function
    for function in (
        weights,
        safetensors_headers,
        pickles,
        pickle_programs,
        model_configs,
        run_configs,
        saved_runs,
        latents,
        packed,
        videos,
        pictures,
        manifests,
        metrics_files,
    )
}
