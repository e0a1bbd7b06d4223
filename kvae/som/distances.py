"""Distances between rows and centres, [n, K], computed on the host in float64."""

import math

import numpy as np
from scipy.spatial.distance import cdist


def euclidean_distances(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns Euclidean distances. Those of vectors with missing values are over the known ones, times sqrt(d / known).

    Args:
      vectors: float64 [n, d]; NaN marks a missing value.
      centers: float64 [K, d].

    Returns:
      Distances, float64 [n, K].
    """
    known = ~np.isnan(vectors)
    if known.all():
        return cdist(vectors, centers)
    distances = np.empty((len(vectors), len(centers)))
    patterns, pattern_of_row = np.unique(known, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):  # rows that know the same features
        rows = pattern_of_row == number
        scale = math.sqrt(len(pattern) / pattern.sum())
        distances[rows] = scale * cdist(vectors[rows][:, pattern], centers[:, pattern])
    return distances


def manhattan_distances(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns sums of absolute differences: float64 [n, d] and [K, d] -> [n, K]."""
    return cdist(vectors, centers, "cityblock")
