"""The order in which a prior reads codes: one sequence, with the codebook and place of each position."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError
from kvae.core.fields import Count, Natural, Shape
from kvae.grids import Grid, make_grid
from kvae.models.codebook_views import codebook_names

CodebookFields = tuple[str, Shape, Count, tuple[Count, ...], str, Natural]
"""Name, shape of an image's codes, K, shape of the grid, its topology, and d, which is 0 if codewords are unknown."""


class Level(NamedTuple):
    """One codebook in a sequence.

    Attributes:
      name: its name, as in `Run.codebooks`.
      size: K, the number of codes.
      grid: the grid of its codes; None if they have none.
      dim: d, the dimension of a codeword; 0 if codewords are unknown.
      first: number of codes of all levels before this one. `first + code` is unique across levels.
    """

    name: str
    size: int
    grid: Grid | None
    dim: int
    first: int


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A sequence of T positions: codebook by codebook, then row by row, then level by level at each place.

    Two levels are read as in VQ-VAE-2 (Razavi et al., arXiv:1906.00446): all of `top`, then `bottom`. The q codes of a
    residual quantiser at one place follow each other, as in RQ-VAE (Lee et al., arXiv:2203.01941).

    Example:
      >>> layout = layout_of((("codebook", (2, 2, 3), 8, (8,), "plane", 0),))
      >>> layout.level.tolist()
      [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
      >>> layout.row.tolist()
      [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]

    Attributes:
      shapes: shape of an image's codes, by codebook.
      levels: the levels.
      level: index of the level of each position, int32 [T].
      row, column: place of each position, int32 [T]; counted separately for each codebook.
    """

    shapes: Mapping[str, tuple[int, ...]]
    levels: tuple[Level, ...]
    level: np.ndarray
    row: np.ndarray
    column: np.ndarray

    @property
    def length(self) -> int:
        """T, the number of positions."""
        return len(self.level)

    @property
    def size(self) -> int:
        """Total number of codes of all levels."""
        return sum(level.size for level in self.levels)

    def positions(self, level: int) -> np.ndarray:
        """Returns the positions of a level, int [n]."""
        return np.flatnonzero(self.level == level)

    def to_sequence(self, codes: Mapping[str, jax.Array]) -> jax.Array:
        """Returns arrays [b, h', w'] or [b, h', w', q] by codebook as one sequence [b, T].

        Raises:
          InputError: a codebook is missing or has another shape.
        """
        for name, shape in self.shapes.items():
            found = tuple(codes[name].shape[1:]) if name in codes else None
            if found != shape:
                text = "missing" if found is None else f"[b, {', '.join(map(str, found))}]"
                raise InputError(f"the codes {name!r} are {text}; they must be [b, {', '.join(map(str, shape))}]")
        return jnp.concatenate([jnp.reshape(codes[name], (len(codes[name]), -1)) for name in self.shapes], axis=1)

    def to_codes(self, sequence: jax.Array) -> dict[str, jax.Array]:
        """Returns a sequence [b, T] as arrays by codebook; the inverse of `to_sequence`."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes.values()))
        starts = [0, *ends[:-1]]
        return {
            name: sequence[:, start:end].reshape(-1, *shape)
            for (name, shape), start, end in zip(self.shapes.items(), starts, ends, strict=True)
        }


@functools.lru_cache
def layout_of(codebooks: tuple[CodebookFields, ...]) -> Layout:
    """Returns the layout of the codebooks of a data set.

    Args:
      codebooks: see `CodebookFields`, in the order in which the prior reads them.

    Raises:
      InputError: there are no codebooks, or one has the wrong number of axes or an unknown topology.
    """
    if not codebooks:
        raise InputError('model.codebooks is (); a prior needs a data set of codes, such as dataset.name "tokens"')
    levels: list[Level] = []
    places: list[Sequence[np.ndarray]] = []
    rows = columns = 0
    for name, shape, size, grid_shape, topology, dim in codebooks:
        if len(shape) not in (2, 3):
            raise InputError(f"the codes {name!r} have the shape {shape}; it must be (h, w) or (h, w, q)")
        row, column, part = np.indices((*shape, 1)[:3]).reshape(3, -1).astype(np.int32)
        places.append((part + len(levels), row + rows, column + columns))
        rows, columns = rows + shape[0], columns + shape[1]
        grid = make_grid(topology, grid_shape) if grid_shape and topology else None
        for part_name in codebook_names(name, shape[2] if len(shape) == 3 else None):
            levels.append(Level(part_name, size, grid, dim, sum(level.size for level in levels)))
    shapes = {name: shape for name, shape, *_ in codebooks}
    return Layout(shapes, tuple(levels), *map(np.concatenate, zip(*places, strict=True)))
