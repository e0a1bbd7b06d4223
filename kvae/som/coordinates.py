"""The coordinates in which `kvae.SOM` computes distances."""

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Iterator

import jax
import numpy as np
import scipy.sparse

from kvae.core.errors import InputError
from kvae.som import csr
from kvae.som.blocks import Block, replicate, to_devices
from kvae.som.metrics import METRICS
from kvae.som.missing import refuse_unknown_rows
from kvae.som.rows import RowReader
from kvae.som.sparse import SparseBlock

LARGEST_NORM = 2.0**60
"""Maximum length of a vector in these coordinates. Its square, and sums of squares, stay far below float32's limit."""

BLOCK_ROWS = 256
"""Number of rows in a block of distances, small enough for the block to stay in the processor's cache."""

OFFSET_STEP = 4
"""Offsets are multiples of this number in these coordinates, so they have few digits and can be subtracted exactly."""


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Converts rows and centres to the coordinates in which distances are computed, and back.

    Squared distances in float32 can overflow or underflow, and they lose precision far from the origin. Rows and
    centres are therefore divided by a power of two near the sample's spread, and an offset near the sample's median is
    subtracted. Both steps are exact for numbers with few digits, such as small integers, so a row at equal distance
    from two centres stays so. Under metrics that compare directions only, rows and centres are scaled to length 1
    instead.

    Attributes:
      offset: integers, float [d], subtracted after the division; 0 under metrics that compare directions only.
      exponent: rows are divided by 2^exponent; 0 under metrics that compare directions only.
      weight_exponent: weights of rows are divided by 2^weight_exponent.
      metric: a name in `kvae.som.metrics.METRICS`.
      feature_weights: weights of the squared or absolute differences, float64 [d]; None for 1.
    """

    offset: np.ndarray
    exponent: int
    weight_exponent: int
    metric: str
    feature_weights: np.ndarray | None = None

    @classmethod
    def of_sample(
        cls, vectors: np.ndarray, weights: np.ndarray, metric: str, feature_weights: np.ndarray | None
    ) -> "Coordinates":
        """Returns the coordinates for a sample [n, d] with weights [n], not all 0."""
        weight_exponent = _exponent(np.max(weights))
        plain = cls(np.zeros(vectors.shape[1], vectors.dtype), 0, weight_exponent, metric, feature_weights)
        if METRICS[metric].directions is not None:
            return plain
        vectors = plain.scaled(vectors)
        if scipy.sparse.issparse(vectors):  # an offset would fill in the zeros
            center, radii = plain.offset, csr.row_maxima(vectors)
            spread, half_reach = _typical_radius(radii, weights, radii > 0), 0.5 * float(radii.max())
        else:
            center, spread = _center_and_spread(vectors, weights)
            half_reach = float(np.abs(0.5 * vectors - 0.5 * center).max())
        # Leave room for rows that deviate a little more than the sample.
        lowest = half_reach * (16 / _largest_value(vectors.shape[1]))
        if spread < lowest:
            warnings.warn(
                f"X contains values up to {abs(vectors).max():.3g}, but many rows differ by only {spread:.1g} and "
                "will share a node; remove fill values and outliers, or take logarithms",
                UserWarning,
                stacklevel=4,
            )
        exponent = _exponent(max(spread, lowest) or float(np.abs(center).max()) or 1.0)
        offset = OFFSET_STEP * np.rint(np.ldexp(center, -exponent) / OFFSET_STEP)
        return dataclasses.replace(plain, offset=offset.astype(vectors.dtype), exponent=exponent)

    @property
    def factors(self) -> np.ndarray:
        """Factor of each feature, float64 [d], at most 1: a power of its weight."""
        if self.feature_weights is None:
            return np.ones(len(self.offset))
        return (self.feature_weights / self.feature_weights.max()) ** METRICS[self.metric].weight_power

    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors [n, d], dense or CSR, in these coordinates before the offset is subtracted."""
        factors, to_directions = self.factors.astype(vectors.dtype), METRICS[self.metric].directions
        if scipy.sparse.issparse(vectors):
            vectors = csr.scaled(vectors, factors, self.exponent)
            return vectors if to_directions is None else csr.directions(vectors)
        if self.feature_weights is not None:
            vectors = vectors * factors
        if to_directions is not None:
            return to_directions(vectors, factors)
        return _times_power(vectors, -self.exponent)

    def unscaled(self, vectors: np.ndarray) -> np.ndarray:
        """Inverts `scaled`; lengths and means stay lost under metrics that compare directions only."""
        if self.feature_weights is not None:
            vectors = vectors / self.factors.astype(vectors.dtype)
        return _times_power(vectors, self.exponent)

    def scaled_weights(self, weights: np.ndarray) -> np.ndarray:
        """Returns weights of rows in these coordinates."""
        return _times_power(weights, -self.weight_exponent)

    def distance(self, distance: float) -> float:
        """Converts a distance in these coordinates to the units of the data."""
        metric, distance = METRICS[self.metric], np.float64(distance)
        if self.feature_weights is not None and metric.directions is None:
            distance *= self.feature_weights.max() ** metric.weight_power
        return float(_times_power(distance, self.exponent))

    def distances(self, vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
        """Returns the distance of every row from every centre in the units of the data.

        Distances are computed in float64 in blocks of rows, and stored in the dtype of the rows.

        Args:
          vectors: rows, float [n, d], dense or CSR; NaN marks a missing value.
          centers: float [K, d].

        Returns:
          Distances [n, K] in the dtype of the rows.
        """
        distances = np.empty((vectors.shape[0], len(centers)), vectors.dtype)
        metric, unit, centers = METRICS[self.metric], self.distance(1.0), self.scaled(centers.astype(np.float64))
        if scipy.sparse.issparse(vectors):  # an offset would fill in the zeros
            between = functools.partial(csr.distances, metric.from_products)
            offset, centers = 0, np.ascontiguousarray(centers.T)
        else:
            between, offset, centers = metric.between, self.offset, centers - self.offset
        for start in range(0, len(distances), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            block = between(self.scaled(vectors[rows].astype(np.float64)) - offset, centers)
            with np.errstate(over="ignore", under="ignore"):  # a distance too large for the dtype becomes infinite
                np.multiply(block, unit, out=distances[rows], casting="same_kind")
        return distances

    def vectors(self, name: str, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors [n, d] in these coordinates, in a new array.

        Args:
          name: name of the vectors in the message.
          vectors: float [n, d]; NaN marks a missing value.

        Raises:
          InputError: the squares of the vectors would overflow.
        """
        dtype = self.offset.dtype
        results = self.scaled(vectors.astype(np.promote_types(vectors.dtype, dtype), copy=False)) - self.offset
        self._refuse_overflow(name, results, vectors)
        return results.astype(dtype, copy=False)

    def sparse_vectors(self, vectors: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
        """Returns rows [n, d] in these coordinates before the offset is subtracted; raises as `vectors` does."""
        results = self.scaled(vectors.astype(np.promote_types(vectors.dtype, self.offset.dtype)))
        self._refuse_overflow("X", results.data, vectors.data)
        return results.astype(self.offset.dtype)

    def _refuse_overflow(self, name: str, results: np.ndarray, values: np.ndarray) -> None:
        """Raises InputError unless `results`, which are `values` in these coordinates, have squares in range."""
        highest, lowest = (extreme.reduce(results, axis=None, initial=0) for extreme in (np.fmax, np.fmin))  # skip NaN
        if not max(highest, -lowest) <= _largest_value(len(self.offset)):
            value = values.flat[np.nanargmax(np.abs(results))]
            raise InputError(
                f"{name} has the value {value:.3g}, but the first sample has a spread of {self.distance(1):.1g}, so "
                "distances would overflow; remove fill values and outliers, or take logarithms"
            )

    def codewords(self, centers: np.ndarray, name: str = "cluster_centers_") -> jax.Array:
        """Returns centres [K, d] in these coordinates on every device; raises the same errors as `vectors`."""
        return replicate(self.vectors(name, centers))

    def centers(self, codewords: jax.Array) -> np.ndarray:
        """Inverts `codewords`."""
        return self.unscaled(np.asarray(codewords) + self.offset)

    def blocks(self, rows: RowReader) -> Iterator[tuple[Block | SparseBlock, int]]:
        """Yields blocks of rows in these coordinates, each with its number of rows without padding.

        Raises:
          InputError: rows or weights are so large that sums would overflow, or a row has no known value.
        """
        first = 0
        for vectors, weights in rows.read():
            is_sparse = scipy.sparse.issparse(vectors)
            if not is_sparse:
                refuse_unknown_rows(vectors, first)
            first += len(weights)
            scaled = self.scaled_weights(weights)
            if not scaled.max() <= LARGEST_NORM:
                raise InputError(
                    f"sample_weight has the value {weights.max():.3g}, but the first sample has weights of at "
                    f"most {2.0 ** (self.weight_exponent + 1):.1g}, so sums would overflow; scale the weights"
                )
            if is_sparse:
                yield SparseBlock(self.sparse_vectors(vectors), scaled, self.offset), len(weights)
            else:
                yield to_devices(self.vectors("X", vectors), scaled), len(weights)

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which float64 data are summed in float64. Nearest codes are always found in float32."""
        return jax.enable_x64(self.offset.dtype == np.float64)


def _center_and_spread(vectors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns a vector [d] near most rows of a sample [n, d], and a typical distance of these rows from it.

    Both are computed from quartiles, which ignore outliers and fill values even if these are most of the rows.
    Distances are maximum differences over the features. A row of weight 2 counts as two rows.
    """
    step = -(-len(vectors) // 256)
    few, weights = vectors[::step], weights[::step]
    candidates = []
    for quartile in (2, 1, 3):
        center = _quartile(few, weights, quartile)
        # Halve the values first, because a difference may overflow.
        radii = 2.0 * np.abs(0.5 * few - 0.5 * center).max(axis=1).astype(np.float64)
        differs = radii > 8 * np.finfo(few.dtype).eps * float(np.abs(center).max())
        if np.any(differs):
            candidates.append((_typical_radius(radii, weights, differs), center))
    spread, center = min(candidates, key=lambda candidate: candidate[0], default=(0.0, few[0]))
    return center, float(spread)


def _typical_radius(radii: np.ndarray, weights: np.ndarray, mask: np.ndarray) -> float:
    """Returns the first quartile of the radii [n], with weights [n], of the rows in the mask; 0 if it is empty."""
    return float(_quartile(radii[mask, None], weights[mask], 1)[0]) if np.any(mask) else 0.0


def _quartile(values: np.ndarray, weights: np.ndarray, quartile: int) -> np.ndarray:
    """Returns the first, second or third quartile of each column of values [n, d] with weights [n]: [d]."""
    order = np.argsort(values, axis=0)
    sums = np.cumsum(weights[order] / np.max(weights), axis=0, dtype=np.float64)
    row = np.argmax(sums > 0.25 * quartile * sums[-1], axis=0)
    return np.take_along_axis(values, np.take_along_axis(order, row[None], axis=0), axis=0)[0]


def _exponent(value: float) -> int:
    """Returns the largest e with 2^e <= value."""
    return math.frexp(value)[1] - 1


def _times_power(values: np.ndarray, exponent: int) -> np.ndarray:
    """Returns values times 2^exponent, exact unless they overflow to infinity or underflow."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(values, exponent)


def _largest_value(dimension: int) -> float:
    return LARGEST_NORM / math.sqrt(dimension)
