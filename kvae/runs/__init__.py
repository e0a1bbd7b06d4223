"""Trained runs: open, use, share, export and compare them."""

from kvae.runs.opening import from_pretrained, load, train
from kvae.runs.run import Run

__all__ = ["Run", "from_pretrained", "load", "train"]
