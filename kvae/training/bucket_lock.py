"""A lock in a bucket: an object that is made only if there is none, and written again and again by its holder.

Each write says which generation of the object it expects, so that of several programs one alone succeeds.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time

from kvae.buckets import SCHEME, bucket_of, errors_of_bucket
from kvae.errors import InputError

log = logging.getLogger(__name__)

STALE_SECONDS, HEARTBEAT_SECONDS = 60, 5
"""A lock that has not been written for so long is taken over; and how often its holder writes it."""

NO_OBJECT = 0
"""The generation that a write expects where there may be no object yet."""


class BucketLock(contextlib.AbstractContextManager):
    """`<workdir>/lock`, an object that names the program that trains there.

    The lock of a program that was killed on this host counts for nothing. Any other is watched, until it is written
    again or stale.

    Args:
      workdir: the run's folder, in a bucket.

    Raises:
      InputError: as it is entered: another program trains there, or the bucket cannot be reached.
    """

    def __init__(self, workdir: str):
        self._workdir = str(workdir)
        self._text = f"pid={os.getpid()}\nhost={socket.gethostname()}\ntoken={secrets.token_hex(16)}\n"
        self._ended, self._one_at_a_time = threading.Event(), threading.Lock()
        self._is_lost, self._written = False, 0.0

    def __enter__(self):
        self._bucket = bucket_of(self._workdir)
        self._name = self._workdir.removeprefix(SCHEME).partition("/")[2].strip("/") + "/lock"
        with errors_of_bucket(self._workdir):
            self._acquire()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def _acquire(self):
        begun, seen, said = time.monotonic(), None, False
        while not self._write(NO_OBJECT):
            found = self._read()
            if found is None:
                continue  # it has just been released
            generation, holder = found
            if generation != (seen or generation):
                raise InputError(
                    f"{self._workdir} is in use: {_name_of(holder)} trains there; end that, or choose another --workdir"
                )
            seen, waited = generation, time.monotonic() - begun
            if waited > 2 * HEARTBEAT_SECONDS and not said:
                who = _name_of(holder)
                log.warning("%s is locked by %s, which may be dead: watching it for a minute", self._workdir, who)
                said = True
            is_over = waited > STALE_SECONDS + HEARTBEAT_SECONDS or _was_killed_here(holder)
            if is_over and self._write(generation):
                return
            time.sleep(HEARTBEAT_SECONDS / 4)

    def _write(self, expected: int) -> bool:
        """Writes the object if it has the generation that is expected; whether it is this program's now."""
        from google.api_core.exceptions import PreconditionFailed

        begun, blob = time.monotonic(), self._bucket.blob(self._name)
        with self._one_at_a_time:
            try:
                blob.upload_from_string(self._text, if_generation_match=expected)
                self._generation = int(blob.generation)
            except PreconditionFailed:
                # A write that was tried again may have succeeded the first time.
                found = self._read()
                if found is None or found[1] != self._text:
                    return False
                self._generation = found[0]
            self._written = begun
            return True

    def _read(self) -> tuple[int, str] | None:
        """The generation of the object, and what it holds; None where there is none."""
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            blob = self._bucket.blob(self._name)
            text = blob.download_as_bytes().decode(errors="replace")
            return int(blob.generation), text
        return None

    def _beat(self):
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(Exception):  # a bucket that does not answer: `check` says so if that lasts
                if not self._write(self._generation):
                    self._is_lost = True
                    return

    def check(self) -> None:
        """Raises InputError where the lock is gone, or another program has taken it, or the bucket does not answer."""
        with errors_of_bucket(self._workdir):
            if time.monotonic() - self._written > STALE_SECONDS and not self._is_lost:
                self._is_lost = not self._write(self._generation)
            if self._is_lost and self._read() is None:
                raise InputError(f"{self._workdir}, or the lock in it, was deleted while the run trained; it ends here")
        if self._is_lost:
            raise InputError(f"{self._workdir} was taken over by another program while this one stood still")

    def __exit__(self, *error):
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._ended.set()
        patience = DEFAULT_RETRY.with_timeout(2 * HEARTBEAT_SECONDS)
        with contextlib.suppress(Exception), self._one_at_a_time:  # it becomes stale by itself
            if not self._is_lost:
                self._bucket.blob(self._name).delete(if_generation_match=self._generation, retry=patience)
        self._bucket.client.close()


def _name_of(holder: str) -> str:
    """Whom the text of a lock names, in words."""
    fields = dict(line.partition("=")[::2] for line in holder.splitlines())
    return f"process {fields['pid']} on {fields['host']}" if {"pid", "host"} <= fields.keys() else "another program"


def _was_killed_here(holder: str) -> bool:
    """Whether the text of a lock names a process of this host that is no more."""
    fields = dict(line.partition("=")[::2] for line in holder.splitlines())
    pid = fields.get("pid", "")
    if fields.get("host") != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # somebody else's, or no number of a process
    return False
