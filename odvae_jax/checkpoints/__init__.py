"""Reading and writing models, with one module per layout of files."""
