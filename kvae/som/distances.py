"""Distances between rows and centres, [n, K], computed on the host in float64."""

import math

import numpy as np
from scipy.spatial.distance import cdist

SMALL_SHARE = 1e-6
"""Squared distances below this share of the squared lengths are computed from differences."""

LARGEST_SQUARE = 1e300
"""Squared lengths above this number could overflow in a product."""


def euclidean_distances(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns Euclidean distances. With missing values: over known features, times sqrt(d / known).

    Args:
      vectors: float64 [n, d]; NaN marks a missing value.
      centers: float64 [K, d].

    Returns:
      Distances, float64 [n, K].
    """
    known = ~np.isnan(vectors)
    if known.all():
        return _complete_distances(vectors, centers)
    distances = np.empty((len(vectors), len(centers)))
    patterns, pattern_of_row = np.unique(known, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):  # rows that know the same features
        rows = pattern_of_row == number
        scale = math.sqrt(len(pattern) / pattern.sum())
        distances[rows] = scale * cdist(vectors[rows][:, pattern], centers[:, pattern])
    return distances


def _complete_distances(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns sqrt(|x|^2 - 2 x . w + |w|^2) from one matrix product, several times as fast as sums of differences.

    Distances that are small against |x| and |w| would lose digits. They are computed from differences instead, so the
    relative error is below 1e-9 and the distance of equal vectors is 0.
    """
    with np.errstate(over="ignore"):
        squares, center_squares = (np.sum(np.square(array), axis=1) for array in (vectors, centers))
    if not max(squares.max(), center_squares.max()) < LARGEST_SQUARE:
        return cdist(vectors, centers)
    left = np.column_stack([-2 * vectors, squares, np.ones(len(vectors))])
    results = left @ np.column_stack([centers, np.ones(len(centers)), center_squares]).T
    near = np.flatnonzero(results < SMALL_SHARE * (squares[:, None] + center_squares.max()))
    if len(near) > len(vectors):  # all vectors are far from the origin or close to each other
        return cdist(vectors, centers)
    rows, codes = np.divmod(near, len(centers))
    results.ravel()[near] = np.sum(np.square(vectors[rows] - centers[codes]), axis=1)
    return np.sqrt(results, out=results)


def manhattan_distances(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns sums of absolute differences: float64 [n, d] and [K, d] -> [n, K]."""
    return cdist(vectors, centers, "cityblock")
