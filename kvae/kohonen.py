"""Kohonen's map: nearest code, batch statistics, and the update rule as a moving average.

`kvae.KohonenVQ` calls `update_codebook`. `kvae.classic` implements the online and batch forms.

Equation numbers refer to Irie, Csordás and Schmidhuber, "Topological Neural Discrete Representation Learning à la
Kohonen" (2023). Distances are computed in float32 with the highest matrix precision, whatever the model's dtype,
because TF32 and bfloat16 can change which code is nearest.

Example:
  >>> import jax, jax.numpy as jnp
  >>> from kvae import kohonen
  >>> from kvae.topology import Neighborhood, Plane
  >>> z, codebook = jnp.ones((9, 2)), kohonen.initial_codebook(jax.random.key(0), 12, 2, init_count=1.0)
  >>> statistics = kohonen.batch_statistics(z, kohonen.nearest_code(z, codebook.codewords), 12)
  >>> codebook = kohonen.update_codebook(codebook, statistics, Neighborhood(Plane((3, 4)), "hard"))
  >>> codebook.codewords.shape, int(codebook.step)
  ((12, 2), 1)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.auto_axes import replicated, sharded_like
from kvae.topology import Neighborhood, spread

EPSILON = 1e-5
"""Pseudo-count that smooths the counts. Without smoothing, codes with at most this spread count are not updated."""

LARGEST_SQUARED = 2.0**50
"""Largest absolute value whose square `unit` computes; sums of such squares are far from the limit of float32."""

SCORES_PER_CHUNK = {"cpu": 2**22}
"""Maximum number of the N x K scores computed at once, by platform; 2^25 elsewhere. 2^22 was the fastest on a CPU."""

SLICES, LANES = 8, 16
"""For the argmin on a CPU: number of slices, and number of float32 values in a register."""


class CodebookState(NamedTuple):
    """A codebook and its moving averages: the leaves of the collection `codebook`.

    Attributes:
      codewords: w, float32 [K, d].
      sums: m, the moving average of the spread sums, float32 [K, d].
      counts: N, the moving average of the spread counts, float32 [K].
      step: t, the number of updates so far, int32 [].
    """

    codewords: jax.Array
    sums: jax.Array
    counts: jax.Array
    step: jax.Array


class Samples(NamedTuple):
    """A randomly drawn vector for each code, multiplied by a weight (see `kvae.quantizers.restarts`).

    Attributes:
      sums: weight times vector, float32 [K, d].
      counts: the weight, float32 [K]; 0 if no vector was drawn.
    """

    sums: jax.Array
    counts: jax.Array


class Statistics(NamedTuple):
    """Statistics of a batch, before spreading. A batch's statistics are the sum of its micro-batches' statistics.

    Attributes:
      sums: s_k, the sum of the vectors with code k, float32 [K, d].
      counts: c_k, the number of vectors with code k, float32 [K].
      samples: vectors at which unused codes can restart; None if restarts are off.
    """

    sums: jax.Array
    counts: jax.Array
    samples: Samples | None = None


def initial_codebook(key: jax.Array, size: int, dimension: int, init_count: float) -> CodebookState:
    """Returns an initial codebook: w = m drawn from N(0, 1), and N = `init_count` (Section 2.3)."""
    codewords = jax.random.normal(key, (size, dimension), jnp.float32)
    # Copy, because arrays that share a buffer cannot be donated.
    sums = jnp.array(codewords, copy=True)
    return CodebookState(codewords, sums, jnp.full((size,), init_count, jnp.float32), jnp.zeros((), jnp.int32))


def nearest_code(z: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns the nearest code of each vector, code_i = argmin_k |z_i - w_k|^2 (Eq. 2).

    The N x K distance matrix is never materialised (see `by_chunks`).

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].

    Returns:
      int32 [...]; the lowest code if several are equally near.
    """
    return by_chunks(lowest, z, codewords)


def lowest(scores: jax.Array) -> jax.Array:
    """Returns the code of the lowest score: float32 [n, K] -> int32 [n]. The first code wins ties; all NaN gives 0."""
    return jax.lax.platform_dependent(
        scores, cpu=_lowest_by_slices, default=lambda scores: jnp.argmin(scores, axis=-1).astype(jnp.int32)
    )


def _lowest_by_slices(scores: jax.Array) -> jax.Array:
    """Computes `lowest` by comparing slices of the codes. Vectorised on a CPU, it takes a quarter of argmin's time."""
    size = scores.shape[-1]
    # With enough codes, a slice fills complete registers. The last slice may overlap the one before.
    width = min(size, math.ceil(size / SLICES / LANES) * LANES)
    best, start = scores[:, :width], jnp.zeros((len(scores), width), jnp.int32)
    for first in range(width, size, width):
        first = min(first, size - width)
        others = scores[:, first : first + width]
        is_lower = others < best
        best, start = jnp.where(is_lower, others, best), jnp.where(is_lower, first, start)
    is_above = best > jnp.min(best, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_above, size, start + jnp.arange(width, dtype=jnp.int32)[None]), axis=-1)


def half_squared_distances(z: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns |w_k|^2 / 2 - z . w_k, which ranks codewords by their distance from z: float32 [n, K]."""
    half_norms = 0.5 * jnp.sum(jnp.square(codewords), axis=-1)
    return half_norms[None] - jnp.matmul(z, codewords.T, precision=jax.lax.Precision.HIGHEST)


def by_chunks(
    lookup: Callable[[jax.Array], Any],
    z: jax.Array,
    codewords: jax.Array,
    scores: Callable[[jax.Array, jax.Array], jax.Array] = half_squared_distances,
) -> Any:
    """Applies a function to the scores of vectors in chunks, so that the N x K score matrix is never materialised.

    Args:
      lookup: maps scores float32 [n, K] to a tree of arrays [n].
      z, codewords: as in `nearest_code`.
      scores: maps vectors float32 [n, d] and codewords [K, d] to scores that rank codewords by distance.

    Returns:
      The same tree with arrays [...], the results for all vectors.
    """

    def lookup_vectors(z, codewords):
        return lookup(scores(z, codewords))

    return sharded_like(z, functools.partial(_by_chunks, lookup_vectors), z, codewords)


def _by_chunks(lookup, z, codewords):
    if not isinstance(math.prod(z.shape[:-1]), int):  # a symbolic shape of `jax.export`
        return jax.lax.map(lambda z: _by_chunks(lookup, z, codewords), z)

    def lookup_chunk(chunk):
        return lookup(chunk.reshape(-1, chunk.shape[-1]), codewords)

    chunks, join = split_rows(z.astype(jnp.float32), len(codewords))
    if len(chunks) == 1:
        results = jax.tree.map(lambda results: results[None], lookup_chunk(chunks[0]))
    else:
        results = jax.lax.map(lookup_chunk, chunks)
    return jax.tree.map(join, results)


def split_rows(vectors: jax.Array, size: int) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Splits vectors into chunks, each with at most about `SCORES_PER_CHUNK` scores of `size` codes.

    If the vectors are sharded, each shard is split separately, so that vectors stay on their device.

    Args:
      vectors: [..., d].
      size: K.

    Returns:
      The chunks, [chunks, shards, n, d], padded with zeros; and a function that joins results of their vectors,
      [chunks, shards * n, *], without those of the padding: [..., *].
    """
    leading, count = vectors.shape[:-1], math.prod(vectors.shape[:-1])
    shards = jax.device_count() if count % jax.device_count() == 0 else 1
    rows = count // shards
    chunks = max(1, min(_number_of_chunks(count, size), rows))
    # Slightly more chunks may divide the rows evenly, which saves a padded copy.
    chunks = next((more for more in range(chunks, 2 * chunks) if rows % more == 0), chunks)
    n = math.ceil(rows / chunks)
    parts = jnp.pad(vectors.reshape(shards, rows, vectors.shape[-1]), ((0, 0), (0, n * chunks - rows), (0, 0)))
    parts = jnp.moveaxis(parts.reshape(shards, chunks, n, parts.shape[-1]), 1, 0)

    def join(results):
        trailing = results.shape[2:]
        results = jnp.moveaxis(results.reshape(chunks, shards, n, *trailing), 0, 1)
        return results.reshape(shards, chunks * n, *trailing)[:, :rows].reshape(*leading, *trailing)

    return parts, join


def _number_of_chunks(count: int, size: int) -> int:
    """Returns the number of chunks for `count` vectors and `size` codes."""
    return math.ceil(count * size / SCORES_PER_CHUNK.get(jax.default_backend(), 2**25))


def batch_statistics(z: jax.Array, codes: jax.Array, size: int, mask: jax.Array | None = None) -> Statistics:
    """Returns the sum and the number of the vectors with each code (the inner sums of Eqs. 9 and 10).

    Vectors whose squared length is not finite are left out, because they would stay in the moving averages forever.

    Args:
      z: vectors, float [..., d]; no gradient flows through them.
      codes: int32 [...].
      size: K.
      mask: optional bool [...], False for vectors to leave out; or float [...], the weight of each vector.

    Returns:
      Sums and counts in float32, or in float64 for float64 vectors.
    """
    z = jax.lax.stop_gradient(z)
    mask = jnp.ones_like(codes, bool) if mask is None else mask
    return replicated(functools.partial(_batch_statistics, size), z, codes, mask)


def _batch_statistics(size, z, codes, mask):
    z = z.reshape(-1, z.shape[-1]).astype(np.promote_types(z.dtype, np.float32))
    weights = mask.reshape(-1).astype(z.dtype)
    counted = jnp.isfinite(jnp.sum(jnp.square(z), axis=-1)) & (weights > 0)
    codes = jnp.where(counted, codes.reshape(-1), size)  # out of range, so the sums below drop it
    weighted = z if mask.dtype == bool else z * weights[:, None]
    sums = jax.ops.segment_sum(weighted, codes, num_segments=size)
    return Statistics(sums, jax.ops.segment_sum(weights, codes, num_segments=size))


def codewords_of(codes: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns the codeword of each code: int32 [...] and float32 [K, d] -> float32 [..., d]."""
    return sharded_like(codes[..., None], lambda codes, codewords: codewords[codes], codes, codewords)


def update_codebook(
    codebook: CodebookState,
    statistics: Statistics,
    neighborhood: Neighborhood,
    *,
    decay: float = 0.99,
    update_empty: bool = True,
) -> CodebookState:
    """Updates a codebook by Kohonen's rule as a moving average (Eqs. 9-11).

    For the neighbourhood A after t updates and the sums s and counts c of a batch,

        m <- (1 - beta) m + beta A^T s,   N <- (1 - beta) N + beta A^T c,   w_k <- m_k / N_k.

    With the kernel `none`, A = I, this is EMA-VQ (Eqs. 6-8).

    Args:
      codebook: w, m, N and t.
      statistics: s and c of the batch.
      neighborhood: A, evaluated at t.
      decay: 1 - beta.
      update_empty: True updates every code and smooths the counts, N_k <- (N_k + eps) / (sum N + K eps) sum N, as
        most EMA-VQ code does. False skips codes whose spread count is at most eps and does not smooth the counts. (The
        authors' code skips only counts of 0, so a count of 1e-26 in a Gaussian's tail makes a codeword explode.)

    Returns:
      The codebook after t + 1 updates.
    """
    spread_sums = spread(neighborhood, statistics.sums, codebook.step)
    spread_counts = spread(neighborhood, statistics.counts, codebook.step)
    sums = decay * codebook.sums + (1 - decay) * spread_sums
    counts = decay * codebook.counts + (1 - decay) * spread_counts
    if update_empty:
        total = jnp.sum(counts)
        counts = (counts + EPSILON) / (total + len(counts) * EPSILON) * total
        # Counts are 0 only if they started at 0 and no vector has been seen yet.
        moves = counts > 0
    else:
        moves = spread_counts > EPSILON
        sums = jnp.where(moves[:, None], sums, codebook.sums)
        counts = jnp.where(moves, counts, codebook.counts)
    codewords = jnp.where(moves[:, None], sums / jnp.where(moves, counts, 1.0)[:, None], codebook.codewords)
    return CodebookState(codewords, sums, counts, codebook.step + 1)


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors, float [..., d], scaled to length 1; vectors near 0 stay near 0."""
    # Without this scaling, a vector too large to be squared would become 0, and its direction would be lost.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True))
    # XLA multiplies by the inverse, which would be 0 for numbers beyond 2^126.
    vectors = vectors / jnp.where(largest > LARGEST_SQUARED, jnp.minimum(largest, 2.0**100), 1)
    return vectors / jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + EPSILON**2)
