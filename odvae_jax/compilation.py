"""Where programs keep what they have compiled."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs in `~/.cache/odvae_jax`, unless JAX is told another place.

    Compiling a model for a GPU takes minutes, most of them autotuning; the next process then has it
    in seconds. For programs, not for the library: it changes JAX's configuration.
    """
    if not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "odvae_jax"))
