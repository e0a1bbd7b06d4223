"""Checks that all processes of a run were started the same way and see the same folder.

Processes exchange facts through the key-value store of JAX's coordination service, which runs in process 0. Collectives
would hang or abort if the processes differ.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping

import jax
from jax._src.distributed import global_state  # the key-value store has no public name

from kvae.core.buckets import as_path
from kvae.core.errors import InputError
from kvae.training.parallel.cluster import LONGEST_PREPARATION_SECONDS

log = logging.getLogger(__name__)

SHARED_DISK_SECONDS = 30
"""Time that a file may take to appear on another host."""


def agree(topic: str, read_facts: Callable[[], Mapping[str, object]]) -> None:
    """Compares facts, such as the fields of the config, between all processes.

    If one machine ran with another config, version of kvae or data set, training would hang or produce a wrong model.
    With a single process this function does nothing.

    Args:
      topic: What the facts are about, for messages; each call needs a different topic.
      read_facts: Returns facts by name, with values that JSON can hold.

    Raises:
      InputError: The facts differ (raised on every process), or a process does not report them.
    """
    if jax.process_count() == 1:
        return
    global_state.client.key_value_set(f"kvae-{topic}/{jax.process_index()}", json.dumps(read_facts()))
    reports = [_wait_for(f"kvae-{topic}/{process}", process, topic) for process in range(jax.process_count())]
    expected, *others = map(json.loads, reports)
    for process, facts in enumerate(others, 1):
        for name in sorted(expected.keys() | facts.keys()):
            if expected.get(name) != facts.get(name):
                raise InputError(
                    f"the processes differ: {name} is {expected.get(name)} on process 0 and {facts.get(name)} on "
                    f"process {process}; start all of them with the same command"
                )


def check_shared_workdir(workdir: str, holds_lock: bool) -> None:
    """Checks that this process sees the lock that process 0 holds in the run's folder.

    If --workdir were on a local disk of each machine, no disk would have complete checkpoints.

    Args:
      workdir: The run's folder, as given to this process.
      holds_lock: True if this process has locked it.

    Raises:
      InputError: This process does not see the lock.
    """
    if jax.process_count() == 1:
        return
    path = as_path(workdir) / "lock"
    if holds_lock:
        global_state.client.key_value_set("kvae-lock", path.read_text())
        return
    expected = _wait_for("kvae-lock", 0, "folder")
    deadline = time.monotonic() + SHARED_DISK_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if path.read_text() == expected:
                return
        time.sleep(0.5)
    raise InputError(
        f"process {jax.process_index()} does not see the files that process 0 writes to {workdir}; --workdir must be "
        "on a disk that all processes share, or in a bucket that all of them can read"
    )


def _wait_for(key: str, process: int, topic: str) -> str:
    """Waits until another process has set a key, and returns the value."""
    deadline = time.monotonic() + LONGEST_PREPARATION_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return global_state.client.blocking_key_value_get(key, 10_000)
        log.warning("waiting for process %d, which has not reported its %s yet", process, topic)
    raise InputError(f"process {process} has not reported its {topic} for a day")
