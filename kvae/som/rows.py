"""Reads the rows of any data that `kvae.SOM` accepts, in batches and repeatedly."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, validate_data

from kvae.core.errors import InputError
from kvae.som.batches import Batches, is_batches

FLOATS = (np.float64, np.float32)

BATCH_ELEMENTS = 2**24
"""Default number of values in a batch."""

Data = ArrayLike | Iterable[ArrayLike | tuple]
"""An array [n, d], a data frame, a memory-mapped array, or an iterable of batches [n, d] or of tuples (batch, ...)."""

WeightedRows = tuple[np.ndarray, np.ndarray]
"""Vectors, float [n, d], and their weights, float [n]."""


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Reads validated rows.

    Attributes:
      read: starts a pass over all rows and yields them in batches.
      sample: maps a number of rows and a RandomState to a sample without replacement; the sample is smaller if there
        are fewer rows. From an iterable of batches it takes the first rows.
      nbytes: size of the rows in bytes; None if they are not in memory.
      is_ordered: returns False if two passes so far have yielded the rows in different orders.
    """

    read: Callable[[], Iterator[WeightedRows]]
    sample: Callable[[int, np.random.RandomState], WeightedRows]
    nbytes: int | None = None
    is_ordered: Callable[[], bool] = lambda: True


def open_rows(
    estimator: BaseEstimator,
    X: Data,
    sample_weight: ArrayLike | None,
    batch_size: int | None,
    *,
    reset: bool,
) -> RowReader:
    """Validates data and returns a reader. Memory-mapped arrays and iterables are validated batch by batch.

    Args:
      estimator: estimator that stores the number and names of the features.
      X: the data.
      sample_weight: weight of each row, float [n]; None for 1.
      batch_size: number of rows in a batch; None for about `BATCH_ELEMENTS` values.
      reset: True stores the number and names of the features; False requires the stored ones.

    Returns:
      The reader.

    Raises:
      ValueError: scikit-learn rejects the data.
      InputError: X is an iterable that is empty, can be read only once, or is combined with `sample_weight`.
    """
    if is_batches(X):
        if sample_weight is not None:
            raise InputError("sample_weight cannot be combined with an iterable of batches; pass an array as X")
        return _open_batches(estimator, X, batch_size, reset)
    is_mapped = isinstance(X, np.memmap) and X.ndim == 2 and len(X) > 0
    if is_mapped:
        first = validated_rows(estimator, X[:1], reset=reset)
    else:
        X = first = validated_rows(estimator, X, reset=reset)
    with refuse_huge_integers("sample_weight"):
        weights = _check_sample_weight(sample_weight, X, dtype=first.dtype, ensure_non_negative=True)
    batch_size = batch_size or max(1, BATCH_ELEMENTS // first.shape[1])
    batch_size = -(-len(X) // -(-len(X) // batch_size))  # batches of about equal size

    def take(rows):
        return (validated_rows(estimator, X[rows]) if is_mapped else X[rows]), weights[rows]

    def sample(count, random):
        rows = np.flatnonzero(weights > 0)
        if len(rows) > count:
            rows = np.sort(random.choice(rows, count, replace=False))
        return take(rows)

    starts = range(0, len(X), batch_size)
    return RowReader(
        lambda: (take(slice(start, start + batch_size)) for start in starts), sample, None if is_mapped else X.nbytes
    )


def validated_rows(
    estimator: BaseEstimator, X: ArrayLike, dtype: type | tuple[type, ...] = FLOATS, *, reset: bool = False
) -> np.ndarray:
    """Returns rows as a float array [n, d], validated by scikit-learn.

    Raises:
      ValueError: scikit-learn rejects the rows.
      InputError: the rows contain an integer larger than any float, or NaN while `estimator.missing` is "error".
    """
    finite = "allow-nan" if estimator.missing == "ignore" else True
    try:
        with refuse_huge_integers("X"):
            return validate_data(estimator, X, dtype=dtype, reset=reset, ensure_all_finite=finite)
    except ValueError as error:
        if "contains NaN" not in str(error):
            raise
        raise InputError(
            "X contains NaN; set missing='ignore' to compute distances over the known features, or remove such rows"
        ) from error


@contextlib.contextmanager
def refuse_huge_integers(name: str) -> Iterator[None]:
    """Turns NumPy's OverflowError for an integer larger than any float into an InputError."""
    try:
        yield
    except OverflowError as error:
        raise InputError(f"{name} contains an integer larger than any float; scale it, or take logarithms") from error


def _open_batches(estimator, X, batch_size, reset) -> RowReader:
    batches = Batches(X)
    first = validated_rows(estimator, batches.first, reset=reset)
    dtype, longest = first.dtype, batch_size or len(first)

    def read():
        for batch in batches.read(lambda batch: validated_rows(estimator, batch, dtype)):
            size = min(longest, max(1, BATCH_ELEMENTS // batch.shape[1]))
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                yield part, np.ones(len(part), part.dtype)

    def sample(count, random):
        parts, total = [], 0
        for part, _ in read():
            parts.append(part.copy())  # some loaders reuse one array for all batches
            total += len(part)
            if total >= count:
                break
        vectors = np.concatenate(parts)[:count]
        return vectors, np.ones(len(vectors), vectors.dtype)

    return RowReader(read, sample, is_ordered=batches.is_ordered)
