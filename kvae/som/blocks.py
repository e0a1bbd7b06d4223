"""The arithmetic of the batch map on blocks of rows: sums, assignments and the update.

Sums over blocks add up to sums over the data, so the split into blocks does not change the map. Peak memory on the
devices is two blocks; the n x K score matrix of a block is never materialised. Each block is sharded by rows over all
local devices.
"""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvae.classic import weighted_means
from kvae.kohonen import Statistics, by_chunks, lowest
from kvae.measures import far_apart, two_lowest
from kvae.som.metrics import Metric
from kvae.topology import Grid, Neighborhood

if TYPE_CHECKING:
    from kvae.som.sparse import SparseBlock

Result = TypeVar("Result")

CACHE_BYTES = {"cpu": 2**30}
"""Maximum size of data kept on the devices between epochs, by platform; 2^34 on accelerators."""


class Block(NamedTuple):
    """Rows on the devices. Padding rows have weight 0."""

    vectors: jax.Array  # [n, d] float32 or float64
    weights: jax.Array  # [n], the dtype of the vectors, or bool

    def sums(self, codewords: jax.Array, metric: Metric) -> "BlockSums":
        """Returns `block_sums`."""
        return _alone_on_cpus(block_sums(self, codewords, metric))

    def assignments(self, codewords: jax.Array, grid: Grid, metric: Metric) -> "Assignments":
        """Returns `assign`."""
        return _alone_on_cpus(assign(self, codewords, grid, metric))


class BlockSums(NamedTuple):
    """Sums over the rows of a block. The sums of several blocks can be added."""

    statistics: Statistics  # sums [K, d] and counts [K, 1] of the rows of each code, or counts [K, d] of known values
    error: jax.Array  # [] sum of the distances of the rows from their codewords
    weight: jax.Array  # [] weight of all rows


class ErrorSums(NamedTuple):
    """Sums over rows that tell how well they fit the map."""

    error: jax.Array  # [] sum of the distances of the rows from their codewords
    disordered: jax.Array  # [] weight of the rows whose two nearest codewords are not neighbours on the grid
    weight: jax.Array  # [] weight of all rows


class Assignments(NamedTuple):
    """The codes of a block, and how well its rows fit the map."""

    codes: jax.Array  # [n] int32: the nearest codewords
    sums: ErrorSums


def fits_cache(nbytes: int | None) -> bool:
    """True if the size of the data is known and small enough to keep them on the devices between epochs."""
    return nbytes is not None and nbytes <= CACHE_BYTES.get(jax.default_backend(), 2**34)


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), ("rows",)), PartitionSpec(*axes))


def _alone_on_cpus(result: Result) -> Result:
    """Waits for a program on several CPU devices, where the collectives of two concurrent programs can deadlock."""
    if jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        jax.block_until_ready(result)
    return result


def replicate(codewords: np.ndarray) -> jax.Array:
    """Copies codewords to every local device."""
    return jax.device_put(codewords, _sharding())


def to_devices(vectors: np.ndarray, weights: np.ndarray) -> Block:
    """Moves rows to the local devices, padded to one of a few lengths so that blocks share compiled programs.

    The rows on each device are padded to a multiple of 32 or, above 1,024 rows, to one of 32 lengths for each power of
    two. If all weights are 1, they become a mask, because weighted sums take three times as long on a CPU.

    Args:
      vectors: float [n, d].
      weights: float [n], at least 0.

    Returns:
      A block of at least n rows.
    """
    weights = np.ones(len(weights), bool) if np.all(weights == 1) else weights.astype(vectors.dtype, copy=False)
    devices = jax.local_device_count()
    step = devices * 2 ** max(5, (len(vectors) // devices).bit_length() - 6)
    padding = -len(vectors) % step
    if padding:
        vectors = np.concatenate([vectors, np.zeros((padding, vectors.shape[1]), vectors.dtype)])
        weights = np.concatenate([weights, np.zeros(padding, weights.dtype)])
    return Block(*jax.device_put((vectors, weights), _sharding("rows")))


@functools.partial(jax.jit, static_argnames="metric")
def block_sums(block: Block, codewords: jax.Array, metric: Metric) -> BlockSums:
    """Returns the sum and the number of rows of each code, and the sum of their distances from its codeword.

    Args:
      block: block of n rows.
      codewords: float [K, d].
      metric: metric of the map.

    Returns:
      Sums over the block. They take O(n K d) time.
    """
    codes = by_chunks(lowest, block.vectors, codewords.astype(jnp.float32), metric.scores)
    statistics = metric.statistics(block.vectors, codes, len(codewords), block.weights)
    weights = block.weights.astype(block.vectors.dtype)
    error = jnp.sum(weights * metric.distance(block.vectors, codewords[codes]))
    return BlockSums(statistics, error, jnp.sum(weights))


def sum_blocks(blocks: Iterable[tuple["Block | SparseBlock", int]], codewords: jax.Array, metric: Metric) -> BlockSums:
    """Adds the `block_sums` of all blocks. A block is read while the devices process the previous one.

    Args:
      blocks: blocks, dense or sparse, each with its number of rows without padding.
      codewords: float [K, d].
      metric: metric of the map.

    Returns:
      Sums over all rows. They take O(n K d) time for n rows.
    """
    total = previous = None
    for block, _ in blocks:
        sums = block.sums(codewords, metric)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        jax.block_until_ready(previous)  # keeps at most two blocks in memory
        previous = sums
    return total


@functools.partial(jax.jit, static_argnames=("neighborhood", "metric"))
def update_codewords(
    sums: BlockSums, neighborhood: Neighborhood, width: jax.Array, codewords: jax.Array, metric: Metric
) -> tuple[jax.Array, jax.Array]:
    """Updates the codewords to weighted means (Eqs. 19-21 of Irie et al., 2023).

    Args:
      sums: sums over all rows.
      neighborhood: grid and kernel.
      width: width of the kernel in nodes, float32 [].
      codewords: codewords before the update, float [K, d].
      metric: metric of the map; for cosine and correlation the means are scaled to length 1.

    Returns:
      The new codewords, float [K, d], and the mean distance of the rows from the old ones, float [].
    """
    means = weighted_means(sums.statistics, neighborhood, width, codewords)
    return metric.project(means), sums.error / sums.weight


@functools.partial(jax.jit, static_argnames=("grid", "metric"))
def assign(block: Block, codewords: jax.Array, grid: Grid, metric: Metric) -> Assignments:
    """Assigns the rows of a block to their nearest codewords. Time is O(n K d).

    Args:
      block: block of n rows.
      codewords: float [K, d].
      grid: grid with K nodes.
      metric: metric of the map.

    Returns:
      The codes of all rows, including padding, and sums over the rows.
    """
    codes, seconds = by_chunks(two_lowest, block.vectors, codewords.astype(jnp.float32), metric.scores)
    weights = block.weights.astype(block.vectors.dtype)
    sums = ErrorSums(
        jnp.sum(weights * metric.distance(block.vectors, codewords[codes])),
        jnp.sum(weights, where=far_apart(codes, seconds, grid)),
        jnp.sum(weights),
    )
    return Assignments(codes, sums)


def assign_blocks(
    blocks: Iterable[tuple["Block | SparseBlock", int]], codewords: jax.Array, grid: Grid, metric: Metric
) -> tuple[np.ndarray, ErrorSums]:
    """Assigns all rows to their nearest codewords.

    Args:
      blocks: blocks, dense or sparse, each with its number of rows without padding.
      codewords: float [K, d].
      grid: grid with K nodes.
      metric: metric of the map.

    Returns:
      The codes, int32 [n], and sums over all rows.
    """
    codes, sums = [], []
    for block, count in blocks:
        assignments = block.assignments(codewords, grid, metric)
        codes.append(np.asarray(assignments.codes)[:count])
        sums.append(assignments.sums)
    return np.concatenate(codes), ErrorSums(*np.sum(sums, axis=0))
