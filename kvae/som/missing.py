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


def predict_deviations(deviations: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns deviations of rows from their centres, with the missing ones predicted from the known ones.

    The prediction is the linear regression on the row's known deviations,

        e_m = S_mo inv(S_oo) e_o,    S = D ((1 - a) C + a I) D,

    where m and o are the row's missing and known features, D the features' root mean squares and C their correlations,
    both over the reference. A missing value counts as no deviation, so C is positive semi-definite. The shrinkage a is
    the estimate of Schaefer and Strimmer ("A shrinkage approach to large-scale covariance matrix estimation", 2005),
    and at least d / (d + rows of the reference), so a few rows predict almost nothing. Time is O((n + rows) d^2 + d^3),
    and up to d^3 more for each distinct set of missing features.

    Args:
      deviations: float64 [n, d]; NaN where the value is missing.
      reference: deviations of the rows from which C and D are computed, float64 [rows, d].
    """
    counts = np.maximum(1, np.sum(~np.isnan(reference), axis=0))
    reference = np.nan_to_num(reference)
    sizes = np.sqrt(np.sum(reference**2, axis=0) / counts)
    sizes = np.where(sizes > 0, sizes, 1)
    inverse = np.linalg.inv(_shrunk_correlations(reference / sizes, counts))
    is_missing = np.isnan(deviations)
    products = np.nan_to_num(deviations) / sizes @ inverse
    patterns, pattern_of_row = np.unique(is_missing, axis=0, return_inverse=True)
    results = deviations.copy()
    for number, pattern in enumerate(patterns):
        missing = np.flatnonzero(pattern)
        block = np.ix_(np.flatnonzero(pattern_of_row == number), missing)
        # By the inverse of a block matrix, S_mo inv(S_oo) = -inv(P_mm) P_mo with P = inv(S), and few are missing.
        results[block] = -np.linalg.solve(inverse[np.ix_(missing, missing)], products[block].T).T * sizes[missing]
    return results


def _shrunk_correlations(vectors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns shrunk correlations, float64 [d, d], of vectors [n, d] of which counts [d] values are known."""
    pairs = np.sqrt(np.outer(counts, counts))
    correlations = vectors.T @ vectors / pairs
    variances = ((vectors**2).T @ vectors**2 / pairs - correlations**2) / np.maximum(1, pairs - 1)
    others = ~np.eye(len(counts), dtype=bool)
    total = np.sum(correlations[others] ** 2)
    # The estimate is 0 for a single row, and for equal features, which would make the matrix singular.
    lowest = len(counts) / (len(counts) + len(vectors))
    shrinkage = np.clip(np.sum(variances[others]) / total, lowest, 1) if total > 0 else 1.0
    return (1 - shrinkage) * correlations + shrinkage * np.eye(len(counts))
