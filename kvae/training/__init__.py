"""Trains a run from its config. Start reading at `kvae.training.train`."""
