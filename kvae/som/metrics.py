"""Metrics of `kvae.SOM`: scores that order codewords by distance, distances, and sums for the update."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics.pairwise import cosine_distances

from kvae.core.errors import InputError, choose
from kvae.kohonen import Statistics, batch_statistics, half_squared_distances, unit
from kvae.som.directions import centered_directions, directions
from kvae.som.distances import euclidean_distances, manhattan_distances


class Metric(NamedTuple):
    """Functions of vectors and codewords. For metrics that ignore missing values, NaN marks a missing value.

    Attributes:
      scores: maps vectors [n, d] and codewords [K, d] to scores [n, K] that order codewords as their distances do.
      distance: maps vectors [n, d] and codewords [n, d] to the distance of each pair, [n].
      statistics: maps vectors [n, d], codes [n], K and weights [n] to sums [K, d], and counts [K, 1] or [K, d].
      between: maps vectors [n, d] and codewords [K, d] on the host, float64, to distances [n, K].
      project: maps means [K, d] to codewords.
      from_products: maps products x . w and squared lengths of x and w, arrays on the host that broadcast, to distances
        of sparse rows; None if the metric does not support them.
      directions: for metrics that compare directions only, maps vectors [n, d] on the host, and the factor of each
        feature [d], to vectors of length 1; None for other metrics.
      weight_power: the factor of a feature is its weight to this power.
    """

    scores: Callable[[jax.Array, jax.Array], jax.Array]
    distance: Callable[[jax.Array, jax.Array], jax.Array]
    statistics: Callable[[jax.Array, jax.Array, int, jax.Array], Statistics]
    between: Callable[[np.ndarray, np.ndarray], np.ndarray]
    project: Callable[[jax.Array], jax.Array] = lambda means: means
    from_products: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
    directions: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    weight_power: float = 0.5


def _statistics(vectors: jax.Array, codes: jax.Array, size: int, weights: jax.Array) -> Statistics:
    statistics = batch_statistics(vectors, codes, size, weights)
    return Statistics(statistics.sums, statistics.counts[:, None])


def _known_statistics(vectors: jax.Array, codes: jax.Array, size: int, weights: jax.Array) -> Statistics:
    """Returns sums and counts of the known values by code and feature."""
    known, filled = _known(vectors)
    both = batch_statistics(jnp.concatenate([filled, known], axis=-1), codes, size, weights).sums
    return Statistics(*jnp.split(both, 2, axis=-1))


def _known(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns 1 where a value is known and 0 where it is missing, and the vectors with 0 for missing values."""
    missing = jnp.isnan(vectors)
    return (~missing).astype(vectors.dtype), jnp.where(missing, 0, vectors)


def _euclidean(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    return jnp.linalg.norm(vectors - codewords, axis=-1)


def _cosine_scores(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns minus the cosine of unit vectors; equal scores for the zero vector, which has no direction."""
    return -jnp.matmul(vectors, codewords.T, precision=jax.lax.Precision.HIGHEST)


def _cosine(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns 1 - cos for unit vectors, and 1 for the zero vector, which has no direction."""
    return 1 - jnp.sum(vectors * codewords, axis=-1)


def _manhattan_scores(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns sums of absolute differences. XLA fuses the sum, so the [n, K, d] differences are never materialised."""
    return jnp.sum(jnp.abs(vectors[:, None] - codewords), axis=-1)


def _manhattan(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(vectors - codewords), axis=-1)


def _known_scores(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns half the squared distance over the known features, less a term that depends on the vector alone."""
    known, filled = _known(vectors)
    factors = jnp.concatenate([known, filled], axis=-1)
    return jnp.matmul(
        factors,
        jnp.concatenate([0.5 * jnp.square(codewords), -codewords], axis=-1).T,
        precision=jax.lax.Precision.HIGHEST,
    )


def _known_euclidean(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    known, filled = _known(vectors)
    squares = known * jnp.square(filled - codewords)
    return jnp.sqrt(jnp.mean(squares, axis=-1) / jnp.mean(known, axis=-1) * vectors.shape[-1])


def _euclidean_from_products(products: np.ndarray, squares: np.ndarray, center_squares: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(squares - 2 * products + center_squares, 0))


METRICS: dict[str, Metric] = {
    "euclidean": Metric(
        half_squared_distances,
        _euclidean,
        _statistics,
        euclidean_distances,
        from_products=_euclidean_from_products,
    ),
    "manhattan": Metric(_manhattan_scores, _manhattan, _statistics, manhattan_distances, weight_power=1.0),
    "cosine": Metric(
        _cosine_scores,
        _cosine,
        _statistics,
        cosine_distances,
        project=unit,
        from_products=lambda products, squares, center_squares: 1 - products,
        directions=directions,
    ),
    "correlation": Metric(
        _cosine_scores,
        _cosine,
        _statistics,
        cosine_distances,
        project=unit,
        directions=centered_directions,
    ),
}
"""Maps a `metric` to its functions for complete rows. Vectors and codewords have length 1 for cosine and correlation.

For manhattan, only the lookup uses the sum of absolute differences. A codeword stays the weighted mean of its vectors,
which minimises their squared Euclidean distances; the minimum of the Manhattan distances would be their median.
"""

KNOWN_METRICS: dict[str, Metric] = {
    "euclidean": Metric(_known_scores, _known_euclidean, _known_statistics, euclidean_distances)
}
"""Maps a `metric` to its functions for rows with missing values.

A distance is computed over the known features and scaled to all d: for "euclidean", sqrt(d / known) times the distance
over the known ones (Dixon, "Pattern recognition with partly missing data", 1979), as in
`sklearn.metrics.pairwise.nan_euclidean_distances`.
"""

SPARSE_METRICS = [name for name, metric in METRICS.items() if metric.from_products is not None]
"""Names of the metrics that support sparse rows."""

MISSING: Mapping[str, Mapping[str, Metric]] = {"error": METRICS, "ignore": KNOWN_METRICS}
"""Maps the parameter `missing` to the metrics that it allows."""


def choose_metric(name: str, missing: str) -> Metric:
    """Returns the metric of this name, for complete rows or for rows with missing values.

    Raises:
      InputError: `missing` is unknown, or the metric is not defined for missing values.
    """
    metrics = choose("missing", missing, MISSING)
    if name not in metrics:
        raise InputError(
            f"missing is {missing!r} and metric is {name!r}; to ignore missing values, use the metric "
            f"{' or '.join(map(repr, metrics))}"
        )
    return metrics[name]
