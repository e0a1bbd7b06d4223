"""The grid on which codes live, and how an update spreads from a code to its neighbours.

Pure functions of arrays under static values: a `Grid` says which nodes there are and how far apart they lie, a
`Kernel` what a neighbour at some distance receives, and a `Neighborhood` joins the two with a schedule. A new grid or
kernel is one entry of `GRIDS` or `NEIGHBORHOODS`. Codes number the grid row by row: code k sits at
`np.unravel_index(k, grid_shape)`.
"""

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kvae.errors import InputError, choose
from kvae.fields import Counts, NotNegative, OneOf, Positive, check_attributes

LARGEST_DENSE_SIZE = 16_384
"""The largest n for which an n x n matrix (1 GiB of float32) may be formed."""

LARGEST_WINDOW_SIZE = 27
"""The most neighbours (those of a 3 x 3 x 3 box) that are added one by one; a wider neighbourhood takes the matrix."""


@dataclasses.dataclass(frozen=True)
class Grid(abc.ABC):
    """Nodes in rows, and the distance between any two.

    Attributes:
      shape: nodes along each axis; K is their product.
      adjacency: what counts as a neighbour where a map is judged: by name, the distance that neighbours lie below.
        The first is the usual one.

    Raises:
      InputError: an impossible shape.
    """

    shape: Counts

    adjacency: ClassVar[dict[str, float]] = {"8": 1.5, "4": 1.1}

    def __post_init__(self):
        check_attributes(self)
        if self.size >= 2**31:
            raise InputError(f"a grid of {self.shape} has {self.size:,} nodes; codes are int32, so fewer than 2^31")

    @abc.abstractmethod
    def distance(self, codes, others) -> jax.Array:
        """Distance on the grid between codes and others, int arrays that broadcast: float32."""

    def axis_distances(self) -> list[jax.Array] | None:
        """Distances along each axis, float32 [n, n], where their squares add up to the squared distance; else None."""
        return None

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
        with jax.ensure_compile_time_eval():
            near = np.asarray(self.distances()) < radius
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

    def _moved(self, codes, offset, mode):
        offsets = jnp.broadcast_to(jnp.asarray(offset), (len(self.shape),))
        moved = [axis + step for axis, step in zip(jnp.unravel_index(codes, self.shape), offsets, strict=True)]
        return jnp.ravel_multi_index(moved, self.shape, mode=mode).astype(jnp.int32)


class _Lattice(Grid):
    """A grid on which near nodes have near coordinates, so that neighbours are found without all K x K distances."""

    wraps: ClassVar[bool] = False

    def neighbors(self, radius):
        # Rows of hexagons are closer than 1, and shifted by half a node: a little more than the radius covers both.
        reach = [min(math.ceil(1.2 * radius), size - 1) for size in self.shape]
        own, found, there = np.arange(self.size), [], []
        for offset in itertools.product(*(range(-r, r + 1) for r in reach)):
            moved = self.coordinates + offset
            inside = self.wraps | np.all((moved >= 0) & (moved < self.shape), axis=-1)
            codes = np.ravel_multi_index(moved.T, self.shape, mode="wrap" if self.wraps else "clip").astype(np.int32)
            # Around a small torus one node is reached in two directions: it counts once.
            inside &= (codes != own) & ~np.any([c == codes for c in found], axis=0)
            with jax.ensure_compile_time_eval():
                inside &= np.asarray(self.distance(own, codes)) < radius
            if np.any(inside):
                found.append(np.where(inside, codes, own).astype(np.int32))
                there.append(inside)
        return np.reshape(found, (-1, self.size)).astype(np.int32), np.reshape(there, (-1, self.size)).astype(bool)


class Plane(_Lattice):
    """A rectangle, or a line, a box and so on, with a border: Euclidean distance between coordinates."""

    def distance(self, codes, others):
        """Euclidean distance between the coordinates of codes."""
        return jnp.sqrt(sum(jnp.square(apart) for apart in self._apart(codes, others)))

    def axis_distances(self):
        """|i - j| along each axis."""
        return [jnp.abs(i[:, None] - i[None, :]) for i in (jnp.arange(n, dtype=jnp.float32) for n in self.shape)]

    def _apart(self, codes, others):
        points = jnp.asarray(self.coordinates, jnp.float32).T
        return [jnp.abs(axis[jnp.asarray(codes)] - axis[jnp.asarray(others)]) for axis in points]


class Torus(Plane):
    """A rectangle without a border: the node after the last of a row or column is the first."""

    wraps: ClassVar = True

    def axis_distances(self):
        """min(|i - j|, n - |i - j|) along each axis."""
        return [jnp.minimum(apart, len(apart) - apart) for apart in super().axis_distances()]

    def _apart(self, codes, others):
        straight = super()._apart(codes, others)
        return [jnp.minimum(apart, n - apart) for apart, n in zip(straight, self.shape, strict=True)]

    def shift(self, codes, offset):
        """Codes moved over the grid, and around it."""
        return self._moved(codes, offset, "wrap")


class Hexagonal(_Lattice):
    """Rows of hexagons, every second one half a node to the right: each node has six neighbours at distance 1.

    Raises:
      InputError: a shape that is not (rows, columns).
    """

    adjacency: ClassVar = {"6": 1.1}

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


GRIDS: dict[str, Callable[[tuple[int, ...]], Grid]] = {"plane": Plane, "torus": Torus, "hexagonal": Hexagonal}
"""By name, the grid of a shape."""


def make_grid(name: str, shape: tuple[int, ...]) -> Grid:
    """The grid of that name in `GRIDS`; raises InputError where there is none, or its shape is impossible."""
    return choose("grid", name, GRIDS)(shape)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a neighbour receives.

    Attributes:
      weight: from the distance D on the grid, the strength and the radius, the share of an update that a node at that
        distance receives; the node itself always receives 1.
      fast: from a neighbourhood, a function of (values on the nodes [K, ...], strength) that spreads them without the
        K x K matrix; or None where there is no such way.
      initial_strength, lowest_strength: what a layer takes where the user names only the kernel.
    """

    weight: Callable
    fast: Callable[["Neighborhood"], Callable | None] = lambda neighborhood: None
    initial_strength: float = 1.0
    lowest_strength: float = 0.0


def _hard(distance, strength, radius):
    return jnp.where(distance < radius, jnp.minimum(strength, 1.0), 0.0)


def _gaussian(distance, strength, radius):
    return jnp.exp(-jnp.square(distance) / strength)


def _by_window(neighborhood):
    """Adds up the neighbours one by one, as long as they are few."""
    # Counted before they are listed: the neighbours within a huge radius would fill the memory.
    axes = len(neighborhood.grid.shape)
    if (2 * math.ceil(neighborhood.radius) - 1) ** axes > LARGEST_WINDOW_SIZE:
        return None
    codes, there = neighborhood.neighbors

    def spread(values, strength):
        there_too = there.reshape(*there.shape, *[1] * (values.ndim - 1))
        neighbors = sum(jnp.where(here, values[code], 0) for code, here in zip(codes, there_too, strict=True))
        return values + _hard(0.0, strength, neighborhood.radius) * neighbors

    return spread


def _by_axes(neighborhood):
    """Multiplies each axis by its own small matrix: exp(-(dx^2 + dy^2) / s) = exp(-dx^2 / s) exp(-dy^2 / s)."""
    grid = neighborhood.grid
    if max(grid.shape) > LARGEST_DENSE_SIZE or grid.axis_distances() is None:
        return None

    def spread(values, strength):
        on_grid = values.reshape(*grid.shape, *values.shape[1:])
        for axis, distances in enumerate(grid.axis_distances()):
            weights = _gaussian(distances, strength, None)
            moved = jnp.tensordot(weights, on_grid, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
            on_grid = jnp.moveaxis(moved, 0, axis)
        return on_grid.reshape(values.shape)

    return spread


NEIGHBORHOODS = {
    "none": Kernel(
        lambda distance, strength, radius: jnp.zeros_like(distance * strength),
        lambda neighborhood: lambda values, strength: values,
    ),
    "hard": Kernel(_hard, _by_window),
    "gaussian": Kernel(_gaussian, _by_axes, initial_strength=16.0, lowest_strength=0.25),
    # The kernel that the authors' release runs under the name Gaussian.
    "exponential": Kernel(lambda distance, strength, radius: jnp.exp(-distance / (10.0 * strength))),
}
"""The kernels by name.

A Gaussian is sqrt(strength) nodes wide. Where a layer is not told otherwise, its Gaussian starts 4 nodes wide and ends
at half a node, as maps do that have to unfold; the paper's (Eq. 16) has strengths of 1 and 0, and starts 1 node wide.
"""


@dataclasses.dataclass(frozen=True)
class Neighborhood:
    """A grid and the neighbourhood A(t) on it.

    The strength falls with the number t of updates: max(lowest_strength, initial_strength / (1 + t shrink_step)). The
    defaults are those of Eqs. 15 and 16 of Irie et al. (2023).

    Attributes:
      grid: where the codes lie.
      kernel: a name in `NEIGHBORHOODS`.
      shrink_step: tau, how fast the neighbourhood shrinks.
      radius: neighbours of the `hard` kernel are the nodes at a grid distance below it: on a plane 1.5 gives two
        neighbours on a line and eight in two dimensions.
      initial_strength: at t = 0.
      lowest_strength: the strength never falls below it, so that a map stays in order however long it is trained.

    Raises:
      InputError: an unknown kernel, a value out of range, or a kernel that needs a K x K matrix on a grid that is too
        large for it.
    """

    grid: Grid
    kernel: Annotated[str, OneOf(NEIGHBORHOODS)] = "hard"
    shrink_step: NotNegative = 0.1
    radius: Positive = 1.5
    initial_strength: Positive = 1.0
    lowest_strength: NotNegative = 0.0

    def __post_init__(self):
        check_attributes(self)
        if self.grid.size > LARGEST_DENSE_SIZE and self.fast is None:
            raise InputError(
                f"neighborhood {self.kernel!r} with radius {self.radius} on a grid of {self.grid.shape} needs an n x n "
                f"matrix, which is refused above n = {LARGEST_DENSE_SIZE}; use 'hard' with radius up to 2, or a "
                "'gaussian' on a plane or torus of shorter axes"
            )

    @functools.cached_property
    def fast(self) -> Callable | None:
        """The kernel's way of spreading without the K x K matrix, if it has one."""
        return NEIGHBORHOODS[self.kernel].fast(self)

    @functools.cached_property
    def neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        """`Grid.neighbors` within the radius."""
        return self.grid.neighbors(self.radius)

    def strength(self, step) -> jax.Array:
        """Strength of the neighbourhood after `step` updates, float32 []."""
        inverse = self.initial_strength / (1.0 + jnp.asarray(step, jnp.float32) * jnp.float32(self.shrink_step))
        return jnp.maximum(inverse, jnp.float32(self.lowest_strength))


def matrix(neighborhood: Neighborhood, step) -> jax.Array:
    """The neighbourhood A(t), symmetric with a diagonal of 1, float32 [K, K] (Eqs. 15 and 16 of Irie et al., 2023).

    Args:
      neighborhood: the grid and the kernel.
      step: t, updates done so far, integer [].
    """
    kernel = NEIGHBORHOODS[neighborhood.kernel]
    weights = kernel.weight(neighborhood.grid.distances(), neighborhood.strength(step), neighborhood.radius)
    return jnp.fill_diagonal(weights, 1.0, inplace=False)


def spread(neighborhood: Neighborhood, values: jax.Array, step) -> jax.Array:
    """A(t)^T values: what each code receives when every code gives to its neighbours (the sums of Eqs. 9 and 10).

    Args:
      neighborhood: the grid and the kernel.
      values: float32 [K] or [K, d], by code.
      step: t, updates done so far, integer [].

    Returns:
      float32, the shape of `values`.
    """
    if neighborhood.fast is not None:
        return neighborhood.fast(values, neighborhood.strength(step))
    return jnp.matmul(matrix(neighborhood, step), values, precision=jax.lax.Precision.HIGHEST)
