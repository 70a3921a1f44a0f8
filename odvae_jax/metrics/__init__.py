"""Metrics of how close reconstructions are to originals, and generated clips to real ones."""
