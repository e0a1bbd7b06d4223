"""The lock of another program, watched until it gives a sign of life, or has given none for long; and what is said."""

import logging
import time

from kvae.errors import InputError

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
