"""The training run: data in, checkpoints, metrics and pictures out.

It goes from the first step or the last saved.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter
from tqdm import tqdm

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.native import abstract_model, named_parameters, with_parameters
from odvae_jax.checkpoints.pretrained import RUN_MODEL_FOLDER, load_pretrained
from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.inference import decode_uint8, encode_uint8
from odvae_jax.inflation import inflate
from odvae_jax.metrics.psnr import psnr
from odvae_jax.sharding import batch_sharding, data_mesh, replicated
from odvae_jax.training import config as config_lib
from odvae_jax.training.curves import METRICS_FILE, plot_curves
from odvae_jax.training.state import TrainState, create_state, make_optimizer
from odvae_jax.training.step import make_train_step

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> TrainState:
    """Trains until `config.steps`.

    Continues from the last checkpoint in `workdir` if there is one.

    Writes into `workdir`: `checkpoints/`, `tensorboard/`, `metrics.jsonl`, `config.json`,
    `curves.png` and, at the end or when told to stop by SIGINT or SIGTERM, `model/`: the EMA
    weights as `ODVAE.from_pretrained` reads them.

    Raises:
      ValueError: for a config that cannot work or is not that of the run in `workdir`, data that
        cannot be used, or a pretrained model that does not fit.
      FileNotFoundError: if the data or the pretrained model is missing.
    """
    workdir = Path(workdir).absolute()
    config_lib.check(config, jax.device_count())
    _check_same_run(config, workdir)
    model = config_lib.model_config(config)
    clips = RandomClips(
        config.data.path,
        frames=config.data.frames,
        size=config.data.size,
        short_side=config.data.short_side,
        seed=config.seed,
        holdout=config.data.holdout,
        in_memory=config.data.in_memory,
    )
    fixed_clips = clips.held_out(config.sample_clips) if config.sample_every else None

    mesh = data_mesh()
    optimizer = make_optimizer(config)
    vae = abstract_model(model)
    initial = None if _has_checkpoint(workdir) else _initial_model(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with ocp.CheckpointManager(
        workdir / "checkpoints",
        options=ocp.CheckpointManagerOptions(max_to_keep=config.keep_checkpoints),
    ) as checkpoints:
        if initial is not None:
            state = jax.device_put(create_state(initial, optimizer), replicated(mesh))
        else:
            latest = checkpoints.latest_step()
            logger.info("continuing from step %d of %s", latest, workdir)
            state = _restore(checkpoints, latest, optimizer, model, mesh)
        first = int(state.step)
        if first >= config.steps:
            logger.info("%s has done its %d steps already", workdir, config.steps)
        _write_whole(workdir / CONFIG_FILE, config.to_json(indent=2) + "\n")

        step_fn = jax.jit(make_train_step(config, vae, optimizer), donate_argnums=0)
        reporter = _Reporter(workdir, config, first)
        stop = _StopSignal()
        feed = batches(clips, config.batch_size, first=first, threads=config.data.threads)
        pending = []
        with (
            stop,
            tqdm(
                total=config.steps, initial=first, unit="step", dynamic_ncols=True, smoothing=0.05
            ) as bar,
        ):
            for step in range(first + 1, config.steps + 1):
                batch = jax.device_put(next(feed), batch_sharding(mesh))
                state, metrics = step_fn(state, batch)
                pending.append(metrics)
                stopping = stop.requested  # asked once, so that what is done below agrees
                last = step == config.steps or stopping
                if step % config.log_every == 0 or last:
                    values = _means(jax.device_get(pending))
                    pending = []
                    values |= reporter.scalars(step, values)
                    bar.set_postfix_str(
                        f"loss {values['loss']:.4g}, {values['clips_per_second']:.3g} clips/s"
                    )
                if fixed_clips is not None and (step % config.sample_every == 0 or last):
                    reporter.samples(step, with_parameters(vae, state.ema), fixed_clips)
                bar.update()
                if step % config.checkpoint_every == 0 or last:
                    checkpoints.save(step, args=ocp.args.StandardSave(state._asdict()), force=last)
                if stopping:
                    logger.warning("stopped after step %d; run the same command to continue", step)
                    break
        reporter.close()
    trained = with_parameters(vae, jax.device_get(state.ema))
    trained.save_pretrained(workdir / RUN_MODEL_FOLDER, overwrite=True)
    plot_curves([workdir], workdir / "curves.png")
    logger.info(
        "the model is in %s, the curves in %s", workdir / RUN_MODEL_FOLDER, workdir / "curves.png"
    )
    if clips.skipped:
        names = ", ".join(sorted(clips.skipped))
        logger.warning(
            "%d of %d files were skipped: %s", len(clips.skipped), len(clips.files), names
        )
    return state


def _initial_model(config) -> ODVAE:
    model = config_lib.model_config(config)
    init = config.init
    if not init.from_pretrained:
        return ODVAE(model, rngs=config.seed)
    loaded = load_pretrained(
        init.from_pretrained,
        revision=init.revision or None,
        subfolder=init.subfolder or None,
        param_dtype=model.param_dtype,
    ).vae
    if loaded.config.structure == "image" and model.structure != "image":
        return inflate(loaded, model, init.method, seed=config.seed)
    differing = [
        f"{name} is {getattr(loaded.config, name)!r} there, {getattr(model, name)!r} here"
        for name in ("structure", "width", "latent_channels", "groups")
        if getattr(loaded.config, name) != getattr(model, name)
    ]
    if differing:
        raise ValueError(
            f"config.init.from_pretrained={init.from_pretrained} holds another model "
            f"({'; '.join(differing)}); a {model.structure!r} model starts from its own kind or "
            "from an image model."
        )
    return with_parameters(abstract_model(model), named_parameters(loaded))


def _restore(checkpoints, step, optimizer, model, mesh) -> TrainState:
    abstract = jax.eval_shape(lambda: create_state(ODVAE(model, rngs=None), optimizer))
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), abstract
    )
    return TrainState(
        **checkpoints.restore(step, args=ocp.args.StandardRestore(abstract._asdict()))
    )


def _has_checkpoint(workdir: Path) -> bool:
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


# What a run that is continued must agree in: its model, and the order of its data.
_SAME = ("model", "seed", "batch_size", "data.path", "data.frames", "data.size", "data.short_side")
_SAME += ("data.holdout",)


def _check_same_run(config, workdir: Path) -> None:
    """A run continues with the model and the data that it was begun with."""
    path = workdir / CONFIG_FILE
    if not path.exists() or not _has_checkpoint(workdir):
        return
    before, now = (_flat(c) for c in (json.loads(path.read_text()), config.to_dict()))
    differing = [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and any(name == same or name.startswith(f"{same}.") for same in _SAME)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with another config ({'; '.join(differing)}): continue it with "
            "its own, or choose another workdir."
        )


def _flat(config: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or as it was."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _means(metrics: list[dict]) -> dict[str, float]:
    return {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}


class _Reporter:
    """Writes metrics and pictures, to TensorBoard and to a file of JSON lines."""

    def __init__(self, workdir: Path, config, first: int):
        self.config = config
        self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first + 1)
        self.path = workdir / METRICS_FILE
        # What was written after the checkpoint that the run continues from is written again.
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        if lines and not lines[-1].endswith("}"):
            lines.pop()  # torn when the run died
        kept = [line for line in lines if json.loads(line)["step"] <= first]
        _write_whole(self.path, "".join(line + "\n" for line in kept))
        self.last_step, self.last_time = first, time.monotonic()

    def scalars(self, step: int, values: dict[str, float]) -> dict[str, float]:
        now = time.monotonic()
        rate = (step - self.last_step) / (now - self.last_time)
        speed = {
            "clips_per_second": rate * self.config.batch_size,
            "frames_per_second": rate * self.config.batch_size * self.config.data.frames,
        }
        self.last_step, self.last_time = step, now
        self._write(step, values | speed)
        return speed

    def samples(self, step: int, vae: ODVAE, clips: np.ndarray) -> None:
        """Original above reconstruction.

        For the first, middle and last frame of each fixed clip.
        """
        reconstructions = np.concatenate(
            [decode_uint8(vae, encode_uint8(vae, clip[None]).mode()) for clip in clips]
        )
        quality = psnr(jnp.asarray(clips) / 255.0, jnp.asarray(reconstructions) / 255.0)
        self._write(step, {"psnr": float(quality.mean())})
        shown = sorted({0, clips.shape[1] // 2, clips.shape[1] - 1})
        for i, (clip, reconstruction) in enumerate(zip(clips, reconstructions, strict=True)):
            columns = [np.concatenate([clip[t], reconstruction[t]], axis=0) for t in shown]
            self.writer.add_image(
                f"clip_{i}", np.concatenate(columns, axis=1), step, dataformats="HWC"
            )

    def close(self) -> None:
        self.writer.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


class _StopSignal:
    """Notes SIGINT and SIGTERM, so that the run can save and end after the step under way."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM):
                self._before[which] = signal.signal(which, self._note)

    def _note(self, which, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_):
        for which, handler in self._before.items():
            signal.signal(which, handler)
