"""What a process that decodes videos runs first: it keeps JAX from being imported.

`processes.own_main` starts such processes. Importing JAX would take seconds and memory in each of
them, and a GPU as soon as one is touched.
"""

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
    # Ctrl-C and schedulers send signals to the whole group. The parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
