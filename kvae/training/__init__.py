"""Training: from a config to a run's folder. Start reading at `kvae.training.train`."""
