"""The work of `odvae encode --to=shards`; it is not a subcommand of its own."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from odvae_jax.cli import files
from odvae_jax.cli.parsing import part
from odvae_jax.cli.programs import join_hosts
from odvae_jax.files import counted, printable

_MOST_WORKERS = 32
_PER_SIZE = 3  # programs for whole videos of one frame size: whole blocks, and halves


def run(arguments: argparse.Namespace) -> int:
    """Encodes a source into a dataset of latents; returns 1 if something of it came to nothing.

    Raises:
      ValueError: if the arguments do not fit together or with what is there.
      OSError: if something cannot be read or written.
    """
    if len(arguments.inputs) > 1:
        raise ValueError(
            f"--to=shards takes one source, not {len(arguments.inputs)}; a manifest or a folder "
            "can name many videos."
        )
    if arguments.rows > 1:
        raise ValueError("--rows is for files; with --to=shards each device encodes clips alone.")
    if arguments.overwrite:
        raise ValueError("--overwrite is for files: choose a new folder for a dataset.")
    if arguments.engine == "ray" and arguments.coordinator:
        raise ValueError("--coordinator and --engine=ray are two ways to use several hosts.")
    logging.getLogger("odvae_jax").setLevel(logging.WARNING)
    join_hosts(arguments)
    return files.ended_by_signals("encode", lambda: _run(arguments))


def _run(arguments) -> int:
    from odvae_jax.compilation import use_compilation_cache

    use_compilation_cache()
    files.check_tiling(arguments)
    if arguments.engine == "ray" and not arguments.dry_run:
        return _run_on_ray(arguments)
    for name in ("address", "actors"):
        if getattr(arguments, name) is not None and arguments.engine != "ray":
            raise ValueError(f"--{name} is of a Ray cluster: give --engine=ray too.")
    return _run_here(arguments)


def _run_here(arguments) -> int:
    """Encodes on the devices of this process."""
    import jax

    from odvae_jax import transcoding

    vae, settings, dtype = _loaded(arguments, jax.default_backend() == "cpu")
    source, dest = str(arguments.inputs[0]), str(arguments.output)
    devices = files.devices_of(arguments)
    if arguments.dry_run:
        return _dry_run(vae, source, settings)
    kind = devices[0].device_kind
    print(
        f"{printable(arguments.ckpt)}, {vae.config.name}, {dtype}, {len(devices)} × {kind}",
        flush=True,
    )
    shard = part(arguments.shard) if arguments.shard is not None else None
    which = shard or (jax.process_index(), jax.process_count())
    summary = transcoding.encode_dataset(
        vae, arguments.ckpt, source, dest, settings, devices=devices, part=which
    )
    return _report(summary)


def _run_on_ray(arguments) -> int:
    """Plans here, and lets actors of a Ray cluster encode."""
    import jax

    from odvae_jax import transcoding
    from odvae_jax.transcoding.ray_engine import RayEngine

    if arguments.devices:
        raise ValueError("--devices is of one machine: a Ray cluster has --actors.")
    if arguments.tiling == "auto":
        raise ValueError(
            "--tiling=auto asks the devices of this process, which encodes nothing: with "
            "--engine=ray name the tiling."
        )
    # GPUs are for the actors; this process would take most of the memory of one.
    jax.config.update("jax_platforms", "cpu")
    with RayEngine(arguments.address, arguments.actors) as engine:
        vae, settings, dtype = _loaded(arguments, not engine.gpus)
        source, dest = str(arguments.inputs[0]), str(arguments.output)
        print(
            f"{printable(arguments.ckpt)}, {vae.config.name}, {dtype}, {engine.actors} Ray actors, "
            f"{'a GPU each' if engine.gpus else 'on CPUs'}",
            flush=True,
        )
        run = engine.runner(
            arguments.ckpt,
            dtype,
            dest,
            verify=arguments.verify,
            workers=arguments.workers is not None,
            limits=settings.limits,
        )
        which = part(arguments.shard) if arguments.shard is not None else (0, 1)
        summary = transcoding.encode_dataset(
            vae, arguments.ckpt, source, dest, settings, part=which, run=run
        )
    return _report(summary)


def _loaded(arguments, on_cpu: bool):
    """Returns the model, the settings and the dtype of the computation."""
    from odvae_jax import registry
    from odvae_jax.baselines.base import Baseline
    from odvae_jax.checks import check_continuous, check_untiled

    dtype = arguments.dtype or ("float32" if on_cpu else "bfloat16")
    vae = registry.load_autoencoder(arguments.ckpt, dtype=dtype, verify=arguments.verify)
    check_continuous(vae.config)
    settings = _settings(arguments, vae.config)
    if isinstance(vae, Baseline):
        check_untiled(vae.config, settings.tiling)
    return vae, settings, dtype


def _settings(arguments, config):
    """The settings that the command line gives for a model's config."""
    from odvae_jax.transcoding import Cut, DatasetSettings, parse_buckets

    buckets = ()
    if arguments.buckets:
        given = {"time": config.frame_step, "space": config.space_compression}
        buckets = parse_buckets(arguments.buckets, **given)
    cut = Cut(
        frames=arguments.frames,
        stride=arguments.stride,
        fps=arguments.fps,
        spread=arguments.spread,
        hop=arguments.hop,
        clips_per_video=arguments.clips_per_video,
        short_side=arguments.short_side,
        size=arguments.size,
        buckets=buckets,
        mirror=arguments.mirror,
        longest=arguments.longest,
    )
    workers = arguments.workers
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    return DatasetSettings(
        cut=cut,
        content=arguments.content,
        store=arguments.store,
        seed=arguments.seed,
        tiling=files.tilings_of(arguments, config.space_compression),
        batch=arguments.batch,
        workers=workers,
        threads=arguments.threads,
        read_timeout=files.read_timeout(arguments),
        limits=_limits(arguments),
    )


def _limits(arguments):
    """When shards are closed."""
    from odvae_jax.latents.shards import Limits

    given = {}
    if arguments.shard_mb:
        given["bytes"] = max(round(arguments.shard_mb * 1e6), 1)
    if arguments.shard_seconds:
        given["seconds"] = arguments.shard_seconds
    return Limits(**given)


def _dry_run(vae, source: str, settings) -> int:
    """Prints what would be encoded; returns 1 if some videos cannot be read."""
    from odvae_jax.data.sources import open_source
    from odvae_jax.transcoding.dataset import dataset_bytes, plan
    from odvae_jax.transcoding.digest import described

    planned = plan(open_source(source, timeout=settings.read_timeout), settings, bar=True)
    programs = sum(_programs(vae.config, bucket, planned) for bucket in planned.buckets)
    size = dataset_bytes(planned, settings, described(vae.config))
    print(
        f"{counted(len(planned.plan), 'clip')}, {planned.seconds / 3600:.2f} hours, "
        f"{counted(programs, 'program')}, {size / 1e9:.6f} GB of latents"
    )
    print(f"{'bucket':>16}{'clips':>10}{'batch':>8}")
    for bucket in planned.buckets:
        print(f"{bucket.name:>16}{bucket.entries:>10}{bucket.batch:>8}")
    _print_left_out(planned.counts)
    for problem in list(planned.unusable.values())[:20]:
        print(problem, file=sys.stderr)
    return int(bool(planned.unusable))


def _programs(config, bucket, planned) -> int:
    """The number of programs that a bucket needs, about."""
    from odvae_jax.config import ODVAEConfig

    if bucket.frames:
        return 1
    if isinstance(config, ODVAEConfig):
        return _PER_SIZE
    return len({config.clip_size(n, 1, 1)[0] for n in planned.frames[bucket.name]})


def _print_left_out(counts: dict[str, int]) -> None:
    if counts:
        listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        print(f"left out: {listed}")


def _report(summary) -> int:
    """Prints what came of a run, and returns the exit status."""
    rate = summary.frames / summary.seconds if summary.seconds else 0.0
    description = summary.description
    print(
        f"{counted(summary.clips, 'clip')}, {counted(summary.frames, 'frame')} in "
        f"{summary.seconds:.1f} s, {rate:.1f} frames/s; "
        f"{counted(summary.there, 'clip was', 'clips were')} there already; "
        f"{counted(summary.programs, 'program')} compiled in {summary.compiling:.1f} s"
    )
    _print_left_out(summary.left_out)
    if description.records is None:
        print("the dataset is not complete yet: parts of it are left to other processes")
    else:
        print(f"the dataset has {counted(description.records, 'record')}")
    sys.stdout.flush()
    for problem in list(summary.problems.values())[:20]:
        print(problem, file=sys.stderr)
    if summary.problems:
        print(
            f"odvae encode: {counted(len(summary.problems), 'problem')}; all stand in "
            "problems.jsonl",
            file=sys.stderr,
        )
    return int(bool(summary.problems))
