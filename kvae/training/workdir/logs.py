"""Sends kvae's log to the terminal, and to log.txt in a run's folder."""

import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Iterator

from kvae.core.errors import InputError

LOG = "log.txt"
"""Name of the log file."""


class _Terminal(logging.Handler):
    """Writes log lines above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with contextlib.suppress(OSError):  # the terminal may be closed
            tqdm.write(self.format(record), file=sys.stderr)


class _LogFile(logging.FileHandler):
    """Writes log.txt. Ignores write errors, such as a full disk, because the journal reports them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the name that logging calls
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logged_to(workdir: str, *, first_process: bool = True) -> Iterator[None]:
    """Sends kvae's log to the terminal and, with dates, to `<workdir>/log.txt`.

    Processes other than the first write no file, and only warnings to the terminal.

    Args:
      workdir: A local folder; created if missing.
      first_process: True if this is the first process.

    Raises:
      InputError: The folder cannot be created or written.
    """
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        file = _LogFile(pathlib.Path(workdir) / LOG if first_process else os.devnull)
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with shown_on_terminal(file, first_process=first_process):
        yield


@contextlib.contextmanager
def shown_on_terminal(*others: logging.Handler, first_process: bool = True) -> Iterator[None]:
    """Sends kvae's log to the terminal; from processes other than the first, only warnings.

    Args:
      *others: Further handlers, which get every record and are closed afterwards.
      first_process: True if this is the first process.
    """
    handlers = (_Terminal(logging.INFO if first_process else logging.WARNING), *others)
    logger = logging.getLogger("kvae")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # absl's own handler would print every line again
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
