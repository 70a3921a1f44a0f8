"""Whether generated clips show the class that they were made for.

A small network learns the classes from real clips, is tested with real clips that it never saw, and
then looks at the generated ones. It is made for classes that are motions, such as those of
`moving-shapes`: a background that stands still is taken out of the clip before it looks.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Num, UInt8
from tqdm import tqdm

from odvae_jax.data.clips import Drawn, RandomClips, label_of
from odvae_jax.data.sources import open_sources
from odvae_jax.data.video import READ_TIMEOUT
from odvae_jax.evaluation.clips import FixedClips, in_threads
from odvae_jax.files import counted, line_about, printable

SIZE = 32
"""The number of rows and of columns that the network sees."""
LABEL = "label"
"""The column with the number of a clip's class, as `odvae sample` writes it."""
NAME = "class"
"""The column with the name of a sample's class, as `odvae sample` writes it."""
SAMPLES_LIST = "samples.csv"
"""The file in a folder of samples that lists them with their classes."""
_WIDTH, _GROUPS = 16, 8
_BATCH = 64
_WARMUP, _RATE, _DECAY = 50, 2e-3, 0.05
_SHIFT = 2  # pixels by which a clip is moved in training, at most


class LabelledClips(NamedTuple):
    """Clips of one shape with their classes.

    Attributes:
      frames: the clips, uint8 [N, T, H, W, 3].
      labels: the number of the class of each clip.
      names: the name of the video that each clip was cut out of.
      columns: what the source says of each of these videos, by the name of the column.
    """

    frames: UInt8[np.ndarray, "n t h w 3"]
    labels: Int[np.ndarray, "n"]
    names: tuple[str, ...]
    columns: tuple[Mapping[str, Any], ...]


class Recogniser(nnx.Module):
    """A network that tells the classes of clips that are 32 pixels wide and high.

    The mean over time is taken out of each clip. The frames then stand side by side as channels of
    one picture, which four convolutions and a linear layer look at.

    Args:
      frames: the number T of frames in a clip.
      classes: the number of classes.
      seed: decides the first weights.
    """

    def __init__(self, frames: int, classes: int, *, seed: int = 0):
        rngs = nnx.Rngs(seed)
        shapes = (
            (3 * frames, _WIDTH, 5, 2),
            (_WIDTH, _WIDTH, 3, 1),
            (_WIDTH, 2 * _WIDTH, 3, 2),
            (2 * _WIDTH, 2 * _WIDTH, 3, 2),
        )
        self.convolutions = nnx.List(
            [nnx.Conv(i, o, (k, k), strides=(s, s), rngs=rngs) for i, o, k, s in shapes]
        )
        self.norms = nnx.List([nnx.GroupNorm(o, _GROUPS, rngs=rngs) for _, o, _, _ in shapes])
        side = SIZE // math.prod(stride for *_, stride in shapes)
        self.head = nnx.Linear(side**2 * 2 * _WIDTH, classes, rngs=rngs)

    def __call__(self, clips: Num[Array, "b t 32 32 3"]) -> Float[Array, "b classes"]:
        """Returns the logits of clips with values from 0 to 255."""
        x = clips.astype(jnp.float32) / 64
        x = x - jnp.mean(x, axis=1, keepdims=True)
        x = jnp.moveaxis(x, 1, 3).reshape(*x.shape[:1], *x.shape[2:4], -1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.gelu(norm(convolution(x)))
        return self.head(x.reshape(len(x), -1))


def real_clips(
    source: str | os.PathLike,
    *,
    frames: int,
    fps: float | None = None,
    count: int,
    label: str = LABEL,
    seed: int = 0,
    timeout: float | None = READ_TIMEOUT,
    bar: bool = True,
) -> LabelledClips:
    """Reads labelled clips at random places of the videos of a source, 32 pixels wide and high.

    The short side is scaled, and the centre is cropped. Nothing is mirrored.

    Args:
      source: names the source, as `odvae_jax.data.sources.open_sources` takes it.
      frames: the number T of frames in a clip.
      fps: the frames per second of a clip; None takes those of the videos.
      count: the number of clips. Every video is drawn once before any is drawn again.
      label: the column with the number of the class.
      seed: decides the order and the places.
      timeout: the seconds that one read of a video may take; None for no limit.
      bar: whether a progress bar is shown.

    Raises:
      FileNotFoundError: if there is no such source.
      VideoError: if no video can be used, because it is short, broken or has no label.
    """
    clips = RandomClips(
        source,
        frames=frames,
        size=SIZE,
        seed=seed,
        fps=fps,
        crop="centre",
        flip=False,
        timeout=timeout,
        label=label,
    )
    drawn: list[Drawn] = []
    shown = {"desc": printable(source), "unit": "clip", "leave": False, "dynamic_ncols": True}
    for one in tqdm(in_threads(clips.draw, range(count)), total=count, disable=not bar, **shown):
        clips.note(one)
        drawn.append(one)
    labels = np.array([one.label for one in drawn], np.int32)
    names = tuple(one.video for one in drawn)
    columns = tuple(
        clips.sources[which].columns(number) for which, number in (one.place for one in drawn)
    )
    return LabelledClips(np.stack([one.clip for one in drawn]), labels, names, columns)


def check_test(learnt: LabelledClips, test: LabelledClips, source: str, other: str) -> None:
    """Checks that clips can test a network: their classes are learnt, and their videos are not.

    Args:
      learnt: the clips that it learns from.
      test: those that it is tested with.
      source: what names the source of `learnt`, for the message.
      other: what names the source of `test`.

    Raises:
      ValueError: if a video is in both, or a class is not learnt.
    """
    known = set(learnt.names)
    if shared := [name for name in test.names if name in known]:
        raise ValueError(
            f"{len(shared)} of the {counted(len(test.names), 'clip')} of {printable(other)} are of "
            f"videos that the network learns from, such as {shared[0]}: test it with other videos."
        )
    if unknown := sorted({*test.labels.tolist()} - {*learnt.labels.tolist()}):
        raise ValueError(
            f"{printable(other)} has clips of the classes {', '.join(map(str, unknown[:20]))}, and "
            f"the {len(learnt.names)} of {printable(source)} are of none of these: learn from more "
            "--clips, or from videos of all classes."
        )


def check_classes(
    learnt: LabelledClips,
    others: LabelledClips,
    source: str,
    other: str,
    *,
    label: str = LABEL,
    names: str | None = None,
) -> None:
    """Checks that the numbers of classes stand for the same classes in two sets of clips.

    That is told by the names of the classes. A column names them if every class has one name there,
    and no two classes the same; a column in which each video has a text of its own names none. The
    other clips have their names in a column of the same name or, as samples do, in "class". Without
    names in both sets nothing is compared.

    Args:
      learnt: the clips that a network learns from.
      others: clips that it is asked about.
      source: what names the source of `learnt`, for the message.
      other: what names the source of `others`.
      label: the column with the number of the class.
      names: the column of `learnt` with the name of the class; None takes whichever names them,
        and an empty one compares nothing.

    Raises:
      ValueError: if a class of `others` has another name, or there is no column `names`.
    """
    if names == "":
        return
    known = _names_by_column(learnt, label)
    if names is not None:
        if not any(names in columns for columns in learnt.columns):
            held = sorted({name for columns in learnt.columns for name in columns})
            raise ValueError(
                f"{printable(source)} has no column {names!r}; its columns are {held[:20]}."
            )
        known = {names: known[names]} if names in known else {}
    wrong: list[tuple[int, str, str, str]] | None = None
    for column, called in known.items():
        shown = names_in(others, column) or names_in(others, NAME)
        differing = [
            (number, name, called[number], column)
            for number, name in sorted(shown.items())
            if number in called and called[number] != name
        ]
        if shown and (wrong is None or len(differing) < len(wrong)):
            wrong = differing
    if wrong:
        number, found, wanted, column = wrong[0]
        raise ValueError(
            f"the class {number} is called {found!r:.80} in {printable(other)}, and {wanted!r:.80} "
            f"in {printable(source)} (column {column!r}): the numbers must stand for the same "
            "classes. --names tells another column with the names, and --names= compares none."
        )


def names_in(clips: LabelledClips, column: str = NAME) -> dict[int, str]:
    """Returns the name of each class by its number, as the first clip of the class has it.

    Args:
      clips: the clips; a class that they name by its number has no name.
      column: the column with the names.
    """
    found = {}
    for number, columns in zip(clips.labels.tolist(), clips.columns, strict=True):
        name = columns.get(column)
        if name not in (None, "") and str(name) != str(number):
            found.setdefault(number, str(name))
    return found


def _names_by_column(clips: LabelledClips, label: str) -> dict[str, dict[int, str]]:
    """Returns the name of each class by the columns that name the classes."""
    pairs: dict[str, set[tuple[int, str]]] = {}
    for number, columns in zip(clips.labels.tolist(), clips.columns, strict=True):
        for column, value in columns.items():
            if column != label and isinstance(value, str) and value:
                pairs.setdefault(column, set()).add((number, value))
    found = {column: dict(sorted(some)) for column, some in pairs.items()}
    return {
        column: named
        for column, named in found.items()
        # One video of each class would make a name of whatever is said of it.
        if len(named) == len(pairs[column]) == len({*named.values()}) < len({*clips.names})
    }


def train_recogniser(
    clips: LabelledClips, *, classes: int, steps: int, seed: int = 0, bar: bool = True
) -> Recogniser:
    """Returns a network that learnt the classes of clips.

    In training clips are moved by up to two pixels, their colours change places, and light and dark
    do: what a class is must not depend on them.

    Args:
      clips: the clips, 32 pixels wide and high.
      classes: the number of classes.
      steps: the number of steps, of 64 clips each.
      seed: decides the first weights and the order of the clips.
      bar: whether a progress bar is shown.
    """
    network = Recogniser(clips.frames.shape[1], classes, seed=seed)
    graph, parameters = nnx.split(network)
    schedule = optax.warmup_cosine_decay_schedule(0.0, _RATE, min(_WARMUP, steps // 2), steps)
    optimizer = optax.adamw(schedule, weight_decay=_DECAY)
    moments = optimizer.init(parameters)

    @jax.jit
    def step(parameters, moments, frames, labels, key):
        def loss(parameters):
            logits = nnx.merge(graph, parameters)(_altered(frames, key))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, moments = optimizer.update(jax.grad(loss)(parameters), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    key, rng = jax.random.key(seed), np.random.default_rng(seed)
    shown = {"desc": "training", "unit": "step", "leave": False, "dynamic_ncols": True}
    for number in tqdm(range(steps), disable=not bar, **shown):
        chosen = rng.integers(0, len(clips.labels), _BATCH)
        batch = clips.frames[chosen], clips.labels[chosen]
        parameters, moments = step(parameters, moments, *batch, jax.random.fold_in(key, number))
    return nnx.merge(graph, parameters)


def _altered(frames, key):
    """Clips that are moved a little and have other colours; their motion stays."""

    def one(clip, key):
        of_place, of_colours, of_light = jax.random.split(key, 3)
        clip = jnp.roll(clip, jax.random.randint(of_place, (2,), -_SHIFT, _SHIFT + 1), (1, 2))
        clip = jax.random.permutation(of_colours, clip, axis=-1)
        return jnp.where(jax.random.bernoulli(of_light), 255 - clip, clip)

    return jax.vmap(one)(frames, jax.random.split(key, len(frames)))


def recognise(network: Recogniser, frames: UInt8[np.ndarray, "n t h w 3"]) -> Int[np.ndarray, "n"]:
    """Returns the number of the class that a network sees in each clip."""
    look = nnx.jit(lambda network, clips: jnp.argmax(network(clips), axis=-1))
    seen = []
    for start in range(0, len(frames), _BATCH):
        some = frames[start : start + _BATCH]
        filled = np.resize(some, (_BATCH, *some.shape[1:]))  # one shape, one compilation
        seen.append(np.asarray(look(network, filled))[: len(some)])
    return np.concatenate(seen) if seen else np.zeros(0, np.int32)


class Samples:
    """Generated videos, each with the class that it was made for.

    Args:
      source: a folder that `odvae sample` filled, or any source of videos with labels.
      label: the column with the number of the class.
      timeout: the seconds that one read of a video may take; None for no limit.

    Attributes:
      frames: the number of frames of the first video that can be read.
      fps: its frames per second.
      problems: why a video could not be used, in one line each.

    Raises:
      FileNotFoundError: if there is no such source.
      ValueError: if no video of it can be read, or the first has one frame.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        *,
        label: str = LABEL,
        timeout: float | None = READ_TIMEOUT,
    ):
        listed = Path(source, SAMPLES_LIST)
        self.source = str(listed if listed.is_file() else source)
        ((_, self._videos),) = open_sources(self.source, timeout=timeout)[:1]
        self._label, self._timeout = label, timeout
        self.problems: list[str] = []
        header = self._first()
        self.frames, self.fps = header.frames, header.fps
        if self.frames < 2:
            raise ValueError(
                f"the first video of {printable(self.source)} has 1 frame, and what is recognised "
                "is motion: give videos of at least 2 frames."
            )

    def _first(self):
        reason = "there is none"
        for number in range(len(self._videos)):
            try:
                return self._videos.header(number)
            except Exception as error:  # one video's trouble is not the others'
                reason = line_about(self._videos.name(number), error)
        raise ValueError(f"no video of {printable(self.source)} can be read: {reason}")

    def read(self, classes: Collection[int]) -> LabelledClips:
        """Returns the clips, scaled to 32 pixels.

        What cannot be used is left out, and noted in `problems`.

        Args:
          classes: the numbers of the classes that the network knows.

        Raises:
          ValueError: if no video can be used.
        """
        clips = FixedClips(self.source, frames=self.frames, size=SIZE, timeout=self._timeout)
        used = []
        for clip in clips.read_all(range(len(clips))):
            try:
                label = label_of(self._videos, clip.index, self._label)
                columns = self._videos.columns(clip.index)
            except Exception as error:
                self.problems.append(line_about(clip.name, error))
                continue
            if clip.frames is None:
                self.problems.append(clip.reason)
            elif label not in classes:
                self.problems.append(
                    f"{printable(clip.name)} has the class {label}; there are {_listed(classes)}."
                )
            else:
                used.append((clip.frames, label, clip.name, columns))
        if not used:
            raise ValueError(
                f"no video of {printable(self.source)} can be used: {self.problems[0]}"
            )
        frames, labels, videos, said = zip(*used, strict=True)
        return LabelledClips(np.stack(frames), np.array(labels, np.int32), videos, said)


def _listed(classes: Collection[int]) -> str:
    """Returns the numbers of classes as a message names them."""
    least, most = min(classes), max(classes)
    if len(classes) == most - least + 1:
        return f"{least} to {most}"
    return ", ".join(map(str, sorted(classes)))


@dataclasses.dataclass(frozen=True)
class Recognition:
    """How many clips show the class that they are of.

    Attributes:
      counts: how many clips of each class (rows) are seen as each class (columns).
    """

    counts: Int[np.ndarray, "k k"]

    @classmethod
    def of(cls, labels: Int[np.ndarray, "n"], seen: Int[np.ndarray, "n"], classes: int):
        """Counts clips.

        Args:
          labels: the class of each clip.
          seen: the class that a network sees in it.
          classes: the number of classes.
        """
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (labels, seen), 1)
        return cls(counts)

    @property
    def right(self) -> int:
        """The number of clips whose class is seen."""
        return int(np.trace(self.counts))

    @property
    def total(self) -> int:
        """The number of clips."""
        return int(self.counts.sum())

    @property
    def share(self) -> float:
        """The share of clips whose class is seen, from 0 to 1."""
        return self.right / self.total

    def table(self, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """Returns titles and rows of a table with a row per class, and a column per class seen.

        Args:
          names: the name of each class.
        """
        rows = [
            [name, *("." if n == 0 else str(n) for n in row), f"{row[i]} of {row.sum()}"]
            for i, (name, row) in enumerate(zip(names, self.counts, strict=True))
        ]
        return ["made for, seen as", *names, "right"], rows
