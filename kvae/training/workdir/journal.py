"""What a run says as it goes: metrics.jsonl, TensorBoard events, log.txt, and lines or a bar on the terminal."""

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
from kvae.training.workdir.metrics_file import LOSS_AS_JSON, ROWS, EarlyStopping, Sample, end_of_rows, lines_in, row_of

log = logging.getLogger(__name__)

LOG = "log.txt"
"""The name of the file of what a run has said."""


def read_metrics(workdir: str) -> list[dict]:
    """The rows of metrics.jsonl, in the order of their steps; lines that are damaged or cut off are left out."""
    found = list(rows_in(workdir))
    rows = [row for row in found if row is not None]
    _say_damaged(workdir, len(found) - len(rows))
    return rows


def rows_in(workdir: str) -> Iterator[dict | None]:
    """The rows of metrics.jsonl, one by one; None for a line that is damaged.

    Raises:
      InputError: it cannot be read.
    """
    with _metrics_file(workdir) as file:
        yield from map(row_of, lines_in(file))


def _metrics_file(workdir) -> BinaryIO:
    path = as_path(workdir) / ROWS
    try:
        with wrap_bucket_errors(workdir):
            return opened(path) if path.exists() else io.BytesIO()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _say_damaged(workdir, count):
    if count:
        log.warning("%s/%s: %d damaged line%s left out", workdir, ROWS, count, " is" if count == 1 else "s are")


def as_json(value):
    """A value of a row as JSON has it: a number, a list of numbers, null for what is not finite."""
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return [as_json(element) for element in value]
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def has_settled(rows: Sequence[Mapping], patience: int) -> bool:
    """Whether the rows of a run say that its loss falls no more; see `EarlyStopping`."""
    early_stopping = EarlyStopping(patience)
    for row in rows:
        early_stopping.add(row)
    return early_stopping.is_over()


def is_finished(config: Mapping, rows: Sequence[Mapping]) -> bool:
    """Whether a run with these rows has reached its last step, or an early stop."""
    return bool(rows) and (
        rows[-1]["step"] >= config["steps"] or has_settled(rows, config.get("patience_evaluations", 0))
    )


class Journal:
    """The record of a run; on processes other than the first it writes nothing.

    Of the rows it keeps in memory some lines only, whatever their number.

    Args:
      workdir: the run's folder.
      first_step: rows beyond it, of a run that went on after its last checkpoint, are dropped.
      steps: of the whole run, for the progress bar.
      patience: evaluations without a lower loss after which the run ends; 0 is never.
      writes: whether this process writes.
    """

    def __init__(self, workdir: str, *, first_step: int, steps: int, patience: int, writes: bool):
        self._sample, self._evaluations, self._last = Sample(), Sample(), b"{}"
        self.early_stopping, self._writes = EarlyStopping(patience), writes
        with _metrics_file(workdir) as file:
            end, damaged = end_of_rows(file, first_step)
            file.seek(0)
            for line in lines_in(file, until=end):
                damaged += line[:1] != b"{" or (line[-2:] != b"}\n" and line[-1:] != b"}")
                self._keep(line)
        if not writes:
            return
        _say_damaged(workdir, damaged)
        # Imported here: reading a journal needs neither.
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        path, self._workdir = pathlib.Path(workdir) / ROWS, workdir
        with wrap_write_errors(workdir):
            self._file = path.open("a")
            os.truncate(self._file.fileno(), end)
            if end:
                self._file.write("\n")
            self._events = SummaryWriter(workdir, purge_step=first_step + 1, flush_secs=30)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not self._terminal, smoothing=0.05
        )
        self._steps, self._done, self._first_step, self._started = steps, first_step, None, None

    def advance(self) -> None:
        """One step is done."""
        if not self._writes:
            return
        self._bar.update()
        self._done += 1
        if self._started is None:  # the first step is compiled first: it says nothing of how long the rest takes
            self._started, self._first_step = time.monotonic(), self._done

    def write(self, row: dict, summary: str) -> None:
        """Writes a row, durably, and says `summary` on the terminal."""
        row = {name: value if name == "step" else as_json(value) for name, value in row.items()}
        line = json.dumps(row)
        self._keep(line.encode())
        if not self._writes:
            return
        with wrap_write_errors(self._workdir):
            self._write(row, line)
        if self._terminal:
            self._bar.set_postfix_str(summary)
        # Where there is a bar, it says the same.
        level = logging.DEBUG if self._terminal else logging.INFO
        left = self._time_left(row["step"])
        log.log(level, "step %d/%d  %s%s", row["step"], self._steps, summary, f"  {left} left" if left else "")

    def _keep(self, line: bytes) -> None:
        has_loss = LOSS_AS_JSON in line
        (self._evaluations if has_loss else self._sample).add(line)
        self._last = line
        if has_loss and self.early_stopping.patience and (row := row_of(line)):
            self.early_stopping.add(row)

    @property
    def rows(self) -> list[dict]:
        """Some rows, spread over the run, as many as a curve can show, and the last one."""
        rows = filter(None, map(row_of, (*self._sample.lines, *self._evaluations.lines, self._last)))
        return sorted({row["step"]: row for row in rows}.values(), key=lambda row: row["step"])

    def _write(self, row, line):
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in row.items():
            finite = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
            if name != "step" and finite:
                self._events.add_scalar(name, sum(finite) / len(finite), row["step"])

    def _time_left(self, step) -> str:
        """Hours, minutes and seconds until the last step; nothing is known after the first one."""
        if self._started is None or step <= self._first_step:
            return ""
        seconds = int((time.monotonic() - self._started) / (step - self._first_step) * (self._steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def close(self) -> None:
        """Closes the files and the bar."""
        if self._writes:
            self._bar.close()
            self._events.close()
            self._file.close()


class _Terminal(logging.Handler):
    """Writes above the progress bar instead of through it."""

    def emit(self, record):
        from tqdm import tqdm

        with contextlib.suppress(OSError):  # a terminal that is closed
            tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def logged_to(workdir: str, *, first_process: bool = True):
    """Sends what kvae logs to the terminal and, in plain dated lines, to `<workdir>/log.txt`.

    Processes other than the first write no file, and only warnings to the terminal.

    Raises:
      InputError: the folder cannot be made or written.
    """
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(pathlib.Path(workdir) / LOG if first_process else os.devnull)
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with shown_on_terminal(file, first_process=first_process):
        yield


@contextlib.contextmanager
def shown_on_terminal(*others: logging.Handler, first_process: bool = True):
    """Sends what kvae logs to the terminal, and to other handlers; of processes but the first, only warnings."""
    handlers = (_Terminal(logging.INFO if first_process else logging.WARNING), *others)
    logger = logging.getLogger("kvae")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # absl's own handler would say everything twice
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def summary(row: Mapping[str, Any], counts: Mapping[str, np.ndarray]) -> str:
    """A row, and how many codes were used, in a few words for the terminal and the log."""
    words = [f"loss {np.nanmean(row['train/loss']):.4f}"]
    if "valid/loss" in row:
        words.append(f"valid {np.nanmean(row['valid/loss']):.4f}")
    for name, of_codes in counts.items():
        words.append(f"{name} {np.mean(np.count_nonzero(of_codes, axis=-1)):.0f}/{np.shape(of_codes)[-1]} codes")
    if "images_per_second" in row:
        words.append(f"{row['images_per_second']:.0f} images/s")
    return "  ".join(words)
