"""Groups the nodes of a fitted map."""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from sklearn.cluster import AgglomerativeClustering

from kvae.topology import Grid


def ward_clusters(codewords: np.ndarray, grid: Grid, n_clusters: int) -> np.ndarray:
    """Groups nodes by Ward's method, merging only groups that are adjacent on the grid.

    Args:
      codewords: float [K, d].
      grid: grid with K nodes; its first adjacency defines which nodes are adjacent.
      n_clusters: number of groups, from 1 to K.

    Returns:
      The group of each node, int32 [K], from 0 to n_clusters - 1.
    """
    if grid.size == 1:
        return np.zeros(1, np.int32)  # scikit-learn needs two
    codes, exists = grid.neighbors(next(iter(grid.adjacency.values())))
    nodes = np.broadcast_to(np.arange(grid.size), codes.shape)
    links = scipy.sparse.coo_array((np.ones(exists.sum()), (nodes[exists], codes[exists])), shape=[grid.size] * 2)
    ward = AgglomerativeClustering(n_clusters, linkage="ward", connectivity=links.tocsr())
    return ward.fit_predict(codewords).astype(np.int32)


RESAMPLINGS, SHARE = 100, 0.9
"""Number of hierarchies of a consensus, and the share of the nodes in each."""


def consensus_clusters(codewords: np.ndarray, grid: Grid, n_clusters: int) -> np.ndarray:
    """Groups nodes that are grouped together in most of many hierarchies, each of a random part of the nodes.

    This is consensus clustering (Monti et al., Machine Learning 52, 2003), as FlowSOM uses it: average linkage on
    Euclidean distances in each part, then average linkage on 1 minus the share of the parts with both nodes that group
    them together. The parts are drawn with a fixed seed, so a map always has the same groups.

    Args:
      codewords, n_clusters: as in `ward_clusters`.
      grid: grid with K nodes; groups need not be connected on it.

    Returns:
      The group of each node, int32 [K], from 0 to n_clusters - 1.
    """
    size = max(n_clusters, round(SHARE * grid.size))
    if size < 2:
        return np.zeros(grid.size, np.int32)
    random = np.random.default_rng(0)
    together, drawn = np.zeros((2, grid.size, grid.size))
    for _ in range(RESAMPLINGS):
        nodes = random.choice(grid.size, size, replace=False)
        groups = AgglomerativeClustering(n_clusters, linkage="average").fit_predict(codewords[nodes])
        pairs = np.ix_(nodes, nodes)
        drawn[pairs] += 1
        together[pairs] += groups[:, None] == groups
    distances = 1 - together / np.maximum(drawn, 1)
    final = AgglomerativeClustering(n_clusters, metric="precomputed", linkage="average")
    return final.fit_predict(distances).astype(np.int32)


CLUSTERINGS: dict[str, Callable[[np.ndarray, Grid, int], np.ndarray]] = {
    "ward": ward_clusters,
    "consensus": consensus_clusters,
}
"""Maps the values of the parameter `clustering` to functions from codewords [K, d], a grid and a number of groups to
the group of each node, int32 [K]."""
