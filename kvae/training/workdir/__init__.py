"""A run's folder: config, checkpoints, metrics, lock, and uploads to a bucket."""
