"""Training losses of a prior, by name in `LOSSES`; soft losses also give credit to codes near the right one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvae.models.priors.embeddings import grid_of, standardized
from kvae.models.priors.heads import HIGHEST, Factors
from kvae.models.priors.layout import Level


class Softness(NamedTuple):
    """Parameters of the losses.

    Attributes:
      smoothing: probability that `smoothed` spreads evenly over all codes.
      temperature: for `soft_grid` in nodes, for `soft_codewords` in mean distances between nearest codewords.
    """

    smoothing: float
    temperature: float


Loss = Callable[[Factors, jax.Array, jax.Array, Level, jax.Array, Softness], jax.Array]
"""Maps the predicted distribution, hidden vectors [..., width], the right codes int [...], their level, its codewords
[K, d] and the softness to a loss in nats, float32 [...]."""

Targets = Callable[[jax.Array, Level, jax.Array, Softness], jax.Array]
"""Maps the right codes int [...], their level, its codewords and the softness to the probability of each code that the
prior should predict, float32 [..., K]."""


def one_hot(
    factors: Factors, hidden: jax.Array, codes: jax.Array, level: Level, codewords: jax.Array, softness: Softness
) -> jax.Array:
    """Returns -log p(code); only the factors of the right code are computed."""
    return -factors.log_probability(hidden, codes)


def cross_entropy(targets: Targets) -> Loss:
    """Returns the loss -sum_k q_k log p_k, where q are the targets."""

    def loss(
        factors: Factors, hidden: jax.Array, codes: jax.Array, level: Level, codewords: jax.Array, softness: Softness
    ) -> jax.Array:
        goal = targets(codes, level, codewords, softness)
        return -jnp.sum(goal * factors.log_probabilities(hidden), axis=-1)

    return loss


def smoothed(codes: jax.Array, level: Level, codewords: jax.Array, softness: Softness) -> jax.Array:
    """Returns (1 - smoothing) for the right code, plus smoothing / K for every code (Szegedy et al., 2016)."""
    return (1 - softness.smoothing) * jax.nn.one_hot(codes, level.size) + softness.smoothing / level.size


def near_on_grid(codes: jax.Array, level: Level, codewords: jax.Array, softness: Softness) -> jax.Array:
    """Returns targets proportional to exp(-D / temperature), D the distance to the right code on the grid, in nodes.

    Example:
      >>> import jax.numpy as jnp
      >>> from kvae.grids import Plane
      >>> level = Level("codebook", 3, Plane((3,)), 0, 0)
      >>> near_on_grid(jnp.array(0), level, jnp.zeros((3, 0)), Softness(0.0, 1.0)).round(3)
      Array([0.665, 0.245, 0.09 ], dtype=float32)
    """
    distance = grid_of(level, "loss").distance(codes[..., None], np.arange(level.size))
    return jax.nn.softmax(-distance / softness.temperature)


def near_codewords(codes: jax.Array, level: Level, codewords: jax.Array, softness: Softness) -> jax.Array:
    """Returns targets proportional to exp(-D / temperature), D the distance between codewords.

    The unit of D is the mean distance from a codeword to its nearest other one, so that a temperature means about the
    same as on a grid. Soft targets by distance of embeddings: SNCE (arXiv:2603.15150), DIST2Loss (arXiv:2503.02379).
    """
    vectors = standardized(level, codewords)
    squares = jnp.sum(jnp.square(vectors), axis=-1)
    products = jnp.matmul(vectors, vectors.T, precision=HIGHEST)
    distance = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * products, 0.0))
    others = jnp.where(jnp.eye(level.size, dtype=bool), jnp.inf, distance)
    unit = jnp.mean(jnp.min(others, axis=-1))
    return jax.nn.softmax(-distance / (unit * softness.temperature))[codes]


LOSSES: dict[str, Loss] = {
    "one_hot": one_hot,
    "smoothed": cross_entropy(smoothed),
    "soft_grid": cross_entropy(near_on_grid),
    "soft_codewords": cross_entropy(near_codewords),
}
"""Losses by name. `bits` and the other metrics always concern the right code alone."""
