"""The rule for "best": the lowest finite validation loss, and of equal losses the earliest.

A checkpoint holds all replicas of a run, so its loss is the mean over the replicas whose loss is finite: the best
checkpoint is the same one for each of them. Early stopping and tables look at each seed alone, and say in their
docstrings how they apply the rule.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

LOSS = "valid/loss"
"""The name of the validation loss in a row of metrics.jsonl; rows that have it are evaluations."""


def mean_over_replicas(losses: float | Sequence[float]) -> float | None:
    """Returns the mean of the finite losses of the replicas; None if none is finite.

    Example:
      >>> mean_over_replicas([0.5, float("nan"), 0.25])
      0.375
    """
    finite = np.atleast_1d(np.asarray(losses, np.float64))
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else None


def best_step(losses: Mapping[int, float | None]) -> int | None:
    """Returns the step with the lowest finite loss, the earliest of equal ones; None if no loss is finite.

    Example:
      >>> best_step({1000: 0.5, 2000: 0.25, 3000: 0.25, 4000: None})
      2000
    """
    finite = {step: loss for step, loss in sorted(losses.items()) if loss is not None and math.isfinite(loss)}
    return min(finite, key=finite.get, default=None)
