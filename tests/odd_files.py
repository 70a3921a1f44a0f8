"""A folder of good and bad videos with odd names, for tests that nothing stops a run."""

import os
import socket
from pathlib import Path

import av
import numpy as np

from odvae_jax.data.video import VideoWriter
from tests.conftest import write_clip

SIDE = 16
FRAMES = 3


def odd_folder(folder, *, pipes=True):
    """Fills a folder; returns which names must become an output, and which must not.

    What is neither is left out by whoever looks for videos, or named. All good videos are of
    3 frames, 16×16, but for those whose length or size is what is odd.

    Args:
      folder: the folder, which is made.
      pipes: whether there are named pipes and sockets, too.
    """
    folder.mkdir()
    clip = write_clip(folder / "plain.mp4", frames=FRAMES, height=SIDE, width=SIDE).read_bytes()
    good, bad = {"plain.mp4"}, set()

    def put(name, content, kind):
        name = os.fsdecode(name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        kind.add(name)

    for name in (
        b"no utf-8 \xff\xfe.mp4",
        b"\x80.mp4",
        "new\nline.mp4",
        "tab\t.mp4",
        "bell\x07\x1b[31m.mp4",
        'quote".mp4',
        "quote'.mp4",
        "back\\slash.mp4",
        "emoji 🎞️.mp4",
        "ä decomposed ä.mp4",
        "العربية.mp4",
        "-leading-dash.mp4",
        "--ckpt=small.mp4",
        " space .mp4",
        "two  spaces.mp4",
        "%s %d {0}.mp4",
        "$HOME `id`.mp4",
        "colon:http.mp4",
        "pipe|<b>.mp4",
        "UPPER.MP4",
        "dots...mp4",
        "a.b.c.mp4",
        "*?[x].mp4",
        ".hidden.mp4",
        "below/deep/er/x.mp4",
        b"below \xe9/x.mp4",
        "x.mp4.d/y.mp4",
        "CON.mp4",
    ):
        put(name, clip, good)
    put("l" * 236 + ".mp4", clip, good)  # 240 bytes; 248 as latents
    put("é" * 118 + ".mp4", clip, good)
    put("m" * 239 + ".mp4", clip, good)  # 243 bytes; 251 as latents, and no room for .part
    put("n" * 251 + ".mp4", clip, good)  # 255 bytes: latents find no room
    for name, content in {
        "empty.mp4": b"",
        "one byte.mp4": b"\0",
        "text.mp4": b"no video\n" * 100,
        "zeros.mp4": bytes(5000),
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "cut.mp4": clip[: len(clip) // 2],
        "only header.mp4": clip[:40],
        "html.webm": b"<html><body>404</body></html>",
        "json.avi": b'{"error": "not found"}',
        "zip.mkv": b"PK\x03\x04" + bytes(100),
        "text.gif": b"GIF89a",
        b"bad \xff.mp4": b"no video",
        "bad\nline.mp4": b"no video",
        "b" * 236 + ".mp4": b"no video",
    }.items():
        put(name, content, bad)
    for name, height, width, frames in (
        ("1x1.mp4", 1, 1, 2),
        ("2x2.mp4", 2, 2, 2),
        ("16x3.mp4", 16, 3, 2),
        ("one frame.mp4", SIDE, SIDE, 1),
    ):
        with VideoWriter(str(folder / name), 12.0, crf=10, exact=True) as writer:
            writer.write(np.full((frames, height, width, 3), 99, np.uint8))
        good.add(name)
    _sound_alone(folder / "sound.mp4")
    bad.add("sound.mp4")
    (folder / "link.mp4").symlink_to("plain.mp4")
    good.add("link.mp4")
    outside = folder.with_name(f"{folder.name} outside")
    outside.mkdir()
    (outside / "x.mp4").write_bytes(clip)
    (folder / "linked folder").symlink_to(outside, target_is_directory=True)
    good.add("linked folder/x.mp4")
    (folder / "circle").symlink_to(".", target_is_directory=True)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "loop a.mp4").symlink_to("loop b.mp4")
    (folder / "loop b.mp4").symlink_to("loop a.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "folder.mp4").mkdir()
    if pipes:
        os.mkfifo(folder / "fifo.mp4")
        _socket(folder)
    if os.getuid():
        put("unreadable.mp4", clip, bad)
        (folder / "unreadable.mp4").chmod(0)
    for name in ("notes.txt", "._plain.mp4", "no extension", "plain.srt", "manifest.csv"):
        (folder / name).write_text("path\n")
    return good, bad


def _sound_alone(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _socket(folder):
    """A socket; its path may be too long for one, so it is made from inside."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket.mp4")
    finally:
        os.chdir(before)


def everything_below(folder):
    """The paths of all files below a folder, without links being followed."""
    return {
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
    }
