"""Starts of a codebook at vectors of the first batches, as in K-means.

A start uses the statistics of ordinary updates, so that it is the same for micro-batches and on several devices.
"""

import jax.numpy as jnp

from kvae.kohonen import CodebookState, Statistics
from kvae.quantizers import restarts

STARTS = {"normal": 0, "samples": 1, "kmeans": 10}
"""Maps the names that the field `start` accepts to the number of first updates that `start` takes over."""

PLACED_COUNT = 1e-3
"""Count of a code that has been placed and has had no vectors: too small to matter once it has some."""


def start(codebook: CodebookState, statistics: Statistics) -> CodebookState:
    """Takes one of the first updates: K-means whose clusters are means over all batches so far (MacQueen, 1967).

    Update t = 0 places each code at a vector drawn from the batch. In update t > 0 the codes move to means, with

        m <- m + (s - m) / t,   N <- N + (c - N) / t,   w_k <- m_k / N_k,

    and a code that has not yet had a vector is placed at one of this batch instead. After the last such update, m and N
    are means over batches, as the moving averages that follow expect. No neighbourhood acts.
    """
    samples, t = statistics.samples, codebook.step.astype(jnp.float32)
    has_had_vectors = (t > 0) & (codebook.counts > PLACED_COUNT)
    learns = (t > 0) & ((statistics.counts > 0) | has_had_vectors)
    share = 1 / jnp.maximum(t, 1)
    sums = codebook.sums + share * (statistics.sums - codebook.sums)
    counts = codebook.counts + share * (statistics.counts - codebook.counts)
    is_drawn = restarts.is_single(samples)
    placed = jnp.where(is_drawn[:, None], restarts.drawn_vectors(samples), codebook.codewords)
    means = sums / jnp.where(learns, counts, 1)[:, None]
    return CodebookState(
        jnp.where(learns[:, None], means, placed),
        jnp.where(learns[:, None], sums, PLACED_COUNT * placed),
        jnp.where(learns, counts, PLACED_COUNT),
        codebook.step + 1,
    )
