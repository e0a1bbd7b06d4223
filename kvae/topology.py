"""The grid on which codes live: coordinates, distances, and how an update spreads from a code to its neighbours.

Everything here is a pure function of arrays under a static description, `Neighborhood`. Codes number the grid row by
row: code k sits at `np.unravel_index(k, grid_shape)`.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from kvae.errors import InputError

LARGEST_DENSE_SIZE = 16_384
"""The largest K for which a K x K matrix (1 GiB of float32) may be formed."""

LARGEST_WINDOW_SIZE = 27
"""The largest box of grid offsets that is summed one by one (3 x 3 x 3); a wider neighbourhood takes the matrix."""


def _inverse(step, shrink_step):
    return 1.0 / (1.0 + step * shrink_step)


def _floor(lowest):
    return lambda step, shrink_step: jnp.maximum(_inverse(step, shrink_step), lowest)


def _narrowing(lowest):
    return lambda step, shrink_step: lowest + (16.0 - lowest) * _inverse(step, shrink_step)


SCHEDULES = {
    "inverse": _inverse,
    "held": lambda step, shrink_step: jnp.ones_like(step * shrink_step),
    "floor_0.1": _floor(0.1),
    "floor_0.3": _floor(0.3),
    "slow": lambda step, shrink_step: _floor(0.3)(step, 0.03 * shrink_step),
    "narrowing": _narrowing(0.25),
    "narrowing_1": _narrowing(1.0),
}
"""Strength of the neighbourhood as a function of t, the number of updates done so far, and tau, the shrink step.

- `inverse`: 1 / (1 + t tau), the papers' (Eqs. 15 and 16 of Irie et al., 2023);
- `held`: 1, no shrinking;
- `floor_<lowest>`: as `inverse`, but never below `lowest`, so that a map stays in order however long it is trained;
- `slow`: as `floor_0.3`, but with 0.03 tau: the one for a map that keeps its order, measured in the README;
- `narrowing`: 0.25 + 15.75 / (1 + t tau): a Gaussian of Eq. 16 starts with a width of 4 nodes and tends to 0.5, as
  classical maps do; `narrowing_1` tends to 1. A hard neighbourhood takes min(strength, 1).
"""

KERNELS = {
    "none": lambda distance, strength, radius: jnp.zeros_like(distance * strength),
    "hard": lambda distance, strength, radius: jnp.where(distance < radius, jnp.minimum(strength, 1.0), 0.0),
    "gaussian": lambda distance, strength, radius: jnp.exp(-jnp.square(distance) / strength),
    # The kernel that the authors' release runs under the name Gaussian.
    "exponential": lambda distance, strength, radius: jnp.exp(-distance / (10.0 * strength)),
}
"""Weight of a neighbour as a function of its grid distance D, the strength, and the radius (`hard` only)."""


@dataclasses.dataclass(frozen=True)
class Neighborhood:
    """A grid and the neighbourhood A(t) on it.

    Attributes:
      grid_shape: nodes along each axis; K is their product.
      kernel: a name in `KERNELS`.
      shrink_step: tau, how fast the neighbourhood shrinks.
      radius: neighbours of the `hard` kernel are the nodes at a grid distance below it: 1.5 gives two neighbours on a
        line and eight in the plane.
      schedule: a name in `SCHEDULES`.

    Raises:
      InputError: an impossible grid, an unknown name, a value out of range, or a kernel that needs a K x K matrix on
        a grid that is too large for it.
    """

    grid_shape: tuple[int, ...]
    kernel: str = "hard"
    shrink_step: float = 0.1
    radius: float = 1.5
    schedule: str = "inverse"

    def __post_init__(self):
        check_grid_shape(self.grid_shape)
        for field, names in (("kernel", KERNELS), ("schedule", SCHEDULES)):
            if getattr(self, field) not in names:
                what = "neighborhood" if field == "kernel" else field
                raise InputError(f"{what} is {getattr(self, field)!r}; it must be one of {', '.join(names)}")
        if not self.shrink_step >= 0:
            raise InputError(f"shrink_step is {self.shrink_step}; it must be 0 or larger")
        if not self.radius > 0:
            raise InputError(f"radius is {self.radius}; it must be larger than 0")
        if self.needs_matrix and self.size > LARGEST_DENSE_SIZE:
            raise InputError(
                f"neighborhood {self.kernel!r} with radius {self.radius} needs a K x K matrix, which is refused for "
                f"K = {self.size} > {LARGEST_DENSE_SIZE}; use 'hard' with radius up to 2, or 'gaussian'"
            )

    @property
    def size(self) -> int:
        """K, the number of nodes."""
        return math.prod(self.grid_shape)

    @property
    def window(self) -> list[tuple[int, ...]]:
        """The grid offsets of the `hard` kernel's neighbours, the node itself left out."""
        reach = math.ceil(self.radius) - 1
        offsets = itertools.product(range(-reach, reach + 1), repeat=len(self.grid_shape))
        return [offset for offset in offsets if 0 < math.hypot(*offset) < self.radius]

    @property
    def needs_matrix(self) -> bool:
        """Whether spreading over this neighbourhood forms the K x K matrix."""
        if self.kernel == "hard":
            # Counted before it is listed: the window of a huge radius would fill the memory.
            return (2 * math.ceil(self.radius) - 1) ** len(self.grid_shape) > LARGEST_WINDOW_SIZE
        return self.kernel == "exponential"

    def strength(self, step) -> jax.Array:
        """Strength of the neighbourhood after `step` updates, float32 []."""
        return SCHEDULES[self.schedule](jnp.asarray(step, jnp.float32), jnp.float32(self.shrink_step))


def check_grid_shape(grid_shape) -> None:
    """Raises InputError unless `grid_shape` is one or more positive integers."""
    sizes = tuple(grid_shape) if isinstance(grid_shape, (tuple, list)) else ()
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise InputError(f"grid_shape is {grid_shape!r}; it must be one or more positive integers, such as (16, 32)")


def coordinates(grid_shape) -> np.ndarray:
    """Coordinates of every code on the grid, int [K, axes], in the order of the codes."""
    return np.stack(np.unravel_index(np.arange(math.prod(grid_shape)), grid_shape), axis=-1)


def distances(grid_shape) -> jax.Array:
    """Euclidean distance on the grid between every two codes, float32 [K, K]."""
    points = jnp.asarray(coordinates(grid_shape), jnp.float32)
    return jnp.sqrt(sum(jnp.square(axis[:, None] - axis[None, :]) for axis in points.T))


def matrix(neighborhood: Neighborhood, step) -> jax.Array:
    """The neighbourhood A(t), symmetric with a diagonal of 1, float32 [K, K] (Eqs. 15 and 16 of Irie et al., 2023).

    Args:
      neighborhood: the grid and the kernel.
      step: t, updates done so far, integer [].
    """
    weights = KERNELS[neighborhood.kernel](
        distances(neighborhood.grid_shape), neighborhood.strength(step), neighborhood.radius
    )
    return jnp.fill_diagonal(weights, 1.0, inplace=False)


def spread(neighborhood: Neighborhood, values: jax.Array, step) -> jax.Array:
    """A(t)^T values: what each code receives when every code gives to its neighbours (the sums of Eqs. 9 and 10).

    No K x K matrix is formed but for the exponential kernel and for a hard one of a radius above 2.

    Args:
      neighborhood: the grid and the kernel.
      values: float32 [K] or [K, d], by code.
      step: t, updates done so far, integer [].

    Returns:
      float32, the shape of `values`.
    """
    if neighborhood.kernel == "none":
        return values
    if neighborhood.needs_matrix:
        return jnp.matmul(matrix(neighborhood, step), values, precision=jax.lax.Precision.HIGHEST)
    on_grid = values.reshape(*neighborhood.grid_shape, *values.shape[1:])
    by_kernel = {"hard": _spread_window, "gaussian": _spread_separable}[neighborhood.kernel]
    return by_kernel(neighborhood, on_grid, step).reshape(values.shape)


def _spread_window(neighborhood, on_grid, step):
    """Adds the grid, moved by each offset of the window, to itself."""
    axes = len(neighborhood.grid_shape)
    reach = max(1, math.ceil(neighborhood.radius) - 1)
    padding = [(reach, reach)] * axes + [(0, 0)] * (on_grid.ndim - axes)
    padded = jnp.pad(on_grid, padding)
    neighbors = jnp.zeros_like(on_grid)
    for offset in neighborhood.window:
        start = [reach + o for o in offset] + [0] * (on_grid.ndim - axes)
        neighbors += jax.lax.slice(padded, start, [s + n for s, n in zip(start, on_grid.shape, strict=True)])
    return on_grid + jnp.minimum(neighborhood.strength(step), 1.0) * neighbors


def _spread_separable(neighborhood, on_grid, step):
    """Multiplies each axis by its own small matrix: exp(-(dx^2 + dy^2) / s) = exp(-dx^2 / s) exp(-dy^2 / s)."""
    for axis, size in enumerate(neighborhood.grid_shape):
        weights = KERNELS["gaussian"](distances((size,)), neighborhood.strength(step), None)
        moved = jnp.tensordot(weights, on_grid, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
        on_grid = jnp.moveaxis(moved, 0, axis)
    return on_grid
