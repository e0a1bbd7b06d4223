"""The exception for mistakes that a user can fix, and context managers that turn other exceptions into it."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class InputError(ValueError):
    """Something outside the program is wrong: a field, a file, a folder or an array.

    The message is one line that names the value, where it was found, and what to do. Programs print it without a
    traceback and exit with status 2. Any other exception is a bug in kvae and keeps its traceback.

    Example:
      >>> print(InputError("steps is 0; it must be an integer, 1 or larger"))
      steps is 0; it must be an integer, 1 or larger
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class UnknownNameError(InputError):
    """A name that no entry of a dict has, such as the name of a model that a user's file adds."""


STORE_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

LONGEST_NAME = 255
"""Bytes in the name of a file or folder, on every common file system."""


def check_local(name: str, path: object) -> None:
    """Raises InputError unless a value can be a path on this machine.

    Args:
      name: What the path is called in the message.
      path: A string or an `os.PathLike`. The address of a bucket or another store, such as gs://bucket/folder, is
        refused: a local folder called "gs:" would be created.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{name} is {short_repr(path)}; it must be a path on this machine")
    shown = short_repr(path, 200, str)
    if STORE_ADDRESS.match(str(path)):
        raise InputError(
            f"{name} is {shown}; it must be a path: mount the bucket as a folder (gcsfuse, mount-s3), or copy its "
            "files to a disk"
        )
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is {shown}; no file can have the character {error.object[error.start]!r}") from error
    if 0 in encoded:
        raise InputError(f"{name} is {shown}; a path cannot contain a NUL byte")
    if max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise InputError(f"{name} is {shown}; a name in a path has at most {LONGEST_NAME} bytes")


def check_utf8(name: str, path: object) -> None:
    """Raises InputError if a name in a path is not UTF-8, which JAX's and Orbax's file formats need."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is {short_repr(path, 200, str)}; rename the folder: its name is not UTF-8") from error


def one_line(text: str) -> str:
    """Joins a text to one printable line; file names may hold line breaks and bytes that are not UTF-8."""
    joined = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in joined)


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def short_repr(value: Any, longest: int = 60, text: Callable[[Any], str] = repr) -> str:
    """Returns a value as one short line for messages.

    Example:
      >>> short_repr("a long text", 8)
      "'a lo..."

    Args:
      value: anything; if `text` fails on it, the name of its type is returned.
      longest: maximum length; longer texts end in "...".
      text: `repr` or `str`.
    """
    try:
        words = " ".join(text(value).split())
    except Exception:
        words = type(value).__name__
    return words if len(words) <= longest else f"{words[: longest - 3]}..."


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
def wrap_read_errors(source: object, remedy: str) -> Iterator[None]:
    """Turns any exception of a library that reads a missing or corrupted file into one line.

    If the system refuses access or runs out of memory, the file may be intact: then the remedy is left out.

    Args:
      source: The file or folder, for the message.
      remedy: What to do if it is corrupted.

    Raises:
      InputError: Anything was raised in the block.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each library raises its own: RuntimeError, ValueError, IndexError, OSError ...
        is_refused = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
        if is_refused or isinstance(error, MemoryError):
            raise InputError(f"{source} cannot be read: {first_line(error)}") from error
        raise InputError(f"{source} is corrupted ({first_line(error)}); {remedy}") from error


@contextlib.contextmanager
def wrap_write_errors(folder: object) -> Iterator[None]:
    """Turns the exception of a full, read-only or failing disk, from whichever library, into one line.

    Other exceptions pass through. Files are written under temporary names, so existing files are intact.

    Args:
      folder: Where the block writes, for the message.

    Raises:
      InputError: The disk refused.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        raise InputError(
            f"{folder} cannot be written: {reason}; existing files are intact; fix this and run the same command again"
        ) from error


def _disk_error(error: BaseException | None) -> str | None:
    """Returns the reason of the first disk error in a chain of exceptions, or None."""
    if error is None or isinstance(error, InputError):
        return None
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    for number in DISK_ERRORS:
        # C++ libraries raise their own exceptions but keep the system's text.
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return _disk_error(error.__cause__ or error.__context__)


def choose(field: str, name: object, values: Mapping[str, Any]) -> Any:
    """Returns `values[name]`.

    Args:
      field: The field or option that holds the name, for the message.
      name: A key of `values`.
      values: Entries by name.

    Raises:
      UnknownNameError: There is no such entry; the message names the nearest key.

    Example:
      >>> choose("metric", "cosin", {"cosine": 1, "euclidean": 2})
      Traceback (most recent call last):
      kvae.core.errors.UnknownNameError: metric is 'cosin'; did you mean 'cosine'?
    """
    if isinstance(name, str) and name in values:
        return values[name]
    nearest = difflib.get_close_matches(str(name), values, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it must be one of {', '.join(values)}"
    raise UnknownNameError(f"{field} is {short_repr(name)}; {hint}")


def check_names(section: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises InputError for the first name that is not known; the message suggests the nearest known name.

    Args:
      section: Where the names were found, for the message.
      names: The names to check.
      known: All allowed names.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known) or 'none'}"
            raise InputError(f"{section} has no field {name!r}; {hint}")
