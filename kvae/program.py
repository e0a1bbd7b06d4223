"""What all programs of kvae do alike: read their arguments, and tell an error in one line."""

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from kvae.errors import InputError, check_local

FAILED, MISTAKE, STOPPED, INTERRUPTED = 1, 2, 75, 130
"""Exit statuses: a part failed; an error that the user can mend; stopped before the end (EX_TEMPFAIL); Ctrl-C."""


LIBRARIES = ("absl", "asyncio")
"""What orbax logs under these names is not for the user of a program: kvae says what there is to say."""


SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
"""What asks a program to stop: a cluster, Ctrl-C, a terminal that is closed."""


def end_at_signals() -> None:
    """From now on a signal ends this process at once, in one line: until there is something to save."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _end)


def _end(number, frame):
    # An exception would be caught, or be shown as ignored, by whichever library is being imported.
    line, status = "stopped; run the same command again to go on", STOPPED
    if number == signal.SIGINT:
        line, status = "interrupted", INTERRUPTED
    os.write(2, f"kvae: {line}\n".encode())
    os._exit(status)


class Parser(argparse.ArgumentParser):
    """Arguments of a program, described by the docstring of its module; a mistake is an `InputError`."""

    def __init__(self, name: str, description: str):
        super().__init__(
            prog=name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises an InputError with the message of argparse."""
        raise InputError(f"{message}; --help shows what there is")


def run(program: Callable[[list[str]], int], argv: list[str]) -> int:
    """Runs a program; returns its exit status, `MISTAKE` after an error that the user can mend.

    Such an error is one line on stderr; `--debug` among the arguments shows its traceback too. A reader of the output
    that goes away, such as `head`, is no error.
    """
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # after a write that failed
    try:
        for argument in argv:
            name, is_option, value = argument.partition("=") if argument.startswith("-") else (argument, "", argument)
            check_local(name if is_option else "a path", value)
        return program(argv)
    except InputError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"kvae: {error}", file=sys.stderr)
        return MISTAKE
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("kvae: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
