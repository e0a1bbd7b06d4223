"""Lines, rectangles and boxes of square cells: a plane, a torus and a cylinder."""

import abc
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kvae.grids.grid import Grid, box, shortest


class Rectangular(Grid):
    """Abstract base class of lines, rectangles and boxes with Euclidean distance. A subclass defines `wraps`."""

    @property
    @abc.abstractmethod
    def wraps(self) -> tuple[bool, ...]:
        """For each axis, True if its last node is next to its first."""

    def steps(self, codes: jax.Array, others: jax.Array) -> list[jax.Array]:
        """Returns the signed number of steps on the shortest path from codes to others along each axis, float32."""
        axes = jnp.asarray(self.coordinates, jnp.float32).T
        codes, others = jnp.broadcast_arrays(jnp.asarray(codes), jnp.asarray(others))
        return [
            shortest(axis[others] - axis[codes], period)
            for axis, period in zip(axes, self.periods.tolist(), strict=True)
        ]

    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the Euclidean distance, float32."""
        return jnp.sqrt(sum(jnp.square(steps) for steps in self.steps(codes, others)))

    def axis_distances(self) -> list[jax.Array]:
        """Returns the distances along each axis, float32 [n, n]."""
        indices = (jnp.arange(length, dtype=jnp.float32) for length in self.shape)
        return [
            jnp.abs(shortest(index[:, None] - index[None], period))
            for index, period in zip(indices, self.periods.tolist(), strict=True)
        ]

    def between(self, codes: jax.Array, others: jax.Array, share: float) -> jax.Array:
        """Returns the node nearest to a point on the shortest path, rounded along each axis."""
        starts = jnp.unravel_index(jnp.asarray(codes), self.shape)
        moved = [
            start + jnp.round(share * steps).astype(start.dtype)
            for start, steps in zip(starts, self.steps(codes, others), strict=True)
        ]
        return jnp.ravel_multi_index(moved, self.shape, mode="wrap").astype(jnp.int32)

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the codes in a box around each node."""
        return box(self.shape, math.ceil(radius) - 1, self.wraps)


class Plane(Rectangular):
    """A line, rectangle or box with a border and the Euclidean distance between coordinates.

    Example:
      >>> print(Plane((3, 5)).distance(0, 4))
      4.0
    """

    @property
    def wraps(self) -> tuple[bool, ...]:
        """False for every axis."""
        return (False,) * len(self.shape)


class Torus(Rectangular):
    """A rectangle without a border: the last node of each row and column is next to the first.

    Example:
      >>> print(Torus((3, 5)).distance(0, 4))
      1.0
    """

    border: ClassVar[str] = "opposite edges are connected"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """True for every axis."""
        return (True,) * len(self.shape)


class Cylinder(Rectangular):
    """A rectangle whose left and right edges are connected: the last node of each row is next to the first.

    The first and the last row are not connected. A single row is a ring.

    Example:
      >>> grid = Cylinder((3, 5))
      >>> print(grid.distance(0, 4), grid.distance(0, 10))
      1.0 2.0
    """

    border: ClassVar[str] = "left and right edges are connected"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """True for the last axis only."""
        return (False,) * (len(self.shape) - 1) + (True,)
