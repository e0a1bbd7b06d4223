"""Kohonen's map: nearest code, batch statistics, and the rule as a moving average.

`update_codebook` is what a `kvae.KohonenVQ` layer runs; `kvae.classic` has the online and the batch form.

Equations are those of Irie, Csordás and Schmidhuber, "Topological Neural Discrete Representation Learning à la
Kohonen" (2023). All arithmetic is float32 with the highest matrix precision, whatever the model's dtype: TF32 and
bfloat16 passes flip the argmin.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kvae.topology import Neighborhood, spread

EPSILON = 1e-5
"""Pseudo-count of the smoothing, and the spread count up to which a code counts as empty."""

SCORES_PER_CHUNK = {"cpu": 2**19}
"""How many of the N x K scores the lookup holds at once: on a CPU what fits its cache (measured), else 2^25."""


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
    half_norms = 0.5 * jnp.sum(jnp.square(codewords), axis=-1)

    def lookup(z):
        products = jnp.matmul(z, codewords.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(half_norms - products, axis=-1).astype(jnp.int32)

    return by_chunks(lookup, z, len(codewords))


def by_chunks(lookup: Callable, z: jax.Array, size: int):
    """`lookup` of vectors against `size` codewords, in chunks that hold few of the N x K scores.

    Args:
      lookup: from float32 [n, d] to a tree of arrays [n].
      z: vectors, float [..., d].
      size: K.

    Returns:
      The tree, of arrays [...].
    """
    leading, count = z.shape[:-1], math.prod(z.shape[:-1])
    # z may be sharded. To keep vectors on their device, each shard is padded and split by stride: row i goes to chunk
    # i % chunks.
    shards = jax.device_count() if count % jax.device_count() == 0 else 1
    chunks = min(_number_of_chunks(count, size), count // shards)
    z = z.reshape(count, z.shape[-1]).astype(jnp.float32)
    if chunks <= 1:
        return jax.tree.map(lambda found: found.reshape(leading), lookup(z))
    z = z.reshape(shards, count // shards, -1)
    z = jnp.pad(z, ((0, 0), (0, -z.shape[1] % chunks), (0, 0)))
    z = jnp.moveaxis(z.reshape(shards, -1, chunks, z.shape[-1]), 2, 0)

    def joined(found):
        found = jnp.moveaxis(found.reshape(chunks, shards, -1), 0, 2).reshape(shards, -1)
        return found[:, : count // shards].reshape(leading)

    return jax.tree.map(joined, jax.lax.map(lambda z: lookup(z.reshape(-1, z.shape[-1])), z))


def _number_of_chunks(count: int, size: int) -> int:
    """Into how many chunks `count` vectors go."""
    return math.ceil(count * size / SCORES_PER_CHUNK.get(jax.default_backend(), 2**25))


def batch_statistics(z: jax.Array, codes: jax.Array, size: int, mask: jax.Array | None = None) -> Statistics:
    """Sum and number of the vectors of each code (the inner sums of Eqs. 9 and 10).

    Args:
      z: vectors, float [..., d]; no gradient flows through them.
      codes: int32 [...].
      size: K.
      mask: optional bool [...]; where False, the vector is left out. So is a vector with a number that is not finite,
        for it would stay in the moving averages for ever.
    """
    z = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]).astype(jnp.float32)
    counted = jnp.all(jnp.isfinite(z), axis=-1)
    if mask is not None:
        counted &= mask.reshape(-1)
    codes = jnp.where(counted, codes.reshape(-1), size)  # out of range: dropped by the sums below
    sums = jax.ops.segment_sum(z, codes, num_segments=size)
    return Statistics(sums, jax.ops.segment_sum(jnp.ones_like(codes, jnp.float32), codes, num_segments=size))


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
      neighborhood: A; its strength is taken at t.
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
