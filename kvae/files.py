"""Files that a reader, or a kill, never meets half written."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replaced(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Gives a path to write to; when the block ends well, what was written there takes the place of `path`.

    If the block fails, what stood at `path` stays, and nothing is left behind. Missing folders are made.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: os.PathLike | str, text: str) -> None:
    """Writes a text file in one step."""
    with replaced(path) as temporary:
        temporary.write_text(text)
