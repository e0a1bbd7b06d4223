"""Grids: the positions of a map's codes, the distances between them, and their neighbours.

A `Grid` is hashable, so it can be a static argument of `jax.jit`. Codes number the nodes row by row: code k is at
`np.unravel_index(k, grid_shape)`. To add a grid, assign to `GRIDS`.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError, choose, short_repr
from kvae.core.fields import Counts, validate_attributes

LARGEST_SIZE = 2**20
"""Maximum number of nodes of a grid. Coordinates and neighbours are stored for each node."""


@dataclasses.dataclass(frozen=True)
class Grid(abc.ABC):
    """Abstract base class of grids: nodes with a distance between any two. A subclass defines `distance`.

    Attributes:
      shape: number of nodes along each axis; K is their product.
      cell: shape of a node in plots, "square" or "hexagon".
      border: caption of the border in plots; empty if the grid ends at its border.

    Raises:
      InputError: the shape is invalid, or the grid has too many nodes.

    Example:
      >>> import jax.numpy as jnp, kvae
      >>> class Ring(kvae.grids.Grid):  # nodes on a circle; distance in steps along it
      ...     def distance(self, codes, others):
      ...         steps = jnp.abs(jnp.asarray(codes) - jnp.asarray(others))
      ...         return jnp.minimum(steps, self.size - steps).astype(jnp.float32)
      >>> kvae.GRIDS["ring"] = Ring
      >>> layer = kvae.KohonenVQ(grid_shape=(32,), topology="ring")
      >>> print(layer.grid.distance(0, 31))
      1.0
    """

    shape: Counts

    cell: ClassVar[str] = "square"
    border: ClassVar[str] = ""

    def __post_init__(self):
        validate_attributes(self)
        if self.size > LARGEST_SIZE:
            raise InputError(f"grid shape {self.shape} has {self.size:,} nodes; it must have at most {LARGEST_SIZE:,}")

    @abc.abstractmethod
    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the distance between codes on the grid, in nodes: two int arrays that broadcast -> float32.

        Neighbours and neighbourhoods are derived from this method. JAX must be able to trace it.
        """

    def candidates(self, radius: float) -> np.ndarray:
        """Returns for each node a superset of the codes at a distance below `radius`: int32 [n, K].

        The default is all K codes; a smaller superset makes `neighbors` faster. A column must not contain a code twice,
        except the node's own.
        """
        codes = np.arange(self.size, dtype=np.int32)
        return np.broadcast_to(codes[:, None], (self.size, self.size))

    def axis_distances(self) -> list[jax.Array] | None:
        """Returns a distance matrix for each axis with n nodes, float32 [n, n]; None if distances are not Euclidean."""
        return None

    @property
    def adjacency(self) -> Mapping[str, float]:
        """Definitions of "neighbour" for map measures: maps names to the distance below which nodes are neighbours.

        The first definition is the default. On a plane a node has 8 neighbours with diagonals and 4 without; on a line
        it has 2 either way. In a cube it has 26 with diagonals and 6 without. On grids with more than three axes, the
        default includes only nodes that differ along at most three axes. A grid with other distances overrides this
        property.
        """
        return {"8": 1.5, "4": 1.1} if len(self.shape) <= 2 else {"diagonals": 1.8, "axes": 1.1}

    @property
    def size(self) -> int:
        """K, the number of nodes."""
        return math.prod(self.shape)

    @property
    def coordinates(self) -> np.ndarray:
        """Index of every code along each axis (row, column, ...), int [K, axes]."""
        return np.stack(np.unravel_index(np.arange(self.size), self.shape), axis=-1)

    @property
    def points(self) -> np.ndarray:
        """Position at which every node is drawn, float64 [K, axes]; neighbours in a row are 1 apart."""
        return self.coordinates.astype(np.float64)

    def distances(self) -> jax.Array:
        """Returns the distance between every two codes, float32 [K, K]."""
        codes = np.arange(self.size)
        return self.distance(codes[:, None], codes[None, :])

    def neighbors(self, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the other nodes at a distance below `radius`.

        Returns:
          Their codes, int32 [n, K], with n the largest number of neighbours of a node, and a mask, bool [n, K]. Where
          the mask is False, the entry is not a neighbour but the node's own code.
        """
        codes, nodes = self.candidates(radius), np.arange(self.size, dtype=np.int32)
        with jax.ensure_compile_time_eval():  # runs even while another program is being traced
            is_near = np.asarray(jax.jit(self.distance)(nodes, codes)) < radius
        is_near &= codes != nodes
        order = np.argsort(~is_near, axis=0, kind="stable")[: is_near.sum(axis=0).max(initial=0)]
        is_near = np.take_along_axis(is_near, order, axis=0)
        return np.where(is_near, np.take_along_axis(codes, order, axis=0), nodes), is_near

    def shift(self, codes: jax.Array, offset: int | Sequence[int]) -> jax.Array:
        """Returns the codes `offset` nodes away, clipped at the border: int [...] -> int32 [...].

        Args:
          codes: int [...].
          offset: number of nodes, one integer for all axes or one for each axis; may be negative.
        """
        return _shifted(self.shape, codes, offset, "clip")

    def between(self, codes: jax.Array, others: jax.Array, share: float) -> jax.Array:
        """Returns the node nearest to a point on the shortest path from codes to others.

        The node k minimises (d(code, k) - share D)^2 + (d(k, other) - (1 - share) D)^2, where D is the distance between
        code and other.

        Args:
          codes, others: int arrays that broadcast.
          share: position of the point on the path, from 0 at `codes` to 1 at `others`.
        """
        codes, others = jnp.broadcast_arrays(jnp.asarray(codes), jnp.asarray(others))
        total, nodes = self.distance(codes, others)[..., None], jnp.arange(self.size)
        before, after = self.distance(codes[..., None], nodes), self.distance(nodes, others[..., None])
        errors = jnp.square(before - share * total) + jnp.square(after - (1 - share) * total)
        return jnp.argmin(errors, axis=-1).astype(jnp.int32)


class Rectangular(Grid):
    """Abstract base class of lines, rectangles and boxes with Euclidean distance: `Plane` and `Torus`."""

    @abc.abstractmethod
    def shortest(self, steps: jax.Array, length: int) -> jax.Array:
        """Returns the signed number of steps of the shortest path between two nodes along an axis.

        Args:
          steps: difference of their indices, float32.
          length: number of nodes along the axis.
        """

    def steps(self, codes: jax.Array, others: jax.Array) -> list[jax.Array]:
        """Returns the signed number of steps from codes to others along each axis, float32."""
        axes = jnp.asarray(self.coordinates, jnp.float32).T
        codes, others = jnp.broadcast_arrays(jnp.asarray(codes), jnp.asarray(others))
        return [
            self.shortest(axis[others] - axis[codes], length) for axis, length in zip(axes, self.shape, strict=True)
        ]

    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the Euclidean distance, float32."""
        return jnp.sqrt(sum(jnp.square(steps) for steps in self.steps(codes, others)))

    def axis_distances(self) -> list[jax.Array]:
        """Returns the distances along each axis, float32 [n, n]."""
        indices = (jnp.arange(length, dtype=jnp.float32) for length in self.shape)
        return [jnp.abs(self.shortest(index[:, None] - index[None], len(index))) for index in indices]

    def between(self, codes: jax.Array, others: jax.Array, share: float) -> jax.Array:
        """Returns the node nearest to a point on the shortest path, rounded along each axis."""
        starts = jnp.unravel_index(jnp.asarray(codes), self.shape)
        moved = [
            start + jnp.round(share * steps).astype(jnp.int32)
            for start, steps in zip(starts, self.steps(codes, others), strict=True)
        ]
        return jnp.ravel_multi_index(moved, self.shape, mode="wrap").astype(jnp.int32)


class Plane(Rectangular):
    """A line, rectangle or box with a border and the Euclidean distance between coordinates.

    Example:
      >>> print(Plane((3, 5)).distance(0, 4))
      4.0
    """

    def shortest(self, steps: jax.Array, length: int) -> jax.Array:
        """Returns the steps unchanged."""
        return steps

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the codes in a box around each node."""
        return _box(self.shape, math.ceil(radius) - 1)


class Torus(Rectangular):
    """A rectangle without a border: the last node of each row and column is next to the first.

    Example:
      >>> print(Torus((3, 5)).distance(0, 4))
      1.0
    """

    border: ClassVar[str] = "opposite edges are connected"

    def shortest(self, steps: jax.Array, length: int) -> jax.Array:
        """Returns the steps of the shorter way, direct or around the torus."""
        return steps - length * jnp.round(steps / length)

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the codes in a box around each node."""
        return _box(self.shape, math.ceil(radius) - 1, wraps=True)

    def shift(self, codes: jax.Array, offset: int | Sequence[int]) -> jax.Array:
        """Returns the codes `offset` nodes away, wrapping around the torus."""
        return _shifted(self.shape, codes, offset, "wrap")


class Hexagonal(Grid):
    """Rows of hexagons, every second row shifted right by half a node. Inner nodes have 6 neighbours at distance 1.

    Raises:
      InputError: the shape is not (rows, columns).

    Example:
      >>> codes, are_neighbors = Hexagonal((4, 5)).neighbors(1.1)
      >>> sorted(codes[:, 7].tolist())
      [2, 3, 6, 8, 12, 13]
    """

    adjacency: ClassVar[Mapping[str, float]] = {"6": 1.1}
    cell: ClassVar[str] = "hexagon"

    def __post_init__(self):
        super().__post_init__()
        if len(self.shape) != 2:
            raise InputError(f"grid_shape is {self.shape!r}; a hexagonal grid must be (rows, columns)")

    @property
    def points(self) -> np.ndarray:
        """Centres of the hexagons, float64 [K, 2]. Rows are sqrt(3) / 2 apart."""
        row, column = self.coordinates.T
        return np.stack([row * math.sqrt(0.75), column + 0.5 * (row % 2)], axis=-1)

    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the Euclidean distance between the centres of the hexagons."""
        points = jnp.asarray(self.points, jnp.float32)
        return jnp.linalg.norm(points[jnp.asarray(codes)] - points[jnp.asarray(others)], axis=-1)

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the codes in a box around each node. The box exceeds the radius: rows are only 0.87 apart."""
        return _box(self.shape, math.ceil(1.2 * radius) - 1)


def _box(shape: tuple[int, ...], reach: int, wraps: bool = False) -> np.ndarray:
    """Returns the codes in a box around each node, int32 [n, K]. Positions off the grid have the node's own code."""
    axes = []
    for length in shape:
        nearest = min(reach, length - 1)
        # On a small torus, both directions reach the same node. List it only once.
        axes.append(range(-nearest, min(nearest + 1, length - nearest) if wraps else nearest + 1))
    nodes = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)
    moved = nodes + np.array(list(itertools.product(*axes)))[:, None]
    codes = np.ravel_multi_index(moved.T, shape, mode="wrap" if wraps else "clip").T
    is_inside = wraps | np.all((moved >= 0) & (moved < shape), axis=-1)
    return np.where(is_inside, codes, np.arange(len(nodes))).astype(np.int32)


def _shifted(shape: tuple[int, ...], codes: jax.Array, offset: int | Sequence[int], mode: str) -> jax.Array:
    offsets = jnp.broadcast_to(jnp.asarray(offset), (len(shape),))
    moved = [axis + step for axis, step in zip(jnp.unravel_index(codes, shape), offsets, strict=True)]
    return jnp.ravel_multi_index(moved, shape, mode=mode).astype(jnp.int32)


GRIDS: dict[str, Callable[[tuple[int, ...]], Grid]] = {"plane": Plane, "torus": Torus, "hexagonal": Hexagonal}
"""Maps the values of the field `topology` to functions that make a grid from its shape."""


def make_grid(name: str, shape: tuple[int, ...]) -> Grid:
    """Returns a grid with the given shape, made by the entry `name` of `GRIDS`.

    Raises:
      InputError: the name is unknown, the shape is invalid, or the entry does not make such a grid.
    """
    make = choose("topology", name, GRIDS)
    grid = make(shape) if callable(make) else None
    if not isinstance(grid, Grid) or grid.shape != tuple(shape):
        raise InputError(f"GRIDS[{name!r}] is {short_repr(make)}; it must make a kvae.grids.Grid of the given shape")
    return grid
