"""Weights of PyTorch models as runs."""

from kvae.runs.from_torch.weights import from_torch

__all__ = ["from_torch"]
