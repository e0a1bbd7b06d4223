"""Initial codewords of `kvae.SOM`, from a sample of the data."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from kvae.core.errors import InputError, choose
from kvae.som.coordinates import Coordinates
from kvae.som.rows import refuse_huge_integers
from kvae.topology import Grid

SAMPLE_ROWS = 2_000
"""Number of rows sampled to initialise the codewords; more on grids of more nodes."""


def principal_plane(vectors: np.ndarray, weights: np.ndarray, grid: Grid) -> np.ndarray:
    """Codewords on the plane of the first principal components, within two standard deviations of the mean.

    A line follows one component, a cube follows three, and so on.

    Args:
      vectors: float [n, d].
      weights: float [n], at least 0.
      grid: of K nodes; its longest axis follows the first component.

    Returns:
      [K, d], the dtype of `vectors`.
    """
    share = weights / np.sum(weights)
    mean = share @ vectors
    rows = np.sqrt(share)[:, None] * (vectors - mean)
    # Deviations along the components, [components, d], from the smaller of two matrices.
    if rows.shape[1] > rows.shape[0]:
        deviations = np.linalg.eigh(rows @ rows.T)[1].T @ rows
    else:
        values, components = np.linalg.eigh(rows.T @ rows)
        deviations = np.sqrt(np.maximum(values, 0))[:, None] * components.T
    # The sign of a component is arbitrary. Make its largest entry positive.
    deviations *= np.sign(np.take_along_axis(deviations, np.abs(deviations).argmax(axis=1)[:, None], axis=1))
    codewords = np.tile(mean, (grid.size, 1))
    longest_first = sorted(range(len(grid.shape)), key=lambda axis: -grid.shape[axis])
    for axis, deviation in zip(longest_first, deviations[::-1], strict=False):
        points = grid.points[:, axis] - grid.points[:, axis].mean()
        codewords += np.outer(2 * points / max(np.abs(points).max(), 1e-30), deviation)
    return codewords.astype(vectors.dtype)


def random_rows(vectors: np.ndarray, weights: np.ndarray, grid: Grid, random: np.random.RandomState) -> np.ndarray:
    """Codewords at random rows, drawn by weight, and distinct if there are enough.

    Args:
      vectors: float [n, d].
      weights: float [n], at least 0.
      grid: of K nodes.
      random: generator of the draw.

    Returns:
      [K, d], the dtype of `vectors`.
    """
    is_short = np.count_nonzero(weights) < grid.size
    return vectors[random.choice(len(vectors), grid.size, replace=is_short, p=weights / weights.sum())]


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
    """Returns the initial centres of a map, from a sample or as given.

    Args:
      init: the name, or centres [K, d].
      vectors: sample, float [n, d].
      weights: of the sample, float [n], at least 0.
      grid: of K nodes.
      random: generator of the draw.
      coordinates: of the map.

    Returns:
      [K, d], the dtype of `vectors`; of length 1 under the cosine metric.

    Raises:
      InputError: an unknown name, or centres of another shape or out of range.
    """
    if isinstance(init, str):
        initialize = choose("init", init, INITIALIZERS)
        centers = initialize(coordinates.scaled(vectors), coordinates.scaled_weights(weights), grid, random)
        centers = np.nan_to_num(coordinates.unscaled(centers.astype(vectors.dtype)))  # none is beyond the largest float
    else:
        shape = (grid.size, vectors.shape[1])
        with refuse_huge_integers("init"):
            array = np.asarray(init)
        if array.shape != shape:
            raise InputError(f"init has the shape {array.shape}; this grid and these data need {shape}")
        with refuse_huge_integers("init"):
            centers = check_array(array, dtype=vectors.dtype, copy=True, input_name="init")
    coordinates.codewords(centers, "init")
    return coordinates.scaled(centers) if coordinates.metric == "cosine" else centers
