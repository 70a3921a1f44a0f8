"""The network's layers, one idea a file."""
