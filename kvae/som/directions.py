"""Rows scaled to length 1 on the host, for metrics that compare directions only."""

import numpy as np
from sklearn.preprocessing import normalize


def directions(vectors: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns vectors [n, d] of any length scaled to length 1; the zero vector stays 0. `factors` is ignored."""
    return normalize(_near_one(vectors))


def centered_directions(vectors: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns vectors minus the mean of their features, scaled to length 1. Their products are correlations.

    Args:
      vectors: features times their factors, float [n, d]. Vectors of equal features become 0.
      factors: factor of each feature, float [d]. The mean weights each feature by the square of its factor.
    """
    vectors = _near_one(vectors)
    means = np.sum(vectors * factors, axis=1, dtype=np.float64) / np.sum(np.square(factors), dtype=np.float64)
    centered = vectors - (means[:, None] * factors).astype(vectors.dtype)
    is_rounding_error = np.abs(centered).max(axis=1) <= 8 * np.finfo(vectors.dtype).eps
    return normalize(np.where(is_rounding_error[:, None], 0, centered))


def _near_one(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [n, d] divided by powers of two such that the largest value of each is from 0.5 to 1, or 0."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    with np.errstate(under="ignore"):
        return np.ldexp(vectors, -np.frexp(largest)[1])
