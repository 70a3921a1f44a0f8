"""Training: a loop that knows no model, the tasks that it runs, and the autoencoder's losses."""
