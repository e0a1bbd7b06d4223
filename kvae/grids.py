"""Grids on which codes lie: where the nodes are, how far apart, and which are neighbours.

A `Grid` is a static value. A new one is one entry of `GRIDS`. Codes number the grid row by row: code k sits at
`np.unravel_index(k, grid_shape)`.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError, choose
from kvae.core.fields import Counts, short_repr, validate_attributes

LARGEST_SIZE = 2**20
"""Nodes of a grid, at most: what is known of each node is listed."""


@dataclasses.dataclass(frozen=True)
class Grid(abc.ABC):
    """Nodes in rows, and the distance between any two.

    Attributes:
      shape: nodes along each axis; K is their product.
      cell: how a node is drawn, "square" or "hexagon".
      border: what a picture says of the border; empty where nodes end there.

    Raises:
      InputError: an impossible shape.
    """

    shape: Counts

    cell: ClassVar[str] = "square"
    border: ClassVar[str] = ""

    def __post_init__(self):
        validate_attributes(self)
        if self.size > LARGEST_SIZE:
            raise InputError(f"a grid of {self.shape} has {self.size:,} nodes; it may have {LARGEST_SIZE:,} at most")

    @abc.abstractmethod
    def distance(self, codes, others) -> jax.Array:
        """Distance on the grid between codes and others, int arrays that broadcast: float32. JAX has to trace it."""

    def axis_distances(self) -> list[jax.Array] | None:
        """Distances along each axis, float32 [n, n], where their squares add up to the squared distance; else None."""
        return None

    @property
    def adjacency(self) -> Mapping[str, float]:
        """What counts as a neighbour where a map is judged: by name, the distance that neighbours lie below.

        The first is the usual one. On a plane a node has 8 or 4 neighbours, with and without the diagonals; on a line
        both names mean the adjacent two. In a cube it has 26 with the diagonals, and 6 along the axes. With more axes,
        neighbours differ along three of them at most. A grid with other distances says its own.
        """
        return {"8": 1.5, "4": 1.1} if len(self.shape) <= 2 else {"diagonals": 1.8, "axes": 1.1}

    @property
    def size(self) -> int:
        """K, the number of nodes."""
        return math.prod(self.shape)

    @property
    def coordinates(self) -> np.ndarray:
        """Row, column and so on of every code, int [K, axes]."""
        return np.stack(np.unravel_index(np.arange(self.size), self.shape), axis=-1)

    @property
    def points(self) -> np.ndarray:
        """Where every node is drawn, float [K, axes], in units of the distance between neighbours in a row."""
        return self.coordinates.astype(np.float64)

    def distances(self) -> jax.Array:
        """Distance between every two codes, float32 [K, K]."""
        codes = np.arange(self.size)
        return self.distance(codes[:, None], codes[None, :])

    def neighbors(self, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """The other nodes at a distance below `radius`.

        Returns:
          Their codes, int32 [n, K], n being the most that a node has, and which of these are there, bool [n, K].
        """
        codes = np.arange(self.size, dtype=np.int32)
        near = _distance(self, codes[:, None], codes) < radius
        np.fill_diagonal(near, False)
        order = np.argsort(~near, axis=1, kind="stable")[:, : near.sum(axis=1).max(initial=0)]
        return order.T.astype(np.int32), np.take_along_axis(near, order, axis=1).T

    def shift(self, codes, offset) -> jax.Array:
        """Codes moved over the grid, up to its border.

        Args:
          codes: int [...].
          offset: how many nodes to move, an integer for all axes or one for each; may be negative.

        Returns:
          int32 [...].
        """
        return self._moved(codes, offset, "clip")

    def between(self, codes, others, share: float) -> jax.Array:
        """The node that is nearest to where a share of the shortest way from codes to others has been gone.

        Among all nodes k the one with the least (d(code, k) - share D)^2 + (d(k, other) - (1 - share) D)^2, D being the
        distance between the two.

        Args:
          codes, others: int arrays that broadcast.
          share: of the way, from 0 to 1.

        Returns:
          int32, of their common shape.
        """
        codes, others = jnp.broadcast_arrays(jnp.asarray(codes), jnp.asarray(others))
        apart, nodes = self.distance(codes, others)[..., None], jnp.arange(self.size)
        before, after = self.distance(codes[..., None], nodes), self.distance(nodes, others[..., None])
        misses = jnp.square(before - share * apart) + jnp.square(after - (1 - share) * apart)
        return jnp.argmin(misses, axis=-1).astype(jnp.int32)

    def _moved(self, codes, offset, mode):
        offsets = jnp.broadcast_to(jnp.asarray(offset), (len(self.shape),))
        moved = [axis + step for axis, step in zip(jnp.unravel_index(codes, self.shape), offsets, strict=True)]
        return jnp.ravel_multi_index(moved, self.shape, mode=mode).astype(jnp.int32)


class _Lattice(Grid):
    """A grid on which near nodes have near coordinates, so that neighbours are found without all K x K distances."""

    wraps: ClassVar[bool] = False
    stretch: ClassVar[float] = 1.0  # coordinates differ by at most this times the distance

    def neighbors(self, radius):
        reach = [min(math.ceil(self.stretch * radius) - 1, size - 1) for size in self.shape]
        offsets = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))))
        moved = self.coordinates + offsets[:, None]
        inside = self.wraps | np.all((moved >= 0) & (moved < self.shape), axis=-1)
        codes = np.ravel_multi_index(moved.T, self.shape, mode="wrap" if self.wraps else "clip").T.astype(np.int32)
        own = np.arange(self.size, dtype=np.int32)
        inside &= (codes != own) & (_distance(self, own, codes) < radius)
        for i, codes_there in enumerate(codes):
            # Around a small torus one node is reached in two directions: it counts once.
            inside[i] &= ~np.any(inside[:i] & (codes[:i] == codes_there), axis=0)
        some = np.any(inside, axis=1)
        return np.where(inside, codes, own)[some], inside[some]


class Plane(_Lattice):
    """A rectangle, or a line, a box and so on, with a border: Euclidean distance between coordinates."""

    def distance(self, codes, others):
        """Euclidean distance between the coordinates of codes."""
        return jnp.sqrt(sum(jnp.square(apart) for apart in self._apart(codes, others)))

    def axis_distances(self):
        """|i - j| along each axis."""
        return [jnp.abs(i[:, None] - i[None, :]) for i in (jnp.arange(n, dtype=jnp.float32) for n in self.shape)]

    def between(self, codes, others, share):
        """The node nearest to a share of the way, axis by axis."""
        starts = jnp.unravel_index(jnp.asarray(codes), self.shape)
        moved = [
            start + jnp.round(share * steps).astype(jnp.int32)
            for start, steps in zip(starts, self._steps(codes, others), strict=True)
        ]
        return jnp.ravel_multi_index(moved, self.shape, mode="wrap").astype(jnp.int32)

    def _apart(self, codes, others):
        return [jnp.abs(steps) for steps in self._steps(codes, others)]

    def _steps(self, codes, others):
        """How far others lie from codes along each axis, with a sign."""
        points = jnp.asarray(self.coordinates, jnp.float32).T
        return [axis[jnp.asarray(others)] - axis[jnp.asarray(codes)] for axis in points]


class Torus(Plane):
    """A rectangle without a border: the node after the last of a row or column is the first."""

    wraps: ClassVar = True
    border: ClassVar = "opposite borders are neighbours"

    def axis_distances(self):
        """min(|i - j|, n - |i - j|) along each axis."""
        return [jnp.minimum(apart, len(apart) - apart) for apart in super().axis_distances()]

    def _steps(self, codes, others):
        straight = super()._steps(codes, others)
        return [steps - n * jnp.round(steps / n) for steps, n in zip(straight, self.shape, strict=True)]

    def shift(self, codes, offset):
        """Codes moved over the grid, and around it."""
        return self._moved(codes, offset, "wrap")


class Hexagonal(_Lattice):
    """Rows of hexagons, every second one half a node to the right: each node has six neighbours at distance 1.

    Raises:
      InputError: a shape that is not (rows, columns).
    """

    adjacency: ClassVar = {"6": 1.1}
    cell: ClassVar = "hexagon"
    stretch: ClassVar = 1.2  # rows are closer than 1, and shifted by half a node

    def __post_init__(self):
        super().__post_init__()
        if len(self.shape) != 2:
            raise InputError(f"grid_shape is {self.shape!r}; a hexagonal grid has rows and columns, such as (16, 32)")

    @property
    def points(self):
        """Centres of the hexagons, float [K, 2]: rows are sqrt(3) / 2 apart."""
        row, column = self.coordinates.T
        return np.stack([row * math.sqrt(0.75), column + 0.5 * (row % 2)], axis=-1)

    def distance(self, codes, others):
        """Euclidean distance between the centres of the hexagons."""
        points = jnp.asarray(self.points, jnp.float32)
        return jnp.linalg.norm(points[jnp.asarray(codes)] - points[jnp.asarray(others)], axis=-1)


def _distance(grid: Grid, codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`Grid.distance` of concrete codes, compiled as a whole even where another program is being traced."""
    with jax.ensure_compile_time_eval():
        return np.asarray(jax.jit(grid.distance)(codes, others))


GRIDS: dict[str, Callable[[tuple[int, ...]], Grid]] = {"plane": Plane, "torus": Torus, "hexagonal": Hexagonal}
"""By name, the grid of a shape."""


def make_grid(name: str, shape: tuple[int, ...]) -> Grid:
    """The grid of that name in `GRIDS`; raises InputError where there is none, or its shape is impossible."""
    make = choose("topology", name, GRIDS)
    grid = make(shape) if callable(make) else None
    if not isinstance(grid, Grid) or grid.shape != tuple(shape):
        raise InputError(
            f"GRIDS[{name!r}] is {short_repr(make)}; it must make a kvae.grids.Grid of the shape that it is given"
        )
    return grid
