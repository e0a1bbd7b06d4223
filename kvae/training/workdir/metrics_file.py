"""The rows of metrics.jsonl, of which a long run has millions: read one by one, from the end, or some of them."""

import functools
import json
import os
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from kvae.training.best import LOSS

ROWS = "metrics.jsonl"
"""The name of their file."""

LOSS_AS_JSON = f'"{LOSS}"'.encode()
"""A row that has it holds an evaluation."""

BLOCK_BYTES, LONGEST_LINE_BYTES = 2**16, 2**24
KEPT_LINES = 1_000


def row_of(line: bytes) -> dict | None:
    """The row of a line; None where it is damaged: no JSON, no dict, without a step, or with values that are none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int and all(map(_is_value, row.values()))
    return row if whole else None


def _is_value(value) -> bool:
    if isinstance(value, list):
        return all(map(_is_value, value))
    return value is None or (type(value) in (int, float) and not abs(value) >= 2**63)


def lines_in(file: BinaryIO, until: int | None = None) -> Iterator[bytes]:
    """The lines of a file that are not empty, up to a byte where one is given."""
    position = 0
    for line in iter(functools.partial(file.readline, LONGEST_LINE_BYTES), b""):
        if until is not None and position >= until:
            return
        position += len(line)
        if line != b"\n":
            yield line


def lines_backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from the last to the first, without their ends, each after the byte where it begins."""
    position, rest = file.seek(0, os.SEEK_END), b""
    while position > 0:
        size = min(BLOCK_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size) + rest
        end = position + len(block)
        rest, *lines = block.split(b"\n")
        for line in reversed(lines):
            end -= len(line)
            if line:
                yield end, line
            end -= 1
        if len(rest) > LONGEST_LINE_BYTES:  # no row is so long
            rest = b""
    if rest:
        yield 0, rest


def end_of_rows(file: BinaryIO, last_step: int) -> tuple[int, int]:
    """The byte where the last row ends whose step is at most `last_step`, and how many lines after it are damaged."""
    damaged = 0
    for start, line in lines_backwards(file):
        row = row_of(line)
        if row is not None and row["step"] <= last_step:
            return start + len(line), damaged
        damaged += row is None
    return 0, damaged


class Sample:
    """At most 2,000 of the lines that are added, evenly spread over them."""

    def __init__(self):
        self.lines, self._count, self._every = [], 0, 1

    def add(self, line: bytes) -> None:
        """Takes every n-th line, and forgets half of those that it has when they become too many."""
        if self._count % self._every == 0:
            self.lines.append(line)
        self._count += 1
        if len(self.lines) > 2 * KEPT_LINES:
            self.lines = self.lines[::2]
            self._every *= 2


class EarlyStopping:
    """Whether the last `patience` validation losses are all above an earlier one, in each replica; 0 is never.

    The rule of `kvae.training.best`, for each replica by itself: a run ends when none of them still improves.

    Told from rows, so that a run which was resumed stops where the uninterrupted one does.
    """

    def __init__(self, patience: int):
        self.patience, self._last, self._lowest = patience, deque(maxlen=patience), None

    def add(self, row: dict) -> None:
        """Takes note of the loss of a row, if it has one."""
        if not self.patience or LOSS not in row:
            return
        if len(self._last) == self.patience:
            oldest = self._last[0]
            self._lowest = oldest if self._lowest is None else np.fmin(self._lowest, oldest)
        self._last.append(np.array(row[LOSS], np.float64))  # None, which is not finite, becomes NaN

    def is_over(self) -> bool:
        """Whether the loss falls no more."""
        return self._lowest is not None and not np.any(np.fmin.reduce(list(self._last)) < self._lowest)
