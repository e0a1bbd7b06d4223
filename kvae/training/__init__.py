"""The training program from a config to a run folder; `loop.train` tells its story."""
