"""Files that a reader, or a kill, never meets half written, and that a reader never waits for."""

import contextlib
import io
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from kvae.core.buckets import as_path, is_bucket, wrap_bucket_errors
from kvae.core.errors import InputError, check_local


def opened(path: os.PathLike | str) -> BinaryIO:
    """Opens a file to read its bytes.

    Raises:
      OSError: it cannot be opened, or is a folder, a pipe or a device: a pipe would wait for its writer for ever.
    """
    if is_bucket(path):
        with wrap_bucket_errors(path):
            return io.BytesIO(as_path(path).read_bytes())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is a folder, a pipe or a device, not a file")
    return os.fdopen(descriptor, "rb")


def read_text(path: os.PathLike | str) -> str:
    """Reads a text file.

    Raises:
      OSError: as `opened`.
      UnicodeDecodeError: it is not UTF-8; a ValueError.
    """
    with opened(path) as file:
        return file.read().decode()


def check_target(folder: pathlib.Path, mark: str) -> None:
    """Raises InputError where a folder holds files, and `mark`, which every folder that we write has, is not there."""
    others = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
    if others and mark not in others:
        raise InputError(f"{folder} holds other files ({others[0]}); choose a folder that is new or empty")


@contextlib.contextmanager
def replaced(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Gives a path to write to; when the block ends well, what was written there takes the place of `path`.

    If the block fails, what stood at `path` stays, and nothing is left behind. Missing folders are made.
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
    """Writes a text file in one step; what is no character, as in names of files, is written as its escape."""
    content = text.encode(errors="backslashreplace")
    if is_bucket(path):
        as_path(path).write_bytes(content)
        return
    with replaced(path) as temporary:
        temporary.write_bytes(content)
