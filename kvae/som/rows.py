"""Rows of data as scikit-learn takes them, in batches that can be run through again and again."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from sklearn.utils.validation import _check_sample_weight, validate_data

from kvae.core.errors import InputError

FLOATS = (np.float64, np.float32)

BATCH_ELEMENTS = 2**24
"""How many numbers a batch holds where its rows are not given."""

Pair = tuple[np.ndarray, np.ndarray]
"""Vectors, float [n, d], and how often each counts, float [n]."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Checked rows.

    Attributes:
      read: begins to run through them: batches.
      sample: from a number of rows and a RandomState, so many of them, drawn without replacement, or all that there
        are; of an iterable of batches, the first ones.
      bytes: how large they are; None where they are not in memory.
    """

    read: Callable[[], Iterator[Pair]]
    sample: Callable[[int, np.random.RandomState], Pair]
    bytes: int | None = None


def rows_of(estimator, X, sample_weight, batch_size: int | None, *, reset: bool) -> Rows:
    """The rows of X, an array, a memory map, which is checked batch by batch, or an iterable of batches.

    Args:
      estimator: learns the names and the number of features if `reset`, and else asks for the same.
      X: the data.
      sample_weight: [n], or None for 1.
      batch_size: rows of a batch.
      reset: see `estimator`.

    Raises:
      ValueError: what scikit-learn refuses. InputError: an iterable without batches, that cannot be run through
        twice, or that has `sample_weight`.
    """
    if is_batches(X):
        return _rows_of_batches(estimator, X, sample_weight, batch_size, reset)
    is_mapped = isinstance(X, np.memmap) and X.ndim == 2 and len(X) > 0

    def checked(part, reset=False):
        return validate_data(estimator, part, dtype=FLOATS, reset=reset)

    if is_mapped:
        first = checked(X[:1], reset)
    else:
        X = first = checked(X, reset)
    weights = _check_sample_weight(sample_weight, X, dtype=first.dtype, ensure_non_negative=True)
    batch_size = batch_size or max(1, BATCH_ELEMENTS // first.shape[1])
    batch_size = -(-len(X) // -(-len(X) // batch_size))  # even ones

    def part(rows):
        return (checked(X[rows]) if is_mapped else X[rows]), weights[rows]

    def sample(count, random):
        there = np.flatnonzero(weights > 0)
        if len(there) > count:
            there = np.sort(random.choice(there, count, replace=False))
        return part(there)

    starts = range(0, len(X), batch_size)
    return Rows(
        lambda: (part(slice(start, start + batch_size)) for start in starts), sample, None if is_mapped else X.nbytes
    )


def is_batches(X) -> bool:
    """Whether X is an iterable of batches, and not an array or what scikit-learn takes for one."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and getattr(X[0], "ndim", 0) == 2
    return (
        isinstance(X, Iterable)
        and not isinstance(X, (str, bytes))
        and not hasattr(X, "shape")
        and not hasattr(X, "__array__")
    )


def _rows_of_batches(estimator, X, sample_weight, batch_size, reset) -> Rows:
    if sample_weight is not None:
        raise InputError("sample_weight is given with an iterable of batches; it is taken with arrays only")
    if iter(X) is X:
        raise InputError("X is an iterator, which runs once; give what can be run through again, such as a data loader")
    first = next(iter(X), None)
    if first is None:
        raise InputError("X is an iterable without batches")
    first = validate_data(estimator, first, dtype=FLOATS, reset=reset)

    def read():
        for batch in X:
            batch = validate_data(estimator, batch, dtype=first.dtype, reset=False)
            size = min(batch_size or len(first), max(1, BATCH_ELEMENTS // batch.shape[1]))
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                yield part, np.ones(len(part), part.dtype)

    def sample(count, random):
        parts = []
        for part in read():
            parts.append(part)
            if sum(len(vectors) for vectors, _ in parts) >= count:
                break
        vectors, weights = map(np.concatenate, zip(*parts, strict=True))
        return vectors[:count], weights[:count]

    return Rows(read, sample)
