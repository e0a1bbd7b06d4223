"""Grids of hexagons: a plane and a torus."""

import abc
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError
from kvae.grids.grid import Grid, box, shortest

ROW_DISTANCE = math.sqrt(0.75)
"""Distance between the centres of adjacent rows of hexagons, in nodes."""


class Hexagons(Grid):
    """Abstract base class of rows of hexagons, every second row shifted right by half a node.

    A subclass defines which axes wrap.

    Raises:
      InputError: the shape is not (rows, columns).
    """

    adjacency: ClassVar[Mapping[str, float]] = {"6": 1.1}
    cell: ClassVar[str] = "hexagon"

    def __post_init__(self):
        super().__post_init__()
        if len(self.shape) != 2:
            raise InputError(f"grid_shape is {self.shape!r}; a hexagonal grid must be (rows, columns)")

    @property
    @abc.abstractmethod
    def wraps(self) -> tuple[bool, bool]:
        """For each axis, True if its last node is next to its first."""

    @property
    def points(self) -> np.ndarray:
        """Centres of the hexagons, float64 [K, 2]. Rows are sqrt(3) / 2 apart."""
        row, column = self.coordinates.T
        return np.stack([row * ROW_DISTANCE, column + 0.5 * (row % 2)], axis=-1)

    @property
    def periods(self) -> np.ndarray:
        """Length of every axis that wraps, in nodes, float64 [2]; infinite for the other axes."""
        return super().periods * (ROW_DISTANCE, 1)

    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the Euclidean distance between the centres of the hexagons, along the shortest path."""
        points = jnp.asarray(self.points, jnp.float32)
        codes, others = jnp.broadcast_arrays(jnp.asarray(codes), jnp.asarray(others))
        steps = points[codes] - points[others]
        ways = [shortest(steps[..., axis], period) for axis, period in enumerate(self.periods.tolist())]
        return jnp.linalg.norm(jnp.stack(ways, axis=-1), axis=-1)

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the codes in a box around each node. It has extra rows, because rows are only 0.87 apart."""
        return box(self.shape, math.ceil(1.2 * radius) - 1, self.wraps)


class Hexagonal(Hexagons):
    """Rows of hexagons, every second row shifted right by half a node. Inner nodes have 6 neighbours at distance 1.

    Raises:
      InputError: the shape is not (rows, columns).

    Example:
      >>> codes, are_neighbors = Hexagonal((4, 5)).neighbors(1.1)
      >>> sorted(codes[:, 7].tolist())
      [2, 3, 6, 8, 12, 13]
    """

    @property
    def wraps(self) -> tuple[bool, bool]:
        """False for both axes."""
        return (False, False)


class HexagonalTorus(Hexagons):
    """Hexagons without a border: opposite edges are connected, and every node has 6 neighbours at distance 1.

    Raises:
      InputError: the shape is not (rows, columns), or the number of rows is odd. With an odd number of rows, the first
        and the last row would have the same shift, so they would not fit together.

    Example:
      >>> codes, are_neighbors = HexagonalTorus((4, 5)).neighbors(1.1)
      >>> sorted(codes[:, 0].tolist())  # the upper left corner; row 1 and row 3 are shifted right
      [1, 4, 5, 9, 15, 19]
    """

    border: ClassVar[str] = "opposite edges are connected"

    def __post_init__(self):
        super().__post_init__()
        if self.shape[0] % 2 == 1:
            raise InputError(
                f"grid_shape is {self.shape!r}; a hexagonal torus must have an even number of rows, because every "
                "second row is shifted by half a node"
            )

    @property
    def wraps(self) -> tuple[bool, bool]:
        """True for both axes."""
        return (True, True)
