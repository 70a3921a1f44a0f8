"""Config files that come with the package; `--config=NAME` finds each by its file's name."""
