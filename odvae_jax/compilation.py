"""Compiled programs: where they are kept, and how much memory they need."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import jax

from odvae_jax import lowering
from odvae_jax.sharding import partitioned


def use_compilation_cache() -> None:
    """Keeps compiled programs under `~/.cache/odvae_jax`, unless JAX has another place for them.

    Compiling a model for a GPU takes minutes, most of them for autotuning. With the cache the next
    process has the program in seconds. This is for programs, not for libraries, because it changes
    JAX's configuration.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # A program over several devices names the partitioning of our own operations by its place in
    # memory, which no other process shares. The folder's name stands for their code instead.
    code = [Path(partitioned.__file__), *Path(lowering.__file__).parent.glob("*.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(code))).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(Path(home) / "odvae_jax" / digest))
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def bytes_needed(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a device needs to run a compiled program.

    They are those of the arguments, of the outputs that do not take an argument's place, and of
    what lies in memory in between.
    """
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return needed + memory.output_size_in_bytes - memory.alias_size_in_bytes


def memory_of(device: jax.Device) -> tuple[int, int] | None:
    """Returns the bytes that programs may use on a device, and those in use now.

    It returns None for a device that does not say it, such as a CPU.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"], stats.get("bytes_in_use", 0)


def room_on(devices: Iterable[jax.Device], own: int, *, share: float = 1.0) -> float | None:
    """Returns the bytes that a program and what it is given may take together on each device.

    What other arrays take there is left out. It is the least of all devices, or None if one of them
    does not say how much memory it has.

    Args:
      devices: the devices that the program runs on.
      own: the bytes per device of what the program is given and that lies there already.
      share: the share of a device's memory that is planned with.
    """
    rooms = []
    for device in devices:
        memory = memory_of(device)
        if memory is None:
            return None
        limit, used = memory
        rooms.append(share * limit - max(used - own, 0))
    return min(rooms)


class DeviceMemoryError(RuntimeError):
    """The memory of a device does not suffice. The message says what to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device does not suffice."""
    # JAX has no class of its own for it.
    return any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "CUDA_ERROR_OUT_OF_MEMORY"))


def is_too_large(error: BaseException) -> bool:
    """Whether a program could not be compiled or run, most likely for lack of memory.

    XLA runs parts of a program to tune them, and may hide why none of its ways could be run.
    """
    tuned = ("Autotuning failed", "Failed to determine best cudnn")
    return is_out_of_memory(error) or any(words in str(error) for words in tuned)
