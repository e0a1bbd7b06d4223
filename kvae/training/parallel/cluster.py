"""Runs on several processes: joining a cluster, barriers, and stopping at the same step."""

import atexit
import contextlib
import glob
import importlib.util
import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from types import FrameType

import jax

from kvae.core.errors import InputError
from kvae.core.program import FAILED, MISTAKE, SIGNALS

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
"""Address at which a Cloud TPU VM can read the list of workers in its slice."""

HEARTBEAT_TIMEOUT_SECONDS = 60
"""JAX aborts all processes of a cluster when one has been silent for this long."""

GOODBYE_SECONDS = 10
"""Time to wait for the other processes to report the same mistake and leave, too."""

LONGEST_PREPARATION_SECONDS = 24 * 3600
"""Time limit for waiting until another process has prepared a data set: a day."""


@contextlib.contextmanager
def joined_cluster() -> Iterator[int]:
    """Joins the other processes of a cluster, if there is one. Must be entered before JAX is used.

    A cluster is either described by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, as in launch/kubernetes.yaml, or detected: a Slurm step with several tasks, or a TPU slice with
    several workers.

    If a process dies, JAX aborts the others: at once if it was process 0, which runs the coordination service,
    otherwise after `HEARTBEAT_TIMEOUT_SECONDS`. They exit with status 134 (SIGABRT), and JAX prints which task died.

    Yields:
      The index of this process; 0 without a cluster.

    Raises:
      InputError: A variable is missing or invalid, or the other processes cannot be reached.
    """
    arguments = _cluster_arguments()
    if arguments is None:
        yield 0
        return
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the other processes cannot be reached: {' '.join(str(error).split())}") from error
    try:
        yield jax.process_index()
    except InputError:
        _leave(MISTAKE)
        raise
    except jax.errors.JaxRuntimeError:
        # A collective fails if another process has died. Wait for JAX to abort this one and print which process died.
        time.sleep(HEARTBEAT_TIMEOUT_SECONDS + 10)
        _leave(FAILED)
        raise
    except BaseException:
        _leave(FAILED)
        raise


def _leave(status: int) -> None:
    """Waits briefly for the other processes to leave, too (JAX would wait five minutes), and sets the exit status."""
    goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    goodbye.start()
    goodbye.join(GOODBYE_SECONDS)
    atexit.register(os._exit, status)


def _cluster_arguments() -> dict | None:
    """Returns the arguments of `jax.distributed.initialize` that JAX cannot detect; None without a cluster."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = [os.environ.get(name) for name in names]
    if any(values):
        address, count, index = values
        are_numbers = all(values) and count.isdecimal() and index.isdecimal() and int(index) < int(count)
        if not are_numbers or not re.fullmatch(r"\S+:\d+", address):
            variables = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise InputError(
                f"{variables}; a cluster needs all three: host:port of process 0, the number of processes, and the "
                "index of this one"
            )
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    if (tasks := _slurm_number("SLURM_STEP_NUM_TASKS")) > 1:
        # By default JAX gives each Slurm task one GPU. A task that is alone on its node gets all of the node's GPUs.
        has_own_node = tasks == _slurm_number("SLURM_STEP_NUM_NODES")
        gpus = _slurm_number("SLURM_GPUS_ON_NODE") if has_own_node else 0
        return {"local_device_ids": list(range(gpus))} if gpus else {}
    return {} if "," in _tpu_workers() else None


def _slurm_number(name: str) -> int:
    """Returns the number in a variable such as "4", or "a100:4" for GPUs; 0 if the variable is not set."""
    value = os.environ.get(name, "")
    number = value.rpartition(":")[2]
    if value and not number.isdecimal():
        raise InputError(f"{name}={value}; it must be a number")
    return int(number or 0)


def _tpu_workers() -> str:
    """Returns the workers of this TPU slice, separated by commas; empty if this is not a TPU machine."""
    if workers := os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES"):
        return workers
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if not chips or not importlib.util.find_spec("libtpu") or "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    try:
        request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:  # not a Cloud TPU VM
        return ""


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Runs the block on process 0 first, then on the others, which can use the files that process 0 has prepared."""
    if jax.process_index() > 0:
        wait_for_all("first process")
    yield
    if jax.process_index() == 0:
        wait_for_all("first process")


def wait_for_all(name: str) -> None:
    """Blocks until every process has called it.

    Args:
      name: Name of the barrier, the same on all processes.
    """
    if jax.process_count() > 1:
        # Imported here because the import takes a second. On CPUs, JAX's own barrier times out after half a minute.
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=name, timeout_ms=LONGEST_PREPARATION_SECONDS * 1000)


class StopSignal(contextlib.AbstractContextManager):
    """Records stop signals. The training loop checks for one after each step, so that it can save a checkpoint.

    Stop signals are SIGTERM, Ctrl-C, and the SIGHUP of a closed terminal. A second Ctrl-C interrupts at once.

    Attributes:
      received: the number of the signal, or None.

    Example:
      >>> with StopSignal() as stop:
      ...     stop.requested(step=1)
      False
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._previous = {}
        # With several processes, JAX handles SIGTERM and makes all of them stop at the same step.
        signals = [number for number in SIGNALS if number != signal.SIGTERM or jax.process_count() == 1]
        in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot handle signals
        for number in signals if in_main_thread else ():
            if signal.getsignal(number) != signal.SIG_IGN:  # set by nohup
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """True if training should stop after this step; the answer is the same on all processes."""
        if jax.process_count() == 1:
            return self.received is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
