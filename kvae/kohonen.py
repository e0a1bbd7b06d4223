"""Kohonen's map: nearest code, batch statistics, and the rule as a moving average.

`update_codebook` is what a `kvae.KohonenVQ` layer runs; `kvae.classic` has the online and the batch form.

Equations are those of Irie, Csordás and Schmidhuber, "Topological Neural Discrete Representation Learning à la
Kohonen" (2023). All arithmetic is float32 with the highest matrix precision, whatever the model's dtype: TF32 and
bfloat16 passes flip the argmin.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from kvae.topology import Neighborhood, spread

EPSILON = 1e-5
"""Pseudo-count of the smoothing, and the spread count up to which a code counts as empty."""

SCORES_PER_CHUNK = {"cpu": 2**22}
"""How many of the N x K scores the lookup holds at once: on a CPU what was fastest (measured), else 2^25."""

SLICES, LANES = 8, 16
"""In how many slices a CPU compares the scores, and how many numbers its vectors hold."""


class Codebook(NamedTuple):
    """A codebook and its moving averages: the leaves of the `codebook` collection."""

    codewords: jax.Array  # [K, d] float32: w
    sums: jax.Array  # [K, d] float32: m
    counts: jax.Array  # [K] float32: N
    step: jax.Array  # [] int32: t, updates done so far


class Statistics(NamedTuple):
    """What a batch tells the codebook, before spreading; those of micro-batches add up."""

    sums: jax.Array  # [K, d] float32: s_k, the sum of the vectors with code k
    counts: jax.Array  # [K] float32: c_k, their number
    samples: "Statistics | None" = None  # of one vector drawn for each code, where unused codes are placed anew


def initial_codebook(key: jax.Array, size: int, dimension: int, init_count: float) -> Codebook:
    """A codebook before its first update: codewords and sums N(0, 1) and equal, counts `init_count` (Section 2.3)."""
    codewords = jax.random.normal(key, (size, dimension), jnp.float32)
    # A copy: leaves that share a buffer cannot be donated.
    sums = jnp.array(codewords, copy=True)
    return Codebook(codewords, sums, jnp.full((size,), init_count, jnp.float32), jnp.zeros((), jnp.int32))


def nearest_code(z: jax.Array, codewords: jax.Array) -> jax.Array:
    """code_i = argmin_k |z_i - w_k|^2, the lowest index where several are nearest (Eq. 2).

    The N x K distances are never held at once: `by_chunks`.

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].

    Returns:
      int32 [...].
    """
    return by_chunks(lowest, z, codewords)


def lowest(scores: jax.Array) -> jax.Array:
    """The code of the lowest score, the first of equal ones; 0 where none is a number: float32 [n, K] -> int32 [n]."""
    return jax.lax.platform_dependent(
        scores, cpu=_lowest_by_slices, default=lambda scores: jnp.argmin(scores, axis=-1).astype(jnp.int32)
    )


def _lowest_by_slices(scores):
    """Compares slices of the codes one with the other: a CPU does that in vectors, and a quarter of argmin's time."""
    size = scores.shape[-1]
    # Of a whole number of vectors, if there are enough codes; the last slice may overlap the one before.
    width = min(size, math.ceil(size / SLICES / LANES) * LANES)
    best, start = scores[:, :width], jnp.zeros((len(scores), width), jnp.int32)
    for first in range(width, size, width):
        first = min(first, size - width)
        others = scores[:, first : first + width]
        is_lower = others < best
        best, start = jnp.where(is_lower, others, best), jnp.where(is_lower, first, start)
    is_above = best > jnp.min(best, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_above, size, start + jnp.arange(width, dtype=jnp.int32)), axis=-1)


def by_chunks(lookup: Callable, z: jax.Array, codewords: jax.Array):
    """`lookup` of the scores of vectors, in chunks: few of the N x K scores are held at once.

    The score of a codeword is |w_k|^2 / 2 - z . w_k, which orders codewords as their distance from z does.

    Args:
      lookup: from scores float32 [n, K] to a tree of arrays [n].
      z: vectors, float [..., d].
      codewords: float32 [K, d].

    Returns:
      The tree, of arrays [...].
    """

    def of_vectors(z, codewords):
        half_norms = 0.5 * jnp.sum(jnp.square(codewords), axis=-1)
        return lookup(half_norms - jnp.matmul(z, codewords.T, precision=jax.lax.Precision.HIGHEST))

    return along(z, functools.partial(_by_chunks, of_vectors), z, codewords)


def _by_chunks(lookup, z, codewords):
    leading, count, size = z.shape[:-1], math.prod(z.shape[:-1]), len(codewords)
    if not isinstance(count, int):  # a symbolic batch, for `jax.export`
        return jax.lax.map(lambda z: _by_chunks(lookup, z, codewords), z)
    # z may be sharded: each shard is split by itself, so that vectors stay on their device.
    shards = jax.device_count() if count % jax.device_count() == 0 else 1
    rows = count // shards
    chunks = min(_number_of_chunks(count, size), rows)
    z = z.reshape(count, z.shape[-1]).astype(jnp.float32)
    if chunks <= 1:
        return jax.tree.map(lambda found: found.reshape(leading), lookup(z, codewords))
    # A few more chunks that divide the rows evenly spare a copy with padding.
    chunks = next((more for more in range(chunks, 2 * chunks) if rows % more == 0), chunks)
    z = jnp.pad(z.reshape(shards, rows, -1), ((0, 0), (0, -rows % chunks), (0, 0)))
    z = jnp.moveaxis(z.reshape(shards, chunks, -1, z.shape[-1]), 1, 0)

    def joined(found):
        found = jnp.moveaxis(found.reshape(chunks, shards, -1), 0, 1).reshape(shards, -1)
        return found[:, :rows].reshape(leading)

    return jax.tree.map(joined, jax.lax.map(lambda z: lookup(z.reshape(-1, z.shape[-1]), codewords), z))


def _number_of_chunks(count: int, size: int) -> int:
    """Into how many chunks `count` vectors go."""
    return math.ceil(count * size / SCORES_PER_CHUNK.get(jax.default_backend(), 2**25))


def batch_statistics(z: jax.Array, codes: jax.Array, size: int, mask: jax.Array | None = None) -> Statistics:
    """Sum and number of the vectors of each code (the inner sums of Eqs. 9 and 10).

    Args:
      z: vectors, float [..., d]; no gradient flows through them.
      codes: int32 [...].
      size: K.
      mask: optional bool [...]; where False, the vector is left out. So is a vector whose squared length is not
        finite, for it would stay in the moving averages for ever. If it is float, it says how often a vector counts.

    Returns:
      float32; float64 where the vectors are.
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


def drawn_samples(z: jax.Array, size: int, step: jax.Array, mask: jax.Array | None = None) -> Statistics:
    """A vector of the batch for each code, drawn at random by the number of the step.

    Arguments are those of `batch_statistics`. A draw that `mask` or a number that is not finite leaves out counts 0.
    """
    if z.shape[0] == 0:
        return Statistics(jnp.zeros((size, z.shape[-1])), jnp.zeros(size))

    def draw(z, mask, step):
        z, mask = z.reshape(-1, z.shape[-1]), mask.reshape(-1)
        drawn = jax.random.randint(jax.random.fold_in(jax.random.key(0), step), (size,), 0, jnp.maximum(len(z), 1))
        return _batch_statistics(size, z[drawn], jnp.arange(size), mask[drawn])

    mask = jnp.ones(z.shape[:-1], bool) if mask is None else mask
    return replicated(draw, jax.lax.stop_gradient(z), mask, step)


def codewords_of(codes: jax.Array, codewords: jax.Array) -> jax.Array:
    """The codewords of codes, [..., d]."""
    return along(codes[..., None], lambda codes, codewords: codewords[codes], codes, codewords)


def update_codebook(
    codebook: Codebook,
    statistics: Statistics,
    neighborhood: Neighborhood,
    *,
    decay: float = 0.99,
    update_empty: bool = True,
) -> Codebook:
    """One step of Kohonen's map as a moving average (Eqs. 9-11); EMA-VQ where the kernel is `none` (Eqs. 6-8).

    Args:
      codebook: after t updates.
      statistics: of the whole batch.
      neighborhood: A; its width is taken at t.
      decay: 1 - beta.
      update_empty: True updates every code and smooths the counts, N_k <- (N_k + eps) / (sum N + K eps) sum N, as
        common EMA-VQ code does. False leaves a code alone whose spread count is at most eps, and does not smooth.
        (The authors' release tests for 0, and lets the tail of a Gaussian, 1e-26, blow a codeword up.)

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
        # Only a codebook that started at zero counts and has seen no vector yet has nothing to divide by.
        moves = counts > 0
    else:
        moves = spread_counts > EPSILON
        sums = jnp.where(moves[:, None], sums, codebook.sums)
        counts = jnp.where(moves, counts, codebook.counts)
    codewords = jnp.where(moves[:, None], sums / jnp.where(moves, counts, 1.0)[:, None], codebook.codewords)
    return Codebook(codewords, sums, counts, codebook.step + 1)


def restart(codebook: Codebook, samples: Statistics, lowest_count: float) -> Codebook:
    """Places codes that are hardly used at vectors of the batch (Dhariwal et al., "Jukebox", 2020, Section 3.1).

    Args:
      codebook: after an update.
      samples: `drawn_samples` of the batch.
      lowest_count: a code whose averaged count N_k is below it starts anew, with this count.

    Returns:
      The codebook; codes without a sample stay.
    """
    starts = (codebook.counts < lowest_count) & (samples.counts > 0)
    placed = samples.sums / jnp.maximum(samples.counts, 1)[:, None]
    return codebook._replace(
        codewords=jnp.where(starts[:, None], placed, codebook.codewords),
        sums=jnp.where(starts[:, None], placed * lowest_count, codebook.sums),
        counts=jnp.where(starts, lowest_count, codebook.counts),
    )


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., d] at length 1; those near 0 stay there."""
    return vectors / jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + EPSILON**2)


def along(array: jax.Array, function: Callable, *arguments):
    """`function(*arguments)`, whose results [..., *] are sharded as the leading axes of `array` [..., d] are."""
    return _automatic(function, arguments, _spec(array)[:-1])


def replicated(function: Callable, *arguments):
    """`function(*arguments)`, whose results are the same on every device."""
    return _automatic(function, arguments, ())


def _spec(array) -> tuple:
    sharding = getattr(jax.typeof(array), "sharding", None)
    return tuple(sharding.spec) if sharding is not None else ()


def _automatic(function, arguments, spec):
    mesh = jax.sharding.get_abstract_mesh()
    explicit = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    )
    if not explicit:
        return function(*arguments)
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=PartitionSpec(*spec))(*arguments)
