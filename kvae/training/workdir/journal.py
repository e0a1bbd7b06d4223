"""Writes metrics.jsonl and TensorBoard events, and a summary or a progress bar to the terminal."""

import contextlib
import io
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from kvae.core.buckets import as_path, wrap_bucket_errors
from kvae.core.errors import InputError, wrap_write_errors
from kvae.core.files import opened
from kvae.training.best import LOSS
from kvae.training.workdir.events import Events
from kvae.training.workdir.metrics_file import ROWS, EarlyStopping, RowSample, read_rows

log = logging.getLogger(__name__)


def read_metrics(workdir: str, replicas: int | None = None) -> list[dict[str, Any]]:
    """Reads the rows of a run's metrics.jsonl, and logs a warning about corrupted lines.

    Args:
      workdir: The run's folder, on a disk or in a bucket.
      replicas: The run's number of replicas, if known; rows with lists of another length count as corrupted.

    Returns:
      The rows in file order, without corrupted or truncated lines; empty if there is no file.

    Raises:
      InputError: The file cannot be read.
    """
    lines = list(rows_in(workdir, replicas))
    rows = [row for row in lines if row is not None]
    _warn_of_corrupted_lines(workdir, len(lines) - len(rows))
    return rows


def rows_in(workdir: str, replicas: int | None = None) -> Iterator[dict[str, Any] | None]:
    """Yields the rows of a run's metrics.jsonl, and None for each corrupted line; see `read_metrics`.

    Raises:
      InputError: The file cannot be read.
    """
    with _open_rows(workdir) as file:
        for _, row in read_rows(file, replicas):
            yield row


def _open_rows(workdir: str) -> BinaryIO:
    path = as_path(workdir) / ROWS
    try:
        with wrap_bucket_errors(workdir):
            return opened(path) if path.exists() else io.BytesIO()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _warn_of_corrupted_lines(workdir: str, count: int) -> None:
    if count:
        log.warning("%s/%s: ignoring %d corrupted line%s", workdir, ROWS, count, "" if count == 1 else "s")


def as_json(value: Any) -> float | int | list | None:
    """Converts a metric to a number or a list of numbers for JSON, with None for values that are not finite.

    Example:
      >>> as_json(np.array([0.5, np.nan]))
      [0.5, None]
    """
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return [as_json(element) for element in value]
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def is_finished(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """True if a run has reached its last step or has stopped early.

    Args:
      config: The run's config.
      rows: The run's rows.
    """
    early_stopping = EarlyStopping(config.get("patience_evaluations", 0))
    for row in rows:
        early_stopping.add(row)
    return bool(rows) and (rows[-1]["step"] >= config["steps"] or early_stopping.is_over())


class Journal:
    """Writes the metrics of a run to files and the terminal; on processes other than the first it writes nothing.

    It keeps at most 4,001 rows in memory.

    Args:
      workdir: The local folder to write to.
      first_step: The step of the restored checkpoint. Later rows, which a killed run may have written, are dropped.
      steps: The last step of the run, for the progress bar.
      patience: See `EarlyStopping`.
      writes: True if this process writes.
      replicas: The run's number of replicas, if known; rows with lists of another length count as corrupted.

    Attributes:
      early_stopping: The run's `EarlyStopping`. Every process has one, so that all of them stop at the same step.

    Raises:
      InputError: metrics.jsonl cannot be read or written.
    """

    def __init__(
        self, workdir: str, *, first_step: int, steps: int, patience: int, writes: bool, replicas: int | None = None
    ):
        # Evaluations are rarer than other rows, so they are sampled separately to keep enough of them for curves.
        self._sample, self._evaluations, self._last = RowSample(), RowSample(), None
        self.early_stopping, self._writes = EarlyStopping(patience), writes
        end, corrupted = 0, 0
        with _open_rows(workdir) as file:
            for line_end, row in read_rows(file, replicas):
                corrupted += row is None
                if row is not None and row["step"] <= first_step:
                    end = line_end
                    self._keep(row)
        if not writes:
            return
        _warn_of_corrupted_lines(workdir, corrupted)
        from tqdm import tqdm  # imported here because processes that only read metrics do not need it

        path, self._workdir = pathlib.Path(workdir) / ROWS, workdir
        with wrap_write_errors(workdir), contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("a"))
            os.truncate(self._file.fileno(), end)
            if end:
                self._file.write("\n")
            self._events = Events(workdir, first_step)
            stack.pop_all()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not self._terminal, smoothing=0.05
        )
        self._steps, self._done, self._first_step, self._started = steps, first_step, None, None

    def advance(self) -> None:
        """Counts one finished training step."""
        if not self._writes:
            return
        self._bar.update()
        self._done += 1
        if self._started is None:  # the first step includes compilation, so it is not timed
            self._started, self._first_step = time.monotonic(), self._done

    def write(self, row: Mapping[str, Any], text: str) -> None:
        """Writes a row to the disk, and its summary to the terminal.

        Args:
          row: Metrics by name, and "step".
          text: A summary of the row, to log.

        Raises:
          InputError: The disk cannot be written.
        """
        row = {name: value if name == "step" else as_json(value) for name, value in row.items()}
        self._keep(row)
        if not self._writes:
            return
        with wrap_write_errors(self._workdir):
            self._write(row)
        if self._terminal:
            self._bar.set_postfix_str(text)
        # On a terminal, the progress bar already shows the text.
        level = logging.DEBUG if self._terminal else logging.INFO
        left = self._time_left(row["step"])
        log.log(level, "step %d/%d  %s%s", row["step"], self._steps, text, f"  {left} left" if left else "")

    def _keep(self, row: dict[str, Any]) -> None:
        (self._evaluations if LOSS in row else self._sample).add(row)
        self._last = row
        self.early_stopping.add(row)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The last row and a sample of the others, at most 4,001 in all, sorted by step."""
        rows = [*self._sample.rows, *self._evaluations.rows, *([self._last] if self._last else [])]
        return sorted({row["step"]: row for row in rows}.values(), key=lambda row: row["step"])

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in row.items():
            finite = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
            if name != "step" and finite:
                self._events.add_scalar(name, sum(finite) / len(finite), row["step"])

    def _time_left(self, step: int) -> str:
        """Returns the estimated time until the last step as h:mm:ss; empty before there is an estimate."""
        if self._started is None or step <= self._first_step:
            return ""
        seconds = int((time.monotonic() - self._started) / (step - self._first_step) * (self._steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def close(self) -> None:
        """Closes the files and the progress bar.

        Raises:
          InputError: The last lines cannot be written.
        """
        if not self._writes:
            return
        with wrap_write_errors(self._workdir), contextlib.ExitStack() as stack:
            for part in (self._file, self._events, self._bar):
                stack.callback(part.close)


def summary(row: Mapping[str, Any], counts: Mapping[str, np.ndarray]) -> str:
    """Summarises a row in one line for the terminal and the log.

    Args:
      row: The metrics of a step.
      counts: How often each code was used, [..., K], by codebook. The summary shows their sum, the number N of
        quantised vectors, because N vectors can use at most N codes.

    Example:
      >>> summary({"train/loss": 0.5, "images_per_second": 800.0}, {"codebook": np.array([[3, 0, 1]])})
      'loss 0.5000  codebook 2/3 codes (N = 4)  800 images/s'
    """
    parts = [f"loss {np.nanmean(row['train/loss']):.4f}"]
    if LOSS in row:
        parts.append(f"valid {np.nanmean(row[LOSS]):.4f}")
    for name, code_counts in counts.items():
        used, vectors = np.mean(np.count_nonzero(code_counts, axis=-1)), np.mean(np.sum(code_counts, axis=-1))
        parts.append(f"{name} {used:.0f}/{np.shape(code_counts)[-1]} codes (N = {vectors:.0f})")
    if "images_per_second" in row:
        parts.append(f"{row['images_per_second']:.0f} images/s")
    return "  ".join(parts)
