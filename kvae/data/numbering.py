"""How codes are numbered: as in the tokeniser, or in another order, to measure what the order is worth."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from kvae.core.errors import InputError
from kvae.data.dataset import Codebook

Order = Callable[[np.ndarray | None, tuple[int, ...], int], np.ndarray]
"""Maps codewords [K, d] (None if unknown), the shape of the grid (() without a grid) and K to the code that gets
each number, int [K]."""


def as_trained(codewords: np.ndarray | None, grid_shape: tuple[int, ...], size: int) -> np.ndarray:
    """Returns the tokeniser's order."""
    return np.arange(size)


def shuffled(codewords: np.ndarray | None, grid_shape: tuple[int, ...], size: int) -> np.ndarray:
    """Returns a random order, always the same for K codes: neighbours on the grid then have nothing in common."""
    return np.random.default_rng(0).permutation(size)


def by_components(codewords: np.ndarray | None, grid_shape: tuple[int, ...], size: int) -> np.ndarray:
    """Returns an order along principal components, which gives any codebook a grid in order.

    The codes are sorted by the first component of their codewords and divided evenly among the rows of the grid; those
    of each row are sorted by the second component, and so on for further axes.

    Example:
      >>> import numpy as np
      >>> by_components(np.array([[3.0, 0.5], [0.0, 0.0], [0.1, 0.5], [3.1, 0.0]]), (2, 2), 4).tolist()
      [1, 2, 3, 0]

    Raises:
      InputError: the codewords are unknown.
    """
    if codewords is None:
        raise InputError('dataset.numbering="by_components" needs codewords; run kvae.tokenize again')
    centered = codewords.astype(np.float64) - codewords.mean(axis=0)
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    components = centered @ (directions * signs[:, None]).T
    order = np.arange(size)[None]
    for axis, length in enumerate(grid_shape or (size,)):
        values = components[order, axis % components.shape[1]]
        order = np.take_along_axis(order, np.argsort(values, axis=1, kind="stable"), axis=1)
        order = order.reshape(len(order) * length, -1)
    return order.ravel()


NUMBERINGS: dict[str, Order] = {"as_trained": as_trained, "shuffled": shuffled, "by_components": by_components}
"""Orders of codes by name."""


def renumbered(codebooks: Mapping[str, Codebook], numbering: str) -> tuple[dict[str, Codebook], dict[str, np.ndarray]]:
    """Returns codebooks in another order, and the new number of each code.

    Args:
      codebooks: codebooks by name.
      numbering: a name in `NUMBERINGS`.

    Returns:
      The codebooks, and int32 [q, K] by name: row i holds the new numbers of the codes of codebook i of q.
    """
    reordered, numbers = {}, {}
    for name, book in codebooks.items():
        parts = [None] * (book.shape[2] if len(book.shape) > 2 else 1)
        if book.codewords is not None:
            parts = list(book.codewords.reshape(-1, book.size, book.codewords.shape[-1]))
        orders = [NUMBERINGS[numbering](part, tuple(book.grid_shape), book.size) for part in parts]
        vectors = book.codewords
        if vectors is not None:
            vectors = np.stack([part[order] for part, order in zip(parts, orders, strict=True)]).reshape(vectors.shape)
        reordered[name] = dataclasses.replace(book, codewords=vectors)
        numbers[name] = np.stack([np.argsort(order) for order in orders]).astype(np.int32)
    return reordered, numbers


def renumber(codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns the new numbers, int32, of codes int [..., h, w], or [..., h, w, q] if there are q > 1 codebooks."""
    return numbers[np.arange(len(numbers)), codes] if len(numbers) > 1 else numbers[0][codes]
