"""Trains a model: `python train.py …` is `odvae train …`, which `--help` explains."""

import sys

from odvae_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
