"""Defines the best step of a run: the lowest finite validation loss, and the earliest if several are equal.

A checkpoint holds all replicas of a run, so they share the best checkpoint. Its loss is the mean over replicas whose
last loss is finite. A mean over all replicas would fall when a bad replica fails, and a checkpoint after the failure
would look better than it is.

Early stopping and tables apply the rule to each seed separately, as their docstrings describe. A model card shows the
last evaluation up to the step of the opened checkpoint.
"""

from collections.abc import Mapping, Sequence

import numpy as np

LOSS = "valid/loss"
"""Name of the validation loss in metrics.jsonl. Rows with this name are evaluations."""

Losses = float | Sequence[float | None] | None
"""The loss of a run, or of each of its replicas; None or NaN if it is not finite or was not measured."""


def mean_over_replicas(losses: Losses) -> float | None:
    """Returns the mean of the replicas' finite losses; None if no loss is finite.

    Example:
      >>> mean_over_replicas([0.5, None, 0.25])
      0.375
    """
    finite = np.atleast_1d(np.asarray(losses, np.float64))
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else None


def best_step(losses: Mapping[int, Losses]) -> int | None:
    """Returns the earliest step with the lowest loss, a mean over the replicas whose last loss is finite.

    Example:
      >>> best_step({1000: 0.5, 2000: 0.25, 3000: 0.25, 4000: None})
      2000
      >>> best_step({1000: [0.5, 9.0], 2000: [0.75, None]})  # the second replica has failed
      1000

    Args:
      losses: By step.

    Returns:
      The step; None if no loss is finite.
    """
    steps = sorted(step for step in losses if mean_over_replicas(losses[step]) is not None)
    if not steps:
        return None
    by_step = np.stack(np.broadcast_arrays(*(np.atleast_1d(np.asarray(losses[step], np.float64)) for step in steps)))
    means = by_step[:, np.isfinite(by_step[-1])].mean(axis=1)
    return steps[int(np.argmin(np.where(np.isfinite(means), means, np.inf)))]
