"""Restarts of unused codes at vectors of the batch (Dhariwal et al., "Jukebox", 2020, Section 3.1).

Statistics of micro-batches and devices are added up, and a sum of vectors drawn in several parts is not a vector of
the batch. So each part multiplies its draw by a random weight, one of a few powers of two that are 2^30 apart. In the
sum the draw with the largest weight hides all others, up to a billionth of their size. Where the largest weight occurs
twice, which the sum of the weights shows, the code waits for the next update. A batch in one part never waits, and its
draws are exact.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kvae import kohonen
from kvae.kohonen import CodebookState, Samples

WEIGHTS = 2.0 ** np.array([-60, -30, 0, 30, 60], np.float32)
"""Possible weights of a draw. Each is half as likely as the one before, so that the largest is rarely drawn twice."""


def draw_samples(
    z: jax.Array, size: int, step: jax.Array, mask: jax.Array | None = None, part: jax.Array | int = 0
) -> Samples:
    """Draws a vector for each code.

    Args:
      z: vectors of a batch, or of one part of it, float32 [..., d].
      size: K.
      step: t, the number of updates so far, int32 []; the seed.
      mask: optional bool [...]; a vector that is masked or not finite leaves its code without a draw.
      part: number of the device, for parts that may hold the same vectors, int32 [].
    """
    if 0 in z.shape:
        return Samples(jnp.zeros((size, z.shape[-1])), jnp.zeros(size))

    def draw(z, mask, step, part):
        z, mask, key = z.reshape(-1, z.shape[-1]), mask.reshape(-1), jax.random.fold_in(jax.random.key(0), step)
        drawn = jax.random.randint(key, (size,), 0, z.shape[0])
        statistics = kohonen.batch_statistics(z[drawn], jnp.arange(size), size, mask[drawn])
        # Parts differ in their vectors: these seed the weights.
        digest = jnp.sum(jax.lax.bitcast_convert_type(z, jnp.uint32), dtype=jnp.uint32)
        weights = _draw_weights(jax.random.fold_in(jax.random.fold_in(key, digest), part), size)
        return Samples(statistics.sums * weights[:, None], statistics.counts * weights)

    mask = jnp.ones(z.shape[:-1], bool) if mask is None else mask
    return kohonen.replicated(draw, jax.lax.stop_gradient(z), mask, step, part)


def _draw_weights(key: jax.Array, size: int) -> jax.Array:
    ranks = jnp.floor(-jnp.log2(1 - jax.random.uniform(key, (size,)))).astype(jnp.int32)
    return jnp.asarray(WEIGHTS)[jnp.minimum(ranks, len(WEIGHTS) - 1)]


def restart(codebook: CodebookState, samples: Samples, lowest_count: float) -> CodebookState:
    """Moves codes whose averaged count is below `lowest_count` to vectors of the batch, and gives them this count.

    Codes without a draw, or whose draws cannot be told apart, stay.
    """
    is_single = jnp.any(samples.counts[:, None] == WEIGHTS, axis=-1)
    starts = (codebook.counts < lowest_count) & is_single
    placed = samples.sums / jnp.where(is_single, samples.counts, 1)[:, None]
    return codebook._replace(
        codewords=jnp.where(starts[:, None], placed, codebook.codewords),
        sums=jnp.where(starts[:, None], placed * lowest_count, codebook.sums),
        counts=jnp.where(starts, lowest_count, codebook.counts),
    )
