"""Kohonen's map: nearest code, batch statistics, and the update rule as a moving average.

`kvae.KohonenVQ` runs `update_codebook`; `kvae.classic` has the online and the batch form.

Equation numbers refer to Irie, Csordás and Schmidhuber, "Topological Neural Discrete Representation Learning à la
Kohonen" (2023). All arithmetic is float32 with the highest matrix precision, whatever the model's dtype: TF32 and
bfloat16 passes flip the argmin.

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
from jax.sharding import AxisType, PartitionSpec

from kvae.topology import Neighborhood, spread

EPSILON = 1e-5
"""Pseudo-count of the smoothing; codes with spread counts at or below it are empty."""

SCORES_PER_CHUNK = {"cpu": 2**22}
"""Number of the N x K scores that the lookup holds at once: the fastest on a CPU (measured), 2^25 elsewhere."""

SLICES, LANES = 8, 16
"""Slices and register width, in float32 numbers, of the CPU argmin."""


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
    """A vector drawn for each code, times a weight: see `kvae.quantizers.restarts`.

    Attributes:
      sums: weight times vector, float32 [K, d].
      counts: the weight, float32 [K]; 0 without a vector.
    """

    sums: jax.Array
    counts: jax.Array


class Statistics(NamedTuple):
    """Statistics of a batch, before spreading. The statistics of micro-batches add up to the batch's.

    Attributes:
      sums: s_k, the sum of the vectors with code k, float32 [K, d].
      counts: c_k, the number of vectors with code k, float32 [K].
      samples: the vectors at which unused codes restart; None without restarts.
    """

    sums: jax.Array
    counts: jax.Array
    samples: Samples | None = None


def initial_codebook(key: jax.Array, size: int, dimension: int, init_count: float) -> CodebookState:
    """Returns a codebook before its first update: w = m drawn from N(0, 1), N = `init_count` (Section 2.3)."""
    codewords = jax.random.normal(key, (size, dimension), jnp.float32)
    # A copy: leaves that share a buffer cannot be donated.
    sums = jnp.array(codewords, copy=True)
    return CodebookState(codewords, sums, jnp.full((size,), init_count, jnp.float32), jnp.zeros((), jnp.int32))


def nearest_code(z: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns the nearest code of each vector, code_i = argmin_k |z_i - w_k|^2 (Eq. 2).

    The N x K distances are never held at once (see `by_chunks`).

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].

    Returns:
      int32 [...]; the lowest code where several are equally near.
    """
    return by_chunks(lowest, z, codewords)


def lowest(scores: jax.Array) -> jax.Array:
    """Returns the lowest score's code, the first of equal ones, 0 if all are NaN: float32 [n, K] -> int32 [n]."""
    return jax.lax.platform_dependent(
        scores, cpu=_lowest_by_slices, default=lambda scores: jnp.argmin(scores, axis=-1).astype(jnp.int32)
    )


def _lowest_by_slices(scores: jax.Array) -> jax.Array:
    """Compares slices of the codes with each other: vectorised on a CPU, it takes a quarter of argmin's time."""
    size = scores.shape[-1]
    # Slices fill whole registers if there are enough codes; the last slice may overlap the one before.
    width = min(size, math.ceil(size / SLICES / LANES) * LANES)
    best, start = scores[:, :width], jnp.zeros((len(scores), width), jnp.int32)
    for first in range(width, size, width):
        first = min(first, size - width)
        others = scores[:, first : first + width]
        is_lower = others < best
        best, start = jnp.where(is_lower, others, best), jnp.where(is_lower, first, start)
    is_above = best > jnp.min(best, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_above, size, start + jnp.arange(width, dtype=jnp.int32)), axis=-1)


def by_chunks(lookup: Callable[[jax.Array], Any], z: jax.Array, codewords: jax.Array) -> Any:
    """Applies a function to the scores of vectors in chunks, so that the N x K scores are never held at once.

    The score |w_k|^2 / 2 - z . w_k orders codewords as their distance from z does.

    Args:
      lookup: maps scores float32 [n, K] to a tree of arrays [n].
      z, codewords: as in `nearest_code`.

    Returns:
      The tree, with arrays [...].
    """

    def lookup_vectors(z, codewords):
        half_norms = 0.5 * jnp.sum(jnp.square(codewords), axis=-1)
        return lookup(half_norms - jnp.matmul(z, codewords.T, precision=jax.lax.Precision.HIGHEST))

    return sharded_like(z, functools.partial(_by_chunks, lookup_vectors), z, codewords)


def _by_chunks(lookup, z, codewords):
    leading, count, size = z.shape[:-1], math.prod(z.shape[:-1]), len(codewords)
    if not isinstance(count, int):  # symbolic, from `jax.export`
        return jax.lax.map(lambda z: _by_chunks(lookup, z, codewords), z)
    # z may be sharded: each shard is cut separately, so that vectors stay on their device.
    shards = jax.device_count() if count % jax.device_count() == 0 else 1
    rows = count // shards
    chunks = min(_number_of_chunks(count, size), rows)
    z = z.reshape(count, z.shape[-1]).astype(jnp.float32)
    if chunks <= 1:
        return jax.tree.map(lambda results: results.reshape(leading), lookup(z, codewords))
    # Slightly more chunks may divide the rows evenly, which saves a padded copy.
    chunks = next((more for more in range(chunks, 2 * chunks) if rows % more == 0), chunks)
    z = jnp.pad(z.reshape(shards, rows, -1), ((0, 0), (0, -rows % chunks), (0, 0)))
    z = jnp.moveaxis(z.reshape(shards, chunks, -1, z.shape[-1]), 1, 0)

    def join(results):
        results = jnp.moveaxis(results.reshape(chunks, shards, -1), 0, 1).reshape(shards, -1)
        return results[:, :rows].reshape(leading)

    return jax.tree.map(join, jax.lax.map(lambda z: lookup(z.reshape(-1, z.shape[-1]), codewords), z))


def _number_of_chunks(count: int, size: int) -> int:
    """Returns the number of chunks for `count` vectors and `size` codes."""
    return math.ceil(count * size / SCORES_PER_CHUNK.get(jax.default_backend(), 2**25))


def batch_statistics(z: jax.Array, codes: jax.Array, size: int, mask: jax.Array | None = None) -> Statistics:
    """Returns sum and number of the vectors with each code (the inner sums of Eqs. 9 and 10).

    A vector whose squared length is not finite is left out: it would stay in the moving averages forever.

    Args:
      z: vectors, float [..., d]; no gradient flows through them.
      codes: int32 [...].
      size: K.
      mask: optional bool [...], False where a vector is left out; or float [...], the weight of each vector.

    Returns:
      Sums and counts, float32, or float64 if the vectors are.
    """
    z = jax.lax.stop_gradient(z)
    mask = jnp.ones_like(codes, bool) if mask is None else mask
    return replicated(functools.partial(_batch_statistics, size), z, codes, mask)


def _batch_statistics(size, z, codes, mask):
    z = z.reshape(-1, z.shape[-1]).astype(jnp.promote_types(z.dtype, jnp.float32))
    weights = mask.reshape(-1).astype(z.dtype)
    counted = jnp.isfinite(jnp.sum(jnp.square(z), axis=-1)) & (weights > 0)
    codes = jnp.where(counted, codes.reshape(-1), size)  # out of range: dropped by the sums below
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

    With the neighbourhood A after t updates and a batch's sums s and counts c,

        m <- (1 - beta) m + beta A^T s,   N <- (1 - beta) N + beta A^T c,   w_k <- m_k / N_k.

    With the kernel `none`, A = I, this is EMA-VQ (Eqs. 6-8).

    Args:
      codebook: w, m, N and t.
      statistics: s and c of the whole batch.
      neighborhood: A, taken at t.
      decay: 1 - beta.
      update_empty: True updates every code and smooths the counts, N_k <- (N_k + eps) / (sum N + K eps) sum N, as
        common EMA-VQ code does. False skips codes whose spread count is at most eps, and does not smooth. (The
        authors' code tests for 0, so that the tail of a Gaussian, 1e-26, blows a codeword up.)

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
        # Counts are 0 only while a codebook that started at zero counts has not seen a vector.
        moves = counts > 0
    else:
        moves = spread_counts > EPSILON
        sums = jnp.where(moves[:, None], sums, codebook.sums)
        counts = jnp.where(moves, counts, codebook.counts)
    codewords = jnp.where(moves[:, None], sums / jnp.where(moves, counts, 1.0)[:, None], codebook.codewords)
    return CodebookState(codewords, sums, counts, codebook.step + 1)


def unit(vectors: jax.Array) -> jax.Array:
    """Scales vectors, float [..., d], to length 1; vectors near 0 stay near 0."""
    return vectors / jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + EPSILON**2)


# Explicit mesh axes, the default of `jax.make_mesh`, make shardings part of array types, and refuse the gathers,
# scatters and reshapes above. We run these under Auto axes: XLA chooses all shardings except those of the results.


def sharded_like(array: jax.Array, function: Callable, *arguments: Any) -> Any:
    """Returns `function(*arguments)`; its results [..., *] are sharded as the leading axes of `array` [..., d] are."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    spec = tuple(sharding.spec) if sharding is not None else ()
    return _under_auto_axes(function, arguments, spec[:-1])


def replicated(function: Callable, *arguments: Any) -> Any:
    """Returns `function(*arguments)`; its results are the same on every device."""
    return _under_auto_axes(function, arguments, ())


def _under_auto_axes(function: Callable, arguments: tuple, spec: tuple) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in axes if kind == AxisType.Explicit)
    if not explicit:
        return function(*arguments)
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=PartitionSpec(*spec))(*arguments)
