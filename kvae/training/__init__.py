"""The training program, from a config to a run folder; `kvae.training.train` tells its story."""
