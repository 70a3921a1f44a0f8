"""Metrics of how close a reconstruction is to the original."""
