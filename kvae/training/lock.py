"""A lock in a run's folder: one program at a time trains there, on whatever host that shares the disk."""

import contextlib
import logging
import os
import pathlib
import time

import filelock

from kvae.buckets import is_bucket
from kvae.errors import InputError, errors_of_writing
from kvae.training.bucket_lock import BucketLock

log = logging.getLogger(__name__)

STALE_SECONDS, HEARTBEAT_SECONDS = 60, 2
"""A lock whose holder has given no sign of life for so long is taken over; and how often a holder gives one."""


def lock_of(workdir: str) -> "Lock | BucketLock":
    """The lock of a run's folder, on a disk or in a bucket."""
    return BucketLock(workdir) if is_bucket(workdir) else Lock(workdir)


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
        with errors_of_writing(self._workdir):
            pathlib.Path(self._workdir).mkdir(parents=True, exist_ok=True)
            self._acquire()
        return self

    def _acquire(self):
        begun, touched, said = time.monotonic(), self._touched(), False
        while True:
            with contextlib.suppress(filelock.Timeout):
                self._lease.acquire(timeout=0)
                return
            owner, waited = self._lease.owner, time.monotonic() - begun
            who = f"process {owner.pid} on {owner.hostname}" if owner else "another program"
            if self._touched() != touched:
                raise InputError(
                    f"{self._workdir} is in use: {who} trains there; end that, or choose another --workdir"
                )
            if waited > 2 * HEARTBEAT_SECONDS and not said:
                log.warning("%s is locked by %s, which may be dead: watching it for a minute", self._workdir, who)
                said = True
            if waited > STALE_SECONDS + HEARTBEAT_SECONDS:
                self._lease.force_break()  # a lock that names nobody: a power cut can leave it empty
            time.sleep(HEARTBEAT_SECONDS / 4)

    def _touched(self) -> int | None:
        with contextlib.suppress(OSError):
            return os.stat(self._lease.lock_file).st_mtime_ns
        return None

    def check(self) -> None:
        """Raises InputError where the folder or the lock in it is gone, or another program has taken the lock."""
        if not os.path.exists(self._lease.lock_file):
            raise InputError(f"{self._workdir}, or the lock in it, was deleted while the run trained; it ends here")
        if self._lease.compromise is not None:
            raise InputError(f"{self._workdir} was taken over by another program while this one stood still")

    def __exit__(self, *error):
        with contextlib.suppress(OSError):  # such as of a folder that is gone
            self._lease.release()
