"""Model cards: what a model is, how it is used, and what was measured of it, as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from odvae_jax.checkpoints import native
from odvae_jax.config import ODVAEConfig, without_scale
from odvae_jax.diffusion import Latte, LatteConfig
from odvae_jax.evaluation.results import TITLES, Score, as_markdown, escaped, score_cell
from odvae_jax.files import counted, one_line, printable
from odvae_jax.metrics import generated
from odvae_jax.parameters import Autoencoder, named_parameters
from odvae_jax.shipped import without_folders

RESULTS_FILE = "results.json"
MARK = "<!-- odvae push made this card, and will make it anew. Delete this line to keep it. -->"
"""The line by which a card is known that nobody has taken over as their own."""
_LIBRARY = "odvae_jax"
_EIGHT_BIT = "8bit-"


def model_card(
    model: Autoencoder | Latte,
    name: str,
    *,
    results: str | os.PathLike | None = None,
    license: str | None = None,
) -> str:
    """Returns the model card of a model, as the hub reads it: metadata in YAML, then Markdown.

    Args:
      model: an autoencoder or a denoiser.
      name: the id of the repository on the hub, such as "owner/name".
      results: what `odvae eval` has measured of the model: its `results.json`, or the folder that
        holds it. None leaves the section out.
      license: the hub's name for the licence of the weights, such as "apache-2.0"; None names none.

    Raises:
      FileNotFoundError: if there is no such file of results.
      ValueError: if it holds no results of this model.
    """
    denoiser = isinstance(model, Latte)
    measured = [] if results is None else _results(model, name, Path(results))
    kind = ["diffusion", "video-generation", "latte"] if denoiser else ["video", "autoencoder"]
    if isinstance(model.config, ODVAEConfig):
        kind += ["vae", "od-vae"]
    metadata = {"license": license} if license else {}
    metadata |= {"library_name": _LIBRARY, "tags": ["jax", "flax", *kind]}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        MARK,
        f"# {escaped(name.rpartition('/')[2])}",
        _about(model),
        "## How to use it",
        "With the package odvae_jax:",
        _use_of_denoiser(model.config, name) if denoiser else _use_of_autoencoder(model, name),
        "## What it is",
        as_markdown(["field of config.json", "value"], _described(model.config)),
        *measured,
    ]
    return "\n\n".join(parts) + "\n"


def _about(model: Autoencoder | Latte) -> str:
    config = model.config
    count = sum(value.size for value in named_parameters(model).values())
    which = f"{escaped(config.name)}, {count:,} parameters"
    if isinstance(config, LatteConfig):
        return (
            f"A denoiser ({which}): a diffusion model that makes videos, on latents of "
            f"{config.frames} frames of {config.rows}×{config.columns} positions with "
            f"{config.channels} channels."
        )
    time, space = config.time_compression, config.space_compression
    if time == 1:
        return (
            f"An autoencoder for images, and for the frames of videos one by one ({which}). It "
            f"compresses {space}×{space} in space."
        )
    return (
        f"A video autoencoder ({which}). It compresses {time}× in time and {space}×{space} in "
        "space."
    )


def _use_of_autoencoder(model: Autoencoder, name: str) -> str:
    coded = getattr(model.config, "codes", None) is not None
    latents = "codes" if coded else "posterior"
    return (
        "```python\n"
        "import odvae_jax\n\n"
        f'model = odvae_jax.from_pretrained("{name}")\n'
        f"{latents} = model.encode(video)  # [B, T, H, W, 3] in [-1, 1]\n"
        f"reconstruction = model.decode({latents}.mode())\n"
        "```"
    )


def _use_of_denoiser(config: LatteConfig, name: str) -> str:
    command = f"odvae sample --ckpt={name} --output=SAMPLES --count=8"
    record = config.trained_on
    if record is None:
        said = "The files do not say which autoencoder the latents are of: `--vae` names it."
        return f"```sh\n{command} --vae=AUTOENCODER\n```\n\n{said}"
    vae, encoder = (
        printable(text).replace("`", "'") for text in (without_folders(record.vae), record.encoder)
    )
    if without_folders(record.vae) != record.vae:  # nobody else has it at that place
        command += " --vae=AUTOENCODER"
    said = (
        f"The latents are those of the autoencoder `{vae}`. Where it has another name, `--vae` "
        f"says where it is; the digest of its encoder is `{encoder}`."
    )
    return f"```sh\n{command}\n```\n\n{said}"


def _described(config: Any) -> list[list[str]]:
    """Returns the fields of a config, one row each; what a field holds is a row of its own."""
    rows = []

    def add(prefix: str, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{name}.", value)
                continue
            if isinstance(value, list | tuple):
                text = ", ".join(_shown(one) for one in value)
            else:
                text = _shown(value)
            rows.append([f"{prefix}{name}", printable(text) or "–"])

    fields = config.to_dict()
    if record := fields.get("trained_on"):
        fields = fields | {"trained_on": record | {"vae": without_folders(record["vae"])}}
    add("", fields)
    return rows


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _results(model: Autoencoder | Latte, name: str, path: Path) -> list[str]:
    """Returns the parts of a card about results, from what `odvae eval` has written.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds no results of this model.
    """
    path = path / RESULTS_FILE if path.is_dir() else path
    how = "odvae eval writes it: --ckpt=MODEL, or --generated=SAMPLES for a denoiser."
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)} does not exist. {how}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(model, Latte):
            parts = _of_samples(fields["real"], fields["sets"])
        else:
            parts = _of_reconstructions(model, name, fields["settings"], fields["models"], path)
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError) as error:
        kind = "a denoiser" if isinstance(model, Latte) else "an autoencoder"
        raise ValueError(
            f"{printable(path)} holds no results of {kind} ({type(error).__name__}: "
            f"{one_line(error, 100)}). {how}"
        ) from error
    except json.JSONDecodeError as error:
        said = one_line(error, 200)
        raise ValueError(
            f"{printable(path)} is not JSON, or is cut short: {said}. {how}"
        ) from error
    return ["## Results", *parts]


def _of_reconstructions(
    model: Autoencoder, name: str, settings: Mapping, rows: list[Mapping], path: Path
) -> list[str]:
    """Returns a table with this model's rows and the floors, and what was measured."""
    ours = [row for row in rows if _is_of(model, row)]
    if not ours:
        held = ", ".join(printable(str(row["model"])) for row in rows)
        raise ValueError(
            f"{printable(path)} holds no results of this model, but of {held}: measure it with "
            "odvae eval, --ckpt=MODEL."
        )
    floors = [row for row in rows if row["model"] == f"mean of {row['digest']} blocks"]
    found = [metric for metric in TITLES if any(metric in row["scores"] for row in ours)]
    table = []
    for row in (*ours, *floors):
        shown = row["model"] if row in floors else name.rpartition("/")[2]
        bits = " (8 bit)" if row["eight_bit"] and row in ours else ""
        scores = {metric: Score(**score) for metric, score in row["scores"].items()}
        cells = [score_cell(metric, scores.get(metric), "–") for metric in found]
        table.append([f"{shown}{bits}", str(row["dtype"]), *cells])
    size = settings["size"]
    step = f", every {settings['stride']}" if settings["stride"] > 1 else ""
    step = f", {settings['fps']:g} per second" if settings["fps"] else step
    start = settings["start"]
    place = "the last frames of" if start is None else f"from frame {start} of"
    groups = f", in groups of {settings['tiling']} frames" if settings["tiling"] else ""
    clips, frames = counted(ours[0]["clips"], "clip"), counted(settings["frames"], "frame")
    said = (
        f"Measured by `odvae eval` on {clips} of {frames} of {size}×{size} pixels{step}{groups}, "
        f"{place} `{_last(settings['data'])}`. Means over frames and clips; in parentheses 95% "
        "bootstrap intervals over clips. The mean of blocks is what an autoencoder must beat."
    )
    titles = ["model", "computed in", *(TITLES[metric] for metric in found)]
    return [as_markdown(titles, table), said]


def _is_of(model: Autoencoder, row: Mapping[str, Any]) -> bool:
    """Whether a row of results is of this model, by the digest of its config and parameters.

    Evaluation loads a model with another dtype and precision than its own; they are no part of
    what the model is.
    """
    config = without_scale(model.config.to_dict())
    parameters = named_parameters(model)
    wanted = str(row["digest"]).removeprefix(_EIGHT_BIT)
    ways = [{}, {"dtype": row["dtype"]}, {"dtype": row["dtype"], "precision": "highest"}]
    return any(native.digest({**config, **way}, parameters) == wanted for way in ways)


def _of_samples(real: Mapping[str, Any], sets: list[Mapping]) -> list[str]:
    """Returns a table for each set of samples, and what they were compared with."""
    parts = []
    for one in sets:
        rows = []
        for score in one["scores"]:
            digits = generated.DIGITS
            value = f"{score['value']:.{digits}f}"
            if score["deviation"] is not None:
                value += f" ± {score['deviation']:.{digits}f}"
            counts = [str(score["reals"] or "–"), str(score["generated"])]
            rows.append([generated.TITLES[score["metric"]], *counts, value])
        size = f"{counted(one['frames'], 'frame')} of {one['width']}×{one['height']} pixels"
        parts.append(
            f"{counted(one['generated']['clips'], 'sample')} "
            f"({escaped(printable(str(one['label'])))}) of {size}, against real clips of "
            f"`{_last(real['data'])}`, by `odvae eval --generated`:"
        )
        parts.append(as_markdown(["metric", "real clips", "samples", "value"], rows))
    return parts


def _last(source: str) -> str:
    """The end of a source's path: where it lies on a machine is nobody else's business."""
    return printable(Path(source.rstrip("/")).name or source).replace("`", "'")
