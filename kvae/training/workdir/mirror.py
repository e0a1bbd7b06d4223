"""Writes the small files of a run that is training: metrics, log, TensorBoard events and figures.

Most of these files grow during training. If the run's folder is on a disk, they are written directly to it. Objects in
a bucket cannot be appended to, so the files of a run in a bucket are written to a local folder and uploaded.
"""

import concurrent.futures
import contextlib
import logging
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

import jax

from kvae.core.buckets import as_path, is_bucket, wrap_bucket_errors
from kvae.core.errors import InputError
from kvae.training.parallel import peers
from kvae.training.workdir.bucket_lock import BucketLock
from kvae.training.workdir.lock import Lock, LostLockError
from kvae.training.workdir.logs import LOG
from kvae.training.workdir.metrics_file import ROWS

log = logging.getLogger(__name__)

UPLOAD_SECONDS = 30
"""Minimum time between two uploads of all files. A bucket accepts only one write per second to each object."""


class Mirror:
    """The small files of a run, and its lock. Files are uploaded to a bucket only while this process holds the lock.

    Args:
      workdir: The run's folder, on a disk or in a bucket.
      folder: A local folder to write to. For a run on a disk it is `workdir`.

    Attributes:
      folder: As given.
      keep_folder: True if the local folder holds files that the bucket did not accept.
    """

    def __init__(self, workdir: str, folder: str):
        self.folder, self.keep_folder = folder, False
        self._bucket_folder = as_path(workdir) if is_bucket(workdir) else None
        self._lock, self._uploaded = None, {}
        self._upload_lock, self._thread = threading.Lock(), concurrent.futures.ThreadPoolExecutor(1)
        self._job, self._last_upload = None, time.monotonic()

    def open(self, lock: "Lock | BucketLock | None") -> None:
        """Downloads the existing rows and log of a run in a bucket. Afterwards files may be uploaded.

        Args:
          lock: The run's lock, which this process holds; None on processes other than the first.
        """
        self._lock = lock
        if self._bucket_folder is None:
            return
        folder = pathlib.Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        with wrap_bucket_errors(self._bucket_folder):
            for name in (ROWS, LOG) if lock is not None else (ROWS,):  # only process 0 writes the log
                remote, local = self._bucket_folder / name, folder / name
                if remote.exists():
                    # This program has already begun to write its log; the older log goes in front.
                    new = local.read_bytes() if local.exists() else b""
                    local.write_bytes(remote.read_bytes() + new)

    def check(self) -> None:
        """Raises LostLockError if this process has lost the run's lock."""
        if self._lock is not None:
            self._lock.check()

    def upload(self) -> None:
        """Starts uploading changed files in the background, at most every `UPLOAD_SECONDS`."""
        if time.monotonic() - self._last_upload > UPLOAD_SECONDS:
            self._start()

    def upload_rows(self) -> None:
        """Uploads all rows before it returns, and then the other files in the background.

        It is called before each checkpoint is saved, so that the bucket has the rows of every checkpoint.

        Raises:
          LostLockError: This process has lost the run's lock.
          InputError: The bucket does not accept the file.
        """
        self.check()
        if self._must_upload():
            self._upload_file(pathlib.Path(self.folder) / ROWS)
            self._start()

    def close(self) -> None:
        """Uploads all files before it returns.

        Raises:
          LostLockError: This process has lost the run's lock.
          InputError: The bucket does not accept the files. They stay in the local folder.
        """
        self._thread.shutdown()
        if not self._must_upload():
            return
        try:
            self.check()
            self._upload_all()
        except LostLockError:  # the run belongs to another program
            raise
        except InputError as error:
            self.keep_folder = True
            raise InputError(f"{error}; the last rows, log and figures are in {self.folder}") from error
        except BaseException:
            self.keep_folder = True
            raise

    def _must_upload(self) -> bool:
        return self._lock is not None and self._bucket_folder is not None

    def _start(self) -> None:
        if self._must_upload() and (self._job is None or self._job.done()):
            self._job, self._last_upload = self._thread.submit(self._try_to_upload), time.monotonic()

    def _try_to_upload(self) -> None:
        try:
            self._upload_all()
        except LostLockError:
            pass  # the training loop checks the lock, too, and stops
        except Exception as error:
            log.warning("%s; training continues", error)

    def _upload_all(self) -> None:
        for path in sorted(pathlib.Path(self.folder).rglob("*")):
            # Files whose names begin with a dot are still being written.
            if path.is_file() and not path.name.startswith("."):
                self._upload_file(path)

    def _upload_file(self, path: pathlib.Path) -> None:
        with self._upload_lock:  # otherwise an older version of the file could be uploaded last
            stat = path.stat()
            version = stat.st_size, stat.st_mtime_ns
            if self._uploaded.get(path) != version:
                self.check()
                with wrap_bucket_errors(self._bucket_folder):
                    (self._bucket_folder / path.relative_to(self.folder)).write_bytes(path.read_bytes())
                self._uploaded[path] = version


@contextlib.contextmanager
def mirrored(workdir: str) -> Iterator[Mirror]:
    """Creates the mirror of a run's folder, with a temporary local folder if the run is in a bucket.

    The temporary folder is removed afterwards, unless the bucket did not accept the last files.

    Args:
      workdir: The run's folder.

    Yields:
      The mirror, not yet opened.
    """
    if not is_bucket(workdir):
        yield Mirror(workdir, workdir)
        return
    temporary = tempfile.mkdtemp(prefix="kvae-")
    # The titles of figures take the run's name from the name of this folder.
    mirror = Mirror(workdir, str(pathlib.Path(temporary, as_path(workdir).name)))
    try:
        yield mirror
    finally:
        if not mirror.keep_folder:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked_workdir(workdir: str, mirror: Mirror | None = None) -> Iterator[Mirror]:
    """Locks a run's folder, checks that all processes see it, and opens its small files.

    Args:
      workdir: The run's folder.
      mirror: The folder's mirror; a new one by default.

    Yields:
      The open mirror. After the block, the mirror is closed and the folder is unlocked.

    Raises:
      InputError: Another program trains there, a process does not see the folder, or its bucket does not answer.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(wrap_bucket_errors(workdir))
        lock = stack.enter_context(lock_of(workdir)) if jax.process_index() == 0 else None
        peers.check_shared_workdir(workdir, holds_lock=lock is not None)
        mirror = mirror or stack.enter_context(mirrored(workdir))
        mirror.open(lock)
        try:
            yield mirror
        except BaseException:
            try:
                mirror.close()
            except Exception as error:  # the exception that stopped training is raised instead
                log.warning("the last rows and figures were not uploaded: %s", error)
            raise
        mirror.close()


def lock_of(workdir: str) -> "Lock | BucketLock":
    """Returns the lock for a run's folder on a disk or in a bucket; it is acquired on entry."""
    return BucketLock(workdir) if is_bucket(workdir) else Lock(workdir)
