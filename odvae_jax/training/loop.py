"""The training run: data in, checkpoints, metrics and pictures out.

It goes from the first step or the last saved.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checkpoints.pretrained import RUN_MODEL_FOLDER, load_pretrained
from odvae_jax.data.clips import RandomClips, batches
from odvae_jax.files import write_whole
from odvae_jax.flops import count_flops
from odvae_jax.inflation import inflate
from odvae_jax.metrics.lpips import LPIPS, load_lpips
from odvae_jax.parameters import abstract_model, named_parameters, with_parameters
from odvae_jax.sharding import clip_sharding, local_rows, replicated, state_shardings
from odvae_jax.training import config as config_lib
from odvae_jax.training.checkpoints import CONFIG_FILE, Checkpoints, has_checkpoint
from odvae_jax.training.curves import plot_curves
from odvae_jax.training.discriminator import Discriminator
from odvae_jax.training.reporting import Reporter
from odvae_jax.training.state import TrainState, create_state, make_optimizers, model_parameters
from odvae_jax.training.step import Metrics, Update, make_train_step, update_of_step
from odvae_jax.training.validation import Validation

logger = logging.getLogger(__name__)

_IN_FLIGHT = 2  # steps that the host may be ahead of the devices
_AGREE_EVERY = 10  # steps between questions to the other processes whether to stop


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains until `config.steps`, on these devices or on all.

    Continues from the last checkpoint in `workdir` if there is one, on any number of devices. With
    several processes, each calls it with the same arguments, after `jax.distributed.initialize`;
    `workdir` is on a disk that all of them see.

    Writes into `workdir`: `checkpoints/`, `tensorboard/`, `metrics.jsonl`, `config.json`,
    `curves.png` and, at the end or when told to stop by SIGINT or SIGTERM, `model/`: the EMA
    weights as `ODVAE.from_pretrained` reads them.

    Raises:
      ValueError: for a config that cannot work or is not that of the run in `workdir`, data that
        cannot be used, or a pretrained model that does not fit.
      FileNotFoundError: if the data, the pretrained model or LPIPS's weights are missing.
      FloatingPointError: if too many steps in a row had no finite loss and gradient.
    """
    workdir = Path(workdir).absolute()
    mesh = config_lib.check(config, devices)
    continues = has_checkpoint(workdir)
    if continues and (workdir / CONFIG_FILE).exists():
        begun = json.loads((workdir / CONFIG_FILE).read_text())
        config_lib.check_continues(begun, config, str(workdir))
    model = config_lib.model_config(config)
    clips = _clips(config, config.data.path, config.data.frames, config.data.holdout)
    pictures = _clips(config, config.data.image_path, 1) if config.data.image_rate else None
    vae = abstract_model(model)
    lpips = _on_all(load_lpips("vgg", dtype=model.dtype), mesh) if _perceptual(config) else None
    validation = None
    if config.validate_every:
        span = (config.data.frames - 1) * (1 if config.data.fps else config.data.stride) + 1
        if config.data.holdout < span:
            logger.warning(
                "config.data.holdout=%d is less than the %d frames of a clip: what is measured "
                "during training is trained on too",
                config.data.holdout,
                span,
            )
        fixed_clips = clips.held_out(config.validation_clips)
        validation = Validation(vae, fixed_clips, _lpips_for_validation(mesh), mesh)
    initial = None if continues else _initial_model(config)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_count() > 1:  # nobody looks at the folder after another has begun to write
        multihost_utils.sync_global_devices("begin")

    with (
        _StopSignal() as stop,
        _reported(clips, pictures),
        Checkpoints(workdir, config) as checkpoints,
    ):
        state, position = _begin(config, initial, checkpoints, mesh)
        counts = {"videos": len(clips), "pictures": len(pictures) if pictures else 0}
        before = {name: position.get(name, count) for name, count in counts.items()}
        if before != counts:
            logger.warning(
                "the run reads %d videos and %d pictures, where %d and %d were read before: their "
                "order is another from here on",
                *counts.values(),
                *before.values(),
            )
        first = int(state.step)
        if first >= config.steps:
            logger.info("%s has done its %d steps already", workdir, config.steps)
        if jax.process_index() == 0:
            write_whole(workdir / CONFIG_FILE, config.to_json(indent=2) + "\n")
        reporter = Reporter(workdir, config, first, _step_flops(config, vae), mesh.size)
        steps = _Steps(config, vae, mesh, lpips, reporter)
        feeds = _Feeds(config, clips, pictures, mesh, position)
        del initial
        pending: list[Metrics] = []
        with (
            contextlib.closing(feeds),
            contextlib.closing(reporter),
            tqdm(
                total=config.steps,
                initial=first,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
                disable=jax.process_index() > 0,
            ) as bar,
        ):
            for step in range(first + 1, config.steps + 1):
                with reporter.waiting_for_data():
                    batch = feeds(step - 1)
                state, metrics = steps(update_of_step(config, step - 1), state, batch)
                pending.append(metrics)
                if len(pending) > _IN_FLIGHT:
                    jax.block_until_ready(pending[-1 - _IN_FLIGHT])
                stopping = stop.agreed(step)
                last = step == config.steps or stopping
                if step % config.log_every == 0 or last:
                    values = reporter.train(step, jax.device_get(pending))
                    pending.clear()
                    bar.set_postfix_str(
                        f"loss {values.get('loss', np.nan):.4g}, "
                        f"{values['clips_per_second']:.3g} clips/s"
                    )
                    _check_guard(config, values, checkpoints)
                with reporter.away():
                    if step % config.checkpoint_every == 0 or last:
                        jax.block_until_ready(state)
                        # While steps are skipped the last good checkpoint is not pushed out.
                        if int(state.skipped_in_a_row) == 0:
                            run = feeds.position | counts | {"seed": config.seed}
                            checkpoints.save(step, state, run)
                    finished = last and not stopping
                    if validation is not None and (step % config.validate_every == 0 or finished):
                        _validate(step, state, validation, reporter)
                bar.update()
                if stopping:
                    logger.warning("stopped after step %d; run the same command to continue", step)
                    break
    _export(vae, state, workdir, mesh)
    return state


def _begin(
    config, initial: ODVAE | None, checkpoints: Checkpoints, mesh: Mesh
) -> tuple[TrainState, dict[str, int]]:
    """The state to go on from, spread over the mesh, and the position in the data."""
    optimizers = make_optimizers(config)

    def make(vae, seed):
        return create_state(vae, _discriminator(config, seed), optimizers, config)

    abstract = jax.eval_shape(lambda: make(ODVAE(config_lib.model_config(config), rngs=None), None))
    shardings = state_shardings(mesh, abstract)
    if initial is not None:

        def place(array, sharding):  # each process has the whole, its devices take their parts
            whole = np.asarray(array)
            return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

        return jax.tree.map(place, make(initial, config.seed), shardings), {}
    logger.info("continuing from step %d of %s", checkpoints.latest, checkpoints.folder.parent)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
    state, run = checkpoints.restore(abstract)
    return state, run


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
    computed = ("upsample", "norm", "time_upsample", "scaling_factor")
    pairs = [(name, getattr(loaded.config, name), getattr(model, name)) for name in computed]
    if changed := [f"{name} {a!r} becomes {b!r}" for name, a, b in pairs if a != b]:
        logger.warning(
            "the model in %s is trained on otherwise than it was made: %s",
            init.from_pretrained,
            "; ".join(changed),
        )
    return with_parameters(abstract_model(model), named_parameters(loaded))


def _discriminator(config, seed: int | None) -> Discriminator | None:
    if not config.discriminator.weight:
        return None
    return Discriminator(
        config.discriminator.width,
        seed=seed,
        dtype=config.model.dtype,
        precision=config.model.precision,
    )


def _perceptual(config) -> bool:
    return config.loss.perceptual_weight > 0


def _lpips_for_validation(mesh: Mesh) -> LPIPS | None:
    try:
        return _on_all(load_lpips("alex"), mesh)
    except FileNotFoundError as error:
        logger.warning("LPIPS is left out of the validation: %s", error)
        return None


def _on_all(tree, mesh: Mesh):
    return jax.device_put(tree, replicated(mesh))


class _Steps:
    """The compiled steps, each compiled when it is first needed."""

    def __init__(self, config, vae: ODVAE, mesh: Mesh, lpips: LPIPS | None, reporter: Reporter):
        self._config, self._vae, self._mesh = config, vae, mesh
        self._lpips = lpips
        self._reporter = reporter
        self._compiled: dict[tuple[Update, tuple[int, ...]], Callable] = {}

    def __call__(self, update: Update, state: TrainState, clips: jax.Array):
        key = update, clips.shape
        if key not in self._compiled:
            with self._reporter.away():
                self._compiled[key] = self._compile(update, state, clips)
        return self._compiled[key](state, clips, self._lpips)

    def _compile(self, update, state, clips):
        step = make_train_step(
            self._config,
            self._vae,
            _discriminator(self._config, None),
            make_optimizers(self._config),
            self._mesh,
            update,
        )
        shardings = (state_shardings(self._mesh, state), replicated(self._mesh))
        start = time.monotonic()
        jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        compiled = jitted.lower(state, clips, self._lpips).compile()
        memory = compiled.memory_analysis()
        logger.info(
            "compiled the step in %.0f s; a device needs %.2f GiB for it, and %.2f GiB for what "
            "it keeps",
            time.monotonic() - start,
            memory.temp_size_in_bytes / 2**30,
            memory.argument_size_in_bytes / 2**30,
        )
        return compiled


def _clips(config, path: str, frames: int, holdout: int = 0) -> RandomClips:
    data = config.data
    return RandomClips(
        path,
        frames=frames,
        size=data.size,
        short_side=data.short_side,
        seed=config.seed,
        holdout=holdout,
        stride=(data.stride, max(data.stride, data.stride_max)),
        fps=data.fps or None,
        crop=data.crop,
        flip=data.flip,
        max_unusable=data.max_unusable,
        in_memory=data.in_memory,
    )


@contextlib.contextmanager
def _reported(*sources: RandomClips | None):
    """Says at the end, however it comes, which videos could not be used."""
    try:
        yield
    finally:
        for source in filter(None, sources):
            if source.skipped:
                names = ", ".join(sorted(source.skipped))
                logger.warning(
                    "%d of %d videos were skipped: %s", len(source.skipped), len(source), names
                )


class _Feeds:
    """Batches on the devices, of clips or, at the rate that is set, of pictures.

    The position, a number in each of the two orders, is all there is to save: it does not depend
    on threads, workers, processes or devices.
    """

    def __init__(self, config, clips, pictures, mesh: Mesh, position: dict[str, int]):
        self._rate = config.data.image_rate
        sizes = {"clip": config.batch_size, "image": config.data.image_batch_size}
        self._sizes = sizes
        self.position = {f"next_{kind}": position.get(f"next_{kind}", 0) for kind in sizes}
        feed = functools.partial(_feed, config, mesh)
        self._feeds = {"clip": feed(clips, sizes["clip"], self.position["next_clip"])}
        if pictures is not None:
            self._feeds["image"] = feed(pictures, sizes["image"], self.position["next_image"])

    def __call__(self, step: int) -> jax.Array:
        """The batch of the step before which `step` were done."""
        image = int((step + 1) * self._rate) > int(step * self._rate)
        kind = "image" if image else "clip"
        batch = next(self._feeds[kind])
        self.position[f"next_{kind}"] += self._sizes[kind]
        return batch

    def close(self) -> None:
        """Ends the processes that decode."""
        for feed in self._feeds.values():
            feed.close()


def _feed(
    config, mesh: Mesh, clips: RandomClips, batch_size: int, first: int
) -> Generator[jax.Array, None, None]:
    """Batches on the devices, from clip number `first` on; every process reads its own rows."""
    data = config.data
    shape = (batch_size, clips.sampling.frames, data.size, data.size, 3)
    sharding = clip_sharding(mesh)
    rows = local_rows(sharding, shape)
    place = {row: i for i, row in enumerate(rows)}
    local = batches(
        clips, batch_size, first=first, rows=rows, threads=data.threads, workers=data.workers
    )
    with contextlib.closing(local):
        for batch in local:

            def part(index, batch=batch):
                start, stop, _ = index[0].indices(batch_size)
                return batch[place[start] : place[stop - 1] + 1][:, index[1], index[2]]

            yield jax.make_array_from_callback(shape, sharding, part)


def _step_flops(config, vae: ODVAE) -> float:
    """Operations of the model in a step: three times those of one pass forward."""
    data = config.data
    shape = (config.batch_size, data.frames, data.size, data.size, 3)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    return 3 * count_flops(lambda vae, video: vae.decode(vae.encode(video).mode()), vae, video)


def _validate(step, state: TrainState, validation: Validation, reporter: Reporter) -> None:
    """Measures the EMA weights, which pictures are made with, and the raw ones."""
    values, reconstructions = validation(state.ema)
    raw, _ = validation(state.parameters)
    values |= {f"{name}_raw": value for name, value in raw.items()}
    reporter.validate(step, values, validation.clips, reconstructions)


def _check_guard(config, values: dict[str, float], checkpoints: Checkpoints) -> None:
    count = int(values["skipped_in_a_row"])
    if count == 0:
        return
    logger.warning(
        "%d steps had no finite loss and gradient and changed nothing (%d of them in a row)",
        int(values["skipped_steps"]),
        count,
    )
    if count >= config.max_skipped_in_a_row:
        checkpoints.wait()
        good = (
            "none" if checkpoints.latest is None else checkpoints.folder / str(checkpoints.latest)
        )
        raise FloatingPointError(
            f"the last {count} steps had no finite loss and gradient, and changed nothing "
            f"(config.max_skipped_in_a_row={config.max_skipped_in_a_row}). The last good "
            f"checkpoint is {good}; look at the metrics before it, and continue with a lower "
            "learning rate or with config.optimizer.clip_norm."
        )


def _export(vae: ODVAE, state: TrainState, workdir: Path, mesh: Mesh) -> None:
    whole = jax.jit(lambda ema: ema, out_shardings=replicated(mesh))(model_parameters(state.ema))
    if jax.process_index() > 0:
        return
    trained = with_parameters(vae, jax.device_get(whole))
    trained.save_pretrained(workdir / RUN_MODEL_FOLDER, overwrite=True)
    plot_curves([workdir], workdir / "curves.png")
    logger.info(
        "the model is in %s, the curves in %s", workdir / RUN_MODEL_FOLDER, workdir / "curves.png"
    )


class _StopSignal:
    """Notes SIGINT and SIGTERM, so that the run can save and end after the step under way."""

    def __init__(self):
        self._requested = False

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step; several processes ask each other from time to time."""
        if jax.process_count() == 1:
            return self._requested
        if step % _AGREE_EVERY:
            return False
        return bool(np.any(multihost_utils.process_allgather(np.array(self._requested))))

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM):
                self._before[which] = signal.signal(which, self._note)
        return self

    def _note(self, which, frame):
        if self._requested and which == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def __exit__(self, *_):
        for which, handler in self._before.items():
            signal.signal(which, handler)
