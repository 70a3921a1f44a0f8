"""How close a reconstruction is."""
