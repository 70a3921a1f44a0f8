"""SkyTimelapse from its folders of frames: `sky-timelapse:PATH[:OPTIONS]`.

Every folder below PATH, such as sky_train, that holds frames is a video. Frames are images whose
names end with an underscore and a number, and are in the order of these numbers.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import logging
import os
from collections.abc import Iterable, Iterator

from odvae_jax.data.finding import open_regular
from odvae_jax.data.sources.base import Extent, Header, Source, cut
from odvae_jax.data.sources.images import (
    IMAGE_ERRORS,
    IMAGE_EXTENSIONS,
    decode_image,
    image_size,
)
from odvae_jax.data.sources.options import behind_path, read_options
from odvae_jax.data.urls import is_here_only, is_url, read_url, urls_below
from odvae_jax.data.video import PartError, VideoError, within
from odvae_jax.files import one_line, printable

logger = logging.getLogger(__name__)
_FPS = 25.0
_NAMED = 5  # The number of folders that a message names.


@dataclasses.dataclass(frozen=True)
class FrameFolder:
    """A video that is a folder of frames.

    Attributes:
      path: the path or URL of the folder.
      names: the names of the files in order, with slashes between them: a million names as strings
        of their own would take too much memory.
      frames: the number of frames.
    """

    path: str
    names: str
    frames: int

    def paths(self) -> list[str]:
        """Returns the paths or URLs of the frames in order."""
        return [f"{self.path}/{name}" for name in self.names.split("/")]


class SkyTimelapse(Source):
    """Folders of numbered frames, each of which is a video of 25 frames per second.

    Args:
      folders: the folders.
    """

    def __init__(self, folders: list[FrameFolder]):
        self._folders = folders
        self.here_only = any(is_here_only(folder.path) for folder in folders)

    def __len__(self):
        return len(self._folders)

    def name(self, index):
        return printable(self._folders[index].path)

    def rate(self, index):
        return _FPS

    def header(self, index):
        folder = self._folders[index]
        return Header(folder.frames, *self._read(folder.paths()[0], image_size), _FPS)

    def frames(self, index, sampling, stride, where):
        folder = self._folders[index]
        extent = Extent(self.name(index), 0.0, folder.frames / _FPS, _FPS)
        times = [(i / _FPS, path) for i, path in enumerate(folder.paths())]
        chosen = cut(lambda _: times, extent, sampling, stride, where)
        return [
            self._read(path, decode_image, sampling.short_side, sampling.cover) for path in chosen
        ]

    def _read(self, path, function, *arguments):
        """Returns what a function makes of a frame's file."""
        try:
            content = within(self.timeout, printable(path), _content, path)
            return function(io.BytesIO(content), *arguments)
        except VideoError:
            raise
        except IMAGE_ERRORS as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise PartError(f"{printable(path)} cannot be read as a frame: {reason}.") from error


def open_sky_timelapse(text: str, *, in_memory: bool = False) -> SkyTimelapse:
    """Opens the folders of frames anywhere below a folder.

    Folders without frames, and files that are no frames, are left out; the log counts and names
    them.

    Args:
      text: the path or URL, and after a colon, options: `least=N` leaves out folders of fewer
        frames.
      in_memory: without effect; frames are read anew every time.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if no folder below it holds frames, or enough of them, or if there is no such
        option.
    """
    path, options = behind_path(text)
    example = "sky-timelapse:sky_train:least=244"
    _, numbers = read_options(options, "sky-timelapse", (), {"least": 1}, example)
    videos, short, empty, others, problems = [], [], [], [], []
    for folder, names in sorted(_folders_below(path, problems)):
        frames = sorted((key, name) for name in names if (key := _number(name)) is not None)
        if frames and len(frames) < len(names):
            others.append(folder)
        if not frames:
            empty.append(folder)
        elif len(frames) < numbers["least"]:
            short.append(folder)
        else:
            videos.append(FrameFolder(folder, "/".join(n for _, n in frames), len(frames)))
    told = {
        f"that hold fewer than {numbers['least']} frames were left out": short,
        "that hold no frames were left out": empty,
        "hold other files beside their frames, which were left out": others,
    }
    sentences = [_told(path, what, folders) for what, folders in told.items() if folders]
    if not videos:
        reasons = "".join(f"\n  {sentence}" for sentence in [*problems, *sentences])
        raise ValueError(
            f"no folder below {printable(path)} can be used; expected folders of images with "
            f"numbered names, such as clip_12.jpg.{reasons}"
        )
    for sentence in [*problems, *sentences]:
        logger.warning("%s", sentence)
    source = SkyTimelapse(videos)
    source.problems = tuple(problems)
    return source


def _folders_below(path: str, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields folders that hold files or nothing, and the names of their files."""
    if is_url(path):
        found = collections.defaultdict(list)
        for url in urls_below(path):
            folder, _, name = url.rpartition("/")
            found[folder].append(name)
        yield from found.items()
        return
    if not os.path.isdir(path):
        raise FileNotFoundError(
            f"{printable(path)} {'is no folder' if os.path.exists(path) else 'does not exist'}; "
            "expected a folder of folders of frames, such as sky_train."
        )

    def note(error):
        problems.append(f"{printable(error.filename)} cannot be looked into: {error.strerror}.")

    seen = set()
    for folder, inside, names in os.walk(path, onerror=note, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links may form a circle
            inside.clear()
            continue
        seen.add(real)
        if names or not inside:
            yield folder, names


def _number(name: str) -> int | None:
    """Returns the number of a frame, from the name of its file; None if it is no frame."""
    stem, extension = os.path.splitext(name)
    number = stem.rpartition("_")[2]
    is_frame = extension.lower() in IMAGE_EXTENSIONS and not name.startswith("._")
    return int(number) if is_frame and number.isascii() and number.isdigit() else None


def _told(path: str, what: str, folders: Iterable[str]) -> str:
    folders = list(folders)
    named = ", ".join(map(printable, folders[:_NAMED]))
    more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    return f"folders below {printable(path)} {what} ({len(folders)}): {named}{more}."


def _content(path: str) -> bytes:
    if is_url(path):
        return read_url(path)
    with open_regular(path) as file:
        return file.read()
