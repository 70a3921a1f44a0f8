"""Compares models on videos: `python eval.py …` is `odvae eval …`, which `--help` explains."""

import sys

from odvae_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
