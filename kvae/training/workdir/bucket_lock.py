"""A lock in a bucket: an object that is made only if there is none, and written again and again by its holder.

Each write says which generation of the object it expects, so that of several programs one alone succeeds.
"""

import contextlib
import os
import pathlib
import secrets
import socket
import threading
import time

from kvae.core.buckets import SCHEME, as_path, bucket_of, reason_of, wrap_bucket_errors
from kvae.training.workdir.lock import Watch, check_held

STALE_SECONDS, HEARTBEAT_SECONDS = 60, 5
"""A lock that has not been written for so long is taken over; and how often its holder writes it."""

NO_OBJECT = 0
"""The generation that a write expects where there may be no object yet."""

HELD = set()
"""The tokens of this process's own locks."""


class BucketLock(contextlib.AbstractContextManager):
    """`<workdir>/lock`, an object that names the program that trains there.

    The lock of a program that was killed on this machine counts for nothing. Any other is watched, until it is written
    again or stale.

    Args:
      workdir: the run's folder, in a bucket.

    Raises:
      InputError: as it is entered: another program trains there, or the bucket cannot be reached.
    """

    def __init__(self, workdir: str):
        self._workdir = str(workdir)
        self._token = secrets.token_hex(16)
        fields = {"pid": os.getpid(), "host": socket.gethostname(), **_where(), "token": self._token}
        self._text = "".join(f"{name}={value}\n" for name, value in fields.items())
        self._ended, self._one_at_a_time = threading.Event(), threading.Lock()
        self._is_lost, self._written = False, 0.0

    def __enter__(self):
        self._bucket = bucket_of(self._workdir)
        # As all other files of the run are named: an address may have more slashes than that.
        self._name = str(as_path(self._workdir) / "lock").removeprefix(SCHEME).partition("/")[2]
        HELD.add(self._token)
        with wrap_bucket_errors(self._workdir):
            self._acquire()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def _acquire(self):
        watch = Watch(self._workdir, STALE_SECONDS, HEARTBEAT_SECONDS)
        while not self._write(NO_OBJECT):
            found = self._read()
            if found is None:
                continue  # it has just been released
            generation, holder = found
            is_over = watch.is_stale(generation, _name_of(holder)) or _was_killed_here(holder)
            if is_over and self._write(generation):
                return
            time.sleep(HEARTBEAT_SECONDS / 4)

    def _write(self, expected: int) -> bool:
        """Writes the object if it has the generation that is expected; whether it is this program's now."""
        from google.api_core.exceptions import PreconditionFailed

        begun, blob = time.time(), self._bucket.blob(self._name)
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
            try:
                if not self._write(self._generation):
                    self._is_lost = True
                    return
            except Exception as error:
                if reason_of(error) is None:
                    raise
                # A bucket that does not answer: `check` says so if that lasts.

    def check(self) -> None:
        """Says whether this program may write where the run is.

        Raises:
          LostError: the lock is gone, or another program has taken it.
          InputError: the bucket does not answer.
        """
        # Not the monotonic clock: that stands still while a machine is suspended. One that was set back says nothing.
        is_fresh = 0 <= time.time() - self._written < STALE_SECONDS / 2
        with wrap_bucket_errors(self._workdir):
            if not is_fresh and not self._is_lost:
                self._is_lost = not self._write(self._generation)
            is_there = not self._is_lost or self._read() is not None
        check_held(self._workdir, is_there=is_there, is_lost=self._is_lost)

    def __exit__(self, *error):
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._ended.set()
        HELD.discard(self._token)
        patience = DEFAULT_RETRY.with_timeout(2 * HEARTBEAT_SECONDS)
        with contextlib.suppress(Exception), self._one_at_a_time:  # it becomes stale by itself
            if not self._is_lost:
                self._bucket.blob(self._name).delete(if_generation_match=self._generation, retry=patience)
        self._bucket.client.close()


def _fields_of(holder: str) -> dict[str, str]:
    """What the text of a lock says, by name."""
    return dict(line.partition("=")[::2] for line in holder.splitlines())


def _name_of(holder: str) -> str:
    """Whom the text of a lock names, in words."""
    fields = _fields_of(holder)
    return f"process {fields['pid']} on {fields['host']}" if {"pid", "host"} <= fields.keys() else "another program"


def _where() -> dict[str, str]:
    """Where a number of a process means this one: the kernel since its start, and its namespace; empty if unknown.

    The name of a host does not tell: many machines are called localhost, and containers share that of theirs.
    """
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    return {}


def _was_killed_here(holder: str) -> bool:
    """Whether the text of a lock names a process of this machine that is no more."""
    fields, where = _fields_of(holder), _where()
    pid = fields.get("pid", "")
    if not where or any(fields.get(name) != value for name, value in where.items()) or not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        return fields.get("token") not in HELD  # of a process before this one, which had the same number
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # somebody else's, or no number of a process
    return False
