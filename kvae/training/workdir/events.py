"""TensorBoard events, written without a thread, because a thread that fails on a full disk blocks later events."""

import os
import pathlib
import socket
import time
from typing import TYPE_CHECKING

from kvae.core.errors import require_extra

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

FLUSH_SECONDS = 30
"""Time after which written events reach the disk."""


class Events:
    """An event file of a run.

    Args:
      workdir: The local folder of the file.
      first_step: The step of the restored checkpoint; TensorBoard then hides later events of earlier files.

    Raises:
      InputError: tensorboardX is not installed.
      OSError: The file cannot be written.
    """

    def __init__(self, workdir: os.PathLike | str, first_step: int):
        with require_extra("train"):
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"  # TensorBoard looks for "tfevents"
        self._writer, self._flushed = RecordWriter(str(pathlib.Path(workdir) / name)), time.monotonic()
        self._write(Event(step=first_step + 1, file_version="brain.Event:2"))
        self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number.

        Raises:
          OSError: The file cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def _write(self, event: "Event") -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the file, even if its last events cannot be written.

        Raises:
          OSError: The file cannot be written.
        """
        try:
            self._writer.flush()
        finally:
            self._writer.close()
