"""Atomic writes (a killed process leaves no partial file) and reads that never block on a pipe."""

import contextlib
import hashlib
import io
import os
import pathlib
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO

from kvae.core.buckets import as_path, check_address, is_bucket, wrap_bucket_errors
from kvae.core.errors import InputError, check_local, check_utf8, first_line, short_repr


def user_path(name: str, path: object) -> pathlib.Path:
    """Returns a user's local path with `~` expanded, after checking that the system can look it up.

    Example:
      >>> user_path("--out", "runs/one").name
      'one'
      >>> user_path("--out", 3)
      Traceback (most recent call last):
      kvae.core.errors.InputError: --out is 3; it must be a path on this machine

    Args:
      name: The field or option that holds the path, for messages.
      path: A string or an `os.PathLike`; the file or folder need not exist.

    Raises:
      InputError: The value is not a path, or the system cannot look it up: it has a NUL byte, a name that is too long,
        an unknown user after `~`, a loop of symbolic links, or a folder that denies access.
    """
    check_local(name, path)
    path = pathlib.Path(path)
    try:
        expanded = path.expanduser()
    except RuntimeError as error:
        raise InputError(f"{name} is {short_repr(path, 200, str)}; there is no user {path.parts[0][1:]!r}") from error
    try:
        expanded.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        why = error.strerror or first_line(error)
        raise InputError(f"{name} is {short_repr(expanded, 200, str)}; it cannot be opened: {why}") from error
    return expanded


def target_path(name: str, path: object) -> pathlib.Path:
    """Returns `user_path` for a file or folder to write. Its name must be UTF-8, because some libraries require it."""
    target = user_path(name, path)
    check_utf8(name, target)
    return target


def user_address(name: str, path: object) -> str:
    """Returns the address of a run's folder: unchanged if it is in a bucket, otherwise `user_path` as a string."""
    check_address(name, path)
    return str(path) if is_bucket(path) else str(user_path(name, path))


def opened(path: os.PathLike | str) -> BinaryIO:
    """Opens a file on a disk or in a bucket for reading in binary mode.

    Args:
      path: The file; an object in a bucket is read into memory.

    Returns:
      A binary file object.

    Raises:
      OSError: The file cannot be opened, or it is a folder, a pipe or a device. Reading a pipe could block forever.
      InputError: The bucket does not answer.
    """
    if is_bucket(path):
        with wrap_bucket_errors(path):
            return io.BytesIO(as_path(path).read_bytes())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_file(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_file(path: os.PathLike | str | int) -> None:
    """Raises OSError unless a local path, or an open descriptor, is a file.

    Call it before a library opens the path, because a library would block on a pipe.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is a folder, a pipe or a device, not a file")


def read_text(path: os.PathLike | str) -> str:
    """Reads a UTF-8 text file.

    Raises:
      OSError: As for `opened`.
      UnicodeDecodeError: The file is not UTF-8 (a kind of ValueError).
    """
    with opened(path) as file:
        return file.read().decode()


def digest_of_file(path: os.PathLike | str) -> str:
    """Returns the BLAKE2b digest (16 bytes, in hex) of a file; raises OSError like `opened`."""
    with opened(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_target(folder: pathlib.Path, mark: str, unfinished: Collection[str] = ()) -> None:
    """Raises InputError if writing into a folder would mix kvae's files with the user's.

    Args:
      folder: The folder to write to.
      mark: Name of a file that identifies folders written by kvae. A folder that already has files must contain it.
      unfinished: Names of files that kvae writes before the mark. A folder may contain them without the mark, because
        an interrupted call leaves such a folder.
    """
    others = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
    if mark not in others and (others := [name for name in others if name not in unfinished]):
        raise InputError(f"{folder} holds other files ({others[0]}); choose a new or empty folder")


@contextlib.contextmanager
def replaced(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Replaces a local file atomically. Missing folders are created.

    Args:
      path: The file to replace.

    Yields:
      A temporary path to write to. It is renamed to `path` when the block succeeds. If the block fails, `path` is
      unchanged and the temporary file is removed.

    Raises:
      InputError: The path is an address, such as gs://bucket/file.
    """
    check_local("the file", path)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: os.PathLike | str, text: str) -> None:
    """Writes a UTF-8 text file atomically, on a disk or in a bucket.

    Surrogates, which Python uses for bytes of file names that are not UTF-8, are written as escapes.

    Example:
      >>> import tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp(), "new folder", "note.txt")
      >>> write_text(file, "hello")
      >>> read_text(file)
      'hello'
    """
    content = text.encode(errors="backslashreplace")
    if is_bucket(path):
        as_path(path).write_bytes(content)
        return
    with replaced(path) as temporary:
        temporary.write_bytes(content)
