"""A run's folder: config, checkpoints, metrics, lock, and its mirror in a bucket."""
