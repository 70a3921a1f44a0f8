"""Video files in and out, through PyAV; JAX is not needed."""

from odvae_jax.data import READ_TIMEOUT
from odvae_jax.data.video.blocks import Blocks, FrameBlocks, ReadBlocks
from odvae_jax.data.video.errors import OrderError, PartError, TimeLimitError, VideoError
from odvae_jax.data.video.files import EXTENSIONS, find_videos
from odvae_jax.data.video.limits import moved, within
from odvae_jax.data.video.reader import VideoInfo, VideoReader, inspect_video, read_frames
from odvae_jax.data.video.scaling import centre_crop, scaled_size, to_rgb
from odvae_jax.data.video.selection import select_frames
from odvae_jax.data.video.writer import ThreadedVideoWriter, VideoWriter, encode_h264, write_video

__all__ = [
    "EXTENSIONS",
    "READ_TIMEOUT",
    "Blocks",
    "FrameBlocks",
    "OrderError",
    "PartError",
    "ReadBlocks",
    "ThreadedVideoWriter",
    "TimeLimitError",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "centre_crop",
    "encode_h264",
    "find_videos",
    "inspect_video",
    "moved",
    "read_frames",
    "scaled_size",
    "select_frames",
    "to_rgb",
    "within",
    "write_video",
]
