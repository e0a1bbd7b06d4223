"""Trained runs: opened, used, shared, exported and compared."""

from kvae.runs.opening import from_pretrained, load, train
from kvae.runs.run import Run

__all__ = ["Run", "from_pretrained", "load", "train"]
