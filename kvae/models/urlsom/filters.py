"""The fixed radial convolution over the map of URL-SOM (Kermiche, 2021, Sections III.B and V.E)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kvae.topology import Plane


def _gaussian(offsets: jax.Array, sigma: float) -> jax.Array:
    weights = jnp.exp(-_squared(offsets) / (2 * sigma**2))
    return jnp.where(jnp.max(jnp.abs(offsets), axis=-1) <= 3 * sigma, weights, 0.0)


def _student(offsets: jax.Array, sigma: float) -> jax.Array:
    return 1 / (1 + _squared(offsets) / (2 * sigma**2))


def _squared(offsets: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(offsets), axis=-1)


FILTERS: dict[str, Callable[[jax.Array, float], jax.Array]] = {"gaussian": _gaussian, "student": _student}
"""Maps names to functions from offsets on the map, float32 [..., axes], and sigma to weights before normalisation.

The Gaussian is cut off at a width of 6 sigma (Section III.B): |offset| <= 3 sigma on each axis. The Student-t filter is
not cut off, because it "requires a filter size that is bigger than the SOM" (Section V.E).

Both are 1 at the centre and have the same curvature there. The paper defines the Student-t filter as 1 / (1 + r^2 / c);
c = 1 and c = 18 correspond to sigma = 0.7071 and sigma = 3.
"""


def radial_filter(grid_shape: tuple[int, ...], kernel: str, sigma: float) -> jax.Array:
    """Returns the convolution over the map as a matrix: activations = projection @ matrix.

    Row k is the filter centred on neuron k, zero outside the map.

    All weights are divided by the largest row sum, so that the weights around the neuron in the middle of the map sum
    to 1. The paper does not specify this. Without the division, all outputs are one-hot from the start and the map
    collapses.

    Example:
      >>> matrix = radial_filter((30, 30), "gaussian", 5.0)
      >>> matrix.shape
      (900, 900)
      >>> bool(abs(matrix[15 * 30 + 15].sum() - 1) < 1e-3)  # the neuron in the middle
      True

    Args:
      grid_shape: the shape of the map of n neurons.
      kernel: a key of `FILTERS`.
      sigma: width of the filter, in neurons.

    Returns:
      float32 [n, n].
    """
    points = jnp.asarray(Plane(grid_shape).coordinates, jnp.float32)
    offsets = points[:, None] - points[None, :]
    weights = FILTERS[kernel](offsets, sigma)
    return weights / jnp.max(jnp.sum(weights, axis=-1))
