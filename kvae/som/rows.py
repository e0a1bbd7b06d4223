"""Reads the rows of everything that `kvae.SOM` takes as data, in batches and as often as needed."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, validate_data

from kvae.core.errors import InputError

FLOATS = (np.float64, np.float32)

BATCH_ELEMENTS = 2**24
"""Default number of values in a batch."""

Data = ArrayLike | Iterable[ArrayLike]
"""An array [n, d], a data frame, a memory-mapped array, or an iterable of batches [n, d]."""

WeightedRows = tuple[np.ndarray, np.ndarray]
"""Vectors, float [n, d], and their weights, float [n]."""


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Validated rows.

    Attributes:
      read: starts a pass over all rows, in batches.
      sample: maps a number of rows and a RandomState to a sample without replacement, of fewer rows if there are
        fewer. From an iterable of batches it takes the first rows.
      nbytes: size of the rows; None if they are not in memory.
    """

    read: Callable[[], Iterator[WeightedRows]]
    sample: Callable[[int, np.random.RandomState], WeightedRows]
    nbytes: int | None = None


def open_rows(
    estimator: BaseEstimator,
    X: Data,
    sample_weight: ArrayLike | None,
    batch_size: int | None,
    *,
    reset: bool,
) -> RowReader:
    """Validates data and returns their reader. Memory-mapped arrays and iterables are validated batch by batch.

    Args:
      estimator: stores the names and the number of features if `reset`; otherwise the data must have the same.
      X: the data.
      sample_weight: [n], or None for 1.
      batch_size: rows of a batch; None for about `BATCH_ELEMENTS` values.
      reset: see `estimator`.

    Returns:
      The reader.

    Raises:
      ValueError: scikit-learn rejects the data.
      InputError: an iterable is empty, can be read only once, or comes with `sample_weight`.
    """
    if is_batches(X):
        return _open_batches(estimator, X, sample_weight, batch_size, reset)
    is_mapped = isinstance(X, np.memmap) and X.ndim == 2 and len(X) > 0

    def validated(part, reset=False):
        return validate_data(estimator, part, dtype=FLOATS, reset=reset)

    if is_mapped:
        first = validated(X[:1], reset)
    else:
        X = first = validated(X, reset)
    weights = _check_sample_weight(sample_weight, X, dtype=first.dtype, ensure_non_negative=True)
    batch_size = batch_size or max(1, BATCH_ELEMENTS // first.shape[1])
    batch_size = -(-len(X) // -(-len(X) // batch_size))  # batches of about equal size

    def take(rows):
        return (validated(X[rows]) if is_mapped else X[rows]), weights[rows]

    def sample(count, random):
        rows = np.flatnonzero(weights > 0)
        if len(rows) > count:
            rows = np.sort(random.choice(rows, count, replace=False))
        return take(rows)

    starts = range(0, len(X), batch_size)
    return RowReader(
        lambda: (take(slice(start, start + batch_size)) for start in starts), sample, None if is_mapped else X.nbytes
    )


def is_batches(X: Data) -> bool:
    """True if X is an iterable of batches, and not an array or a list that scikit-learn takes for one."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and getattr(X[0], "ndim", 0) == 2
    return (
        isinstance(X, Iterable)
        and not isinstance(X, (str, bytes))
        and not hasattr(X, "shape")
        and not hasattr(X, "__array__")
    )


def _open_batches(estimator, X, sample_weight, batch_size, reset) -> RowReader:
    if sample_weight is not None:
        raise InputError("sample_weight cannot be combined with an iterable of batches; pass an array as X")
    # A generator would be empty after the first epoch.
    if iter(X) is X:
        raise InputError("X is an iterator and can be read only once; pass a list of batches or a data loader")
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

    return RowReader(read, sample)
