"""Processes: joining the others of a cluster where there is one, and agreeing with them on when to stop."""

import atexit
import contextlib
import glob
import importlib.util
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator

import jax

from kvae.core.errors import InputError
from kvae.core.program import FAILED, MISTAKE, SIGNALS
from kvae.training.parallel.peers import LONGEST_WAIT_SECONDS

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
"""Where a Cloud TPU VM learns of the other workers of its slice."""


@contextlib.contextmanager
def joined_cluster() -> Iterator[int]:
    """Joins the other processes of a cluster; does nothing where there is none. To be entered before JAX is used.

    A cluster is asked for by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, as launch/kubernetes.yaml does; or found: a Slurm step of several tasks, a TPU slice of several
    workers.

    Yields:
      The index of this process; 0 where it is alone.

    Raises:
      InputError: a variable is missing or no number, or the others cannot be reached.
    """
    arguments = _cluster()
    if arguments is None:
        yield 0
        return
    # Imported here, for a process alone needs none of it.
    from kvae.training.parallel.peers import lost_coordinator_is_told, watched_peers

    try:
        with lost_coordinator_is_told():
            jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the other processes cannot be joined: {' '.join(str(error).split())}") from error
    try:
        with watched_peers():
            yield jax.process_index()
    except BaseException as error:
        # As it exits, JAX would wait for the other processes, while they wait for this one.
        atexit.register(os._exit, MISTAKE if isinstance(error, InputError) else FAILED)
        raise


def _cluster() -> dict | None:
    """The arguments of `jax.distributed.initialize`, what JAX detects by itself left out; None without a cluster."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    asked = [os.environ.get(name) for name in names]
    if any(asked):
        address, count, index = asked
        numbers = all(asked) and count.isdecimal() and index.isdecimal() and int(index) < int(count)
        if not numbers or not re.fullmatch(r"\S+:\d+", address):
            found = ", ".join(f"{name}={value}" for name, value in zip(names, asked, strict=True))
            raise InputError(
                f"{found}; a cluster needs all three: host:port of process 0, their number, and that of this one"
            )
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    if (tasks := _number("SLURM_STEP_NUM_TASKS")) > 1:
        # JAX gives each Slurm task one GPU; a task that has its node to itself takes them all.
        alone = tasks == _number("SLURM_STEP_NUM_NODES")
        gpus = _number("SLURM_GPUS_ON_NODE") if alone else 0
        return {"local_device_ids": list(range(gpus))} if gpus else {}
    return {} if "," in _tpu_workers() else None


def _number(name: str) -> int:
    """A variable of Slurm, such as 4, or a100:4 of GPUs; 0 where there is none."""
    value = os.environ.get(name, "")
    number = value.rpartition(":")[2]
    if value and not number.isdecimal():
        raise InputError(f"{name}={value}; it must be a number")
    return int(number or 0)


def _tpu_workers() -> str:
    """The workers of this TPU slice, separated by commas; empty on any other machine."""
    if workers := os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES"):
        return workers
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if not chips or not importlib.util.find_spec("libtpu") or "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    try:
        request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:  # no Cloud TPU VM
        return ""


@contextlib.contextmanager
def first_process_first():
    """The other processes enter the block when process 0 has left it: they find what it prepared on a shared disk."""
    if jax.process_index() > 0:
        wait_for_all("first process")
    yield
    if jax.process_index() == 0:
        wait_for_all("first process")


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        # Imported here, for it takes a second. JAX's own barrier gives up after half a minute on a CPU.
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=name, timeout_ms=LONGEST_WAIT_SECONDS * 1000)


class StopSignal:
    """Turns signals into a question that the loop asks between steps. A second Ctrl-C interrupts at once.

    The signals are SIGTERM, Ctrl-C, and SIGHUP of a terminal that is closed.
    """

    def __enter__(self):
        self._asked = False
        self._before = {}
        # Among several processes JAX listens to SIGTERM itself, and lets all of them agree on a step.
        numbers = [number for number in SIGNALS if number != signal.SIGTERM or jax.process_count() == 1]
        in_main_thread = threading.current_thread() is threading.main_thread()  # no other can listen
        for number in numbers if in_main_thread else ():
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def __exit__(self, *error):
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def requested(self, step: int) -> bool:
        """Whether training should stop after this step; all processes get the same answer."""
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
