"""The coordinates in which `kvae.SOM` computes distances."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from sklearn.preprocessing import normalize

from kvae.som.blocks import Block, replicate, to_devices
from kvae.som.rows import RowReader


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Maps rows and centres to computing coordinates and back.

    Distances are computed from squares, which lose digits far from the origin: the mean of a sample is subtracted
    first. Under the cosine metric, rows and centres are scaled to length 1 instead.

    Attributes:
      offset: float [d], subtracted from rows and centres; 0 under the cosine metric.
      metric: "euclidean" or "cosine".
    """

    offset: np.ndarray
    metric: str

    @classmethod
    def of_sample(cls, vectors: np.ndarray, weights: np.ndarray, metric: str) -> "Coordinates":
        """Returns coordinates with their origin at the mean of a sample [n, d] with weights [n]."""
        if metric == "cosine":
            return cls(np.zeros_like(vectors[0]), metric)
        return cls(np.average(vectors, axis=0, weights=weights).astype(vectors.dtype), metric)

    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors [n, d] at length 1 under the cosine metric, and unchanged otherwise."""
        return normalize(vectors) if self.metric == "cosine" else vectors

    def codewords(self, centers: np.ndarray) -> jax.Array:
        """Returns centres [K, d] in these coordinates, on every device."""
        return replicate(centers - self.offset)

    def centers(self, codewords: jax.Array) -> np.ndarray:
        """Inverts `codewords`."""
        return np.asarray(codewords) + self.offset

    def blocks(self, rows: RowReader) -> Iterator[tuple[Block, int]]:
        """Yields blocks of rows in these coordinates, each with its number of rows without padding."""
        for vectors, weights in rows.read():
            vectors = self.scaled(vectors.astype(self.offset.dtype, copy=False))
            yield to_devices(vectors - self.offset, weights), len(vectors)

    def precision(self):
        """Returns a context in which sums of float64 data are float64. The lookup is always float32."""
        return jax.enable_x64(self.offset.dtype == np.float64)
