"""Distances between rows and the centres of a fitted map, [n, K], computed on the host."""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_distances

from kvae.som.coordinates import Coordinates

BLOCK_ROWS = 1024
"""Number of rows in a block, small enough for a block's float64 distances to stay in the processor's cache."""


def center_distances(vectors: np.ndarray, centers: np.ndarray, coordinates: Coordinates) -> np.ndarray:
    """Returns the distance of every row from every centre.

    Distances are computed in float64 in blocks of rows, and stored in the dtype of the vectors.

    Args:
      vectors: float [n, d].
      centers: float [K, d].
      coordinates: coordinates of the map.

    Returns:
      Distances [n, K] in the dtype of the vectors.
    """
    distances = np.empty((len(vectors), len(centers)), vectors.dtype)
    scaled_centers = coordinates.scaled(centers.astype(np.float64))
    block = np.empty((min(BLOCK_ROWS, len(vectors)), len(centers)))
    unit = coordinates.distance(1.0)
    for start in range(0, len(vectors), BLOCK_ROWS):
        scaled = coordinates.scaled(vectors[start : start + BLOCK_ROWS].astype(np.float64))
        if coordinates.metric == "cosine":
            block = cosine_distances(scaled, scaled_centers)
        else:
            cdist(scaled, scaled_centers, out=block[: len(scaled)])
        with np.errstate(over="ignore", under="ignore"):  # a distance too large for the dtype becomes infinite
            results = distances[start : start + BLOCK_ROWS]
            np.multiply(block[: len(scaled)], unit, out=results, casting="same_kind")
    return distances
