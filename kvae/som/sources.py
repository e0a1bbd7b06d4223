"""Data that are read block by block, recognised by their methods, without importing their libraries."""

import dataclasses
import functools
import mmap
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

MAPPED_BYTES = 2**28
"""Maximum size of the part of a memory-mapped file that is mapped at once."""

HUGE_PAGE_BYTES = 2**21
"""Size of the largest piece that the system maps when one row is read."""


class Slices(NamedTuple):
    """Rows that can be read by number.

    Attributes:
      count: number of rows.
      take: maps (start, stop) to rows start to stop - 1.
      pick: maps ascending row numbers, int [m], to these rows; None if this might read all rows from storage.
      chunk: number of rows that storage reads at once.
      in_memory: True if the rows are in memory.
    """

    count: int
    take: Callable[[int, int], Any]
    pick: Callable[[np.ndarray], Any] | None = None
    chunk: int = 1
    in_memory: bool = False


@dataclasses.dataclass(frozen=True)
class Stream:
    """An iterable of batches that starts a new pass for every iterator.

    Attributes:
      start: starts a pass.
    """

    start: Callable[[], Iterable]

    def __iter__(self) -> Iterator:
        return iter(self.start())


def open_slices(X: Any) -> Slices | None:
    """Returns a reader of X by row number, or None if X is none of the following.

    Memory-mapped NumPy arrays; data frames of pandas, with `iloc`; data frames of Polars and tables of Arrow, with
    `slice`; and arrays of dask, zarr and h5py, with `chunks`.
    """
    shape = getattr(X, "shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[0], numbers.Integral) or shape[0] == 0:
        return None
    if isinstance(X, np.memmap):
        return Slices(len(X), functools.partial(_copy_rows, X), functools.partial(_pick_rows, X))
    if hasattr(X, "iloc"):
        return Slices(len(X), lambda start, stop: X.iloc[start:stop], lambda rows: X.iloc[rows], in_memory=True)
    if callable(getattr(X, "slice", None)):
        return Slices(shape[0], lambda start, stop: X.slice(start, stop - start), in_memory=True)
    if hasattr(X, "chunks"):
        return Slices(int(shape[0]), lambda start, stop: np.asarray(X[start:stop]), chunk=_chunk_rows(X.chunks))
    return None


def _copy_rows(X: np.memmap, start: int, stop: int) -> np.ndarray:
    """Returns a copy of successive rows of a memory-mapped file."""
    step = max(1, MAPPED_BYTES // max(1, abs(X.strides[0])))  # rows of X may be far apart, as in X[::20]
    return _copy_parts(X, [slice(first, min(first + step, stop)) for first in range(start, stop, step)])


def _pick_rows(X: np.memmap, rows: np.ndarray) -> np.ndarray:
    """Returns a copy of rows of a memory-mapped file by their numbers."""
    step = MAPPED_BYTES // HUGE_PAGE_BYTES
    return _copy_parts(X, [rows[first : first + step] for first in range(0, len(rows), step)])


def _copy_parts(X: np.memmap, parts: list) -> np.ndarray:
    """Copies parts of a memory-mapped file, whose pages then no longer count as memory of this process."""
    copies = []
    for part in parts:
        copies.append(np.array(X[part]))
        # In mode "c" the pages hold changes that are not in the file.
        if X.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
            X._mmap.madvise(mmap.MADV_DONTNEED)
    return copies[0] if len(copies) == 1 else np.concatenate(copies)


def as_stream(X: Any) -> Any:
    """Returns a `Stream` of the batches of X, or X itself if it is none of the following.

    Data sets and scanners of Arrow, with `to_batches`; Parquet files, with `iter_batches`; lazy frames of Polars, with
    `collect_batches`; and dask data frames, or dask arrays of unknown length, with `partitions`.
    """
    for method in ("to_batches", "iter_batches", "collect_batches"):
        if callable(getattr(X, method, None)):
            return Stream(getattr(X, method))
    if hasattr(X, "partitions") and hasattr(X, "compute"):
        count = X.numblocks[0] if hasattr(X, "numblocks") else X.npartitions
        return Stream(lambda: (X.partitions[number].compute() for number in range(count)))
    return X


def as_table(batch: Any) -> Any:
    """Returns a record batch of Arrow as a table, whose column names scikit-learn reads; anything else unchanged."""
    schema = getattr(batch, "schema", None)
    if hasattr(batch, "to_struct_array") and hasattr(schema, "empty_table"):
        return type(schema.empty_table()).from_batches([batch])
    return batch


def _chunk_rows(chunks: Any) -> int:
    """Returns the number of rows in a chunk, or in the largest chunk of a dask array."""
    rows = chunks[0] if chunks else 1
    return int(max(rows) if isinstance(rows, tuple) else rows)
