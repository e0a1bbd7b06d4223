"""Distances between rows and the centres of a fitted map, [n, K], computed on the host."""

import math

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_distances

from kvae.som.coordinates import Coordinates

BLOCK_ROWS = 1024
"""Number of rows in a block, small enough for a block's float64 distances to stay in the processor's cache."""


def center_distances(vectors: np.ndarray, centers: np.ndarray, coordinates: Coordinates) -> np.ndarray:
    """Returns the distance of every row from every centre.

    Distances are computed in float64 in blocks of rows, and stored in the dtype of the vectors. Distances of
    rows with missing values are computed over the known features and scaled as in `kvae.som.metrics.KNOWN_METRICS`.

    Args:
      vectors: float [n, d]; NaN marks a missing value.
      centers: float [K, d].
      coordinates: coordinates of the map.

    Returns:
      Distances [n, K] in the dtype of the vectors.
    """
    distances = np.empty((len(vectors), len(centers)), vectors.dtype)
    scaled_centers = coordinates.scaled(centers.astype(np.float64))
    unit = coordinates.distance(1.0)
    for start in range(0, len(vectors), BLOCK_ROWS):
        scaled = coordinates.scaled(vectors[start : start + BLOCK_ROWS].astype(np.float64))
        block = _scaled_distances(scaled, scaled_centers, coordinates.metric)
        with np.errstate(over="ignore", under="ignore"):  # a distance too large for the dtype becomes infinite
            np.multiply(block, unit, out=distances[start : start + BLOCK_ROWS], casting="same_kind")
    return distances


def _scaled_distances(vectors: np.ndarray, centers: np.ndarray, metric: str) -> np.ndarray:
    if metric == "cosine":
        return cosine_distances(vectors, centers)
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
