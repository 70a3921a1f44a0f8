"""What a process that decodes videos runs first (`processes.own_main`): it is to do without JAX.

grain imports JAX if it can, which takes seconds and memory in each process, and a GPU if one is
touched; without it, grain has what it needs.
"""

import logging
import os
import signal
import sys
import threading
import time


def _end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__mp_main__":
    sys.modules["jax"] = None
    # grain would say that it misses JAX's profiler.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Ctrl-C and schedulers signal the whole group; what is to happen then, the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
