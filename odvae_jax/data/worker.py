"""The program that a process runs that decodes videos; `processes.InOrder` starts it.

It keeps JAX from being imported, which would take seconds and memory in each of these processes,
and a GPU as soon as one is touched. The caller's script is not imported either.
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


if __name__ == "__main__":
    # Ctrl-C and schedulers send signals to the whole group. The parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Python puts a script's folder first; here it would be this package's.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.modules["jax"] = None

    from odvae_jax.data.processes import serve

    serve([int(number) for number in sys.argv[1:]])
