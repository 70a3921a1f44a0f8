"""The layers of the network, one idea per file."""
