"""The small files of a run, at hand: rows, log, events and pictures, which are appended to or written bit by bit."""

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
from kvae.training.workdir.journal import LOG
from kvae.training.workdir.lock import Lock, LostError
from kvae.training.workdir.metrics_file import ROWS

log = logging.getLogger(__name__)

SECONDS_BETWEEN = 30
"""How long files may wait, once changed, before they go to a bucket, which takes one object once a second at most."""


class Mirror:
    """The small files of a run on a disk, which are where they belong; and the run's lock.

    Attributes:
      folder: where they are written.
    """

    def __init__(self, folder: str):
        self.folder, self._lock = folder, None

    def open(self, lock) -> None:
        """Fetches what the run has so far. From now on the process that holds the run's lock publishes what it writes.

        Args:
          lock: the run's; None on processes other than the first.
        """
        self._lock = lock

    def check(self) -> None:
        """Raises LostError where this process holds the lock no more."""
        if self._lock is not None:
            self._lock.check()

    def publish(self) -> None:
        """Brings what has changed to where the run is: in the background, and only if the last time is long ago."""

    def publish_rows(self) -> None:
        """Returns when all rows are where the run is; the rest follows in the background.

        Raises:
          LostError: this process holds the lock no more.
          InputError: they cannot be written there.
        """
        self.check()

    def close(self) -> None:
        """Returns when all files are where the run is.

        Raises:
          InputError: they cannot be written there.
        """


class BucketMirror(Mirror):
    """The small files of a run in a bucket. No object can be appended to: a file that has changed goes there whole.

    Nothing is written without the lock: whoever has taken the run over has files of the same names.

    Args:
      workdir: the run's folder, in the bucket.
      folder: on this machine, where the files are written meanwhile.

    Attributes:
      is_needed: whether the folder holds, after all, something that the bucket would not take.
    """

    def __init__(self, workdir: str, folder: str):
        super().__init__(folder)
        self._place, self._published = as_path(workdir), {}
        self._one_at_a_time, self._thread = threading.Lock(), concurrent.futures.ThreadPoolExecutor(1)
        self._job, self._begun, self.is_needed = None, time.monotonic(), False

    def open(self, lock) -> None:
        super().open(lock)
        folder = pathlib.Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        with wrap_bucket_errors(self._place):
            for name in (ROWS, LOG) if lock is not None else (ROWS,):  # all read the rows, one writes the log
                there, here = self._place / name, folder / name
                if there.exists():
                    # The log of this program has begun; its file is open, and what comes is appended.
                    begun = here.read_bytes() if here.exists() else b""
                    here.write_bytes(there.read_bytes() + begun)

    def publish(self) -> None:
        if time.monotonic() - self._begun > SECONDS_BETWEEN:
            self._start()

    def publish_rows(self) -> None:
        super().publish_rows()
        if self._lock is not None:
            self._publish_file(pathlib.Path(self.folder) / ROWS)
            self._start()

    def _start(self):
        if self._lock is not None and (self._job is None or self._job.done()):
            self._job, self._begun = self._thread.submit(self._try_to_publish), time.monotonic()

    def _try_to_publish(self):
        try:
            self._publish_all()
        except LostError:
            pass  # training asks too, and ends
        except Exception as error:
            log.warning("%s; training goes on meanwhile", error)

    def _publish_all(self):
        for path in sorted(pathlib.Path(self.folder).rglob("*")):
            # What has a dot before its name is being written, and is then renamed.
            if path.is_file() and not path.name.startswith("."):
                self._publish_file(path)

    def _publish_file(self, path):
        with self._one_at_a_time:  # so that what was read first never comes last
            found = path.stat()
            version = found.st_size, found.st_mtime_ns
            if self._published.get(path) != version:
                self.check()
                with wrap_bucket_errors(self._place):
                    (self._place / path.relative_to(self.folder)).write_bytes(path.read_bytes())
                self._published[path] = version

    def close(self) -> None:
        self._thread.shutdown()
        if self._lock is None:
            return
        self.is_needed = True
        try:
            self.check()
            self._publish_all()
        except LostError:
            self.is_needed = False  # the run is another program's
            raise
        except InputError as error:
            raise InputError(f"{error}; the last rows, log and pictures are in {self.folder}") from error
        self.is_needed = False


@contextlib.contextmanager
def mirrored(workdir: str) -> Iterator[Mirror]:
    """The small files of a run while it trains: of one in a bucket, in a folder here.

    It is removed afterwards, unless the bucket was away at the end.
    """
    if not is_bucket(workdir):
        yield Mirror(workdir)
        return
    folder = tempfile.mkdtemp(prefix="kvae-")
    # Pictures take the run's name from its folder.
    mirror = BucketMirror(workdir, str(pathlib.Path(folder, as_path(workdir).name)))
    try:
        yield mirror
    finally:
        if not mirror.is_needed:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def opened(workdir: str, mirror: Mirror | None = None) -> Iterator[Mirror]:
    """Locks a run's folder, which all processes must see, and opens its small files; closes and unlocks at the end.

    Args:
      workdir: the run's folder.
      mirror: of the folder; one of its own by default.

    Raises:
      InputError: another program trains there, or a process does not see it, or its bucket does not answer.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(wrap_bucket_errors(workdir))
        lock = stack.enter_context(lock_of(workdir)) if jax.process_index() == 0 else None
        peers.see_workdir(workdir, holds=lock is not None)
        mirror = mirror or stack.enter_context(mirrored(workdir))
        mirror.open(lock)
        try:
            yield mirror
        except BaseException:
            try:
                mirror.close()
            except Exception as error:  # why training ended counts for more
                log.warning("the last rows and pictures did not get there: %s", error)
            raise
        mirror.close()


def lock_of(workdir: str) -> "Lock | BucketLock":
    """The lock of a run's folder, on a disk or in a bucket."""
    return BucketLock(workdir) if is_bucket(workdir) else Lock(workdir)
