"""`python -m odvae_jax` is the command `odvae`."""

import sys

from odvae_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
