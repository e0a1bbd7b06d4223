"""A scorer for model selection that measures both the fit and the order of a map."""

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from kvae.core.errors import InputError
from kvae.som.coordinates import BLOCK_ROWS
from kvae.som.estimator import SOM
from kvae.som.metrics import METRICS
from kvae.som.rows import validated_rows


def order_scorer(estimator: SOM | Pipeline, X: ArrayLike, y: None = None) -> float:
    """Returns minus the error of Kaski and Lagus, which measures both the fit and the order of a map.

    The error of a row is its distance from its nearest centre, plus the length of the shortest path along the grid from
    there to its second nearest centre. In an ordered map that path is a single step; in a folded map it is long. (Kaski
    and Lagus, "Comparing self-organizing maps", ICANN 1996.) `SOM.score` is minus the first part alone, so a search
    that maximises it selects the most nodes and the least order.

    It takes O(n K d) time, plus O(K^2 log K) for the paths, and O(n + K) working memory.

    Args:
      estimator: a fitted `kvae.SOM`, or a pipeline that ends in one.
      X: float [n, d], an array or a data frame.
      y: ignored.

    Returns:
      Minus the mean error, in the units of the distances; larger is better.

    Raises:
      InputError: the estimator is not a map.
      NotFittedError: the map is not fitted.
      ValueError: scikit-learn rejects X.

    Example:
      >>> import kvae
      >>> from sklearn.datasets import load_iris
      >>> from sklearn.model_selection import GridSearchCV
      >>> X, widths = load_iris().data, {"final_width": [0.5, 1.0, 5.0]}
      >>> search = GridSearchCV(kvae.SOM((6, 6)), widths, scoring=kvae.som.order_scorer, cv=3).fit(X)
      >>> search.best_params_
      {'final_width': 1.0}
    """
    if hasattr(estimator, "steps"):
        estimator, X = estimator[-1], estimator[:-1].transform(X)
    if not isinstance(estimator, SOM):
        raise InputError(
            f"estimator is a {type(estimator).__name__}; it must be a kvae.SOM or a pipeline that ends in one"
        )
    check_is_fitted(estimator)
    X, total, pairs = validated_rows(estimator, X), 0.0, []
    for start in range(0, X.shape[0], BLOCK_ROWS):
        distances = estimator._coordinates.distances(X[start : start + BLOCK_ROWS], estimator.cluster_centers_)
        distances = distances.astype(np.float64)
        nearest = distances.argmin(axis=1)
        total += np.take_along_axis(distances, nearest[:, None], axis=1).sum()
        if distances.shape[1] > 1:
            np.put_along_axis(distances, nearest[:, None], np.inf, axis=1)
            pairs.append(np.column_stack([nearest, distances.argmin(axis=1)]))
    return -float(total + _paths(estimator, np.concatenate(pairs) if pairs else np.empty((0, 2), int))) / X.shape[0]


def _paths(som: SOM, pairs: np.ndarray) -> float:
    """Returns the total length of the shortest paths along the grid between pairs of nodes, int [n, 2]."""
    codes, exists = som.grid_.neighbors(next(iter(som.grid_.adjacency.values())))
    nodes = np.broadcast_to(np.arange(som.grid_.size), codes.shape)
    # On a narrow torus, two nodes may be neighbours in two directions.
    edges = np.unique(np.column_stack([nodes[exists], codes[exists]]), axis=0)
    centers = som._coordinates.scaled(som.cluster_centers_.astype(np.float64))
    with jax.enable_x64(True):
        lengths = np.asarray(METRICS[som.metric].distance(centers[edges[:, 0]], centers[edges[:, 1]]))
    lengths = som._coordinates.distance(1.0) * np.maximum(lengths, 0)
    graph = csr_array((lengths, edges.T), shape=(som.grid_.size, som.grid_.size))
    starts, rows = np.unique(pairs[:, 0], return_inverse=True)
    total = 0.0
    for first in range(0, len(starts), BLOCK_ROWS):
        paths = dijkstra(graph, indices=starts[first : first + BLOCK_ROWS])
        in_block = (rows >= first) & (rows < first + BLOCK_ROWS)
        total += paths[rows[in_block] - first, pairs[in_block, 1]].sum()
    return total
