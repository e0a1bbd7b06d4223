"""The lock of a run in a bucket: an object that one program creates and keeps renewing.

Each write names the generation of the object that it expects to replace, so that only one of several programs succeeds.
"""

import contextlib
import os
import secrets
import socket
import threading
import time

from kvae.core.buckets import SCHEME, as_path, bucket_error, open_bucket, wrap_bucket_errors
from kvae.training.workdir import lock
from kvae.training.workdir.lock import LockWatch, check_held

NO_OBJECT = 0
"""The generation to expect if the object must not exist yet."""


class BucketLock(contextlib.AbstractContextManager):
    """The object `<workdir>/lock`, which names the program that trains there.

    If another program's lock exists, it is watched until it is renewed or becomes stale. Restarting a killed run
    therefore takes about a minute.

    Args:
      workdir: The run's folder, in a bucket.

    Raises:
      InputError: On entry, if another program trains there or the bucket cannot be reached.
    """

    def __init__(self, workdir: str):
        self._workdir = str(workdir)
        # The token distinguishes processes with the same number and host name, which containers can have.
        self._text = f"process {os.getpid()} on {socket.gethostname()}\n{secrets.token_hex(16)}\n"
        self._ended, self._write_lock = threading.Event(), threading.Lock()
        self._is_lost, self._renewed = False, 0.0

    def __enter__(self) -> "BucketLock":
        self._bucket = open_bucket(self._workdir)
        # `as_path` removes extra slashes from the user's address, as for all other files of the run.
        self._name = str(as_path(self._workdir) / "lock").removeprefix(SCHEME).partition("/")[2]
        with wrap_bucket_errors(self._workdir):
            self._acquire()
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def _acquire(self) -> None:
        watch = LockWatch(self._workdir)
        while not self._write(NO_OBJECT):
            current = self._read()
            if current is None:
                continue  # it was released just now
            generation, text = current
            holder = text.partition("\n")[0] if text.startswith("process ") else "another program"
            if watch.is_stale(generation, holder) and self._write(generation):
                return
            time.sleep(lock.HEARTBEAT_SECONDS / 4)

    def _write(self, expected: int) -> bool:
        """Writes the object if it has the expected generation; returns True if this program now holds the lock."""
        from google.api_core.exceptions import PreconditionFailed

        started, blob = time.time(), self._bucket.blob(self._name)
        with self._write_lock:
            try:
                blob.upload_from_string(self._text, if_generation_match=expected)
                self._generation = int(blob.generation)
            except PreconditionFailed:
                # The client repeats a write that gets no answer, although the first attempt may have succeeded.
                current = self._read()
                if current is None or current[1] != self._text:
                    return False
                self._generation = current[0]
            self._renewed = started
            return True

    def _read(self) -> tuple[int, str] | None:
        """Returns the generation and the text of the object; None if it does not exist."""
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            blob = self._bucket.blob(self._name)
            text = blob.download_as_bytes().decode(errors="replace")
            return int(blob.generation), text
        return None

    def _renew(self) -> None:
        while not self._is_lost and not self._ended.wait(lock.HEARTBEAT_SECONDS):
            try:
                self._is_lost = not self._write(self._generation)
            except Exception as error:
                if bucket_error(error) is None:
                    raise
                # If the bucket stays unreachable, `check` reports it.

    def check(self) -> None:
        """Checks that this program may still write to the run's folder.

        Raises:
          LostLockError: The lock was deleted, or another program has taken it.
          InputError: The bucket does not answer.
        """
        # The monotonic clock stops while a machine is suspended, so this uses the wall clock, which may be set back.
        is_fresh = 0 <= time.time() - self._renewed < lock.STALE_SECONDS / 2
        with wrap_bucket_errors(self._workdir):
            if not is_fresh and not self._is_lost:
                self._is_lost = not self._write(self._generation)
            exists = not self._is_lost or self._read() is not None
        check_held(self._workdir, exists=exists, is_lost=self._is_lost)

    def __exit__(self, *error: object) -> None:
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._ended.set()
        retry = DEFAULT_RETRY.with_timeout(2 * lock.HEARTBEAT_SECONDS)
        with contextlib.suppress(Exception), self._write_lock:  # a lock that cannot be deleted becomes stale
            if not self._is_lost:
                self._bucket.blob(self._name).delete(if_generation_match=self._generation, retry=retry)
        self._bucket.client.close()
