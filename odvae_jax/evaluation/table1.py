"""The paper's Table 1 from checkpoints and sources of clips, with the paper's figures beside."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from odvae_jax.autoencoder import ODVAE
from odvae_jax.baselines import model_class
from odvae_jax.baselines.ops_vae import OPSVAEConfig
from odvae_jax.config import ODVAEConfig
from odvae_jax.evaluation import page
from odvae_jax.evaluation.models import Contender, contender, load_model
from odvae_jax.evaluation.paper import DATASETS, METRICS, TABLE_1, Published
from odvae_jax.evaluation.results import (
    DESCRIBED,
    DIGITS,
    TITLES,
    Results,
    as_json,
    as_markdown,
    described,
    escaped,
    notes,
    scored,
)
from odvae_jax.files import one_line, printable, write_whole
from odvae_jax.parameters import Autoencoder
from odvae_jax.shipped import did_you_mean, nearest

logger = logging.getLogger(__name__)
_FIELDS = ("source", "subfolder", "revision")
_NOT_LISTED = "it is not in the list of models"


@dataclasses.dataclass(frozen=True)
class Listed:
    """A model of a list.

    Attributes:
      label: its name in the table; a name of Table 1 for one of its rows.
      source: where its weights are, as `odvae_jax.from_pretrained` takes it.
      arguments: `subfolder` and `revision`, if they are given.
    """

    label: str
    source: str
    arguments: Mapping[str, str]


def read_list(text: str, option: str = "--models") -> list[Listed]:
    """Reads a list of models: a JSON file, or NAME=MODEL,NAME=MODEL.

    Args:
      text: the path of a file that ends in .json, or the list. In the file, each name stands for a
        source, or for an object with "source" and perhaps "subfolder" and "revision".
      option: what a message calls the text.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it is no such list, or a name comes twice.
    """
    if text.endswith(".json"):
        return _from_file(Path(text))
    listed = []
    for part in text.split(","):
        name, equals, source = (word.strip() for word in part.partition("="))
        if not (name and equals and source):
            raise ValueError(
                f"{option}: {part!r} is not NAME=MODEL; expected a list such as "
                "SD-VAE=FOLDER,OD-VAE=FOLDER, or a file that ends in .json."
            )
        listed.append(Listed(_canonical(name), source, {}))
    return _checked(listed, option)


def _from_file(path: Path) -> list[Listed]:
    name = printable(path)
    try:
        read = json.loads(path.read_bytes(), object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {one_line(error)}") from error
    if not isinstance(read, dict) or not read:
        raise ValueError(f'{name} holds no object such as {{"SD-VAE": "FOLDER"}}.')
    listed = []
    for label, value in read.items():
        fields = {"source": value} if isinstance(value, str) else value
        if not isinstance(fields, dict) or not all(isinstance(v, str) for v in fields.values()):
            raise ValueError(f"{name}: {label!r} stands for no source and no object of texts.")
        for field in fields:
            if field not in _FIELDS:
                raise ValueError(
                    f"{name}: {label!r} has the field {field!r}, which is not known. "
                    f"{did_you_mean(field, _FIELDS)}There are {', '.join(_FIELDS)}."
                )
        if not fields.get("source"):
            raise ValueError(f"{name}: {label!r} has no source.")
        source = fields.pop("source")
        listed.append(Listed(_canonical(label), source, fields))
    return _checked(listed, name)


def _no_name_twice(pairs):
    names = [name for name, _ in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{doubled} come more than once")
    return dict(pairs)


def _canonical(label: str) -> str:
    """Returns a name as Table 1 spells it, or as it is if it is another."""
    plain = label.casefold().replace("_", "-")
    return next((row.name for row in TABLE_1 if row.name.casefold() == plain), label)


def _checked(listed: list[Listed], where: str) -> list[Listed]:
    labels = [one.label for one in listed]
    if doubled := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{where}: several models are called {doubled}; give each its own name.")
    names = [row.name for row in TABLE_1]
    for label in labels:
        if label not in names and (near := nearest(label, names)) and near not in labels:
            logger.warning(
                "%s is no name of Table 1, and gets a row of its own below; there is %s",
                printable(label),
                near,
            )
    return listed


def load_listed(
    listed: Sequence[Listed], *, verify: bool = True, **overrides: str
) -> tuple[list[Contender], dict[str, str]]:
    """Loads the models of a list in the order of Table 1, and then the others.

    Args:
      listed: the models.
      verify: whether the files of models are compared with the digests that were written with them.
      **overrides: config fields to change, such as `dtype`.

    Returns:
      The models that are there; and for each other row of Table 1, and each other model of the
      list, why it is missing.

    Raises:
      ValueError: if a file holds no model that is known, is damaged, or holds another model than
        its name in the table says.
    """
    published = {row.name: row for row in TABLE_1}
    by_label = {one.label: one for one in listed}
    contenders, absent = [], {}
    for label in [*published, *(label for label in by_label if label not in published)]:
        one = by_label.get(label)
        if one is None:
            absent[label] = _NOT_LISTED
            continue
        try:
            model, remarks = load_model(one.source, verify=verify, **one.arguments, **overrides)
        except FileNotFoundError as error:
            if Path(one.source).expanduser().exists():  # a part of it is missing, by mistake
                raise
            absent[printable(label)] = one_line(error)
            logger.warning("%s is missing: %s", printable(label), one_line(error))
            continue
        row = published.get(label)
        if row is not None and not row.is_of(model.config):
            raise ValueError(
                f"{printable(one.source)} holds a model of another kind than {label} "
                f"({model.config.name!r}): give it a name of its own, or take {label}'s weights."
            )
        if row is not None and (others := row.other_sizes(model.config)):
            remarks += (_of_another_size(label, others),)
            logger.warning("%s", remarks[-1])
        contenders.append(contender(label, one.source, model, remarks=remarks))
    return contenders, absent


def _of_another_size(label: str, others: Mapping[str, tuple[object, object]]) -> str:
    listed = ", ".join(f"{name} {ours} (there {theirs})" for name, (ours, theirs) in others.items())
    return f"this is not the paper's {label}, but a model of another size: {listed}."


def table(results: Results, dataset: str | None) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of Table 1 as measured, with the paper's figures beside.

    The rows are those of the paper, in its order, and then what else was measured. A model that is
    not there is marked "missing".

    Args:
      results: what was measured.
      dataset: the paper's name of the data set, whose figures stand beside; None for both.
    """
    datasets = DATASETS if dataset is None else (dataset,)
    titles = ["model", *DESCRIBED, *(TITLES[m] for m in METRICS)]
    titles += ["paper: parameters"]
    titles += [f"paper, {name}: {TITLES[m]}" for name in datasets for m in METRICS]
    measured = {row.contender.label: row for row in results.rows}
    published = {row.name: row for row in TABLE_1}
    labels = [*published, *(label for label in measured if label not in published)]
    labels += [label for label in results.absent if label not in published]
    rows = []
    for label in labels:
        row = measured.get(label)
        if row is None:
            cells = ["missing"] * (len(DESCRIBED) + len(METRICS))
        else:
            cells = [*described(row, results.shape), *scored(row, METRICS)]
        title = label if row is None else row.contender.title
        rows.append([title, *cells, *_of_paper(published.get(label), datasets)])
    return titles, rows


def _of_paper(row: Published | None, datasets: Sequence[str]) -> list[str]:
    if row is None:
        return ["–"] * (1 + len(datasets) * len(METRICS))
    figures = [
        f"{value:.{DIGITS[metric]}f}"
        for name in datasets
        for metric, value in zip(METRICS, row.scores[name], strict=True)
    ]
    return [row.parameters, *figures]


def dataset_of(name: str) -> str | None:
    """Returns the paper's name of a data set, however it is spelt; None if it is none of them."""
    plain = name.casefold().replace("_", "-")
    return next((n for n in DATASETS if plain in (n.casefold(), n.casefold()[:-4])), None)


def write_table(results: Mapping[str, Results], output: Path) -> list[Path]:
    """Writes `table1.md`, `table1.html` and `table1.json` into a folder, and returns their paths.

    Args:
      results: what was measured, by the name of the source.
      output: the folder. Below it, each source's own report is in the folder of its name.
    """
    markdown, parts, numbers = [], [], {}
    for name, found in results.items():
        titles, rows = table(found, dataset_of(name))
        said = notes(found)
        markdown += [f"## {escaped(name)}", as_markdown(titles, rows)]
        markdown += ["\n".join(f"- {escaped(line.strip())}" for line in said)]
        parts += [f"<h2>{html.escape(name)}</h2>", page.table(titles, rows)]
        parts += [f'<p class="note">{html.escape(line)}</p>' for line in said]
        numbers[name] = as_json(found)
    paper = [dataclasses.asdict(row) for row in TABLE_1]
    written = [output / f"table1.{kind}" for kind in ("md", "html", "json")]
    write_whole(written[0], "\n\n".join(["# Table 1", *markdown]) + "\n")
    write_whole(written[1], page.whole("Table 1", parts))
    write_whole(written[2], json.dumps({"paper": paper, "measured": numbers}, indent=1) + "\n")
    return written


def random_models(dtype: str) -> Iterator[tuple[str, Callable[[], Autoencoder]]]:
    """Yields the models of Table 1 at full width: their names, and functions that make them.

    The weights are random. OPS-VAE takes clips whole, as in evaluation.

    Args:
      dtype: the dtype of the computation and of the parameters.
    """
    for row in TABLE_1:
        yield row.name, functools.partial(_random, row, dtype)


def _random(row: Published, dtype: str) -> Autoencoder:
    config = row.config(dtype=dtype, param_dtype=dtype)
    if isinstance(config, OPSVAEConfig):
        config = dataclasses.replace(config, micro_frames=None)
    cls = ODVAE if isinstance(config, ODVAEConfig) else model_class(config.model)
    return cls(config, rngs=0)
