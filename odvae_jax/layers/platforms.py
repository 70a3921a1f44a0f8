"""The one place where a program does the same in another way on each platform."""

from __future__ import annotations

from collections.abc import Callable

import jax


def by_platform(*arrays, **lowerings: Callable):
    """What the lowering of the platform that the program is compiled for returns.

    Args:
      arrays: what each is called with.
      lowerings: by platform, "cuda" and "tpu"; `default` for the others.
    """
    return jax.lax.platform_dependent(*arrays, **lowerings)
