"""Neighbourhoods: how an update to one code spreads to the codes around it on a grid.

All functions are pure functions of arrays. A `Kernel` maps a distance on the grid to a weight. A `Neighborhood`
combines a kernel, a grid and a schedule of widths. To add a kernel, assign to `NEIGHBORHOODS`; to add a grid, assign
to `kvae.grids.GRIDS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError, choose
from kvae.core.fields import NotNegative, OneOf, Positive, validate_attributes
from kvae.grids import GRIDS, Cylinder, Grid, Hexagonal, HexagonalTorus, Plane, Torus, make_grid

__all__ = [
    "GRIDS",
    "NEIGHBORHOODS",
    "Cylinder",
    "Grid",
    "Hexagonal",
    "HexagonalTorus",
    "Kernel",
    "Neighborhood",
    "Plane",
    "Torus",
    "make_grid",
    "matrix",
    "spread",
    "spread_at",
]

LARGEST_DENSE_SIZE = 16_384
"""Largest n for which an n x n matrix (1 GiB of float32) is formed."""

LARGEST_WINDOW_SIZE = 27
"""Maximum number of nodes in a neighbourhood (a 3 x 3 x 3 box) that is summed node by node instead of with a matrix."""

Spread = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps (values [K, ...], width []) to A^T values without forming the K x K matrix A."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Shape of a neighbourhood: the weight at each distance on the grid.

    Example:
      >>> import jax.numpy as jnp, kvae
      >>> from kvae.topology import Kernel
      >>> kvae.NEIGHBORHOODS["tent"] = Kernel(lambda distance, width, radius: jnp.maximum(0, 1 - distance / width))
      >>> layer = kvae.KohonenVQ(grid_shape=(16, 32), neighborhood="tent", initial_width=3.0, lowest_width=1.5)

    Attributes:
      weight: maps (distance D on the grid, width in nodes, radius in nodes) to the share of an update that a node at
        distance D receives. The winning node itself always receives 1.
      fast: maps a neighbourhood to a function that spreads values without the K x K matrix, or to None if there is
        no such function.
      paper_width: initial width in nodes that the paper or its released code uses.
      initial_width, lowest_width: default widths in nodes, for layers that do not set them.
      shrink_exponent: the width falls as (1 + t tau) ** -shrink_exponent.
    """

    weight: Callable[[jax.Array, jax.Array, float], jax.Array]
    fast: Callable[["Neighborhood"], Spread | None] = lambda neighborhood: None
    paper_width: float = 1.0
    initial_width: float = 1.0
    lowest_width: float = 0.0
    shrink_exponent: float = 0.5


def _hard(distance: jax.Array, width: jax.Array, radius: float) -> jax.Array:
    return jnp.where(distance < radius, jnp.minimum(jnp.square(width), 1.0), 0.0)


def _gaussian(distance: jax.Array, width: jax.Array, radius: float | None) -> jax.Array:
    return jnp.exp(-jnp.square(distance / width))


def _by_window(neighborhood: "Neighborhood") -> Spread | None:
    """Returns a function that adds the neighbours one by one; None if there are too many."""
    # Count the neighbours before listing them, because with a huge radius the list would exhaust the memory.
    axes = len(neighborhood.grid.shape)
    if (2 * math.ceil(neighborhood.radius) - 1) ** axes > LARGEST_WINDOW_SIZE:
        return None
    codes, exists = neighborhood.neighbors

    def add_neighbors(values, width):
        present = exists.reshape(*exists.shape, *[1] * (values.ndim - 1))
        neighbors = sum(jnp.where(exists, values[code], 0) for code, exists in zip(codes, present, strict=True))
        return values + _hard(0.0, width, neighborhood.radius).astype(values.dtype) * neighbors

    return add_neighbors


def _by_axes(neighborhood: "Neighborhood") -> Spread | None:
    """Returns a function that multiplies each axis by its own small matrix; None if the grid does not allow it.

    A Gaussian factorises: exp(-(dx^2 + dy^2) / s) = exp(-dx^2 / s) exp(-dy^2 / s).
    """
    grid = neighborhood.grid
    if max(grid.shape) > LARGEST_DENSE_SIZE or grid.axis_distances() is None:
        return None

    def multiply_axes(values, width):
        on_grid = values.reshape(*grid.shape, *values.shape[1:])
        for axis, distances in enumerate(grid.axis_distances()):
            weights = _gaussian(distances, width, None).astype(values.dtype)
            product = jnp.tensordot(weights, on_grid, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
            on_grid = jnp.moveaxis(product, 0, axis)
        return on_grid.reshape(values.shape)

    return multiply_axes


NEIGHBORHOODS: dict[str, Kernel] = {
    "none": Kernel(
        lambda distance, width, radius: jnp.zeros_like(distance * width),
        lambda neighborhood: lambda values, width: values,
    ),
    "hard": Kernel(_hard, _by_window),
    "gaussian": Kernel(_gaussian, _by_axes, initial_width=4.0, lowest_width=0.5),
    # The authors' released code calls this kernel Gaussian.
    "exponential": Kernel(
        lambda distance, width, radius: jnp.exp(-distance / width),
        paper_width=10.0,
        initial_width=10.0,
        shrink_exponent=1.0,
    ),
}
"""Kernels by name. The weights at distance D for width w are:

    none         0
    hard         min(1, w^2) where D < radius           (Eq. 15: w^2 = 1 / (1 + t tau))
    gaussian     exp(-D^2 / w^2), so sigma = w / sqrt(2)   (Eq. 16: the same w)
    exponential  exp(-D / w)                            (the authors' code: w = 10 / (1 + t tau))

By default, the Gaussian of a layer shrinks from 4 nodes to half a node, so that the map can unfold. The paper's
Gaussian shrinks from 1 node to 0, which is the default of `Neighborhood`.
"""


def kernel_of(name: str) -> Kernel:
    """Returns the kernel with this name in `NEIGHBORHOODS`.

    Raises:
      InputError: the name is unknown, or its entry is not a `Kernel`.
    """
    kernel = choose("neighborhood", name, NEIGHBORHOODS)
    if not isinstance(kernel, Kernel):
        raise InputError(f"NEIGHBORHOODS[{name!r}] is a {type(kernel).__name__}; it must be a kvae.topology.Kernel")
    return kernel


@dataclasses.dataclass(frozen=True)
class Neighborhood:
    """A neighbourhood A(t): a kernel on a grid, with a width that shrinks.

    After t updates the width is max(lowest_width, initial_width / (1 + t tau) ** e) nodes, where e is the kernel's
    `shrink_exponent`: 1/2 for hard and Gaussian kernels, which gives Eqs. 15 and 16 of Irie et al. (2023).

    Attributes:
      grid: positions of the codes.
      kernel: a name in `NEIGHBORHOODS`.
      shrink_step: tau, how fast the neighbourhood shrinks.
      radius: reach of the `hard` kernel in nodes. The kernel includes nodes at a grid distance below it: 1.5 gives two
        neighbours on a line and eight on a plane.
      initial_width: width in nodes at t = 0; None uses the paper's width, 1 (10 for the exponential kernel).
      lowest_width: lower bound of the width, in nodes. A bound above 0 keeps the map in order however long it trains.

    Raises:
      InputError: the kernel is unknown, a value is out of range, or the kernel needs a K x K matrix and the grid is too
        large for one.

    Example:
      >>> from kvae.topology import Neighborhood, Plane, matrix
      >>> neighborhood = Neighborhood(Plane((3,)), "hard", shrink_step=3.0)
      >>> matrix(neighborhood, step=1).tolist()
      [[1.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 1.0]]
    """

    grid: Grid
    kernel: Annotated[str, OneOf(NEIGHBORHOODS)] = "hard"
    shrink_step: NotNegative = 0.1
    radius: Positive = 1.5
    initial_width: Positive | None = None
    lowest_width: NotNegative = 0.0

    def __post_init__(self):
        validate_attributes(self)
        if self.initial_width is None:
            object.__setattr__(self, "initial_width", kernel_of(self.kernel).paper_width)
        if self.grid.size > LARGEST_DENSE_SIZE and self.fast is None:
            raise InputError(
                f"neighborhood is {self.kernel!r} with radius {self.radius}, which needs a K x K matrix on a grid of "
                f"shape {self.grid.shape}; K must be at most {LARGEST_DENSE_SIZE}: use 'hard' with a radius of at most "
                "2, or 'gaussian' on a plane, cylinder or torus with shorter axes"
            )

    @functools.cached_property
    def fast(self) -> Spread | None:
        """Function that spreads values without the K x K matrix; None if there is none for this grid and radius."""
        return kernel_of(self.kernel).fast(self)

    @functools.cached_property
    def neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of each node within the radius, as returned by `Grid.neighbors`."""
        return self.grid.neighbors(self.radius)

    def width(self, step: jax.Array | int) -> jax.Array:
        """Returns the width in nodes after `step` updates, float32 []."""
        elapsed = 1.0 + jnp.asarray(step, jnp.float32) * jnp.float32(self.shrink_step)
        width = self.initial_width / elapsed ** kernel_of(self.kernel).shrink_exponent
        return jnp.maximum(width, jnp.float32(self.lowest_width))


def matrix(neighborhood: Neighborhood, step: jax.Array | int) -> jax.Array:
    """Returns the neighbourhood A(t), symmetric with a diagonal of 1 (Eqs. 15 and 16 of Irie et al., 2023).

    Args:
      neighborhood: the grid and the kernel.
      step: t, the number of updates so far, integer [].

    Returns:
      float32 [K, K].
    """
    return _matrix(neighborhood, neighborhood.width(step))


def _matrix(neighborhood: Neighborhood, width: jax.Array | float) -> jax.Array:
    kernel = kernel_of(neighborhood.kernel)
    weights = kernel.weight(neighborhood.grid.distances(), width, neighborhood.radius)
    return jnp.fill_diagonal(weights, 1.0, inplace=False)


def spread(neighborhood: Neighborhood, values: jax.Array, step: jax.Array | int) -> jax.Array:
    """Returns A(t)^T values: for each code, the weighted sum over itself and its neighbours (Eqs. 9 and 10).

    Args:
      neighborhood: the grid and the kernel.
      values: a number or vector for each code, float32 [K] or [K, d].
      step: t, the number of updates so far, integer [].

    Returns:
      float32, the shape of `values`.
    """
    return spread_at(neighborhood, values, neighborhood.width(step))


def spread_at(neighborhood: Neighborhood, values: jax.Array, width: jax.Array | float) -> jax.Array:
    """Returns A^T values like `spread`, but for a width in nodes, float32 [], instead of a step.

    Values may also be float64 [K, ...]; the result has their dtype.
    """
    values = values.astype(jnp.float64 if values.dtype == np.float64 else jnp.float32)
    if neighborhood.fast is not None:
        return neighborhood.fast(values, width)
    weights = _matrix(neighborhood, width).astype(values.dtype)
    return jnp.matmul(weights, values, precision=jax.lax.Precision.HIGHEST)
