"""What all programs of kvae do alike: read their arguments, and tell an error in one line."""

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

from kvae.core.buckets import check_address
from kvae.core.errors import InputError, check_local
from kvae.core.fields import describe, validate

FAILED, MISTAKE, STOPPED, INTERRUPTED = 1, 2, 75, 130
"""Exit statuses: a part failed; an error that the user can mend; stopped before the end (EX_TEMPFAIL); Ctrl-C."""


OF_ENVIRONMENT = ("Unable to initialize backend", "for JAX flag", "for environment")
"""What JAX says where a variable asks for a platform that is not there, or for nothing that it knows."""

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


WORKDIR = "--workdir"


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
        self.add_argument(
            "--import", metavar="FILE", help="a file of yours that adds to kvae.NEIGHBORHOODS and the like"
        )

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; only a run may lie in a bucket: `--workdir`, or what stands without an option.

        Raises:
          InputError: another argument is an address, which would be taken for a folder of that name.
        """
        options, rest = super().parse_known_args(args, namespace)
        for action in self._actions:  # argparse alone knows which options have a value
            found = getattr(options, action.dest, None)
            name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
            check = check_local if action.option_strings and name != WORKDIR else check_address
            for value in found if isinstance(found, list) else [found]:
                check(name, value)
        before = "an argument"
        for argument in rest:
            name, has_value, value = argument.partition("=") if argument.startswith("-") else (before, "", argument)
            if name != WORKDIR:
                check_local(name, value)
            before = name if argument.startswith("-") and not has_value else "an argument"
        return options, rest

    def error(self, message: str) -> NoReturn:
        """Raises an InputError with the message of argparse."""
        raise InputError(f"{message}; --help shows what there is")


def number(annotation) -> Callable[[str], Any]:
    """The `type` of an argument: a number of the type and range of an annotation, such as `kvae.core.fields.Count`."""

    def read(text: str):
        kind = typing.get_args(annotation)[0]
        try:
            return validate("it", kind(text), annotation)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}; it must be {describe(annotation)}") from error

    return read


def import_files(argv: list[str]) -> list[str]:
    """Runs the files that `--import=FILE` names, so that what they add to kvae is known; returns the other arguments.

    Raises:
      InputError: there is no such file, or it fails.
    """
    rest = []
    for argument in argv:
        name, _, path = argument.partition("=")
        if name != "--import":
            rest.append(argument)
            continue
        check_local(name, path)
        try:
            runpy.run_path(path)
        except Exception as error:
            raise InputError(f"{argument}: {type(error).__name__}: {error}") from error
    return rest


def run(program: Callable[[list[str]], int], argv: list[str]) -> int:
    """Runs a program; returns its exit status, `MISTAKE` after an error that the user can mend.

    Such an error is one line on stderr; `--debug` among the arguments shows its traceback too. A reader of the output
    that goes away, such as `head`, is no error.
    """
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # after a write that failed
    if sys.warnoptions:  # PYTHONWARNINGS=error would stop at what libraries warn of
        warnings.simplefilter("default")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may hold what no terminal can show
    try:
        return program(import_files(argv))
    except InputError as error:
        return _mistake(error, argv)
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("kvae: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, ValueError) as error:
        if not any(words in str(error) for words in OF_ENVIRONMENT):
            raise
        asked = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
        return _mistake(InputError(f"JAX does not start with the environment {asked}: {error}"), argv)


def _mistake(error: InputError, argv: list[str]) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    print(f"kvae: {error}", file=sys.stderr)
    return MISTAKE
