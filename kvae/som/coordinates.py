"""The coordinates in which `kvae.SOM` computes distances."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from sklearn.preprocessing import normalize

from kvae.core.errors import InputError
from kvae.som.blocks import Block, replicate, to_devices
from kvae.som.missing import refuse_unknown_rows
from kvae.som.rows import RowReader

LARGEST_NORM = 2.0**60
"""Maximum length of a vector in these coordinates. Its square, and sums of squares, stay far below float32's limit."""

OFFSET_STEP = 4
"""Offsets are multiples of this number in these coordinates, so they have few digits and can be subtracted exactly."""


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Converts rows and centres to the coordinates in which distances are computed, and back.

    Squared distances in float32 can overflow or underflow, and they lose precision far from the origin. Rows and
    centres are therefore divided by a power of two near the sample's spread, and an offset near the sample's median is
    subtracted. Both steps are exact for numbers with few digits, such as small integers, so a row at equal distance
    from two centres stays so. Under the cosine metric, rows and centres are scaled to length 1 instead.

    Attributes:
      offset: integers, float [d], subtracted after the division; 0 under the cosine metric.
      exponent: rows are divided by 2^exponent; 0 under the cosine metric.
      weight_exponent: weights of rows are divided by 2^weight_exponent.
      metric: "euclidean" or "cosine".
      feature_weights: weights of the squared differences, float64 [d]; None for 1. Features are multiplied by the
        square roots of their weights, divided by the largest root.
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
        if metric == "cosine":
            return cls(np.zeros_like(vectors[0]), 0, weight_exponent, metric, feature_weights)
        if feature_weights is not None:
            vectors = vectors * _roots(feature_weights, vectors.dtype)
        center, spread = _center_and_spread(vectors, weights)
        # Leave room for rows that deviate a little more than the sample.
        lowest = float(np.abs(0.5 * vectors - 0.5 * center).max()) * (16 / _largest_value(vectors.shape[1]))
        if spread < lowest:
            warnings.warn(
                f"X contains values up to {np.abs(vectors).max():.3g}, but many rows differ by only {spread:.1g} and "
                "will share a node; remove fill values and outliers, or take logarithms",
                UserWarning,
                stacklevel=4,
            )
        exponent = _exponent(max(spread, lowest) or float(np.abs(center).max()) or 1.0)
        offset = OFFSET_STEP * np.rint(np.ldexp(center, -exponent) / OFFSET_STEP)
        return cls(offset.astype(vectors.dtype), exponent, weight_exponent, metric, feature_weights)

    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors [n, d] in these coordinates before the offset is subtracted."""
        if self.feature_weights is not None:
            vectors = vectors * _roots(self.feature_weights, vectors.dtype)
        return _directions(vectors) if self.metric == "cosine" else _times_power(vectors, -self.exponent)

    def unscaled(self, vectors: np.ndarray) -> np.ndarray:
        """Inverts `scaled`, except for lengths under the cosine metric."""
        if self.feature_weights is not None:
            vectors = vectors / _roots(self.feature_weights, vectors.dtype)
        return _times_power(vectors, self.exponent)

    def scaled_weights(self, weights: np.ndarray) -> np.ndarray:
        """Returns weights of rows in these coordinates."""
        return _times_power(weights, -self.weight_exponent)

    def distance(self, distance: float) -> float:
        """Converts a distance in these coordinates to the units of the data."""
        is_scaled = self.feature_weights is not None and self.metric != "cosine"
        largest_root = math.sqrt(self.feature_weights.max()) if is_scaled else 1.0
        return float(_times_power(np.float64(distance) * largest_root, self.exponent))

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
        highest, lowest = (extreme.reduce(results, axis=None) for extreme in (np.fmax, np.fmin))  # pass over NaN
        if not max(highest, -lowest) <= _largest_value(len(self.offset)):
            value = vectors.flat[np.nanargmax(np.abs(results))]
            raise InputError(
                f"{name} has the value {value:.3g}, but the first sample has a spread of {self.distance(1):.1g}, so "
                "distances would overflow; remove fill values and outliers, or take logarithms"
            )
        return results.astype(dtype, copy=False)

    def codewords(self, centers: np.ndarray, name: str = "cluster_centers_") -> jax.Array:
        """Returns centres [K, d] in these coordinates on every device; raises the same errors as `vectors`."""
        return replicate(self.vectors(name, centers))

    def centers(self, codewords: jax.Array) -> np.ndarray:
        """Inverts `codewords`."""
        return self.unscaled(np.asarray(codewords) + self.offset)

    def blocks(self, rows: RowReader) -> Iterator[tuple[Block, int]]:
        """Yields blocks of rows in these coordinates, each with its number of rows without padding.

        Raises:
          InputError: rows or weights are so large that sums would overflow, or a row has no known value.
        """
        first = 0
        for vectors, weights in rows.read():
            refuse_unknown_rows(vectors, first)
            first += len(vectors)
            scaled = self.scaled_weights(weights)
            if not scaled.max() <= LARGEST_NORM:
                raise InputError(
                    f"sample_weight has the value {weights.max():.3g}, but the first sample has weights of at "
                    f"most {2.0 ** (self.weight_exponent + 1):.1g}, so sums would overflow; scale the weights"
                )
            yield to_devices(self.vectors("X", vectors), scaled), len(vectors)

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
            candidates.append((_quartile(radii[differs, None], weights[differs], 1)[0], center))
    spread, center = min(candidates, key=lambda candidate: candidate[0], default=(0.0, few[0]))
    return center, float(spread)


def _quartile(values: np.ndarray, weights: np.ndarray, quartile: int) -> np.ndarray:
    """Returns the first, second or third quartile of each column of values [n, d] with weights [n]: [d]."""
    order = np.argsort(values, axis=0)
    sums = np.cumsum(weights[order] / np.max(weights), axis=0, dtype=np.float64)
    row = np.argmax(sums > 0.25 * quartile * sums[-1], axis=0)
    return np.take_along_axis(values, np.take_along_axis(order, row[None], axis=0), axis=0)[0]


def _roots(feature_weights: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the factor that multiplies each feature, [d], at most 1."""
    return np.sqrt(feature_weights / feature_weights.max()).astype(dtype)


def _exponent(value: float) -> int:
    """Returns the largest e with 2^e <= value."""
    return math.frexp(value)[1] - 1


def _times_power(values: np.ndarray, exponent: int) -> np.ndarray:
    """Returns values times 2^exponent, exact unless they overflow to infinity or underflow."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(values, exponent)


def _largest_value(dimension: int) -> float:
    return LARGEST_NORM / math.sqrt(dimension)


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [n, d] of any length scaled to length 1; the zero vector stays 0."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    return normalize(_times_power(vectors, -np.frexp(largest)[1]))
