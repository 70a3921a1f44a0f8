"""Models on the hub: a repository with the weights, the config and a model card, in one commit."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import tempfile
from pathlib import Path

from odvae_jax.checkpoints import native
from odvae_jax.checkpoints.files import read_json
from odvae_jax.diffusion import Latte
from odvae_jax.evaluation.card import MARK, model_card
from odvae_jax.files import one_line, printable
from odvae_jax.parameters import Autoencoder, with_config
from odvae_jax.shipped import without_folders

logger = logging.getLogger(__name__)
CARD_FILE = "README.md"
_BRANCH = "main"
_HINTS = {
    401: "The hub does not know the token, or it has expired: `hf auth login` stores another.",
    403: "The token may not write there: take one with the right to write, and an owner that is "
    "you or an organisation of yours.",
    404: "There is no such repository or branch, or the token may not see it.",
}


def push_to_hub(
    model: Autoencoder | Latte,
    repo_id: str,
    *,
    results: str | os.PathLike | None = None,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Writes a model into a repository on the hub; it is a method of every model.

    `odvae_jax.registry.Saved.push_to_hub` says what the arguments are and what is raised.

    Returns:
      The address of the commit.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo_id):
        raise ValueError(f"{printable(repo_id)} is no repository of the hub; expected owner/name.")
    card = model_card(model, repo_id, results=results, license=license)

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if not (token or huggingface_hub.get_token()):
        raise PermissionError(
            f"{repo_id} cannot be written without a token of the hub: set HF_TOKEN, or store one "
            "with `hf auth login`. It needs the right to write."
        )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "model"
        native.save(_for_others(model), folder)
        try:
            return _push(repo_id, folder, card, private, revision or _BRANCH, token, message)
        # The base classes are those of the library for HTTP, of which there have been several.
        except (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError, RuntimeError) as error:
            response = getattr(error, "response", None)
            hint = _HINTS.get(getattr(response, "status_code", None), "")
            where = f"{repo_id}{f'@{revision}' if revision else ''}"
            raise OSError(
                f"{where} could not be written on the hub: {one_line(error)} {hint}".rstrip()
            ) from error


def _for_others(model: Autoencoder | Latte) -> Autoencoder | Latte:
    """Returns a model whose config says nothing of where files lie on this machine."""
    record = model.config.trained_on if isinstance(model, Latte) else None
    if record is None:
        return model
    vae = without_folders(record.vae)
    return with_config(model, trained_on=dataclasses.replace(record, vae=vae))


def _push(repo_id, folder, card, private, branch, token, message) -> str:
    """Writes the files of a folder and a card into a repository, and returns the commit's address.

    Raises:
      ValueError: if the repository holds a model of another layout.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if branch != _BRANCH:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    config = _held(api, repo_id, native.CONFIG_FILE, branch, folder.parent)
    if config is not None and read_json(config).get("format") != native.FORMAT:
        raise ValueError(
            f"{repo_id} holds a model of another layout, which is not written over: choose another "
            "repository or branch."
        )
    files = {name: folder / name for name in (native.CONFIG_FILE, native.WEIGHTS_FILE)}
    before = _held(api, repo_id, CARD_FILE, branch, folder.parent)
    if before is None or MARK in before.read_text(encoding="utf-8", errors="replace"):
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        files[CARD_FILE] = folder / CARD_FILE
    else:
        logger.warning("%s has a %s of its own, which stays", repo_id, CARD_FILE)
    added = [CommitOperationAdd(name, path) for name, path in files.items()]
    said = message or "A model of odvae_jax"
    commit = api.create_commit(repo_id, added, commit_message=said, revision=branch)
    return str(commit.commit_url)


def _held(api, repo_id: str, name: str, branch: str, cache: Path) -> Path | None:
    """Returns a file of a repository as it is now; None if the repository does not hold it."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(api.hf_hub_download(repo_id, name, revision=branch, cache_dir=cache / "cache"))
    except LocalEntryNotFoundError:  # the hub could not be asked
        raise
    except EntryNotFoundError:
        return None
