"""The device mesh, the sharding of arrays, and the compilation of programs for all replicas.

The same code runs on one device and on many hosts. A replica is one of several seeds that are trained in one run. State
arrays have a leading axis of replicas, and batches have a second axis of examples.
"""

import contextlib
import functools
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvae.core.errors import InputError
from kvae.training.parallel.compile_cache import remove_unreadable

log = logging.getLogger(__name__)


def replicas_at_once(replicas: int) -> int:
    """Returns the number of replicas that one program trains at once: all of them on TPUs, one elsewhere.

    On CPUs and GPUs, XLA is slow at convolutions whose kernels have a batch axis, so replicas run one after another.
    """
    return replicas if jax.default_backend() == "tpu" else 1


def make_mesh(replicas: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as a mesh with the axes ("replica", "data").

    The length of the replica axis is the greatest common divisor of the number of devices and the number of replicas
    that are trained at once. On several hosts it is 1. If it is 1, every device holds all replicas.

    Args:
      replicas: The number of replicas.
      devices: The devices to use; all of them by default.

    Example:
      >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
      {'replica': 1, 'data': 1}
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    groups = 1 if jax.process_count() > 1 else math.gcd(replicas_at_once(replicas), len(devices))
    return Mesh(devices.reshape(groups, -1), ("replica", "data"))


def state_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays [replicas, ...]: split over replicas, repeated along the data axis."""
    return NamedSharding(mesh, PartitionSpec("replica"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of training batches [replicas, b, ...]: each replica's examples split over the data axis."""
    return NamedSharding(mesh, PartitionSpec("replica", "data"))


def shared_batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches [b, ...] that all replicas share: the examples split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("replica", "data")))


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises InputError unless a batch can be split evenly over devices and micro-batches.

    It must also be divisible by the number of all devices, because replicas share the batches of evaluations.
    """
    divisor = math.lcm(mesh.shape["data"] * micro_batches, mesh.size)
    if batch_size < 1 or batch_size % divisor:
        reason = f"{mesh.size} devices" + (f", {micro_batches} micro-batches" if micro_batches > 1 else "")
        raise InputError(f"batch_size is {batch_size}; it must be a multiple of {divisor} ({reason})")


def to_devices(sharding: NamedSharding, batch: Any) -> Any:
    """Creates a global batch on the devices from this process's slice of it (a tree of NumPy arrays)."""
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


RUN_ONCE_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options for programs that run once. On a CPU, optimising the initialisation takes half of the start-up."""


@functools.cache
def run_once_options() -> dict[str, int | bool] | None:
    """Returns `RUN_ONCE_OPTIONS` on CPUs; None on other devices, or if this version of JAX does not accept them."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=RUN_ONCE_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        log.warning("this version of JAX does not accept %s, so start-up is slower: %s", RUN_ONCE_OPTIONS, error)
        return None
    return RUN_ONCE_OPTIONS


def keep_compiled_programs() -> None:
    """Makes JAX cache compiled programs in the user's cache folder, so that later runs of a config start quickly.

    As in any JAX program, `JAX_COMPILATION_CACHE_DIR` sets another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "kvae" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    remove_unreadable(pathlib.Path(jax.config.jax_compilation_cache_dir))


@contextlib.contextmanager
def wrap_memory_errors() -> Iterator[None]:
    """Turns JAX's out-of-memory errors into a one-line InputError.

    Raises:
      InputError: A device is out of memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            "the run does not fit in the devices' memory; use a lower batch_size, fewer replicas, more micro_batches "
            "or a smaller model"
        ) from error


ReplicaGroups = list
"""A list with one tree of arrays [g, ...] for each group of g replicas that are trained at once."""


class Replicas:
    """Compiles functions of one replica for all replicas of a run, and splits and joins their arrays.

    Args:
      count: The number of replicas.
      mesh: The devices, from `make_mesh`.

    Attributes:
      count: As given.
      mesh: As given.
      size: The number of replicas in a group.
      sharding: The sharding of a group's arrays.

    Example:
      >>> replicas = Replicas(2, make_mesh(2, jax.devices()[:1]))
      >>> double = replicas.program(lambda x: 2 * x)
      >>> replicas.to_host(double(replicas.split(np.array([1, 2])))).tolist()
      [2, 4]
    """

    def __init__(self, count: int, mesh: Mesh):
        self.count, self.mesh = count, mesh
        self.size = replicas_at_once(count)
        self.sharding = state_sharding(mesh)

    def program(
        self, function: Callable, *, shared: Sequence[int] = (), donate: bool = False, run_once: bool = False
    ) -> Callable[..., ReplicaGroups]:
        """Compiles a function of one replica, and returns a function from groups to groups.

        Args:
          function: A function of positional arguments, from arrays to arrays.
          shared: Positions of arguments that all replicas share; they are not groups.
          donate: True if the result may reuse the memory of the first argument.
          run_once: True if compiling quickly matters more than speed.

        Returns:
          The function; it raises InputError if a device is out of memory.
        """
        compiled = self.compiled(function, shared=shared, donate=donate, run_once=run_once)

        def for_each_group(*arguments: Any) -> ReplicaGroups:
            results = []
            for i in range(self.count // self.size):
                with wrap_memory_errors():
                    results.append(compiled(*(a if n in shared else a[i] for n, a in enumerate(arguments))))
                if self.mesh.size > 1 and jax.default_backend() == "cpu":
                    # On CPUs, the collectives of two concurrent programs can deadlock.
                    jax.block_until_ready(results[-1])
            return results

        return for_each_group

    def compiled(
        self, function: Callable, *, shared: Sequence[int] = (), donate: bool = False, run_once: bool = False
    ) -> Callable:
        """Returns the jitted program of one group; the arguments are as for `program`."""
        return jax.jit(
            over_replicas(function, self.size, shared),
            donate_argnums=0 if donate else None,
            out_shardings=self.sharding,
            compiler_options=run_once_options() if run_once else None,
        )

    def split(self, tree: Any) -> ReplicaGroups:
        """Splits a tree of arrays [count, ...] into groups; if there is only one group, nothing is copied."""
        if self.count == self.size:
            return [tree]
        starts = range(0, self.count, self.size)
        return [jax.tree.map(lambda leaf, s=start: leaf[s : s + self.size], tree) for start in starts]

    def join(self, groups: ReplicaGroups) -> Any:
        """Joins groups into a tree of arrays [count, ...] on the devices; if there is only one, nothing is copied."""
        if len(groups) == 1:
            return groups[0]
        with wrap_memory_errors():
            return _concatenate_on(self.sharding)(groups)

    def abstract(self, groups: ReplicaGroups) -> Any:
        """Returns the result of `join` as a tree of ShapeDtypeStructs, without allocating memory."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.count, *leaf.shape[1:]), leaf.dtype, sharding=self.sharding),
            groups[0],
        )

    def to_host(self, groups: ReplicaGroups) -> Any:
        """Copies groups to the host, as a tree of NumPy arrays [count, ...]."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(groups))


@functools.cache
def _concatenate_on(sharding: NamedSharding) -> Callable:
    concatenate = lambda groups: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)  # noqa: E731
    return jax.jit(concatenate, out_shardings=sharding)


def over_replicas(function: Callable, size: int, shared: Sequence[int] = ()) -> Callable:
    """Maps a function of one replica over a leading axis of replicas.

    Args:
      function: A function of positional arguments, from arrays to arrays.
      size: The length of the axis. Size 1 needs no `vmap`, which would slow convolutions down.
      shared: Positions of arguments without this axis.
    """
    if size > 1:

        def mapped(*arguments: Any) -> Any:
            axes = [None if position in shared else 0 for position in range(len(arguments))]
            return jax.vmap(function, in_axes=axes)(*arguments)

        return mapped

    def squeezed(*arguments: Any) -> Any:
        arguments = [a if n in shared else jax.tree.map(lambda leaf: leaf[0], a) for n, a in enumerate(arguments)]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function(*arguments))

    return squeezed


def select_replica(tree: Any, replica: int) -> Any:
    """Returns one replica of a tree of arrays [count, ...], without the axis of replicas."""
    return jax.tree.map(lambda leaf: leaf[replica], tree)


def scalar_or_list(values: Sequence) -> Any:
    """Returns the values of all replicas as they appear in a row: a scalar for one replica, otherwise a list."""
    return values[0] if len(values) == 1 else list(values)
