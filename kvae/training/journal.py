"""What a run says as it goes: metrics.jsonl, TensorBoard events, log.txt, and lines or a bar on the terminal."""

import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from kvae.errors import InputError, errors_of_writing
from kvae.files import write_text

log = logging.getLogger(__name__)


def read_metrics(workdir: str) -> list[dict]:
    """The rows of metrics.jsonl, in the order of their steps; a last line that was cut off by a kill is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: a line was cut off and is left out: %.60s", path, line)
    return rows


def as_json(value):
    """A value of a row as JSON has it: a number, a list of numbers, null for what is not finite."""
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return [as_json(element) for element in value]
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def has_settled(rows: Sequence[Mapping], patience: int) -> bool:
    """Whether the last `patience` validation losses are all above an earlier one, in each replica; 0 is never.

    Read from the rows of metrics.jsonl, so that a run which was resumed stops where the uninterrupted one does.
    """
    losses = [row["valid/loss"] for row in rows if "valid/loss" in row]
    if not patience or len(losses) <= patience:
        return False
    losses = np.array(losses, np.float64)  # None, which is not finite, becomes NaN
    return not np.any(np.fmin.reduce(losses[-patience:]) < np.fmin.reduce(losses[:-patience]))


def is_finished(config: Mapping, rows: Sequence[Mapping]) -> bool:
    """Whether a run with these rows has reached its last step, or an early stop."""
    return bool(rows) and (
        rows[-1]["step"] >= config["steps"] or has_settled(rows, config.get("patience_evaluations", 0))
    )


class Journal:
    """The record of a run; on processes other than the first it writes nothing.

    Args:
      workdir: the run's folder.
      first_step: rows beyond it, of a run that went on after its last checkpoint, are dropped.
      steps: of the whole run, for the progress bar.
      writes: whether this process writes.
    """

    def __init__(self, workdir: str, *, first_step: int, steps: int, writes: bool):
        self.rows = [row for row in read_metrics(workdir) if row["step"] <= first_step]
        self._writes = writes
        if not writes:
            return
        # Imported here: reading a journal needs neither.
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        path, self._workdir = pathlib.Path(workdir) / "metrics.jsonl", workdir
        with errors_of_writing(workdir):
            write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._file = path.open("a")
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
        self.rows.append(row)
        if not self._writes:
            return
        with errors_of_writing(self._workdir):
            self._write(row)
        if self._terminal:
            self._bar.set_postfix_str(summary)
        # Where there is a bar, it says the same.
        level = logging.DEBUG if self._terminal else logging.INFO
        left = self._time_left(row["step"])
        log.log(level, "step %d/%d  %s%s", row["step"], self._steps, summary, f"  {left} left" if left else "")

    def _write(self, row):
        self._file.write(json.dumps(row) + "\n")
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
        file = logging.FileHandler(pathlib.Path(workdir) / "log.txt" if first_process else os.devnull)
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
