"""The arithmetic of the batch map on sparse rows, on the host. Zeros are not filled in."""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from kvae.grids import Grid
from kvae.kohonen import Statistics
from kvae.som import csr
from kvae.som.blocks import Assignments, BlockSums, ErrorSums
from kvae.som.metrics import Metric

DISTANCES_PER_TILE = 2**20
"""Maximum number of the n x K distances computed at once."""


class SparseBlock(NamedTuple):
    """Sparse rows with the interface of `kvae.som.blocks.Block`, in coordinates without an offset."""

    vectors: scipy.sparse.csr_array  # [n, d] float32 or float64
    weights: np.ndarray  # [n] float
    offset: np.ndarray  # [d] offset of the coordinates of the codewords and sums

    def sums(self, codewords: np.ndarray, metric: Metric) -> BlockSums:
        """Returns the sums of `kvae.som.blocks.block_sums`. Time is O(K times the number of stored values)."""
        codes, _, distances = self._nearest(codewords, metric)
        shape, dtype = (len(codewords), len(codes)), self.vectors.dtype.type
        members = scipy.sparse.csr_array((self.weights.astype(np.float64), (codes, np.arange(len(codes)))), shape)
        counts = np.bincount(codes, self.weights, len(codewords))[:, None]
        sums = (members @ self.vectors).toarray() - counts * self.offset
        statistics = Statistics(sums.astype(dtype), counts.astype(dtype))
        return BlockSums(statistics, dtype(self.weights @ distances), dtype(self.weights.sum()))

    def assignments(self, codewords: np.ndarray, grid: Grid, metric: Metric) -> Assignments:
        """Returns the codes and sums of `kvae.som.blocks.assign`."""
        codes, seconds, distances = self._nearest(codewords, metric)
        neighbors, _ = grid.neighbors(next(iter(grid.adjacency.values())))
        disordered = (codes != seconds) & ~np.any(neighbors[:, codes] == seconds, axis=0)
        return Assignments(codes, ErrorSums(self.weights @ distances, self.weights @ disordered, self.weights.sum()))

    def _nearest(self, codewords: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the nearest and the second-nearest code of each row, int32 [n], and the distance, float64 [n]."""
        columns = np.ascontiguousarray((np.asarray(codewords, np.float64) + self.offset).T)
        codes, nearest = np.zeros((2, self.vectors.shape[0]), np.int32), np.empty(self.vectors.shape[0])
        tile = max(1, DISTANCES_PER_TILE // len(codewords))
        for start in range(0, len(nearest), tile):
            rows = slice(start, start + tile)
            distances = csr.distances(metric.from_products, self.vectors[rows].astype(np.float64), columns)
            codes[:, rows] = distances.argmin(axis=1)
            nearest[rows] = distances.min(axis=1)
            if len(codewords) > 1:
                np.put_along_axis(distances, codes[0, rows, None], np.inf, axis=1)
                codes[1, rows] = distances.argmin(axis=1)
        return codes[0], codes[1], nearest
