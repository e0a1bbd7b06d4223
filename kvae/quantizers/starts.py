"""Initialisation of a codebook from vectors of the first batches, as in K-means.

It uses the same statistics as ordinary updates, so it also works with micro-batches and on several devices.
"""

import jax.numpy as jnp

from kvae.kohonen import CodebookState, Statistics
from kvae.quantizers import restarts

STARTS = {"normal": 0, "samples": 1, "kmeans": 10}
"""Maps the values of the field `start` to the number of first updates that the function `start` makes."""

PLACED_COUNT = 1e-3
"""Count of a code that has been placed but has had no vectors yet; negligible as soon as it has one."""


def start(codebook: CodebookState, statistics: Statistics) -> CodebookState:
    """Makes one of the first updates: K-means with means over all batches so far (MacQueen, 1967).

    Update t = 0 places each code at a vector drawn from the batch. Later updates move codes to the mean of their
    vectors,

        m <- m + (s - m) / t,   N <- N + (c - N) / t,   w_k <- m_k / N_k,

    except that a code that has not had a vector yet is placed at a drawn vector of the batch. m and N are means over
    batches, so the moving averages of later updates can continue from them. The neighbourhood is not used.
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
