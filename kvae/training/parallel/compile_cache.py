"""Removes unreadable programs from JAX's compilation cache."""

import contextlib
import logging
import os
import pathlib
import time

log = logging.getLogger(__name__)

SUFFIX = "-cache"
"""Suffix of the files of compiled programs in JAX's cache."""

MARK = "kvae-checked"
"""Name of an empty file in the cache. Programs older than this file have been checked."""


def remove_unreadable(folder: pathlib.Path) -> int:
    """Removes programs that cannot be decompressed, such as those truncated by a full disk, and logs how many.

    JAX never replaces a file in its cache, so it would log a warning and compile such a program again at every start.
    A call reads only the programs that were written since the last call.

    Args:
      folder: The cache. Nothing happens if it does not exist or is not on this machine.

    Returns:
      The number of removed programs.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = (pathlib.Path(folder) / "jit_step-cache").write_bytes(b"truncated")
      ...     remove_unreadable(pathlib.Path(folder))
      1
    """
    removed, started = 0, time.time()
    with contextlib.suppress(OSError):  # JAX itself reports a cache that cannot be read
        mark = folder / MARK
        checked = mark.stat().st_mtime if mark.exists() else 0
        for path in folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another program has removed it
                if path.stat().st_mtime >= checked and not _is_intact(path):
                    path.unlink()
                    removed += 1
        if folder.is_dir():
            mark.touch()
            # The next call checks programs that were written during this one; file systems may round times to seconds.
            os.utime(mark, (started - 2, started - 2))
    if removed:
        log.warning(
            "removed %d unreadable compiled program%s from %s; JAX will compile %s again",
            removed,
            "" if removed == 1 else "s",
            folder,
            "it" if removed == 1 else "them",
        )
    return removed


def _is_intact(path: pathlib.Path) -> bool:
    from jax._src.compilation_cache import decompress_executable  # it has no public name

    content = path.read_bytes()
    try:
        decompress_executable(content)
    except Exception:  # each compressor raises its own exceptions
        return False
    return True
