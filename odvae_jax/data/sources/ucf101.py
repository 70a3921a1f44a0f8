"""UCF101 from its official folder: `ucf101:PATH[:OPTIONS]`, with the class of every video.

PATH is the folder UCF-101, which holds a folder of videos per class, or the folder above it. The
lists of the official splits are in a folder ucfTrainTestlist inside it or beside it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

from odvae_jax.data.finding import look_below, open_regular
from odvae_jax.data.once import warn_once
from odvae_jax.data.sources.files import Files
from odvae_jax.data.sources.options import behind_path, read_options
from odvae_jax.data.sources.ucf101_classes import class_columns
from odvae_jax.data.urls import is_url, read_url
from odvae_jax.data.video import EXTENSIONS
from odvae_jax.files import counted, printable

_LISTS = "ucfTrainTestlist"
_NAMED = 5  # The number of folders or videos that a message names.
_EXAMPLE = "ucf101:UCF-101:train,split=1"


def open_ucf101(text: str, *, in_memory: bool = False) -> Files:
    """Opens the videos of UCF101 with the columns `label`, from 0 to 100, and `class`.

    Args:
      text: the path or URL of the folder, and after a colon, options: "train" or "test" takes what
        the official split lists, `split=N` names the split 1, 2 or 3. Without "train" or "test" it
        is every video.
      in_memory: whether the decoded videos are kept in memory; for a few short ones.

    Raises:
      FileNotFoundError: if there is no such folder, or not the list of the split.
      ValueError: if a folder of videos is named like no class, if nothing that the list names is
        there, or if there is no such option.
    """
    path, options = behind_path(text)
    part, numbers = read_options(options, "ucf101", ("train", "test"), {"split": 0}, _EXAMPLE)
    split = numbers["split"]
    if split > 3 or (split and not part):
        raise ValueError(
            f"ucf101: split={split} was given{'' if part else ' without train or test'}; expected "
            f"train or test and a split of 1, 2 or 3, as in {_EXAMPLE}."
        )
    found = look_below(path, EXTENSIONS, "video")
    found.log()
    _check_classes(path, found.files)
    problems, videos = found.sentences(), found.files
    if part:
        videos, missing = _listed(path, f"{part}list{split or 1:02d}.txt", videos)
        problems += missing
    columns = [class_columns(_class_of(video)) for video in videos]
    files = Files([(video, None, None) for video in videos], columns=columns, in_memory=in_memory)
    files.problems = problems
    return files


def _class_of(video: str) -> str:
    return video.rsplit("/", 2)[-2] if video.count("/") else ""


def _check_classes(path: str, videos: Sequence[str]) -> None:
    """Raises ValueError if a folder that holds videos is named like no class."""
    unknown = []
    for name in sorted(set(map(_class_of, videos))):
        try:
            class_columns(name)
        except KeyError:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{printable(path)} holds videos in folders that are no classes of UCF101: "
            f"{_some(unknown)}; expected folders such as ApplyEyeMakeup. Rename or remove them."
        )


def _listed(path: str, name: str, videos: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Returns those videos that a list of a split names, and what is to be said of missing ones."""
    where, text = _read_list(path, name)
    # Lines are "Class/v_Class_g08_c01.avi", in lists for training followed by the class's number.
    wanted = [line.split()[0] for line in text.splitlines() if line.strip()]
    there = {"/".join(video.rsplit("/", 2)[-2:]).lower(): video for video in videos}
    missing = [line for line in wanted if line.lower() not in there]
    taken = sorted(there[line.lower()] for line in wanted if line.lower() in there)
    if not missing:
        return taken, ()
    sentence = (
        f"{len(missing)} of {counted(len(wanted), 'video')} of {printable(where)} are not below "
        f"{printable(path)}: {_some(missing)}."
    )
    if not taken:
        raise ValueError(sentence)
    warn_once(f"{where} {path}", sentence)
    return taken, (sentence,)


def _read_list(path: str, name: str) -> tuple[str, str]:
    """Returns where a list of a split is, and its text."""
    folder = path.rstrip("/") if is_url(path) else os.path.abspath(path)
    places = [f"{above}/{_LISTS}/{name}" for above in (folder, folder.rpartition("/")[0])]
    for place in places:
        try:
            if is_url(place):
                return place, read_url(place).decode("utf-8", "backslashreplace")
            with io.TextIOWrapper(open_regular(place), errors="backslashreplace") as file:
                return place, file.read()
        except FileNotFoundError:
            continue
    raise FileNotFoundError(
        f"there is neither {' nor '.join(map(printable, places))}; expected the official list of "
        "the split. Unpack UCF101TrainTestSplits-RecognitionTask.zip there, or leave out train and "
        "test for all videos."
    )


def _some(names: Sequence[str]) -> str:
    """Returns the first few of several names, for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more
