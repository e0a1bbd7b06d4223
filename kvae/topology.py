"""How an update spreads from a code to its neighbours on a grid.

Pure functions of arrays under static values: a `Kernel` says what a neighbour at some distance receives, and a
`Neighborhood` joins it with a grid and a schedule. A new kernel is one entry of `NEIGHBORHOODS`, a new grid one of
`kvae.grids.GRIDS`.
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
from kvae.core.fields import NotNegative, OneOf, Positive, check_attributes
from kvae.grids import GRIDS, Grid, Hexagonal, Plane, Torus, make_grid

__all__ = [
    "GRIDS",
    "NEIGHBORHOODS",
    "Grid",
    "Hexagonal",
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
"""The largest n for which an n x n matrix (1 GiB of float32) may be formed."""

LARGEST_WINDOW_SIZE = 27
"""The most neighbours (those of a 3 x 3 x 3 box) that are added one by one; a wider neighbourhood takes the matrix."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a neighbour receives.

    Attributes:
      weight: from the distance D on the grid, the strength and the radius, the share of an update that a node at that
        distance receives; the node itself always receives 1.
      fast: from a neighbourhood, a function of (values on the nodes [K, ...], strength) that spreads them without the
        K x K matrix; or None where there is no such way.
      initial_strength, lowest_strength: what a layer takes where the user names only the kernel.
      strength_of_width: from a width in nodes, the strength at which the kernel is that wide.
    """

    weight: Callable
    fast: Callable[["Neighborhood"], Callable | None] = lambda neighborhood: None
    initial_strength: float = 1.0
    lowest_strength: float = 0.0
    strength_of_width: Callable = lambda width: width**2


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
    "exponential": Kernel(
        lambda distance, strength, radius: jnp.exp(-distance / (10.0 * strength)),
        strength_of_width=lambda width: width / 10,
    ),
}
"""The kernels by name.

A Gaussian is sqrt(strength) nodes wide: at that distance it has fallen to 1/e. Where a layer is not told otherwise, its
Gaussian starts 4 nodes wide and ends at half a node, as maps do that have to unfold; the paper's (Eq. 16) has strengths
of 1 and 0, and starts 1 node wide.
"""


def kernel_of(name: str) -> Kernel:
    """The kernel of that name in `NEIGHBORHOODS`; raises InputError where there is none."""
    kernel = choose("neighborhood", name, NEIGHBORHOODS)
    if not isinstance(kernel, Kernel):
        raise InputError(f"NEIGHBORHOODS[{name!r}] is a {type(kernel).__name__}; it must be a kvae.topology.Kernel")
    return kernel


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
        return kernel_of(self.kernel).fast(self)

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
    return _matrix(neighborhood, neighborhood.strength(step))


def _matrix(neighborhood, strength):
    kernel = kernel_of(neighborhood.kernel)
    weights = kernel.weight(neighborhood.grid.distances(), strength, neighborhood.radius)
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
    return spread_at(neighborhood, values, neighborhood.strength(step))


def spread_at(neighborhood: Neighborhood, values: jax.Array, strength) -> jax.Array:
    """`spread` at a strength, float32 [], that another schedule than the neighbourhood's own has."""
    if neighborhood.fast is not None:
        return neighborhood.fast(values, strength)
    return jnp.matmul(_matrix(neighborhood, strength), values, precision=jax.lax.Precision.HIGHEST)
