"""Reads metrics.jsonl, samples its rows for curves, and decides on early stopping."""

import functools
import json
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from kvae.training.best import LOSS

ROWS = "metrics.jsonl"
"""Name of the file of metrics."""

LONGEST_LINE_BYTES = 2**24
"""Longer lines are split and count as corrupted, so that a file without line breaks cannot fill the memory."""

KEPT_ROWS = 1_000
"""About the number of rows that a curve can show."""


def parse_row(line: bytes, replicas: int | None = None) -> dict[str, Any] | None:
    """Parses a line of metrics.jsonl.

    Args:
      line: The line.
      replicas: The run's number of replicas, if known.

    Returns:
      The row; None if the line is corrupted: it is not a JSON object with an integer step, or a value is not a
      number, null, or a list of these with one element per replica.

    Example:
      >>> parse_row(b'{"step": 2, "train/loss": 0.5}')
      {'step': 2, 'train/loss': 0.5}
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int
    return row if is_row and all(_is_value(value, replicas) for value in row.values()) else None


def _is_value(value: object, replicas: int | None) -> bool:
    if isinstance(value, list):
        return len(value) == (replicas or len(value)) and all(map(_is_number, value))
    return _is_number(value)


def _is_number(value: object) -> bool:
    return value is None or (type(value) in (int, float) and not abs(value) >= 2**63)


def value_of_replica(value: Any, replica: int) -> Any:
    """Returns the value of one replica in a row; values that are not lists are shared by all replicas.

    Example:
      >>> value_of_replica([0.5, 0.25], 1), value_of_replica(800, 1)
      (0.25, 800)
    """
    return value[replica] if isinstance(value, list) else value


def read_rows(file: BinaryIO, replicas: int | None = None) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Reads a file of rows from its current position.

    Args:
      file: metrics.jsonl, opened for reading.
      replicas: The run's number of replicas, if known.

    Yields:
      For each line that is not empty: the offset in bytes of the end of its content, and its row (None if the line is
      corrupted).
    """
    end = 0
    for line in iter(functools.partial(file.readline, LONGEST_LINE_BYTES), b""):
        if line != b"\n":
            yield end + len(line.rstrip(b"\n")), parse_row(line, replicas)
        end += len(line)


class RowSample:
    """An evenly spaced sample of the added rows: all rows up to 2,000; of more rows, between 1,000 and 2,000.

    It bounds the memory that a run with millions of rows needs for its curves.

    Example:
      >>> sample = RowSample()
      >>> for step in range(10_000):
      ...     sample.add({"step": step})
      >>> len(sample.rows), sample.rows[1]
      (1250, {'step': 8})
    """

    def __init__(self):
        self.rows, self._count, self._stride = [], 0, 1

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row, which may not be in the sample or may be dropped later."""
        if self._count % self._stride == 0:
            self.rows.append(row)
        self._count += 1
        if len(self.rows) > 2 * KEPT_ROWS:
            self.rows = self.rows[::2]
            self._stride *= 2


class EarlyStopping:
    """Decides from the rows of a run whether its validation loss has stopped falling.

    Training stops when, in every replica, none of the last `patience` validation losses is lower than the lowest loss
    before them. As in `kvae.training.best`, losses that are not finite are ignored. The decision depends only on the
    rows, so a resumed run stops at the same step as an uninterrupted one.

    Args:
      patience: The number of evaluations without a lower loss; 0 never stops early.

    Example:
      >>> early_stopping = EarlyStopping(patience=2)
      >>> for loss in (3.0, 2.0, 2.5, 2.1):
      ...     early_stopping.add({"step": 1, "valid/loss": loss})
      >>> early_stopping.is_over()
      True
    """

    def __init__(self, patience: int):
        self._patience, self._recent, self._lowest = patience, deque(maxlen=patience), None

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row; rows without a validation loss are ignored."""
        if not self._patience or LOSS not in row:
            return
        if len(self._recent) == self._patience:
            oldest = self._recent[0]
            self._lowest = oldest if self._lowest is None else np.fmin(self._lowest, oldest)
        self._recent.append(np.array(row[LOSS], np.float64))  # None, a loss that was not finite, becomes NaN

    def is_over(self) -> bool:
        """True if the loss has stopped falling in every replica."""
        return self._lowest is not None and not np.any(np.fmin.reduce(list(self._recent)) < self._lowest)
