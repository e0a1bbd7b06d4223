"""Reads the rows of any data that `kvae.SOM` accepts, in batches and repeatedly."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags
from sklearn.utils.validation import _check_sample_weight, validate_data

from kvae.core.errors import InputError
from kvae.som import csr
from kvae.som.batches import Batches, is_batches
from kvae.som.metrics import SPARSE_METRICS
from kvae.som.sources import Slices, as_stream, open_slices

FLOATS = (np.float64, np.float32)

BATCH_ELEMENTS = 2**24
"""Default number of values in a batch."""

Data = Any
"""An array [n, d], a data frame, data that `kvae.som.sources` reads block by block, or an iterable of batches [n, d] or
of tuples (batch, ...)."""

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
    slices = open_slices(X)
    X = as_stream(X) if slices is None else X
    if is_batches(X):
        if sample_weight is not None:
            raise InputError("sample_weight cannot be combined with an iterable of batches; pass an array as X")
        return _open_batches(estimator, X, batch_size, reset)
    if slices is not None:
        first = validated_rows(estimator, slices.take(0, 1), reset=reset)
        validated = functools.partial(validated_rows, estimator, dtype=first.dtype)
        nbytes = slices.count * _nbytes(first) if slices.in_memory else None
        return _open_slices(slices, validated, first, nbytes, sample_weight, batch_size)
    rows = validated_rows(estimator, X, reset=reset)
    slices = Slices(rows.shape[0], lambda start, stop: rows[start:stop], lambda numbers: rows[numbers])
    return _open_slices(slices, lambda rows: rows, rows, _nbytes(rows), sample_weight, batch_size)


def _open_slices(
    slices: Slices,
    validated: Callable[[ArrayLike], np.ndarray],
    few: np.ndarray,
    nbytes: int | None,
    sample_weight: ArrayLike | None,
    batch_size: int | None,
) -> RowReader:
    """Returns a reader of slices.

    Args:
      slices: the rows.
      validated: maps some of these rows to a float array [n, d].
      few: one or more validated rows.
      nbytes, sample_weight, batch_size: as in `RowReader` and `open_rows`.
    """
    with refuse_huge_integers("sample_weight"):
        weights = _check_sample_weight(
            sample_weight, np.empty((slices.count, 0)), dtype=few.dtype, ensure_non_negative=True
        )
    size = batch_size or _rows_per_batch(few)
    size = -(-slices.count // -(-slices.count // size))  # batches of about equal size
    size = -(-size // slices.chunk) * slices.chunk  # and of whole chunks, so that each is read once
    starts = range(0, slices.count, size)

    def read():
        for start in starts:
            stop = min(start + size, slices.count)
            yield validated(slices.take(start, stop)), weights[start:stop]

    def sample(count, random):
        rows = np.flatnonzero(weights > 0)
        if len(rows) > count:
            rows = np.sort(random.choice(rows, count, replace=False))
        if slices.pick is not None:
            return validated(slices.pick(rows)), weights[rows]
        parts = []
        for start, (batch, _) in zip(starts, read(), strict=True):
            first, end = np.searchsorted(rows, (start, start + size))
            parts.append(batch[rows[first:end] - start])
        return csr.stacked(parts), weights[rows]

    return RowReader(read, sample, nbytes)


def validated_rows(
    estimator: BaseEstimator, X: ArrayLike, dtype: type | tuple[type, ...] = FLOATS, *, reset: bool = False
) -> np.ndarray:
    """Returns rows as a float array [n, d], or a CSR matrix if they are sparse, validated by scikit-learn.

    Raises:
      ValueError: scikit-learn rejects the rows.
      InputError: the rows contain an integer larger than any float, or NaN while `estimator.missing` is "error"; or
        they are sparse and the estimator needs dense rows.
    """
    accepts_sparse = get_tags(estimator).input_tags.sparse
    if scipy.sparse.issparse(X) and not accepts_sparse:
        raise InputError(
            f"X is sparse, but this {type(estimator).__name__} needs dense rows; use X.toarray(), or a kvae.SOM with "
            f"the metric {' or '.join(map(repr, SPARSE_METRICS))} and missing='error'"
        )
    finite = "allow-nan" if estimator.missing == "ignore" else True
    try:
        with refuse_huge_integers("X"):
            return validate_data(
                estimator,
                X,
                accept_sparse="csr" if accepts_sparse else False,
                dtype=dtype,
                reset=reset,
                ensure_all_finite=finite,
            )
    except ValueError as error:
        if "contains NaN" not in str(error):
            raise
        raise InputError(
            "X contains NaN; set missing='ignore' to compute distances over the known features, or remove such rows"
        ) from error


@contextlib.contextmanager
def refuse_huge_integers(name: str) -> Iterator[None]:
    """Turns NumPy's OverflowError for an integer larger than any float into an InputError.

    A float that is too large for float32 becomes infinite without a warning, and scikit-learn then rejects it.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except OverflowError as error:
        raise InputError(f"{name} contains an integer larger than any float; scale it, or take logarithms") from error


def _nbytes(rows: np.ndarray) -> int:
    """Returns the size in bytes of an array or CSR matrix."""
    arrays = (rows.data, rows.indices, rows.indptr) if scipy.sparse.issparse(rows) else (rows,)
    return sum(array.nbytes for array in arrays)


def _rows_per_batch(X: np.ndarray) -> int:
    """Returns the default number of rows in a batch, for an array or CSR matrix [n, d]."""
    values = X.nnz / X.shape[0] if scipy.sparse.issparse(X) else X.shape[1]
    return max(1, int(BATCH_ELEMENTS / max(values, 1)))


def _open_batches(estimator, X, batch_size, reset) -> RowReader:
    batches = Batches(X)
    first = validated_rows(estimator, batches.first, reset=reset)
    dtype, longest = first.dtype, batch_size or first.shape[0]

    def read():
        for batch in batches.read(lambda batch: validated_rows(estimator, batch, dtype)):
            size = min(longest, _rows_per_batch(batch))
            for start in range(0, batch.shape[0], size):
                part = batch[start : start + size]
                yield part, np.ones(part.shape[0], part.dtype)

    def sample(count, random):
        parts, total = [], 0
        for part, _ in read():
            parts.append(part.copy())  # some loaders reuse one array for all batches
            total += part.shape[0]
            if total >= count:
                break
        vectors = csr.stacked(parts)[:count]
        return vectors, np.ones(vectors.shape[0], vectors.dtype)

    return RowReader(read, sample, is_ordered=batches.is_ordered)
