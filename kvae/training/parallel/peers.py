"""The other processes of a run: whether they live, and whether they were started alike.

All of it goes through the key-value store of JAX's coordinator, which lives in process 0, and through no collective:
those wait for ever, or abort, where processes differ.
"""

import contextlib
import ctypes
import functools
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
from jax._src import distributed  # JAX shows its store nowhere else

from kvae.core.buckets import as_path
from kvae.core.errors import InputError, one_line
from kvae.core.program import FAILED, STOPPED

log = logging.getLogger(__name__)

SILENT_SECONDS, HEARTBEAT_SECONDS = 40, 2
"""A process that has given no sign of life for so long is gone; and how often each gives one."""

SECONDS_OF_DISKS = 30
"""How long a file may take from one host to another."""

RUNNING, ENDED = "running", "ended"


def _store():
    return distributed.global_state.client


@contextlib.contextmanager
def watched_peers() -> Iterator[None]:
    """Ends this process, in one line and with `STOPPED`, within a minute after another one has died or failed."""
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watch.start()
    try:
        yield
    except InputError as error:
        ended.set()
        _say(f"{ENDED}: {error}")
        if distributed.global_state.process_id == 0:
            _wait_for_the_others()
        raise
    except Exception:
        # It may be that another process has died in the middle of a collective: then the watch ends this one.
        watch.join(SILENT_SECONDS + 3 * HEARTBEAT_SECONDS)
        raise
    _say(ENDED)
    ended.set()


@contextlib.contextmanager
def lost_coordinator_is_told() -> Iterator[None]:
    """Where JAX's client, made in this block, loses process 0, one line ends this process.

    JAX itself would abort. It can be given a callback instead, but as of 0.12 aborts as it calls that: so the abort is
    listened for too, in C, for Python listens only between its own instructions.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    make = distributed._jax.get_distributed_runtime_client
    callback = functools.partial(make, missed_heartbeat_callback=lambda status: _end("process 0 has gone"))
    distributed._jax.get_distributed_runtime_client = callback
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_client = make


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number):
    """Tells an abort because process 0 has gone from one that is a defect."""
    host, _, port = distributed.global_state.coordinator_address.rpartition(":")
    for _ in range(10):  # a process that was killed may still be there for a moment
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            _end("process 0 has gone")
        time.sleep(0.5)
    os._exit(FAILED)


def _wait_for_the_others() -> None:
    """Process 0 takes the store with it as it ends: first, the others end too, or have had time to hear of it."""
    others, deadline = range(1, distributed.global_state.num_processes), time.monotonic() + 8 * HEARTBEAT_SECONDS
    with contextlib.suppress(Exception):  # the store is gone already
        while time.monotonic() < deadline:
            said = dict(_store().key_value_dir_get("kvae/"))
            if all(said.get(f"kvae/{process}", "").startswith(ENDED) for process in others):
                return
            time.sleep(HEARTBEAT_SECONDS / 10)


def _say(text: str) -> None:
    with contextlib.suppress(Exception):  # the coordinator is gone
        _store().key_value_set(f"kvae/{distributed.global_state.process_id}", text, allow_overwrite=True)


def _watch(ended: threading.Event) -> None:
    # jax.process_index() would start the devices, from this thread.
    own, count, heard, beat = distributed.global_state.process_id, distributed.global_state.num_processes, {}, 0
    while not ended.wait(HEARTBEAT_SECONDS):
        beat += 1
        try:
            _store().key_value_set(f"kvae/{own}", f"{RUNNING} {beat}", allow_overwrite=True)
            said = dict(_store().key_value_dir_get("kvae/"))
        except Exception:
            if not ended.wait(HEARTBEAT_SECONDS):
                _end("process 0 has gone")
            return
        for process in range(count):
            text = said.get(f"kvae/{process}", "")
            if text.startswith(f"{ENDED}:"):
                if not ended.wait(3 * HEARTBEAT_SECONDS):  # this process may be about to say the same of itself
                    _end(f"process {process} has {text}")
                return
            if text != heard.get(process, (None,))[0] or text == ENDED:
                heard[process] = text, time.monotonic()
            elif time.monotonic() - heard[process][1] > SILENT_SECONDS:
                _end(f"process {process} has gone")


def _end(why: str) -> None:
    os.write(2, f"kvae: {one_line(why)}; stopped too, and the same commands go on\n".encode())
    os._exit(STOPPED)


def agree(about: str, facts: Callable[[], Mapping[str, object]]) -> None:
    """Compares facts, such as fields of a config, between all processes; returns where they are equal.

    Raises:
      InputError: they differ, on each process, or another one says nothing.
    """
    if jax.process_count() == 1:
        return
    _store().key_value_set(f"kvae-{about}/{jax.process_index()}", json.dumps(facts()))
    said = [_wait_for(f"kvae-{about}/{process}", process, about) for process in range(jax.process_count())]
    first, *others = map(json.loads, said)
    for process, theirs in enumerate(others, 1):
        for name in sorted(first.keys() | theirs.keys()):
            if first.get(name) != theirs.get(name):
                raise InputError(
                    f"the processes differ: {name} is {first.get(name)} on process 0 and {theirs.get(name)} on process "
                    f"{process}; start all of them with the same command"
                )


def see_workdir(workdir: str, holds: bool) -> None:
    """Raises InputError unless this process sees the lock that process 0 holds in the run's folder.

    Args:
      workdir: as this process names it.
      holds: whether this process is the one that has locked it.
    """
    if jax.process_count() == 1:
        return
    path = as_path(workdir) / "lock"
    if holds:
        _store().key_value_set("kvae-lock", path.read_text())
        return
    expected, deadline = _wait_for("kvae-lock", 0, "folder"), time.monotonic() + SECONDS_OF_DISKS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if path.read_text() == expected:
                return
        time.sleep(0.5)
    raise InputError(
        f"process {jax.process_index()} does not see in {workdir} what process 0 writes there; --workdir must be "
        "on a disk that all processes share, or in a bucket that all may read"
    )


def _wait_for(key, process, about) -> str:
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return _store().blocking_key_value_get(key, 10_000)
        log.warning("waiting for process %d, which has said nothing about its %s yet", process, about)
    raise InputError(f"process {process} has said nothing about its {about} for a day")


LONGEST_WAIT_SECONDS = 24 * 3600
"""How long processes wait for one that prepares a data set."""
