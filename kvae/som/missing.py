"""Finds and fills missing values in rows on the host; NaN marks a missing value."""

import numpy as np
import scipy.sparse

from kvae.core.errors import InputError


def refuse_unknown_rows(vectors: np.ndarray, first: int = 0) -> None:
    """Raises InputError if a row has no known value. The message gives the number of the row.

    Args:
      vectors: float [n, d].
      first: number of the first row, for the message.
    """
    candidates = np.flatnonzero(np.isnan(vectors[:, 0]))
    unknown = candidates[np.isnan(vectors[candidates]).all(axis=1)]
    if len(unknown) > 0:
        raise InputError(f"row {first + unknown[0]:,} of X has no known value; remove such rows")


def refuse_unknown_features(counts: np.ndarray) -> None:
    """Raises InputError if a feature has no known value. The message gives the number of the feature.

    Args:
      counts: weights of the known values by code and feature, float [K, d].
    """
    unknown = counts.sum(axis=0) == 0
    if unknown.any():
        raise InputError(f"column {unknown.argmax()} of X has no known value; remove such columns")


def fill_by_means(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns a sample, float [n, d], with missing values replaced by the feature's mean, weighted by [n].

    Sparse rows have no missing values.
    """
    if scipy.sparse.issparse(vectors) or not np.isnan(vectors).any():
        return vectors
    missing = np.isnan(vectors)
    shares = np.where(missing, 0, weights[:, None])
    largest = shares.max(axis=0)  # 0 if the sample knows no value of a feature: its mean is then 0
    shares /= np.where(largest > 0, largest, 1)
    shares /= np.maximum(shares.sum(axis=0), 1)
    means = np.sum(shares * np.where(missing, 0, vectors), axis=0)
    lowest, highest = (np.where(missing, limit, vectors) for limit in (np.inf, -np.inf))
    # Rounding must not move the mean of equal values, or a constant feature would vary.
    means = np.where(largest > 0, np.clip(means, lowest.min(axis=0), highest.max(axis=0)), 0)
    return np.where(missing, means, vectors).astype(vectors.dtype, copy=False)
