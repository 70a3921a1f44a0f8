"""The tests, and what `make fuzz` and `make soak` run."""

import signal

# A shell lets what it runs in the background ignore SIGINT, and child processes would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
