"""How well models reconstruct: the paper's tables (section 4)."""
