"""Training: losses, state, step and loop."""
