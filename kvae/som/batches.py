"""Repeated passes over an iterable of batches, such as a data loader."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from kvae.core.errors import InputError, short_repr
from kvae.som.sources import as_table


def is_batches(X: Any) -> bool:
    """True if X is an iterable of batches, rather than an array or a list that scikit-learn converts to an array."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and _axes(_first_element(X[0])) == 2
    return (
        isinstance(X, Iterable)
        and not isinstance(X, (str, bytes))
        and not hasattr(X, "shape")
        and not hasattr(X, "__array__")
    )


class Batches:
    """Reads an iterable of batches several times and detects changes between passes.

    Args:
      X: the iterable. A batch is an array [n, d], or a tuple or a list that starts with one.

    Attributes:
      first: the first batch.

    Raises:
      InputError: X has no batches, or is an iterator, which would be empty after the first pass.
    """

    def __init__(self, X: Iterable):
        self._X, self._digests, self._is_ordered = X, [], True
        self._rows: int | None = None
        iterator = _start(X)
        if iterator is X:
            raise InputError("X is an iterator and can be read only once; pass a list of batches or a data loader")
        batches = _non_empty(iterator)
        try:
            self.first = next(batches)
        except StopIteration:
            raise InputError("X is an iterable of 0 batches; it must have at least one") from None
        self._started: Iterator | None = itertools.chain([self.first], batches)

    def read(self, validated: Callable[[Any], np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the validated batches of a pass. Exceptions from the iterable pass through unchanged.

        Args:
          validated: maps a batch to a float array [n, d].

        Raises:
          InputError: the pass has more or fewer rows than the first, or a batch is not an array [n, d].
        """
        batches, self._started = self._started or _non_empty(_start(self._X)), None
        digests: list[int] = []
        rows = 0
        for batch in batches:
            batch = validated(batch)
            rows += batch.shape[0]
            digests.append(_digest(batch))
            self._compare(digests)
            yield batch
        if rows == 0 or self._rows not in (None, rows):
            first = f", but {self._rows:,} in the first" if self._rows else ""
            raise InputError(f"X yielded {rows:,} rows in a pass{first}; it must yield the same rows in every pass")
        self._rows = rows

    def is_ordered(self) -> bool:
        """Returns False if two passes so far have yielded the rows in different orders."""
        return self._is_ordered

    def _compare(self, digests: list[int]) -> None:
        """Compares the last batch of a pass with the same batch of earlier passes."""
        if len(digests) <= len(self._digests):
            self._is_ordered &= digests[-1] == self._digests[len(digests) - 1]
        else:
            self._digests = digests


def _start(X: Iterable) -> Iterator:
    try:
        return iter(X)
    except StopIteration as error:  # would silently end the caller's loop
        raise InputError(
            "X raised StopIteration at the start of a pass; its __iter__ must return an iterator"
        ) from error


def _non_empty(batches: Iterator) -> Iterator:
    """Yields the batches as arrays, without those of 0 rows."""
    return (batch for batch in map(_as_array, batches) if batch.shape[0] > 0)


def _first_element(batch: Any) -> Any:
    """Returns the rows of a batch (rows, labels, ...), or the batch itself if it is not such a tuple."""
    if isinstance(batch, (tuple, list)) and len(batch) > 0 and _axes(batch[0]) == 2:
        return batch[0]
    return batch


def _as_array(batch: Any) -> Any:
    """Returns the rows of a batch.

    Raises:
      InputError: the batch cannot be an array [n, d].
    """
    batch = as_table(_first_element(batch))
    if isinstance(batch, (tuple, list)):
        batch = np.asarray(batch)
    if _axes(batch) != 2:
        shape = f" with the shape {tuple(batch.shape)}" if hasattr(batch, "shape") else f", {short_repr(batch)}"
        kind = f"{type(batch).__name__}{shape}"
        raise InputError(f"a batch of X is a {kind}; it must be an array [n, d], or a tuple that starts with one")
    return batch


def _axes(batch: Any) -> int:
    return len(getattr(batch, "shape", ()))


def _digest(batch: np.ndarray) -> int:
    """Returns a hash of a batch's length and of up to 16 of its rows."""
    few = batch[:: -(-batch.shape[0] // 16)]
    parts = (few.data, few.indices, few.indptr) if scipy.sparse.issparse(few) else (np.ascontiguousarray(few),)
    return hash((batch.shape[0], *(part.tobytes() for part in parts)))
