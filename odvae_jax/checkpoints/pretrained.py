"""Finding out what a path or a hub id holds, and loading it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any

from flax import nnx

from odvae_jax import registry, shipped
from odvae_jax.autoencoder import ODVAE
from odvae_jax.baselines.base import Baseline
from odvae_jax.checkpoints import (
    cv_vae,
    integrity,
    latte,
    native,
    open_sora_plan,
    ops_vae,
    refused,
    sd_vae,
    svd_vae,
    tats,
    vqgan,
)
from odvae_jax.checkpoints.files import (
    INDEX,
    WeightFile,
    read_json,
    read_weight_file,
    shards_of,
    shown,
)
from odvae_jax.checkpoints.folders import SCALE_FILE
from odvae_jax.checkpoints.layout import Progress
from odvae_jax.checkpoints.scale_file import as_fields, read_beside, write_beside
from odvae_jax.diffusion.denoiser import Latte
from odvae_jax.files import one_line, printable
from odvae_jax.parameters import Autoencoder, with_config
from odvae_jax.scale import Scale

logger = logging.getLogger(__name__)
RUN_MODEL_FOLDER = "model"
"""The folder inside a training run's folder where the run leaves its model."""
_BESIDE = re.compile(rf"{RUN_MODEL_FOLDER}-[0-9]{{1,18}}")
# Layouts of others by name. A bare file goes to the first whose `is_released` knows its names; the
# last one takes every file. A folder's `config.json` names the CLASS_NAME of its layout.
_FOREIGN = {
    "open-sora-plan": open_sora_plan,
    "vqgan": vqgan,
    "svd-vae": svd_vae,
    "tats": tats,
    "cv-vae": cv_vae,
    "ops-vae": ops_vae,
    "latte": latte,
    "sd-vae": sd_vae,
}
_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_FOREIGN_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    f"diffusion_pytorch_model.safetensors{INDEX}",
    f"diffusion_pytorch_model.bin{INDEX}",
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model, and where it was loaded from.

    Attributes:
      vae: the model.
      layout: "native", or the name of another layout, such as "open-sora-plan" or "sd-vae".
      source: the file that the weights were read from.
      ignored: the names in the file that were ignored on purpose.
      inert: the globals of a pickle that were not looked up, each as "module.name".
    """

    vae: Autoencoder | Latte
    layout: str
    source: Path
    ignored: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()

    @property
    def odvae(self) -> ODVAE:
        """The model, for what only an OD-VAE or an SD-VAE will do.

        Raises:
          ValueError: if it is another model.
        """
        if not isinstance(self.vae, ODVAE):
            kind = "a denoiser" if isinstance(self.vae, Latte) else "a baseline"
            raise ValueError(
                f"{printable(self.source)} holds {self.vae.config.name}, {kind}; an OD-VAE or "
                "an SD-VAE is needed here."
            )
        return self.vae


def from_pretrained(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    verify: bool = True,
    **overrides: Any,
) -> nnx.Module:
    """Loads the model that a source holds, whatever kind of model it is.

    Args:
      source: a folder that `save_pretrained` or a training run wrote; the folder or the training
        `.ckpt` of a released OD-VAE; the folder of a diffusers SD-VAE; a file of SD-VAE weights in
        either layout, or a whole Stable Diffusion checkpoint; a baseline's published files
        (docs/weights.md); a released `.pt` of Latte; the name of a model that comes with the
        package; or the hub id of such a folder, owner/name or
        hf://owner/name@revision/subfolder.
      revision: the branch, tag or commit of the hub's repository.
      subfolder: the folder inside the repository, or inside the local folder, such as "vae".
      verify: whether the files are compared with the digests that this package writes with a model
        (docs/weights.md). Files without digests pass.
      **overrides: config fields to change that change no parameter's shape, such as
        `dtype="bfloat16"`.

    Returns:
      The model. Every autoencoder has `encode`, `decode` and `reconstruct`; the other kind is a
      denoiser, `odvae_jax.diffusion.Latte`.

    Raises:
      FileNotFoundError: if the source or one of its files is missing.
      ValueError: if the files hold no model that is known, are damaged, or hold values that are not
        finite. The message says which names differ and how.
    """
    return load_pretrained(
        source, revision=revision, subfolder=subfolder, verify=verify, **overrides
    ).vae


registry.register(load=from_pretrained, save=native.save)


def load_pretrained(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    progress: Progress = iter,
    verify: bool = True,
    **overrides: Any,
) -> Loaded:
    """Loads the model that a source holds, and tells where it was loaded from.

    Args:
      source: a path, a shipped name or a hub id, as `from_pretrained` takes it.
      revision: the branch, tag or commit of the hub's repository.
      subfolder: the folder inside the repository, or inside the local folder, such as "vae".
      progress: wraps the loop over parameters, for example in a progress bar.
      verify: whether the files are compared with the digests that were written with them.
      **overrides: config fields to change that change no parameter's shape.

    Raises:
      FileNotFoundError: if the source or one of its files is missing.
      ValueError: if the files hold no model that is known, are damaged, or hold values that are not
        finite. The message says which names differ and how.
    """
    path = shipped.model_path(source)
    if not path.exists() and (place := shipped.on_hub(str(source))):
        path = _download(*_only_once(place, revision, subfolder))
    elif subfolder and path.exists():
        held = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else []
        path = path / subfolder
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)} does not exist (found: {held}).")
    if not path.exists():
        raise shipped.unknown_model(source)
    path = _run_model(path) or _lightning_model(path) or path
    if path.is_file():
        return _load_file(path, progress, verify, overrides)
    config_path = path / native.CONFIG_FILE
    if not config_path.is_file():
        files = [p for p in path.iterdir() if p.suffix in _WEIGHTS]
        indices = [p for p in path.iterdir() if p.name.endswith(INDEX)]
        if len(indices) == 1 and {p.name for p in files} <= {*shards_of(indices[0]).values()}:
            files = indices
        if len(files) == 1:
            return _load_file(files[0], progress, verify, overrides)
        held = sorted(p.name for p in path.iterdir())
        hint = (
            f' The autoencoder is in "vae": pass subfolder="vae", or {printable(path / "vae")}.'
            if "vae" in held
            else ""
        )
        if files:
            names = sorted(p.name for p in files)[:8]
            raise ValueError(
                f"{printable(path)} holds several files of weights, {names}: name the one wanted."
                f"{hint}"
            )
        raise FileNotFoundError(
            f"{printable(config_path)} does not exist (found: {held[:8]}).{hint}"
        )
    fields = read_json(config_path)
    kind = _class_name(fields)
    if fields.get("format") == native.FORMAT:
        vae = native.load(path, progress=progress, verify=verify, **overrides)
        return Loaded(vae, "native", path / native.WEIGHTS_FILE)
    refused.check_config(fields, config_path)
    for layout, module in _FOREIGN.items():
        if kind is not None and kind == module.CLASS_NAME:
            config = _foreign_config(module, fields, config_path)
            file = _weights_in(path, prefer_checkpoint=module is open_sora_plan)
            if verify:
                integrity.verify(file, config_path)
            return _load_foreign(layout, file, config, progress, overrides)
    known = [module.CLASS_NAME for module in _FOREIGN.values() if module.CLASS_NAME]
    raise ValueError(
        f"{printable(config_path)} is the config of {shown(repr(kind))}; known are odvae_jax's "
        f"own and those of {', '.join(known)} (docs/weights.md)."
    )


def _class_name(fields: dict[str, Any]) -> Any:
    """Returns the class that a `config.json` is of, as diffusers or transformers note it."""
    architectures = fields.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return fields.get("_class_name", first)


def _run_model(run: str | os.PathLike) -> Path | None:
    """Returns the folder of the newest model that a training run has left; None if there is none.

    A run writes its model into `model`. While that holds other files, which are not written over,
    it writes into `model-<step>` instead. So the greatest step is the newest there is, unless
    `model` holds nothing else any more and was written later. The log says which one is taken if
    there are several.

    Args:
      run: the folder of the run.
    """
    run = Path(run)
    usual = run / RUN_MODEL_FOLDER
    steps = {
        int(path.name.removeprefix(f"{RUN_MODEL_FOLDER}-")): path
        for path in run.glob(f"{RUN_MODEL_FOLDER}-*")
        if _BESIDE.fullmatch(path.name) and _is_native(path)
    }
    beside = steps[max(steps)] if steps else None
    if not (usual / native.CONFIG_FILE).is_file():
        return beside
    if beside is None:
        return usual
    ours = {native.CONFIG_FILE, native.WEIGHTS_FILE}
    alone = _is_native(usual) and {path.name for path in usual.iterdir()} == ours
    newest = usual if alone and _written(usual) > _written(beside) else beside
    logger.warning(
        "%s holds several models of the run; the newest is taken, %s", printable(run), newest.name
    )
    return newest


def _lightning_model(folder: Path) -> Path | None:
    """Returns the checkpoint in the folder of a Lightning run, as VQGAN was published."""
    path = folder / "ckpts" / "last.ckpt"
    return path if path.is_file() else None


def _is_native(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (native.CONFIG_FILE, native.WEIGHTS_FILE))


def _written(folder: Path) -> int:
    return (folder / native.WEIGHTS_FILE).stat().st_mtime_ns


def _load_file(path: Path, progress: Progress, verify: bool, overrides: dict[str, Any]) -> Loaded:
    """Loads a single file of weights, whose names tell of which layout it is."""
    file = read_weight_file(path)
    if any(str(name).endswith(".kernel") for name in file.content):
        raise ValueError(
            f"{printable(path)} is of odvae_jax's own layout: pass its folder, "
            f"{printable(path.parent)}."
        )
    refused.check_names(open_sora_plan.state_of(file)[0], path)
    layout = next(name for name, module in _FOREIGN.items() if module.is_released(file))
    module = _FOREIGN[layout]
    config, config_path = None, path.parent / native.CONFIG_FILE
    if module.CLASS_NAME and config_path.is_file():
        fields = read_json(config_path)
        if _class_name(fields) == module.CLASS_NAME:
            config = _foreign_config(module, fields, config_path)
    if verify:
        integrity.verify(file, None if config is None else config_path)
    return _load_foreign(layout, file, config, progress, overrides)


def _foreign_config(module, fields: dict[str, Any], path: Path):
    """Returns the config of a foreign model; its file may hold anything."""
    try:
        return module.config_from_json(fields, path)
    except (ValueError, TypeError, OverflowError) as error:
        said = one_line(error, 2000)
        name = printable(path)
        raise ValueError(said if said.startswith(str(path)) else f"{name}: {said}") from error


def _load_foreign(layout, file, config, progress, overrides) -> Loaded:
    """Builds the model of a foreign layout, and logs what was not looked up in the file."""
    vae, ignored = _FOREIGN[layout].load(file, config, progress, **overrides)
    if file.inert:
        logger.warning(
            "%s names %s, which were not looked up and stand as inert objects",
            printable(file.path),
            ", ".join(map(shown, file.inert[:8])) + (", ..." if len(file.inert) > 8 else ""),
        )
    if scale := read_beside(file.path):
        measured = {n: v for n, v in as_fields(scale).items() if n not in overrides}
        vae = with_config(vae, **measured)
    return Loaded(vae, layout, file.path, tuple(ignored), file.inert)


def save_published(
    model: Autoencoder | Latte, path: str | os.PathLike, *, overwrite: bool = False
) -> None:
    """Writes a baseline or a denoiser as a folder in the layout in which it was published.

    Args:
      model: the model.
      path: the folder.
      overwrite: whether a model that the folder holds already is replaced.

    Raises:
      ValueError: if the model is an OD-VAE, which has several layouts, or its published layout
        cannot hold it.
      FileExistsError: if the folder holds something already and `overwrite` is not set.
    """
    if not isinstance(model, Baseline | Latte):
        raise ValueError(
            f"a {model.config.name!r} model has several layouts: write it with "
            "--to=open-sora-plan, or an image model with --to=diffusers."
        )
    layout = _FOREIGN[model.config.model.replace("_", "-")]
    layout.save(model, path, overwrite=overwrite)


def write_scale(loaded: Loaded, scale: Scale) -> Path:
    """Writes the scale of a model's latents where loading finds it, and returns the path.

    A model of our own layout has it in its config; the folder is returned. Beside weights of other
    layouts it gets a file of its own, which is returned. No tensor changes.

    Args:
      loaded: the model, and where it was loaded from.
      scale: the scale; it was measured.

    Raises:
      OSError: if the folder cannot be written.
    """
    if loaded.layout == "native":
        native.write_scale(loaded.source.parent, scale)
        return loaded.source.parent
    return write_beside(loaded.source, scale)


def _weights_in(folder: Path, *, prefer_checkpoint: bool) -> WeightFile:
    """Opens the file of weights in a folder.

    With `prefer_checkpoint` a `.ckpt` goes before other files, as in the released implementation.
    """
    checkpoints = sorted(folder.glob("*.ckpt")) if prefer_checkpoint else []
    files = [folder / name for name in _FOREIGN_WEIGHTS if (folder / name).is_file()]
    if not checkpoints and not files:
        held = sorted(p.name for p in folder.iterdir())[:8]
        raise FileNotFoundError(
            f"no weights in {printable(folder)}: looked for {_FOREIGN_WEIGHTS}, found {held}."
        )
    if len(checkpoints) > 1:
        names = [c.name for c in checkpoints]
        raise ValueError(
            f"{printable(folder)} holds several checkpoints, {names}: name the one wanted."
        )
    return read_weight_file((checkpoints + files)[0])


def _only_once(place: shipped.OnHub, revision, subfolder) -> shipped.OnHub:
    """A place on the hub with the revision and the subfolder that are passed beside it.

    Raises:
      ValueError: if one of them is given twice.
    """
    for name, given in (("revision", revision), ("subfolder", subfolder)):
        if given and getattr(place, name):
            raise ValueError(
                f"{place} has a {name}, and {name}={given!r} is given, too: leave one of them out."
            )
    return shipped.OnHub(place.repository, place.revision or revision, place.subfolder or subfolder)


def _download(repository: str, revision: str | None, subfolder: str | None) -> Path:
    """Downloads a model's config and weights, and returns their folder in the hub's cache."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def fetch(name: str) -> Path:
        return Path(
            huggingface_hub.hf_hub_download(
                repository, name, revision=revision, subfolder=subfolder
            )
        )

    prefix = f"{subfolder}/" if subfolder else ""
    where = str(shipped.OnHub(repository, revision, subfolder)).removeprefix("hf://")
    try:
        config = fetch(native.CONFIG_FILE)
        fields = read_json(config)
        if fields.get("format") == native.FORMAT:
            fetch(native.WEIGHTS_FILE)
            return config.parent
        refused.check_config(fields, config)  # before its weights are downloaded
        with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
            fetch(SCALE_FILE)
        if fields.get("_class_name") == open_sora_plan.CLASS_NAME:
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=[f"{prefix}*.ckpt"]
            )
            if any(config.parent.glob("*.ckpt")):
                return config.parent
        for name in _FOREIGN_WEIGHTS:
            try:
                path = fetch(name)
                for shard in sorted({*shards_of(path).values()} if name.endswith(INDEX) else ()):
                    fetch(shard)
                break
            except (EntryNotFoundError, LocalEntryNotFoundError):
                if name == _FOREIGN_WEIGHTS[-1]:
                    raise
        return config.parent
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        inside = shipped.OnHub(repository, revision, "vae")
        hint = (
            ""
            if subfolder
            else ' Its autoencoder may be in a folder of its own: subfolder="vae", or in the shell '
            f"{inside}."
        )
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            hint += (
                " HF_HUB_OFFLINE is set, so that only the hub's cache on this machine was looked "
                "into: unset it to download."
            )
        raise FileNotFoundError(
            f"{where} is no local path, and could not be had from the hub: {one_line(error)}{hint}"
        ) from error
