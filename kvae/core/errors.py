"""`InputError`, the exception for mistakes that a user can fix, and helpers that raise it."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

ACCESS_ERRORS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
"""Errors of reading a file that may be intact: no memory, too many open files, no access."""


class InputError(ValueError):
    """Raised for a mistake that the user can fix, in a field, file, folder or array.

    The message is one line that names the value, where it was found, and what to do. Programs print it without a
    traceback and exit with status 2. Any other exception is a bug in kvae and keeps its traceback.

    Example:
      >>> print(InputError("steps is 0; it must be an integer >= 1"))
      steps is 0; it must be an integer >= 1
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class UnknownNameError(InputError):
    """Raised by `choose` for an unknown name, such as a model whose file was not imported."""


STORE_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

LONGEST_NAME = 255
"""Maximum length, in bytes, of the name of a file or folder on all common file systems."""


def check_local(name: str, path: object) -> None:
    """Raises InputError unless a value is a valid path on this machine.

    Args:
      name: What the path is called in the message.
      path: A string or an `os.PathLike`. Addresses of buckets and other stores, such as gs://bucket/folder, are
        rejected, because writing to one would create a local folder called "gs:".
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
        letter = error.object[error.start]
        raise InputError(f"{name} is {shown}; a path cannot contain the character {letter!r}") from error
    if 0 in encoded:
        raise InputError(f"{name} is {shown}; a path cannot contain a NUL byte")
    if max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise InputError(f"{name} is {shown}; each name in a path must have at most {LONGEST_NAME} bytes")


def check_utf8(name: str, path: object) -> None:
    """Raises InputError if a name in a path is not UTF-8, which JAX's and Orbax's file formats need."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = short_repr(path, 200, str)
        raise InputError(f"{name} is {shown}; its name is not valid UTF-8: rename the folder") from error


def one_line(text: str) -> str:
    """Returns a text as one printable line. File names may contain line breaks and bytes that are not UTF-8."""
    joined = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in joined)


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def short_repr(value: Any, longest: int = 60, text: Callable[[Any], str] = repr) -> str:
    """Returns a short one-line text of a value for messages.

    Example:
      >>> short_repr("a long text", 8)
      "'a lo..."

    Args:
      value: any object; if `text` fails on it, the name of its type is returned.
      longest: maximum length; longer texts are cut and end in "...".
      text: `repr` or `str`.
    """
    try:
        line = " ".join(text(value).split())
    except Exception:
        line = type(value).__name__
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turns the error of a missing package into an InputError that names the package and the extra to install.

    Other ImportErrors, such as a name that an installed package does not have, pass through.

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
    """Turns any exception from reading a missing or corrupted file into a one-line InputError.

    If the system denies access or runs out of memory, the file may be intact. The message then omits the remedy.

    Args:
      source: The file or folder, for the message.
      remedy: What to do if it is corrupted.

    Raises:
      InputError: The block raised an exception.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # libraries raise RuntimeError, ValueError, IndexError, OSError and others
        is_refused = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
        if is_refused or access_error(error):
            raise InputError(f"{source} cannot be read: {first_line(error)}") from error
        raise InputError(f"{source} is corrupted ({first_line(error)}); {remedy}") from error


def access_error(error: BaseException | None) -> str | None:
    """Returns the reason if a read failed for lack of memory, access or file handles: the file itself may be intact.

    Example:
      >>> access_error(MemoryError()), access_error(ValueError("not a zip file"))
      ('out of memory', None)

    Args:
      error: An exception from any library; its causes are checked too.

    Returns:
      One line; None if there is no such reason.
    """
    if error is None or isinstance(error, InputError):
        return None
    if isinstance(error, MemoryError):
        return "out of memory"
    if "RESOURCE_EXHAUSTED" in str(error):  # JAX, for a full device, and tensorstore
        return short_repr(first_line(error), 200, str)
    for number in ACCESS_ERRORS:
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    return access_error(error.__cause__ or error.__context__)


@contextlib.contextmanager
def wrap_write_errors(folder: object) -> Iterator[None]:
    """Turns any library's exception for a full, read-only or failing disk into a one-line InputError.

    Other exceptions pass through. Files are written under temporary names, so existing files are intact.

    Args:
      folder: Where the block writes, for the message.

    Raises:
      InputError: The disk cannot be written.
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
    """Returns the system's text for the first disk error in a chain of exceptions; None if there is none."""
    if error is None or isinstance(error, InputError):
        return None
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    for number in DISK_ERRORS:
        # C++ libraries raise their own exceptions, but the messages contain the system's text.
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
      UnknownNameError: `values` has no such key; the message suggests the nearest one.

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
      section: The section that has these names, for the message.
      names: The names to check.
      known: All allowed names.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            others = f"its fields are {', '.join(known)}" if known else "it takes no fields"
            hint = f"did you mean {nearest[0]!r}?" if nearest else others
            raise InputError(f"{section} has no field {name!r}; {hint}")
