"""Estimates the memory that a run needs, before any is allocated.

Without this check, Linux would kill a process that is too large for the host, and print no message.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kvae.core.errors import InputError
from kvae.training.parallel.devices import replicas_at_once

BYTES_PER_PIXEL_VALUE = 5
"""One byte for the uint8 value that is read, and four for its float32 copy in training."""


def check_memory(config: Mapping[str, Any], init: Any, example: Mapping[str, Any], mesh: Mesh) -> None:
    """Compares a lower bound on the memory of a step with the memory of a device, or of the host on a CPU.

    The bound counts parameters, gradients, optimiser state, codebooks, images, and the largest activation with its
    gradient. XLA's own buffers are not counted, so a run that passes may still be too large.

    Args:
      config: the validated config.
      init: the jitted function from a seed to the first state of a replica. It is traced but not run; JAX reuses the
        trace when the run starts.
      example: one training example.
      mesh: the devices.

    Raises:
      InputError: the bound exceeds the memory.
    """
    traced = init.trace(jax.ShapeDtypeStruct((), jnp.int32))
    state = traced.out_info
    replicas = config["replicas"] // mesh.shape["replica"]
    at_once = replicas_at_once(config["replicas"]) // mesh.shape["replica"]
    images = config["batch_size"] // mesh.shape["data"] if jax.default_backend() != "cpu" else config["batch_size"]
    activation = _largest_activation(traced.jaxpr.jaxpr)
    parts = {
        "parameters and optimiser": replicas * _bytes((state.params, state.optimizer)),
        "gradients": at_once * _bytes(state.params),
        "codebooks": replicas * _bytes(state.collections),
        "images": replicas * images * BYTES_PER_PIXEL_VALUE * sum(np.size(value) for value in example.values()),
        "the largest activation": at_once * 2 * images // config["micro_batches"] * activation,
    }
    needed, (available, owner) = sum(parts.values()), available_memory()
    if needed > available:
        listed = ", ".join(f"{name} {_gibibytes(part)}" for name, part in parts.items())
        raise InputError(
            f"a step needs at least {_gibibytes(needed)} ({listed}), but {owner} has {_gibibytes(available)}; use a "
            f"lower batch_size ({config['batch_size']}), fewer replicas ({config['replicas']}), more micro_batches "
            f"({config['micro_batches']}) or a smaller model"
        )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _largest_activation(jaxpr: Any) -> int:
    """Returns the bytes of the largest array [1, h, w, c] that a convolution or matrix product of one example gives."""
    largest = 0
    for equation in jaxpr.eqns:
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                largest = max(largest, _largest_activation(inner))
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            outputs = [out.aval for out in equation.outvars if out.aval.ndim == 4 and out.aval.shape[0] == 1]
            largest = max([largest, *(_bytes([output]) for output in outputs)])
    return largest


def _gibibytes(number: int) -> str:
    return f"{number / 2**30:,.1f} GiB"


def available_memory() -> tuple[int, str]:
    """Returns the available memory in bytes, and the name of the device or machine for messages."""
    device = jax.local_devices()[0]
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return limit, f"a {device.device_kind}"
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        available = min(available, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return available, "this machine"
