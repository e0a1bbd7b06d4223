"""The one exception that means "the user can mend this"."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class InputError(ValueError):
    """Something outside the program is wrong: a field, a file, a folder, an array.

    Its message is one line that names what was found, where, and what would do. Programs print it without a
    traceback and leave with status 2; any other exception is a defect of kvae and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


BUCKET = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_local(name: str, path) -> None:
    """Raises InputError for the address of a bucket or another store: it would be taken for a folder of that name."""
    if BUCKET.match(str(path)):
        raise InputError(
            f"{name} is {path}; it must be a path: mount the bucket as a folder (gcsfuse, mount-s3), or copy what is "
            "there to a disk, and give that"
        )


def one_line(text: str) -> str:
    """A text on one line of what can be shown: names of files may hold line breaks, and bytes that are no text."""
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


def first_line(error: BaseException) -> str:
    """What an exception says first; its type, where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turns the ImportError of a package that is not installed into one line that names the package and the extra.

    Any other ImportError, such as a name that a package does not have, passes through.

    Args:
      extra: Name of the optional dependencies in pyproject.toml, such as "train".

    Raises:
      InputError: A package that the block imports is not installed.

    Example:
      >>> with require_extra("train"):
      ...     import nonesuch
      Traceback (most recent call last):
      kvae.core.errors.InputError: nonesuch is not installed: pip install -e '.[train]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kvae":
            raise
        raise InputError(f"{error.name} is not installed: pip install -e '.[{extra}]'") from error


@contextlib.contextmanager
def wrap_read_errors(what: object, remedy: str) -> Iterator[None]:
    """Turns whatever libraries raise over damaged or missing files into one line: what is damaged, and what to do.

    Where the machine refuses, for want of a right or of memory, the file may be whole: the remedy is not named.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # RuntimeError, ValueError, IndexError, OSError, DecodeError: each library has its own
        is_refused = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
        if is_refused or isinstance(error, MemoryError):
            raise InputError(f"{what} cannot be read: {first_line(error)}") from error
        raise InputError(f"{what} is damaged ({first_line(error)}); {remedy}") from error


@contextlib.contextmanager
def wrap_write_errors(folder):
    """Turns what a full, read-only or failing disk raises, in whichever library met it, into one line about `folder`.

    Files are written under temporary names, so that nothing which stood there before is touched.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        raise InputError(
            f"{folder} cannot be written: {reason}; what was there is kept, and the same command goes on once it can be"
        ) from error


def _disk_error(error: BaseException | None) -> str | None:
    """What the disk said, wherever it stands in a chain of exceptions; None where it said nothing."""
    if error is None or isinstance(error, InputError):
        return None
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    for number in DISK_ERRORS:
        # Libraries in C++ wrap it into errors of their own, and keep the text.
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return _disk_error(error.__cause__ or error.__context__)


def choose(field: str, name, values: Mapping):
    """The entry of `values` called `name`; an InputError that names the nearest ones where there is none."""
    if isinstance(name, str) and name in values:
        return values[name]
    near = difflib.get_close_matches(str(name), values, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(values)}"
    raise InputError(f"{field} is {name!r}; {hint}")


def check_names(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InputError for the first name that is not known, with the nearest that is."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise InputError(f"{where} has no field {name!r}; {hint}")
