"""Video files in and out, through PyAV; JAX is not needed."""

from odvae_jax.data.video.blocks import FrameBlocks
from odvae_jax.data.video.errors import PartError, VideoError
from odvae_jax.data.video.files import EXTENSIONS, find_videos
from odvae_jax.data.video.reader import VideoInfo, VideoReader, inspect_video, read_frames
from odvae_jax.data.video.scaling import centre_crop, scaled_size, to_rgb
from odvae_jax.data.video.selection import select_frames
from odvae_jax.data.video.writer import ThreadedVideoWriter, VideoWriter, encode_h264, write_video

__all__ = [
    "EXTENSIONS",
    "FrameBlocks",
    "PartError",
    "ThreadedVideoWriter",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "centre_crop",
    "encode_h264",
    "find_videos",
    "inspect_video",
    "read_frames",
    "scaled_size",
    "select_frames",
    "to_rgb",
    "write_video",
]
