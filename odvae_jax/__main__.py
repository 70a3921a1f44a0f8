"""The command `odvae`, run as `python -m odvae_jax`."""

import sys

from odvae_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
