"""Models that come with the package; `--ckpt=NAME` finds each by its folder's name."""
