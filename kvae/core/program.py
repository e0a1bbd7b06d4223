"""Command-line arguments, exit statuses and one-line errors, for all programs."""

import argparse
import io
import logging
import os
import runpy
import signal
import sys
import traceback
import typing
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from kvae.core.errors import InputError, require_extra
from kvae.core.fields import describe, validate
from kvae.core.files import user_path

FAILED, MISTAKE, STOPPED, INTERRUPTED = 1, 2, 75, 130
"""Exit statuses: a part failed; an error that the user can fix; stopped before the end (EX_TEMPFAIL); Ctrl-C."""

JAX_START_ERRORS = ("Unable to initialize backend", "for JAX flag", "for environment")
"""Parts of JAX's error messages when an environment variable names a missing platform or has an invalid value."""

QUIET_LOGGERS = ("absl", "asyncio")
"""Loggers that Orbax uses for its internals; kvae reports the outcome itself."""

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a program to stop: from a cluster, from Ctrl-C, and from a closed terminal."""


def exit_at_signals() -> None:
    """Makes each stop signal end this process at once with a one-line message; for programs with nothing to save."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # set by nohup
            signal.signal(number, _exit)


def _exit(number: int, frame: object) -> None:
    # No exception is raised, because a library that is being imported might catch or print it.
    line, status = "stopped; run the same command again to resume", STOPPED
    if number == signal.SIGINT:
        line, status = "interrupted", INTERRUPTED
    os.write(2, f"kvae: {line}\n".encode())
    os._exit(status)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` for a mistake instead of exiting.

    Args:
      name: The command, such as "python -m kvae.report".
      description: The text of --help, usually the docstring of the program's module.
    """

    def __init__(self, name: str, description: str):
        super().__init__(
            prog=name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self.add_argument(
            "--import",
            metavar="FILE",
            help="run a Python file first, for example one that adds an entry to kvae.NEIGHBORHOODS",
        )

    def error(self, message: str) -> NoReturn:
        """Raises an InputError with argparse's message."""
        raise InputError(f"{message}; see --help")


def number(annotation: Any) -> Callable[[str], Any]:
    """Returns a function that parses and validates a number, for the `type` of an argparse argument.

    Args:
      annotation: Type and range of the number, such as `kvae.core.fields.Count`.
    """

    def read(text: str) -> Any:
        kind = typing.get_args(annotation)[0]
        try:
            return validate("it", kind(text), annotation)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}; it must be {describe(annotation)}") from error

    return read


def import_files(argv: list[str]) -> list[str]:
    """Runs the files named by `--import=FILE` or `--import FILE`, and returns the other arguments.

    Raises:
      InputError: A file is missing or raises an exception.
    """
    rest, arguments = [], iter(argv)
    for argument in arguments:
        name, has_value, path = argument.partition("=")
        if name != "--import":
            rest.append(argument)
            continue
        path = path if has_value else next(arguments, "")
        if not path:
            raise InputError("--import needs a file; for example --import=mine.py")
        run_file("--import", path)
    return rest


def run_file(option: str, path: str) -> dict[str, Any]:
    """Runs a user's Python file and returns its global variables.

    Args:
      option: The option that names the file, for messages.
      path: The file.

    Raises:
      InputError: The file is missing or raises an exception.
    """
    file = user_path(option, path)
    if not file.is_file():
        raise InputError(f"{option}={path}: {'it is not a file' if file.exists() else 'there is no such file'}")
    try:
        return runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise InputError(f"{option}={path}: {type(error).__name__}: {error}") from error


def run(program: Callable[[list[str]], int], argv: list[str]) -> int:
    """Runs a program and returns its exit status.

    If the program raises `InputError`, its one line is printed to stderr, after the traceback if `--debug` is set, and
    the status is `MISTAKE`.

    Args:
      program: A function from the arguments to an exit status.
      argv: The arguments, without the program's name.
    """
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Orbax leaves a coroutine behind after a failed write.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # some terminals cannot show all characters
    try:
        with require_extra("train"):
            return program(import_files(argv))
    except InputError as error:
        return _report_mistake(error, argv)
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("kvae: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # a closed stdout, for example `| head`
        # Python flushes stdout once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (AssertionError, RuntimeError, ValueError) as error:
        if not _is_start_error(error):
            raise
        variables = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
        reason = str(error) or "this platform is not available"
        return _report_mistake(InputError(f"JAX does not start with the environment {variables}: {reason}"), argv)


def _is_start_error(error: Exception) -> bool:
    """True if a JAX_* environment variable caused this exception."""
    if isinstance(error, AssertionError):  # raised without text if JAX_PLATFORMS names a platform without a plugin
        return [*traceback.walk_tb(error.__traceback__)][-1][0].f_globals["__name__"] == "jax._src.xla_bridge"
    return any(part in str(error) for part in JAX_START_ERRORS)


def _report_mistake(error: InputError, argv: list[str]) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    print(f"kvae: {error}", file=sys.stderr)
    return MISTAKE
