"""Reading and writing models: one file a layout."""
