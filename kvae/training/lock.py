"""A lock in a run's folder: one program at a time trains there, on whatever host that shares the disk."""

import contextlib
import os
import pathlib
import time

import filelock

from kvae.buckets import is_bucket
from kvae.errors import errors_of_writing
from kvae.training.bucket_lock import BucketLock
from kvae.training.watch import Watch, check_held

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
