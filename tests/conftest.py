"""Shared by all tests.

Eight virtual CPU devices, a compilation cache, checked types, small models.
"""

import functools
import logging
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
_CACHE = Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Programs here are compiled more often than they are run.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=2"
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}"

from jaxtyping import install_import_hook  # noqa: E402

import tests.typechecker  # noqa: E402, F401

install_import_hook("odvae_jax", "tests.typechecker.check")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402

from odvae_jax import (  # noqa: E402
    ODVAE,
    ODVAEConfig,
    lowering,
)
from odvae_jax.lowering import norm_kernels  # noqa: E402

MOST_MEMORY = 3e9  # bytes, of a process of tests, after which it forgets its programs
SMALL = {"width": 8, "groups": 4, "precision": "highest"}


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the full grids too")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: part of a full grid, run with --full only")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: "training" not in item.path.parts)  # the long ones first
    if not config.getoption("--full"):
        skip = pytest.mark.skip(reason="only with --full")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(skip)


def on_a_gpu(monkeypatch):
    """What a GPU runs, here."""

    def by_platform(*arrays, default, cuda=None, **others):
        return (cuda or default)(*arrays)

    monkeypatch.setattr(lowering, "by_platform", by_platform)


@pytest.fixture
def gpu(monkeypatch):
    """The kernels that ran since, while this is what runs on a GPU."""
    on_a_gpu(monkeypatch)
    monkeypatch.setattr(norm_kernels, "_devices_can", lambda: True)
    calls, call = set(), norm_kernels._call
    monkeypatch.setattr(
        norm_kernels, "_call", lambda kernel, *a: calls.add(kernel.func) or call(kernel, *a)
    )
    return calls


def full(*values):
    """Parameters that only `make test-full` runs."""
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Frees compiled programs if they fill the memory; the cache still has them."""
    yield
    if psutil.Process().memory_info().rss > MOST_MEMORY:
        jax.clear_caches()


@functools.cache
def small_model(structure="v4", seed=0, **overrides):
    """A random model of width 8 whose biases and norms are not trivial, made once."""
    vae = ODVAE(ODVAEConfig.from_dict({**SMALL, "structure": structure, **overrides}), rngs=seed)
    return jax.tree.map(
        lambda p: (
            p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape) if p.ndim == 1 else p
        ),
        vae,
    )


def random_video(t, h, w, b=1, seed=0):
    """float32 in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (b, t, h, w, 3)).astype(np.float32)


@pytest.fixture
def unchecked_types():
    """Lets wrong input reach the library's own checks, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """The hub as an offline machine has it: what is in the cache, and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def own_log():
    """For programs that run in this process: afterwards, messages go where they went before."""
    loggers = [logging.getLogger(name) for name in (None, "odvae_jax", "absl", "asyncio")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def write_clip(path, frames=24, height=48, width=64, seed=0, fps=12):
    """A real H.264 file of a moving pattern."""
    from odvae_jax.data.video import write_video

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = rng.uniform(0.05, 0.3, (3, 3))
    video = np.stack(
        [
            np.stack([np.sin(a * x + b * y + c * 4 * t) for a, b, c in waves], -1)
            for t in range(frames)
        ]
    )
    write_video(path, ((video + 1) * 127.5).astype(np.uint8), fps)
    return path


def remuxed(source, target, **options):
    """The packets of a video in another file, whose kind its name says."""
    import av

    with av.open(str(source)) as whole, av.open(str(target), "w", options=options) as other:
        video = whole.streams.video[0]
        stream = other.add_stream_from_template(video)
        for packet in whole.demux(video):
            if packet.dts is not None:
                packet.stream = stream
                other.mux(packet)
    return target


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder of two short videos."""
    path = tmp_path_factory.mktemp("videos")
    for i in range(2):
        write_clip(path / f"clip{i}.mp4", seed=i)
    return path
