"""Grids: the positions of a map's codes, the distances between them, and their neighbours.

A `Grid` is hashable, so it can be a static argument of `jax.jit`. Codes number the nodes row by row: code k is at
`np.unravel_index(k, grid_shape)`. To add a grid, assign to `GRIDS`.
"""

from collections.abc import Callable

from kvae.core.errors import InputError, choose, short_repr
from kvae.grids.grid import LARGEST_SIZE, Grid
from kvae.grids.hexagonal import Hexagonal, HexagonalTorus
from kvae.grids.rectangular import Cylinder, Plane, Torus

__all__ = [
    "GRIDS",
    "LARGEST_SIZE",
    "Cylinder",
    "Grid",
    "Hexagonal",
    "HexagonalTorus",
    "Plane",
    "Torus",
    "make_grid",
]

GRIDS: dict[str, Callable[[tuple[int, ...]], Grid]] = {
    "plane": Plane,
    "torus": Torus,
    "cylinder": Cylinder,
    "hexagonal": Hexagonal,
    "hexagonal_torus": HexagonalTorus,
}
"""Maps the values of the field `topology` to functions that make a grid from its shape."""


def make_grid(name: str, shape: tuple[int, ...]) -> Grid:
    """Returns a grid with the given shape, made by the entry `name` of `GRIDS`.

    Raises:
      InputError: the name is unknown, the shape is invalid, or the entry does not return a grid of this shape.
    """
    make = choose("topology", name, GRIDS)
    grid = make(shape) if callable(make) else None
    if not isinstance(grid, Grid) or grid.shape != tuple(shape):
        raise InputError(f"GRIDS[{name!r}] is {short_repr(make)}; it must make a kvae.grids.Grid of the given shape")
    return grid
