"""Kohonen's map: nearest code, batch statistics, the rule as a moving average, and its classic forms.

`update_codebook` is what a `kvae.KohonenVQ` layer runs. The classic forms, online and batch, work on plain arrays:
`*_update` are single steps, compiled once for each neighbourhood; `fit_*` train a map on the rows of an array. A map
that is to unfold starts with a wide neighbourhood: `Neighborhood(grid_shape, "gaussian", schedule="narrowing")`.

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

from kvae.errors import InputError
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
    # Where the vectors divide over the devices they may be sharded, and then none must move: each device pads its own,
    # has at least one in each chunk, and a chunk takes every n-th of them, not every n-th part.
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
      mask: optional bool [...]; where False, the vector is left out.
    """
    z = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]).astype(jnp.float32)
    codes = codes.reshape(-1)
    if mask is not None:
        codes = jnp.where(mask.reshape(-1), codes, size)  # out of range: dropped by the sums below
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


@functools.partial(jax.jit, static_argnames="neighborhood")
def online_update(codewords: jax.Array, x: jax.Array, neighborhood: Neighborhood, step, learning_rate) -> jax.Array:
    """One step of the online form: w_k + beta A_{k*,k} (x - w_k), with k* the code nearest to x (Eqs. 12 and 13).

    With the kernel `none` this is online K-means.

    Args:
      codewords: w, float32 [K, d].
      x: one vector, float [d].
      neighborhood: A; its strength is taken at `step`.
      step: updates done so far, integer [].
      learning_rate: beta, float [].

    Returns:
      The new codewords, float32 [K, d].
    """
    pull = learning_rate * _strengths(neighborhood, nearest_code(x, codewords), step)
    return codewords + pull[:, None] * (x - codewords)


@functools.partial(jax.jit, static_argnames="neighborhood")
def hebbian_update(codewords: jax.Array, x: jax.Array, neighborhood: Neighborhood, step, learning_rate) -> jax.Array:
    """One step of the map as Hebbian learning: W + (beta A y) (x - W^T y)^T, y = hardmax(W x) (Eqs. 17 and 18).

    It differs from `online_update` twice. The winner y has the largest dot product with x, which is the nearest one
    if all codewords have the same length. And W^T y is the *winner's* codeword: neighbours move along with the winner,
    in parallel, where Eq. 13 moves each one towards x. With the same winner both move the winner alike, and with the
    kernel `none` they are equal. Arguments and result are those of `online_update`; the first of equal winners wins.
    """
    winner = jnp.argmax(jnp.matmul(codewords, x, precision=jax.lax.Precision.HIGHEST))
    pull = learning_rate * _strengths(neighborhood, winner, step)
    return codewords + pull[:, None] * (x - codewords[winner])


@functools.partial(jax.jit, static_argnames="neighborhood")
def batch_update(codewords: jax.Array, data: jax.Array, neighborhood: Neighborhood, step) -> jax.Array:
    """One step of the batch form: every codeword becomes the mean of its and its neighbours' members (Eqs. 19-21).

    With the kernel `none` this is Lloyd's K-means.

    Args:
      codewords: w, float32 [K, d].
      data: all vectors, float [..., d].
      neighborhood: A; its strength is taken at `step`.
      step: updates done so far, integer [].

    Returns:
      The new codewords, float32 [K, d]. One whose weighted count N_k is 0 stays.
    """
    statistics = batch_statistics(data, nearest_code(data, codewords), neighborhood.size)
    sums = spread(neighborhood, statistics.sums, step)
    counts = spread(neighborhood, statistics.counts, step)
    # Below 1e-30, in the far tail of a Gaussian, the sums lose their digits to float32's smallest number.
    moves = counts > 1e-30
    return jnp.where(moves[:, None], sums / jnp.where(moves, counts, 1.0)[:, None], codewords)


def fit_online(
    data: jax.Array,
    neighborhood: Neighborhood,
    steps: int,
    learning_rate: float | Callable[[jax.Array], jax.Array],
    key: jax.Array,
    codewords: jax.Array | None = None,
) -> jax.Array:
    """Trains a map with `online_update` on rows drawn at random, with replacement.

    Args:
      data: float [n, d].
      neighborhood: the grid, the kernel and how it shrinks over the steps.
      steps: number of updates.
      learning_rate: beta, a number, or a function of the step such as an optax schedule.
      key: of the draws.
      codewords: initial codewords, float [K, d]; by default random rows of `data`.

    Returns:
      The codewords, float32 [K, d].

    Raises:
      InputError: data without rows or of another form than [n, d], or initial codewords that do not fit.
    """
    start_key, draw_key = jax.random.split(key)
    data, codewords = _start(data, neighborhood, start_key, codewords)

    def update(step, codewords):
        row = jax.random.randint(jax.random.fold_in(draw_key, step), (), 0, len(data))
        beta = learning_rate(step) if callable(learning_rate) else learning_rate
        return online_update(codewords, data[row], neighborhood, step, beta)

    return jax.lax.fori_loop(0, steps, update, codewords)


def fit_batch(
    data: jax.Array,
    neighborhood: Neighborhood,
    epochs: int,
    key: jax.Array,
    codewords: jax.Array | None = None,
) -> jax.Array:
    """Trains a map with `batch_update`, one update an epoch.

    Args:
      data: float [n, d].
      neighborhood: the grid, the kernel and how it shrinks over the epochs.
      epochs: number of updates.
      key: of the initial codewords.
      codewords: initial codewords, float [K, d]; by default random rows of `data`.

    Returns:
      The codewords, float32 [K, d].

    Raises:
      InputError: as `fit_online`.
    """
    data, codewords = _start(data, neighborhood, key, codewords)
    return jax.lax.fori_loop(0, epochs, lambda t, w: batch_update(w, data, neighborhood, t), codewords)


def _strengths(neighborhood, winner, step):
    """The winner's row of A(t), float32 [K], without forming the matrix where `spread` does not."""
    return spread(neighborhood, jax.nn.one_hot(winner, neighborhood.size), step)


def _start(data, neighborhood, key, codewords):
    """The data and the initial codewords, float32, checked."""
    data = jnp.asarray(data, jnp.float32)
    if data.ndim != 2 or len(data) == 0:
        raise InputError(f"data has the shape {data.shape}; a map is trained on [n, d], n at least 1")
    shape = (neighborhood.size, data.shape[1])
    if codewords is None:
        # Different rows, as long as there are enough.
        rows = jax.random.choice(key, len(data), shape[:1], replace=len(data) < neighborhood.size)
        codewords = data[rows]
    if codewords.shape != shape:
        raise InputError(f"codewords have the shape {codewords.shape}; this grid and these data need {shape}")
    return data, jnp.asarray(codewords, jnp.float32)
