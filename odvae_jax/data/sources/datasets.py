"""Hugging Face datasets on a disk: `datasets:FOLDER[:COLUMN]`, read without that library.

They are what `save_to_disk` wrote, or folders of Parquet files as the Hub keeps them.
"""

from __future__ import annotations

import json
from pathlib import Path

from odvae_jax.data.finding import open_regular
from odvae_jax.data.sources.tables import Tables, open_parquet, split_column
from odvae_jax.data.urls import is_url
from odvae_jax.files import counted, one_line, printable


def open_datasets(text: str, *, in_memory: bool = False) -> Tables:
    """Opens a Hugging Face dataset on a disk.

    Args:
      text: FOLDER or FOLDER:COLUMN. The folder is one that `save_to_disk` wrote, or one of Parquet
        files, which may lie at a URL. The column holds the videos; without it, there must be one
        column that may hold videos.
      in_memory: without effect; videos are read anew every time.

    Raises:
      FileNotFoundError: if there is no such folder, a file of it is missing, or pyarrow is not
        installed.
      ValueError: if it holds no dataset, several splits, no row, or not one such column.
    """
    path, column = split_column(text)
    folder, shown = Path(path), printable(path)
    if is_url(path):
        return open_parquet(text)
    if not folder.exists():
        raise FileNotFoundError(
            f"{shown} does not exist; expected a folder that `save_to_disk` of Hugging Face's "
            "datasets wrote, or one of Parquet files."
        )
    splits = _read(folder / "dataset_dict.json").get("splits")
    if splits:
        if len(splits) > 1:
            raise ValueError(
                f"{shown} holds the splits {splits}; name one, as in datasets:{path}/{splits[0]}."
            )
        folder /= splits[0]
    files = _read(folder / "state.json").get("_data_files")
    if files is None:
        return open_parquet(text)
    paths = [folder / file["filename"] for file in files]
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(
            f"{printable(folder)}: {len(missing)} of {counted(len(paths), 'file is', 'files are')} "
            f"missing, {missing[0].name} first; write the dataset again with `save_to_disk`."
        )
    if not paths:
        raise ValueError(f"{printable(folder)} holds no row.")
    return Tables([str(path) for path in paths], column)


def _read(path: Path) -> dict:
    """Returns what a file says in JSON; nothing if there is no such file."""
    if not path.exists():
        return {}
    try:
        with open_regular(path) as file:
            return dict(json.load(file))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is damaged: {one_line(error)}.") from error
