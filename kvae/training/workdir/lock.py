"""A lock in a run's folder: one program at a time trains there, on whatever host that shares the disk."""

import contextlib
import logging
import os
import pathlib
import time

import filelock

from kvae.core.errors import InputError, wrap_write_errors

STALE_SECONDS, HEARTBEAT_SECONDS = 60, 2
"""A lock whose holder has given no sign of life for so long is taken over; and how often a holder gives one."""


class Lock(contextlib.AbstractContextManager):
    """`<workdir>/lock`, a file that names the program that trains there, and is touched while that lives.

    The lock of a program that was killed on this host counts for nothing. That of one on another host is watched, until
    it is touched or stale.

    Args:
      workdir: the run's folder, made where it does not exist.

    Raises:
      InputError: as it is entered: another program trains there.
    """

    def __init__(self, workdir: str):
        self._workdir = workdir
        self._lease = filelock.SoftFileLease(
            pathlib.Path(workdir) / "lock",
            lease_duration=STALE_SECONDS,
            heartbeat_interval=HEARTBEAT_SECONDS,
            thread_local=False,
        )

    def __enter__(self):
        with wrap_write_errors(self._workdir):
            pathlib.Path(self._workdir).mkdir(parents=True, exist_ok=True)
            self._acquire()
        return self

    def _acquire(self):
        watch = Watch(self._workdir, STALE_SECONDS, HEARTBEAT_SECONDS)
        while True:
            touched = self._touched()
            with contextlib.suppress(filelock.Timeout):
                self._lease.acquire(timeout=0)
                return
            owner = self._lease.owner
            if watch.is_stale(touched, f"process {owner.pid} on {owner.hostname}" if owner else "another program"):
                self._lease.force_break()  # a lock that names nobody: a power cut can leave it empty
            time.sleep(HEARTBEAT_SECONDS / 4)

    def _touched(self) -> int | None:
        with contextlib.suppress(OSError):
            return os.stat(self._lease.lock_file).st_mtime_ns
        return None

    def check(self) -> None:
        """Raises LostError where the folder or the lock in it is gone, or another program has taken the lock."""
        is_there = os.path.exists(self._lease.lock_file)
        check_held(self._workdir, is_there=is_there, is_lost=self._lease.compromise is not None)

    def __exit__(self, *error):
        with contextlib.suppress(OSError):  # such as of a folder that is gone
            self._lease.release()


log = logging.getLogger(__name__)


class LostError(InputError):
    """This program holds the lock of its run no more, and may write nothing there."""


def check_held(workdir: str, *, is_there: bool, is_lost: bool) -> None:
    """Raises LostError where a program's lock is not there, or is another's."""
    if not is_there:
        raise LostError(f"{workdir}, or the lock in it, was deleted while the run trained; it ends here")
    if is_lost:
        raise LostError(f"{workdir} was taken over by another program while this one stood still")


class Watch:
    """Watches the lock of another program.

    Args:
      workdir: the run's folder.
      stale_seconds: a lock that has given no sign of life for so long may be taken over.
      heartbeat_seconds: how often a holder gives one.
    """

    def __init__(self, workdir: str, stale_seconds: float, heartbeat_seconds: float):
        self._workdir, self._stale, self._heartbeat = workdir, stale_seconds, heartbeat_seconds
        self._begun, self._seen, self._said = time.monotonic(), None, False

    def is_stale(self, sign: object, holder: str) -> bool:
        """Whether the lock may be taken over.

        Args:
          sign: changes when the holder gives a sign of life.
          holder: whom the lock names, in words.

        Raises:
          InputError: the sign has changed: another program trains there.
        """
        if self._seen not in (None, sign):
            raise InputError(f"{self._workdir} is in use: {holder} trains there; end that, or choose another --workdir")
        self._seen, waited = sign, time.monotonic() - self._begun
        if waited > 2 * self._heartbeat and not self._said:
            log.warning("%s is locked by %s, which may be dead: watching it for a minute", self._workdir, holder)
            self._said = True
        return waited > self._stale + self._heartbeat
