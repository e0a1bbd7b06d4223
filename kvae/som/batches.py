"""The batch form of Kohonen's map on data that come in batches: sums and counts of parts of the data add up.

Nothing here holds more than a batch, its N x K scores not even of that. A batch lies over all devices, row by row.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvae.classic import weighted_means
from kvae.kohonen import Statistics, batch_statistics, by_chunks, nearest_code, unit
from kvae.measures import far_apart, two_lowest
from kvae.topology import Grid, Neighborhood


class Batch(NamedTuple):
    """Vectors, and how often each counts; rows that fill the batch up count 0."""

    vectors: jax.Array  # [n, d] float32, or float64
    weights: jax.Array  # [n] of the same type, or bool


class Summary(NamedTuple):
    """What an epoch needs to know of the data; those of batches add up."""

    statistics: Statistics
    error: jax.Array  # [] the sum of the vectors' distances from their codewords


class Judgement(NamedTuple):
    """How vectors lie on a map."""

    codes: jax.Array  # [n] int32: of the nearest codeword
    error: jax.Array  # [] the sum of their distances from it
    disordered: jax.Array  # [] how many have their two nearest codewords on nodes that are not neighbours
    weight: jax.Array  # [] how many they are


def _euclidean(vectors, codewords):
    return jnp.linalg.norm(vectors - codewords, axis=-1)


def _cosine(vectors, codewords):
    """1 - cos of vectors of length 1; 1 for one of length 0, which has no direction."""
    return 1 - jnp.sum(vectors * codewords, axis=-1)


METRICS = {"euclidean": _euclidean, "cosine": _cosine}
"""Distances between vectors and codewords [n, d], which are all of length 1 where the metric is cosine: [n]."""


def _sharding(*axes) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), ("rows",)), PartitionSpec(*axes))


def everywhere(codewords: np.ndarray) -> jax.Array:
    """Codewords on every device."""
    return jax.device_put(codewords, _sharding())


def placed(vectors: np.ndarray, weights: np.ndarray) -> Batch:
    """A batch on the devices of this process.

    It is filled up to one of a few lengths, so that batches of many lengths share programs: on a device to 32 rows or
    a multiple, and above 1,024 to one of 32 lengths for each power of two. Weights that are all 1 become a mask, for
    sums of products take a CPU three times as long.
    """
    weights = np.ones(len(weights), bool) if np.all(weights == 1) else weights.astype(vectors.dtype, copy=False)
    devices = jax.local_device_count()
    step = devices * 2 ** max(5, (len(vectors) // devices).bit_length() - 6)
    missing = -len(vectors) % step
    if missing:
        vectors = np.concatenate([vectors, np.zeros((missing, vectors.shape[1]), vectors.dtype)])
        weights = np.concatenate([weights, np.zeros(missing, weights.dtype)])
    return Batch(*jax.device_put((vectors, weights), _sharding("rows")))


@functools.partial(jax.jit, static_argnames="metric")
def summarized(batch: Batch, codewords: jax.Array, metric: str) -> Summary:
    """Sums and numbers of the vectors of each codeword, [K, d] and [K], and the sum of their distances from it."""
    codes = nearest_code(batch.vectors, codewords.astype(jnp.float32))
    statistics = batch_statistics(batch.vectors, codes, len(codewords), batch.weights)
    return Summary(statistics, jnp.sum(batch.weights * METRICS[metric](batch.vectors, codewords[codes])))


@functools.partial(jax.jit, static_argnames=("neighborhood", "metric"))
def moved(
    summary: Summary, neighborhood: Neighborhood, width: jax.Array, codewords: jax.Array, metric: str
) -> tuple[jax.Array, jax.Array]:
    """`weighted_means`, at length 1 where the metric is cosine, and the mean distance from the codewords before."""
    error = summary.error / jnp.sum(summary.statistics.counts)
    codewords = weighted_means(summary.statistics, neighborhood, width, codewords)
    return unit(codewords) if metric == "cosine" else codewords, error


@functools.partial(jax.jit, static_argnames=("grid", "metric"))
def judged(batch: Batch, codewords: jax.Array, grid: Grid, metric: str) -> Judgement:
    """How the vectors lie on a map."""
    codes, others = by_chunks(two_lowest, batch.vectors, codewords.astype(jnp.float32))
    return Judgement(
        codes,
        jnp.sum(batch.weights * METRICS[metric](batch.vectors, codewords[codes])),
        jnp.sum(batch.weights * far_apart(codes, others, grid)),
        jnp.sum(batch.weights),
    )


def summary_of(batches: Iterable[Batch], codewords: jax.Array, metric: str) -> Summary:
    """`summarized` of all batches, added up."""
    total = before = None
    for batch in batches:
        summary = summarized(batch, codewords, metric)
        total = summary if total is None else jax.tree.map(jnp.add, total, summary)
        # The next batch is read while this one is worked on; more of them would wait in memory.
        jax.block_until_ready(before)
        before = summary
    return total


def principal_plane(vectors: np.ndarray, weights: np.ndarray, grid: Grid) -> np.ndarray:
    """Codewords on the plane, or line and so on, of the largest variance: 2 standard deviations to each side.

    Args:
      vectors: float [n, d].
      weights: float [n], at least 0, how often each counts.
      grid: of K nodes; its longest axis goes along the first component.

    Returns:
      [K, d], the type of `vectors`.
    """
    share = weights / np.sum(weights)
    mean = share @ vectors
    rows = np.sqrt(share)[:, None] * (vectors - mean)
    # The deviations along the components, [components, d], by the smaller one of two matrices.
    if rows.shape[1] > rows.shape[0]:
        deviations = np.linalg.eigh(rows @ rows.T)[1].T @ rows
    else:
        values, components = np.linalg.eigh(rows.T @ rows)
        deviations = np.sqrt(np.maximum(values, 0))[:, None] * components.T
    # The sign of a component is free: its largest number is positive.
    deviations *= np.sign(np.take_along_axis(deviations, np.abs(deviations).argmax(axis=1)[:, None], axis=1))
    codewords = np.tile(mean, (grid.size, 1))
    longest_first = sorted(range(len(grid.shape)), key=lambda axis: -grid.shape[axis])
    for axis, deviation in zip(longest_first, deviations[::-1], strict=False):
        points = grid.points[:, axis] - grid.points[:, axis].mean()
        codewords += np.outer(2 * points / max(np.abs(points).max(), 1e-30), deviation)
    return codewords.astype(vectors.dtype)


def random_rows(vectors: np.ndarray, weights: np.ndarray, grid: Grid, random: np.random.RandomState) -> np.ndarray:
    """Codewords at rows, different ones as long as there are enough; those that count more are drawn more often."""
    is_short = np.count_nonzero(weights) < grid.size
    return vectors[random.choice(len(vectors), grid.size, replace=is_short, p=weights / weights.sum())]


INITIAL = {
    "pca": lambda vectors, weights, grid, random: principal_plane(vectors, weights, grid),
    "random": random_rows,
}
"""By name, where codewords start: from a sample [n, d], its weights [n], the grid and a RandomState to [K, d]."""
