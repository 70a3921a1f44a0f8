"""Videos that are made wrong, or unusually, on purpose."""

import struct
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition


def bright(number, side=32):
    """A frame as bright as its number says."""
    array = np.full((side, side, 3), 4 * number, np.uint8)
    return av.VideoFrame.from_ndarray(array, format="rgb24")


def write_stamped(path, stamps, *, broken=None):
    """A file of frames as bright as their place in the file, in which stamps[i] is frame i's time.

    Stamps are in thousandths of a second. The frame with the number `broken` cannot be decoded.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        packets = []
        for i in range(len(stamps)):
            frame = bright(i)
            frame.pts, frame.time_base = i, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        for i, (packet, stamp) in enumerate(zip(packets, stamps, strict=True)):
            if i == broken:
                packet = av.Packet(b"\0" * 200)
                packet.time_base = Fraction(1, 1000)
            packet.pts, packet.dts, packet.stream = stamp, 100 * (i - len(stamps)), stream
            container.mux(packet)
    return path


def write_with_b_frames(path, count):
    """An H.264 file of moving frames, some of which are stored after later ones."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1", "g": "12", "bf": "3", "b-pyramid": "normal", "b-adapt": "0",
                          "x264-params": "open-gop=0:scenecut=0"}  # fmt: skip
        for i in range(count):
            container.mux(stream.encode(bright(i)))
        container.mux(stream.encode())
    return path


def write_stamped_as_stored(path, source):
    """The same packets as in another file, whose time stamps say the order of storage."""
    with av.open(str(source)) as taken, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(taken.streams.video[0])
        packets = [packet for packet in taken.demux(video=0) if packet.size]
        stamps = sorted(packet.pts for packet in packets)
        assert stamps != [packet.pts for packet in packets], "as it was made"
        for packet, stamp in zip(packets, stamps, strict=True):
            packet.pts = packet.dts = stamp
            packet.stream = stream
            container.mux(packet)
    return path


def write_with_cover(path, *, video=True):
    """An mp4 file whose first stream is a large white cover picture; the second one is the video.

    The video has eight frames of 32×32, each as bright as its number says.
    """
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        white = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 255, np.uint8), format="rgb24")
        container.mux([*cover.encode(white), *cover.encode()])
        for i in range(8):
            container.mux(stream.encode(bright(i)))
        container.mux(stream.encode())
    content = path.read_bytes()
    start, end = next((at, to) for kind, at, to in boxes(content, 0) if kind == b"moov")
    parts = {kind: content[at:to] for kind, at, to in boxes(content[:end], start + 8)}
    # The picture before the video, or without it. The places of the frames stay what they are.
    if not video:
        parts[b"trak"] = parts[b"trak"].replace(b"trak", b"free", 1)
    inside = b"".join(parts.pop(kind) for kind in (b"mvhd", b"udta"))
    path.write_bytes(content[: start + 8] + inside + b"".join(parts.values()) + content[end:])
    return path


def boxes(content, at):
    """The kind, the start and the end of each box of an mp4 file, from a place on."""
    while at + 8 <= len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        yield kind, at, at + size
        at += size


def write_hdr(path, transfer):
    """A file whose header names such transfer characteristics (16 is PQ, 18 is HLG)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p10le"
        stream.codec_context.color_trc = transfer
        for i in range(6):
            container.mux(stream.encode(bright(i)))
        container.mux(stream.encode())
    return path
