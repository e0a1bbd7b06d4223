"""Groups the nodes of a fitted map."""

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
