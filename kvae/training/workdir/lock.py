"""The lock of a run's folder: only one program at a time may train there, even if several hosts share the disk.

Without it, two programs started with the same command would overwrite each other's files.
"""

import contextlib
import logging
import os
import pathlib
import time

import filelock

from kvae.core.errors import InputError, wrap_write_errors

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5
"""Time between two renewals of a lock by its holder."""

STALE_SECONDS = 60
"""Time without a renewal after which another program may take over a lock."""


class LostLockError(InputError):
    """Raised if this program has lost the lock of its run, and so must not write to the run's folder."""


class Lock(contextlib.AbstractContextManager):
    """The file `<workdir>/lock`, which names the program that trains there. That program keeps touching the file.

    If a process on this host was killed, its lock is taken over at once. A lock from another host is watched until it
    is touched or becomes stale.

    Args:
      workdir: The run's folder; created if missing.

    Raises:
      InputError: On entry, if another program trains there or the folder cannot be written.

    Example:
      >>> import tempfile
      >>> with Lock(tempfile.mkdtemp()) as lock:
      ...     lock.check()
    """

    def __init__(self, workdir: str):
        self._workdir = workdir
        self._lease = filelock.SoftFileLease(
            pathlib.Path(workdir) / "lock",
            lease_duration=STALE_SECONDS,
            heartbeat_interval=HEARTBEAT_SECONDS,
            thread_local=False,
        )

    def __enter__(self) -> "Lock":
        with wrap_write_errors(self._workdir):
            pathlib.Path(self._workdir).mkdir(parents=True, exist_ok=True)
            self._acquire()
        return self

    def _acquire(self) -> None:
        watch = LockWatch(self._workdir)
        while True:
            touched = self._touched()
            with contextlib.suppress(filelock.Timeout):
                self._lease.acquire(timeout=0)
                return
            owner = self._lease.owner
            if watch.is_stale(touched, f"process {owner.pid} on {owner.hostname}" if owner else "another program"):
                self._lease.force_break()  # the owner of this lock is unknown, for example after a power cut
            time.sleep(HEARTBEAT_SECONDS / 4)

    def _touched(self) -> int | None:
        with contextlib.suppress(OSError):
            return os.stat(self._lease.lock_file).st_mtime_ns
        return None

    def check(self) -> None:
        """Raises LostLockError if the lock was deleted, or was taken over while this machine was suspended."""
        exists = os.path.exists(self._lease.lock_file)
        check_held(self._workdir, exists=exists, is_lost=self._lease.compromise is not None)

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # the folder may have been deleted
            self._lease.release()


def check_held(workdir: str, *, exists: bool, is_lost: bool) -> None:
    """Raises LostLockError if a program's lock no longer exists or belongs to another program."""
    if not exists:
        raise LostLockError(f"{workdir}, or the lock in it, was deleted during training; the run stops")
    if is_lost:
        raise LostLockError(f"{workdir} was taken over by another program while this one was suspended; the run stops")


class LockWatch:
    """Watches another program's lock and decides whether that program is alive or the lock is stale.

    Args:
      workdir: The run's folder, for messages.
    """

    def __init__(self, workdir: str):
        self._workdir = workdir
        self._started, self._last_version, self._has_warned = time.monotonic(), None, False

    def is_stale(self, version: object, holder: str) -> bool:
        """True if the lock may be taken over.

        Args:
          version: A value that changes whenever the holder renews the lock.
          holder: The program that holds the lock, for messages.

        Raises:
          InputError: The version has changed, so the holder is alive.
        """
        if self._last_version not in (None, version):
            raise InputError(
                f"{self._workdir} is in use: {holder} is training there; stop it, or choose another --workdir"
            )
        self._last_version, waited = version, time.monotonic() - self._started
        if waited > 2 * HEARTBEAT_SECONDS and not self._has_warned:
            log.warning("%s is locked by %s, which may be dead; watching the lock for a minute", self._workdir, holder)
            self._has_warned = True
        return waited > STALE_SECONDS + HEARTBEAT_SECONDS
