"""What the first of several processes decides, in all of them."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

_BYTES = 1024


def told(text: str) -> str:
    """Returns what the first process gives, in all processes; each must call it.

    Args:
      text: at most 1024 bytes in UTF-8, of which more are cut off; what others give is ignored.
    """
    if jax.process_count() == 1:
        return text
    given = text.encode()[:_BYTES].ljust(_BYTES, b"\0")
    found = multihost_utils.broadcast_one_to_all(np.frombuffer(given, np.uint8))
    return bytes(np.asarray(found, np.uint8)).rstrip(b"\0").decode(errors="replace")
