"""Devices: the mesh, and how arrays lie on it. One program serves one device and many hosts."""

import contextlib
import functools
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvae.core.errors import InputError

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


@contextlib.contextmanager
def wrap_memory_errors() -> Iterator[None]:
    """Turns what JAX raises where a device has no room left into one line.

    Raises:
      InputError: there is no room.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            "the memory of the devices does not hold the run; a lower batch_size, fewer replicas, more micro_batches "
            "or a smaller model would do"
        ) from error


ReplicaGroups = list
"""Trees of arrays [g, ...], one a group."""


class Replicas:
    """How many replicas there are, and how they lie on the devices.

    Args:
      count: of replicas.
      mesh: as `make_mesh` gives it.
    """

    def __init__(self, count: int, mesh: Mesh):
        self.count, self.mesh = count, mesh
        self.size = replicas_at_once(count)
        self.sharding = state_sharding(mesh)

    def program(
        self, function: Callable, *, shared: Sequence[int] = (), donate: bool = False, run_once: bool = False
    ) -> Callable:
        """`function`, of one replica, compiled for all: from groups to groups.

        Args:
          function: of positional arguments; arrays in, arrays out.
          shared: positions of the arguments that all replicas share; they are no groups.
          donate: whether the result takes over the memory of the first argument.
          run_once: whether it is not worth while to make it fast.
        """
        compiled = self.compiled(function, shared=shared, donate=donate, run_once=run_once)

        def of_groups(*arguments):
            results = []
            for i in range(self.count // self.size):
                with wrap_memory_errors():
                    results.append(compiled(*(a if n in shared else a[i] for n, a in enumerate(arguments))))
                if self.count > self.size and self.mesh.size > 1 and jax.default_backend() == "cpu":
                    # Collectives of two programs at once can wait for each other there.
                    jax.block_until_ready(results[-1])
            return results

        return of_groups

    def compiled(self, function: Callable, *, shared: Sequence[int] = (), donate: bool = False, run_once: bool = False):
        """`function`, of one replica, as the jitted program of one group."""
        return jax.jit(
            over_axis(function, self.size, shared),
            donate_argnums=0 if donate else None,
            out_shardings=self.sharding,
            compiler_options=run_once_options() if run_once else None,
        )

    def split(self, tree) -> ReplicaGroups:
        """Groups of a tree of arrays [count, ...]; the arrays themselves where there is one group."""
        if self.count == self.size:
            return [tree]
        starts = range(0, self.count, self.size)
        return [jax.tree.map(lambda leaf, s=start: leaf[s : s + self.size], tree) for start in starts]

    def joined(self, groups: ReplicaGroups):
        """A tree of arrays [count, ...] on the devices: a copy, where there are several groups."""
        if len(groups) == 1:
            return groups[0]
        with wrap_memory_errors():
            return _concatenated(self.sharding)(groups)

    def form(self, groups: ReplicaGroups):
        """Shapes, types and shardings of what `joined` gives, without its memory."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.count, *leaf.shape[1:]), leaf.dtype, sharding=self.sharding),
            groups[0],
        )

    def on_host(self, groups: ReplicaGroups):
        """A tree of NumPy arrays [count, ...]."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(groups))


@functools.cache
def _concatenated(sharding):
    join = lambda groups: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)  # noqa: E731
    return jax.jit(join, out_shardings=sharding)


def over_axis(function: Callable, size: int, shared: Sequence[int] = ()) -> Callable:
    """`function` for each entry of a leading axis, which the arguments that are not shared have."""
    if size > 1:

        def mapped(*arguments):
            axes = [None if position in shared else 0 for position in range(len(arguments))]
            return jax.vmap(function, in_axes=axes)(*arguments)

        return mapped

    def alone(*arguments):
        own = [a if n in shared else jax.tree.map(lambda leaf: leaf[0], a) for n, a in enumerate(arguments)]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function(*own))

    return alone


def select_replica(tree, replica: int):
    """The part of a tree of arrays [count, ...] that belongs to one replica."""
    return jax.tree.map(lambda leaf: leaf[replica], tree)


def scalar_or_list(values: Sequence):
    """A value of each replica as a row holds it: a number, or a list in seed order where there are several."""
    return values[0] if len(values) == 1 else list(values)
