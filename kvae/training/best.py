"""Defines the best step of a run: the lowest finite validation loss, and the earliest if several are equal.

A checkpoint holds all replicas of a run. Its loss is the mean over the replicas with a finite loss, so that all
replicas have the same best checkpoint. Early stopping and tables apply the rule to each seed separately, as their
docstrings describe.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

LOSS = "valid/loss"
"""Name of the validation loss in metrics.jsonl. Rows with this name are evaluations."""


def mean_over_replicas(losses: float | Sequence[float]) -> float | None:
    """Returns the mean of the replicas' finite losses; None if no loss is finite.

    Example:
      >>> mean_over_replicas([0.5, float("nan"), 0.25])
      0.375
    """
    finite = np.atleast_1d(np.asarray(losses, np.float64))
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else None


def best_step(losses: Mapping[int, float | None]) -> int | None:
    """Returns the earliest step with the lowest finite loss; None if no loss is finite.

    Example:
      >>> best_step({1000: 0.5, 2000: 0.25, 3000: 0.25, 4000: None})
      2000
    """
    finite = {step: loss for step, loss in sorted(losses.items()) if loss is not None and math.isfinite(loss)}
    return min(finite, key=finite.get, default=None)
