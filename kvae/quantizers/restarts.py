"""Restarts of unused codes at vectors of the batch (Dhariwal et al., "Jukebox", 2020, Section 3.1).

The statistics of micro-batches and devices are summed, but a sum of vectors drawn from several parts of a batch is not
a vector of the batch. Each part therefore multiplies its draw by a random weight, one of a few powers of two that are
2^30 apart. In the sum, the draw with the largest weight dominates, and the others change it by about a billionth. If
several parts draw the same largest weight, the sum of the weights reveals it, and the code waits for the next update.
If the batch is a single part, no code has to wait and draws are exact.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kvae import kohonen
from kvae.core.auto_axes import replicated
from kvae.kohonen import CodebookState, Samples

WEIGHTS = 2.0 ** np.array([-60, -30, 0, 30, 60], np.float32)
"""Possible weights of a draw. Each is half as likely as the previous one, so that the largest is rarely drawn twice."""


def draw_samples(
    z: jax.Array, size: int, step: jax.Array, mask: jax.Array | None = None, part: jax.Array | int = 0
) -> Samples:
    """Draws a random vector of the batch for each code and multiplies it by a random weight.

    Args:
      z: vectors of a batch, or of one part of it, float32 [..., d].
      size: K.
      step: t, the number of updates so far, int32 []; it seeds the draw.
      mask: optional bool [...]; a code whose drawn vector is masked or not finite gets no vector.
      part: index of the device, int32 []; it gives devices with the same vectors different weights.
    """
    if 0 in z.shape:
        return Samples(jnp.zeros((size, z.shape[-1])), jnp.zeros(size))

    def draw(z, mask, step, part):
        z, mask, key = z.reshape(-1, z.shape[-1]), mask.reshape(-1), jax.random.fold_in(jax.random.key(0), step)
        drawn = jax.random.randint(key, (size,), 0, z.shape[0])
        statistics = kohonen.batch_statistics(z[drawn], jnp.arange(size), size, mask[drawn])
        # The vectors seed the weights, because they differ between parts.
        digest = jnp.sum(jax.lax.bitcast_convert_type(z, jnp.uint32), dtype=jnp.uint32)
        weights = _draw_weights(jax.random.fold_in(jax.random.fold_in(key, digest), part), size)
        return Samples(statistics.sums * weights[:, None], statistics.counts * weights)

    mask = jnp.ones(z.shape[:-1], bool) if mask is None else mask
    return replicated(draw, jax.lax.stop_gradient(z), mask, step, part)


def _draw_weights(key: jax.Array, size: int) -> jax.Array:
    ranks = jnp.floor(-jnp.log2(1 - jax.random.uniform(key, (size,)))).astype(jnp.int32)
    return jnp.asarray(WEIGHTS)[jnp.minimum(ranks, len(WEIGHTS) - 1)]


def is_single(samples: Samples) -> jax.Array:
    """Returns which codes have a single draw with the largest weight: bool [K]."""
    return jnp.any(samples.counts[:, None] == WEIGHTS[None], axis=-1)


def drawn_vectors(samples: Samples) -> jax.Array:
    """Returns the vector drawn for each code, float32 [K, d]; arbitrary where `is_single` is False."""
    return samples.sums / jnp.where(is_single(samples), samples.counts, 1)[:, None]


def restart(codebook: CodebookState, samples: Samples, lowest_count: float) -> CodebookState:
    """Moves codes whose average count is below `lowest_count` to drawn vectors, and sets their count to `lowest_count`.

    A code does not move if no vector was drawn for it, or if several parts drew the same largest weight.
    """
    starts = (codebook.counts < lowest_count) & is_single(samples)
    placed = drawn_vectors(samples)
    return codebook._replace(
        codewords=jnp.where(starts[:, None], placed, codebook.codewords),
        sums=jnp.where(starts[:, None], placed * lowest_count, codebook.sums),
        counts=jnp.where(starts, lowest_count, codebook.counts),
    )
