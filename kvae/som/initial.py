"""Initial codewords of `kvae.SOM`, computed from a sample of the data."""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from kvae.core.errors import InputError, choose
from kvae.som import csr
from kvae.som.coordinates import Coordinates
from kvae.som.metrics import METRICS
from kvae.som.rows import refuse_huge_integers
from kvae.topology import Grid

SAMPLE_ROWS = 2_000
"""Minimum number of rows sampled to initialise the codewords. A grid with more nodes takes one row per node."""


def principal_plane(vectors: np.ndarray, weights: np.ndarray, grid: Grid) -> np.ndarray:
    """Returns codewords on the plane of the first principal components, up to two standard deviations from the mean.

    A line uses one component, a cube three, and so on.

    Args:
      vectors: float [n, d], dense or CSR.
      weights: float [n], at least 0.
      grid: grid with K nodes; its longest axis follows the first component.

    Returns:
      Codewords [K, d] in the dtype of `vectors`.
    """
    mean, deviations = _principal_deviations(vectors, weights / np.sum(weights), len(grid.shape))
    # The sign of a component is arbitrary. Make its largest entry positive.
    deviations *= np.sign(np.take_along_axis(deviations, np.abs(deviations).argmax(axis=1)[:, None], axis=1))
    codewords = np.tile(mean, (grid.size, 1))
    longest_first = sorted(range(len(grid.shape)), key=lambda axis: -grid.shape[axis])
    for axis, deviation in zip(longest_first, deviations[::-1], strict=False):
        points = grid.points[:, axis] - grid.points[:, axis].mean()
        codewords += np.outer(2 * points / max(np.abs(points).max(), 1e-30), deviation)
    return codewords.astype(vectors.dtype)


def _principal_deviations(vectors: np.ndarray, shares: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [d] and the deviations along the components in ascending order, [components, d]."""
    if scipy.sparse.issparse(vectors):
        return csr.principal_deviations(vectors, shares, count)
    mean = shares @ vectors
    rows = np.sqrt(shares)[:, None] * (vectors - mean)
    # Compute the deviations from the smaller of two matrices.
    if rows.shape[1] > rows.shape[0]:
        return mean, np.linalg.eigh(rows @ rows.T)[1].T @ rows
    values, components = np.linalg.eigh(rows.T @ rows)
    return mean, np.sqrt(np.maximum(values, 0))[:, None] * components.T


def random_rows(vectors: np.ndarray, weights: np.ndarray, grid: Grid, random: np.random.RandomState) -> np.ndarray:
    """Returns random rows as codewords, drawn in proportion to their weights and distinct if there are enough.

    Args:
      vectors: float [n, d].
      weights: float [n], at least 0.
      grid: grid with K nodes.
      random: generator for the draw.

    Returns:
      Codewords [K, d] in the dtype of `vectors`.
    """
    is_short = np.count_nonzero(weights) < grid.size
    rows = vectors[random.choice(len(weights), grid.size, replace=is_short, p=weights / weights.sum())]
    return rows.toarray() if scipy.sparse.issparse(rows) else rows


INITIALIZERS: dict[str, Callable[[np.ndarray, np.ndarray, Grid, np.random.RandomState], np.ndarray]] = {
    "pca": lambda vectors, weights, grid, random: principal_plane(vectors, weights, grid),
    "random": random_rows,
}
"""Maps names to functions from a sample [n, d], its weights [n], a grid and a RandomState to codewords [K, d]."""


def initial_centers(
    init: str | ArrayLike,
    vectors: np.ndarray,
    weights: np.ndarray,
    grid: Grid,
    random: np.random.RandomState,
    coordinates: Coordinates,
) -> np.ndarray:
    """Returns the initial centres of a map, computed from a sample or taken from `init`.

    Args:
      init: a name in `INITIALIZERS`, or centres [K, d].
      vectors: sample, float [n, d].
      weights: weights of the sample, float [n], at least 0.
      grid: grid with K nodes.
      random: generator for the draw.
      coordinates: coordinates of the map.

    Returns:
      Centres [K, d] in the dtype of `vectors`, scaled to length 1 under metrics that compare directions only.

    Raises:
      InputError: the name is unknown, or the centres have the wrong shape or are out of range.
    """
    if isinstance(init, str):
        initialize = choose("init", init, INITIALIZERS)
        centers = initialize(coordinates.scaled(vectors), coordinates.scaled_weights(weights), grid, random)
        # Replace infinities by the largest float.
        centers = np.nan_to_num(coordinates.unscaled(centers.astype(vectors.dtype)))
    else:
        shape = (grid.size, vectors.shape[1])
        with refuse_huge_integers("init"):
            array = np.asarray(init)
        if array.shape != shape:
            raise InputError(f"init has the shape {array.shape}; for this grid and data it must be {shape}")
        with refuse_huge_integers("init"):
            centers = check_array(array, dtype=vectors.dtype, copy=True, input_name="init")
    coordinates.codewords(centers, "init")
    is_angular = METRICS[coordinates.metric].directions is not None
    return coordinates.unscaled(coordinates.scaled(centers)) if is_angular else centers
