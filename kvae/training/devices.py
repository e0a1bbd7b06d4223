"""Devices: the mesh, and how arrays lie on it. One program serves one device and many hosts."""

import functools
import logging
import math
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvae.errors import InputError

log = logging.getLogger(__name__)


def replicas_at_once(replicas: int) -> int:
    """How many replicas one program trains: all on TPUs; one elsewhere, where they take turns.

    XLA is slow at convolutions whose kernels have a batch axis, on CPUs and on GPUs.
    """
    return replicas if jax.default_backend() == "tpu" else 1


def make_mesh(replicas: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices, all by default, as ("replica", "data").

    Replicas that are trained at once are spread over the devices as far as they divide them. Where they take turns, and
    on several hosts, every device holds all of them.
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    groups = 1 if jax.process_count() > 1 else math.gcd(replicas_at_once(replicas), len(devices))
    return Mesh(devices.reshape(groups, -1), ("replica", "data"))


def state_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [replicas, ...]: split over the replica axis, the same on all devices of the data axis."""
    return NamedSharding(mesh, PartitionSpec("replica"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of training batches [replicas, b, ...]: each replica's examples are split over the data axis."""
    return NamedSharding(mesh, PartitionSpec("replica", "data"))


def shared_batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of batches [b, ...] that all replicas share, as in evaluation: the examples are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("replica", "data")))


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises InputError unless the batch divides evenly over the devices of the data axis and the micro-batches.

    And, for evaluation, over all devices: there the replicas share one batch.
    """
    parts = math.lcm(mesh.shape["data"] * micro_batches, mesh.size)
    if batch_size < 1 or batch_size % parts:
        what = f"{mesh.size} devices" + (f", {micro_batches} micro-batches" if micro_batches > 1 else "")
        raise InputError(f"batch_size is {batch_size}; it must be a multiple of {parts} ({what})")


def to_devices(sharding: NamedSharding, batch):
    """A global batch on the devices, from each process's slice of it (a tree of NumPy arrays)."""
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


RUN_ONCE_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For a program that runs once: on a CPU, to optimise how parameters are drawn takes as long as the rest of a start."""


@functools.cache
def run_once_options() -> dict[str, int | bool] | None:
    """`RUN_ONCE_OPTIONS`; None where this JAX does not know them, for what they change is speed alone."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=RUN_ONCE_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        log.warning("this JAX does not take %s, and starts more slowly: %s", RUN_ONCE_OPTIONS, error)
        return None
    return RUN_ONCE_OPTIONS


def keep_compiled_programs() -> None:
    """Keeps compiled programs under the user's cache folder, so that the next start of a config is quick.

    `JAX_COMPILATION_CACHE_DIR` chooses another folder, as for any JAX program.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "kvae" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
