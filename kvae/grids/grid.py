"""The abstract base class of grids."""

import abc
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError
from kvae.core.fields import Shape, validate_attributes

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

    shape: Shape

    cell: ClassVar[str] = "square"
    border: ClassVar[str] = ""

    def __post_init__(self):
        validate_attributes(self)
        if self.size > LARGEST_SIZE:
            raise InputError(f"grid shape {self.shape} has {self.size:,} nodes; it must have at most {LARGEST_SIZE:,}")

    @property
    def wraps(self) -> tuple[bool, ...]:
        """For each axis, True if its last node is next to its first."""
        return (False,) * len(self.shape)

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

    @property
    def periods(self) -> np.ndarray:
        """Length of every axis that wraps, in the unit of `points`, float64 [axes]; infinite for the other axes."""
        return np.where(self.wraps, self.shape, np.inf)

    def distances(self) -> jax.Array:
        """Returns the distance between every two codes, float32 [K, K]."""
        codes = np.arange(self.size)
        return self.distance(codes[:, None], codes[None, :])

    def neighbors(self, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the other nodes at a distance below `radius`.

        Returns:
          Their codes, int32 [n, K], with n the largest number of neighbours of a node, and a mask, bool [n, K]. Where
          the mask is False, the entry is the node's own code, not a neighbour.
        """
        codes, nodes = self.candidates(radius), np.arange(self.size, dtype=np.int32)
        with jax.ensure_compile_time_eval():  # runs even while another program is being traced
            is_near = np.asarray(jax.jit(self.distance)(nodes, codes)) < radius
        is_near &= codes != nodes
        order = np.argsort(~is_near, axis=0, kind="stable")[: is_near.sum(axis=0).max(initial=0)]
        is_near = np.take_along_axis(is_near, order, axis=0)
        return np.where(is_near, np.take_along_axis(codes, order, axis=0), nodes), is_near

    def shift(self, codes: jax.Array, offset: int | Sequence[int]) -> jax.Array:
        """Returns the codes `offset` nodes away: int [...] -> int32 [...]. Axes that do not wrap clip at the border.

        Args:
          codes: int [...].
          offset: number of nodes, one integer for all axes or one for each axis; may be negative.
        """
        codes = jnp.asarray(codes, jnp.int32)
        offsets = jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (len(self.shape),))
        moved = [axis + step for axis, step in zip(jnp.unravel_index(codes, self.shape), offsets, strict=True)]
        within = [
            index % length if wraps else jnp.clip(index, 0, length - 1)
            for index, length, wraps in zip(moved, self.shape, self.wraps, strict=True)
        ]
        return jnp.ravel_multi_index(within, self.shape, mode="clip").astype(jnp.int32)

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


def shortest(steps: jax.Array, period: float) -> jax.Array:
    """Returns the signed number of steps along an axis in the shorter direction, which may cross the border.

    Args:
      steps: signed number of steps without crossing the border, float32.
      period: length of the axis if it wraps, or else infinity.
    """
    return steps if period == math.inf else steps - period * jnp.round(steps / period)


def box(shape: tuple[int, ...], reach: int, wraps: tuple[bool, ...]) -> np.ndarray:
    """Returns the codes in a box around each node, int32 [n, K]. Positions off the grid hold the node's own code.

    Args:
      shape: number of nodes along each axis.
      reach: largest number of steps along an axis.
      wraps: for each axis, True if its last node is next to its first.
    """
    axes = []
    for length, wraps_around in zip(shape, wraps, strict=True):
        nearest = min(reach, length - 1)
        # On a short axis that wraps, both directions reach the same node. List it only once.
        axes.append(range(-nearest, min(nearest + 1, length - nearest) if wraps_around else nearest + 1))
    nodes = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)
    moved = nodes + np.array(list(itertools.product(*axes)))[:, None]
    is_inside = np.all(wraps | ((moved >= 0) & (moved < shape)), axis=-1)
    codes = np.ravel_multi_index(moved.T, shape, mode="wrap").T
    return np.where(is_inside, codes, np.arange(len(nodes))).astype(np.int32)
