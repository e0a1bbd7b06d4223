"""Images in the codes of one codebook, and what each code stands for in them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kvae import measures
from kvae.topology import Grid

CONTEXT = 3
"""How many squares of codes a patch is wide: the code's own, and one on each side."""

NOTHING = 235
"""The grey of a patch that there is none of."""


@dataclasses.dataclass(frozen=True)
class CodebookView:
    """Images in codes of one codebook, or by the neurons of one map that they are won by, and what those stand for.

    Attributes:
      codes: of each image, int32 [n, h', w'].
      size: K, the number of codes.
      grid: where they lie; None where they have no neighbours.
      is_map: whether training makes codes that are near on the grid alike.
      codewords: float32 [K, d], where they have a grid.
      decoded: gives the image that each code decodes to by itself, uint8 [K, h, w, 3]; None where nothing is decoded.
      held: the codes of other codebooks beside it in those images, by name.
      level: which codebook it is, such as "top level"; empty where there is only one.
      unit: what a code is called.
      event: what it is in an image: used, or winning.
      context: how many squares of codes a patch of an image is wide, to show one; odd.
    """

    codes: np.ndarray
    size: int
    grid: Grid | None
    is_map: bool
    codewords: np.ndarray | None = None
    decoded: Callable[[], np.ndarray] | None = None
    held: Mapping[str, int] = dataclasses.field(default_factory=dict)
    level: str = ""
    unit: str = "code"
    event: str = "used"
    context: int = CONTEXT

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid; (K,) where there is none."""
        return (self.size,) if self.grid is None else tuple(self.grid.shape)

    @property
    def cell(self) -> str:
        """How a node is drawn, "square" or "hexagon"."""
        return "square" if self.grid is None else self.grid.cell

    @property
    def where(self) -> str:
        """Where its codes lie, in words."""
        words = "on the map" if self.is_map else "in order of number: without a neighbourhood there is no map"
        border = self.grid.border if self.grid is not None else ""
        return f"{words} ({border})" if border else words

    @property
    def beside(self) -> str:
        """What its codes are decoded beside, in words; empty where that is nothing."""
        held = (f", {name.replace('_', ' ')} held at its most used code, {code}" for name, code in self.held.items())
        return "".join(held)

    @property
    def counts(self) -> np.ndarray:
        """How often these images use each code, int of the grid's shape."""
        return np.bincount(self.codes.ravel(), minlength=self.size).reshape(self.shape)

    @property
    def u_matrix(self) -> np.ndarray | None:
        """Mean distance of each codeword to its neighbours, float32 of the grid's shape; None without neighbours."""
        if self.grid is None or self.codewords is None:
            return None
        return np.asarray(measures.u_matrix(self.codewords, self.grid))

    def mean_patches(self, images: np.ndarray) -> np.ndarray:
        """The mean of the patches around each place where a code was chosen.

        A patch that reaches beyond its image goes on with the pixels of the border.

        Args:
          images: those of the codes, uint8 [n, h, w, 3].

        Returns:
          uint8 [*shape, p, q, 3], p and q being `context` times the height and width of a code's square; `NOTHING`
          where a code was never chosen.
        """
        _, rows, columns = self.codes.shape
        high, wide = images.shape[1] // rows, images.shape[2] // columns
        around = [(0, 0), *(((self.context - 1) // 2 * side,) * 2 for side in (high, wide)), (0, 0)]
        padded, flat = np.pad(images, around, mode="edge"), self.codes.ravel()
        sums = np.empty((self.size, self.context * high, self.context * wide, 3))
        for y, x, channel in np.ndindex(sums.shape[1:]):
            # The value at (y, x) of every patch at once.
            values = padded[:, y : y + rows * high : high, x : x + columns * wide : wide, channel]
            sums[:, y, x, channel] = np.bincount(flat, values.ravel(), self.size)
        counts = self.counts.reshape(-1, 1, 1, 1)
        means = np.where(counts, np.round(sums / np.maximum(counts, 1)), NOTHING).astype(np.uint8)
        return means.reshape(*self.shape, *means.shape[1:])


IMAGES_PER_BATCH = 32


RANKED_NEIGHBORS = 8


LARGEST_RANKED_SIZE = 4_096
"""Ranking all codewords against all is left out for larger maps: it would take longer than the evaluation."""


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, argument, method: str):
    """A method of a model, compiled once."""
    return model.apply(variables, argument, method=method)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _ranked(measure, codewords, grid):
    return measure(codewords, grid, RANKED_NEIGHBORS)


def order(codewords: jax.Array, grid: Grid) -> dict[str, float]:
    """Trustworthiness and neighbourhood preservation of a map; nothing where it is too small or too large for them."""
    if not 2 * RANKED_NEIGHBORS < len(codewords) <= LARGEST_RANKED_SIZE:
        return {}
    ranked = (measures.trustworthiness, measures.neighborhood_preservation)
    return {measure.__name__: float(_ranked(measure, codewords, grid)) for measure in ranked}


def in_batches(model, variables, images: np.ndarray, method: str) -> Any:
    """A method of the model, of any number of images uint8 [n, h, w, 3]: a tree of NumPy arrays [n, ...]."""
    found, count = [], len(images)
    # Always whole batches, so that one program does for them all.
    for start in range(0, count, IMAGES_PER_BATCH):
        batch = images[np.minimum(np.arange(start, start + IMAGES_PER_BATCH), count - 1)]
        found.append(jax.device_get(apply(model, variables, batch, method)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)


def part_names(name: str, n_codebooks: int | None) -> list[str]:
    """The names of a quantiser's codebooks: its own, where it is not made of several."""
    return [name] if n_codebooks is None else [f"{name}_{i}" for i in range(n_codebooks)]


def split(name: str, n_codebooks: int | None, values: Any) -> dict[str, Any]:
    """By codebook, what a quantiser has of each: trees of arrays [q, ...], or one tree where it has but one."""
    if n_codebooks is None:
        return {name: values}
    return {
        part: jax.tree.map(lambda array, i=i: array[i], values) for i, part in enumerate(part_names(name, n_codebooks))
    }


def sums_by_codebook(sums_by_quantizer: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Mapping[str, np.ndarray]]:
    """Tallies by codebook, from those by quantiser."""
    found = {}
    for name, sums in sums_by_quantizer.items():
        counts = sums["counts"]
        found |= split(name, len(counts) if counts.ndim == 2 else None, sums)
    return found


def suffix(codebook: str) -> str:
    """What a metric's or a picture's name ends in: nothing for `codebook`, else `_top`, `_bottom`, `_0`."""
    return codebook.removeprefix("codebook") if codebook.startswith("codebook") else f"_{codebook}"


def level(codebook: str) -> str:
    """Which codebook it is, in words, such as `top 0`; nothing for `codebook`."""
    return suffix(codebook).removeprefix("_").replace("_", " ")
