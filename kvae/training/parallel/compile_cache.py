"""Keeps JAX's cache of compiled programs intact."""

import contextlib
import logging
import os
import pathlib
import time

log = logging.getLogger(__name__)

SUFFIX = "-cache"
"""The end of the name of a compiled program in JAX's cache."""

MARK = "kvae-checked"
"""An empty file in the cache; programs that are older than it have been checked."""


def remove_unreadable(folder: pathlib.Path) -> int:
    """Removes programs that cannot be unpacked, such as those that a full disk has truncated, and logs how many.

    JAX never replaces a file of its cache, so it would warn about such a program, and compile it, at every start. Each
    program is read once: later calls read only those that have been written since.

    Args:
      folder: The cache; if it does not exist, or is not on this machine, nothing is done.

    Returns:
      The number of programs that were removed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = (pathlib.Path(folder) / "jit_step-cache").write_bytes(b"truncated")
      ...     remove_unreadable(pathlib.Path(folder))
      1
    """
    removed, started = 0, time.time()
    with contextlib.suppress(OSError):  # a cache that cannot be read is JAX's to report
        mark = folder / MARK
        checked = mark.stat().st_mtime if mark.exists() else 0
        for path in folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another program has removed it
                if path.stat().st_mtime >= checked and not _is_intact(path):
                    path.unlink()
                    removed += 1
        if folder.is_dir():
            mark.touch()
            # Programs that were written during the check are checked next time; file systems may round to seconds.
            os.utime(mark, (started - 2, started - 2))
    if removed:
        log.warning(
            "removed %d compiled program%s from %s, which could not be read; %s compiled again",
            removed,
            "" if removed == 1 else "s",
            folder,
            "it is" if removed == 1 else "they are",
        )
    return removed


def _is_intact(path: pathlib.Path) -> bool:
    from jax._src.compilation_cache import decompress_executable  # JAX offers it nowhere else

    content = path.read_bytes()
    try:
        decompress_executable(content)
    except Exception:  # each compressor raises its own
        return False
    return True
