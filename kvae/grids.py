"""Grids: where the codes of a map are, how far apart two of them are, and which are neighbours.

A `Grid` is a static value: hashable, and the same inside and outside of `jax.jit`. Codes number the nodes row by row:
code k is at `np.unravel_index(k, grid_shape)`. Add a grid by assigning to `GRIDS`.
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
"""Largest number of nodes: coordinates and neighbours are stored for each node."""


@dataclasses.dataclass(frozen=True)
class Grid(abc.ABC):
    """Nodes, and the distance between any two. Abstract: a subclass defines `distance`.

    Attributes:
      shape: number of nodes along each axis; K is their product.
      cell: shape in which plots draw a node, "square" or "hexagon".
      border: caption that plots give to the border; empty where the grid ends at its border.

    Raises:
      InputError: an impossible shape.

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
            raise InputError(f"a grid of {self.shape} has {self.size:,} nodes; it may have at most {LARGEST_SIZE:,}")

    @abc.abstractmethod
    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the distance on the grid, in nodes: two int arrays that broadcast -> float32.

        Neighbours and neighbourhoods follow from it. JAX must be able to trace it.
        """

    def candidates(self, radius: float) -> np.ndarray:
        """Returns codes that include, for each node, all at a distance below `radius`: int32 [n, K].

        By default all K; with fewer, `neighbors` is faster. No code except the node's own may occur twice.
        """
        codes = np.arange(self.size, dtype=np.int32)
        return np.broadcast_to(codes[:, None], (self.size, self.size))

    def axis_distances(self) -> list[jax.Array] | None:
        """Returns the distances along each axis of n nodes, float32 [n, n]; None if distances are not Euclidean."""
        return None

    @property
    def adjacency(self) -> Mapping[str, float]:
        """Definitions of "neighbour" for judging a map: maps names to the distance below which nodes are neighbours.

        The first is the default. On a plane a node has 8 or 4 neighbours, with and without diagonals; on a line both
        mean the two adjacent nodes. In a cube it has 26 with diagonals and 6 along the axes; with more axes,
        neighbours differ along three axes at most. A grid with other distances overrides it.
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
          Their codes, int32 [n, K], for at most n neighbours of a node, and which entries are neighbours, bool [n, K];
          the other entries hold the node's own code.
        """
        codes, own = self.candidates(radius), np.arange(self.size, dtype=np.int32)
        with jax.ensure_compile_time_eval():  # one compiled program, even while another is being traced
            is_near = np.asarray(jax.jit(self.distance)(own, codes)) < radius
        is_near &= codes != own
        order = np.argsort(~is_near, axis=0, kind="stable")[: is_near.sum(axis=0).max(initial=0)]
        is_near = np.take_along_axis(is_near, order, axis=0)
        return np.where(is_near, np.take_along_axis(codes, order, axis=0), own), is_near

    def shift(self, codes: jax.Array, offset: int | Sequence[int]) -> jax.Array:
        """Moves codes over the grid, up to its border: int [...] -> int32 [...].

        Args:
          codes: int [...].
          offset: number of nodes to move, an integer for all axes or one for each; may be negative.
        """
        return _shifted(self.shape, codes, offset, "clip")

    def between(self, codes: jax.Array, others: jax.Array, share: float) -> jax.Array:
        """Returns the node nearest to a point on the shortest path from codes to others.

        This is the node k with the least (d(code, k) - share D)^2 + (d(k, other) - (1 - share) D)^2, where D is the
        distance between code and other.

        Args:
          codes, others: int arrays that broadcast.
          share: part of the path before the point, from 0 to 1.
        """
        codes, others = jnp.broadcast_arrays(jnp.asarray(codes), jnp.asarray(others))
        total, nodes = self.distance(codes, others)[..., None], jnp.arange(self.size)
        before, after = self.distance(codes[..., None], nodes), self.distance(nodes, others[..., None])
        errors = jnp.square(before - share * total) + jnp.square(after - (1 - share) * total)
        return jnp.argmin(errors, axis=-1).astype(jnp.int32)


class Rectangular(Grid):
    """A line, rectangle, box and so on with Euclidean distance. Abstract: `Plane` has a border, `Torus` has none."""

    @abc.abstractmethod
    def shortest(self, steps: jax.Array, length: int) -> jax.Array:
        """Returns the signed steps of the shortest path between two nodes of an axis.

        Args:
          steps: difference of their indices, float32.
          length: number of nodes along the axis.
        """

    def steps(self, codes: jax.Array, others: jax.Array) -> list[jax.Array]:
        """Returns the signed steps from codes to others along each axis, float32."""
        axes = jnp.asarray(self.coordinates, jnp.float32).T
        return [
            self.shortest(axis[jnp.asarray(others)] - axis[jnp.asarray(codes)], length)
            for axis, length in zip(axes, self.shape, strict=True)
        ]

    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the Euclidean distance over the axes."""
        return jnp.sqrt(sum(jnp.square(steps) for steps in self.steps(codes, others)))

    def axis_distances(self) -> list[jax.Array]:
        """Returns the distances along each axis, float32 [n, n]."""
        indices = (jnp.arange(length, dtype=jnp.float32) for length in self.shape)
        return [jnp.abs(self.shortest(index[:, None] - index, len(index))) for index in indices]

    def between(self, codes: jax.Array, others: jax.Array, share: float) -> jax.Array:
        """Returns the node nearest to a share of the path, rounded along each axis."""
        starts = jnp.unravel_index(jnp.asarray(codes), self.shape)
        moved = [
            start + jnp.round(share * steps).astype(jnp.int32)
            for start, steps in zip(starts, self.steps(codes, others), strict=True)
        ]
        return jnp.ravel_multi_index(moved, self.shape, mode="wrap").astype(jnp.int32)


class Plane(Rectangular):
    """A rectangle, or a line, a box and so on, with a border: Euclidean distance between coordinates.

    Example:
      >>> print(Plane((3, 5)).distance(0, 4))
      4.0
    """

    def shortest(self, steps: jax.Array, length: int) -> jax.Array:
        """Returns the steps."""
        return steps

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the box around each node."""
        return _box(self.shape, math.ceil(radius) - 1)


class Torus(Rectangular):
    """A rectangle without a border: the node after the last of a row or column is the first.

    Example:
      >>> print(Torus((3, 5)).distance(0, 4))
      1.0
    """

    border: ClassVar[str] = "opposite borders are neighbours"

    def shortest(self, steps: jax.Array, length: int) -> jax.Array:
        """Returns the steps, or those around the torus where they are fewer."""
        return steps - length * jnp.round(steps / length)

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the box around each node."""
        return _box(self.shape, math.ceil(radius) - 1, wraps=True)

    def shift(self, codes: jax.Array, offset: int | Sequence[int]) -> jax.Array:
        """Moves codes over the grid, and around it."""
        return _shifted(self.shape, codes, offset, "wrap")


class Hexagonal(Grid):
    """Rows of hexagons, every second one shifted half a node to the right: inside, a node has 6 neighbours 1 away.

    Raises:
      InputError: a shape other than (rows, columns).

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
            raise InputError(f"grid_shape is {self.shape!r}; a hexagonal grid has rows and columns, such as (16, 32)")

    @property
    def points(self) -> np.ndarray:
        """Centres of the hexagons, float64 [K, 2]: rows are sqrt(3) / 2 apart."""
        row, column = self.coordinates.T
        return np.stack([row * math.sqrt(0.75), column + 0.5 * (row % 2)], axis=-1)

    def distance(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """Returns the Euclidean distance between the centres of the hexagons."""
        points = jnp.asarray(self.points, jnp.float32)
        return jnp.linalg.norm(points[jnp.asarray(codes)] - points[jnp.asarray(others)], axis=-1)

    def candidates(self, radius: float) -> np.ndarray:
        """Returns the box around each node: rows or columns n apart are more than n / 1.2 away from each other."""
        return _box(self.shape, math.ceil(1.2 * radius) - 1)


def _box(shape: tuple[int, ...], reach: int, wraps: bool = False) -> np.ndarray:
    """Returns the codes of the box `reach` nodes around each node, int32 [n, K]; outside, the node's own code."""
    axes = []
    for length in shape:
        nearest = min(reach, length - 1)
        # Around a small torus two directions reach the same node: it is listed once.
        axes.append(range(-nearest, min(nearest + 1, length - nearest) if wraps else nearest + 1))
    own = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)
    moved = own + np.array(list(itertools.product(*axes)))[:, None]
    codes = np.ravel_multi_index(moved.T, shape, mode="wrap" if wraps else "clip").T
    is_inside = wraps | np.all((moved >= 0) & (moved < shape), axis=-1)
    return np.where(is_inside, codes, np.arange(len(own))).astype(np.int32)


def _shifted(shape: tuple[int, ...], codes: jax.Array, offset: int | Sequence[int], mode: str) -> jax.Array:
    offsets = jnp.broadcast_to(jnp.asarray(offset), (len(shape),))
    moved = [axis + step for axis, step in zip(jnp.unravel_index(codes, shape), offsets, strict=True)]
    return jnp.ravel_multi_index(moved, shape, mode=mode).astype(jnp.int32)


GRIDS: dict[str, Callable[[tuple[int, ...]], Grid]] = {"plane": Plane, "torus": Torus, "hexagonal": Hexagonal}
"""Maps the names that the field `topology` accepts to functions that make a grid from its shape."""


def make_grid(name: str, shape: tuple[int, ...]) -> Grid:
    """Returns the grid of this name in `GRIDS`, with this shape.

    Raises:
      InputError: an unknown name, an impossible shape, or an entry of `GRIDS` that makes something else.
    """
    make = choose("topology", name, GRIDS)
    grid = make(shape) if callable(make) else None
    if not isinstance(grid, Grid) or grid.shape != tuple(shape):
        raise InputError(f"GRIDS[{name!r}] is {short_repr(make)}; it must make a kvae.grids.Grid of the given shape")
    return grid
