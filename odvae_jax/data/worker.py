"""What a process that decodes videos runs first (`clips.batches`): it is to do without JAX.

grain imports JAX if it can, which takes seconds and memory in each process, and a GPU if one is
touched; without it, grain has what it needs.
"""

import logging
import sys

if __name__ == "__mp_main__":
    sys.modules["jax"] = None
    # grain would say that it misses JAX's profiler.
    logging.getLogger("absl").setLevel(logging.ERROR)
