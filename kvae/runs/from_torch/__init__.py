"""Opens published PyTorch models as runs: `kvae.from_torch`."""

from kvae.runs.from_torch.weights import from_torch

__all__ = ["from_torch"]
