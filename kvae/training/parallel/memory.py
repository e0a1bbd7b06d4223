"""What a run will take of memory, estimated before any of it is taken: a machine that runs out kills without a word."""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kvae.core.errors import InputError
from kvae.training.parallel.devices import replicas_at_once

BYTES_OF_IMAGES = 5
"""Of each number of an image: one as it is read, four as it is trained on."""


def check_memory(config: Mapping[str, Any], init: Callable, example: Mapping[str, Any], mesh: Mesh) -> None:
    """Compares the least that a step takes with what there is: a device's own memory or, on a CPU, the host's.

    Counted are parameters, their gradients and what the optimiser keeps, codebooks, images, and the largest activation
    with its gradient. What XLA needs beside these is not known beforehand, so a run that passes may still be too large.

    Args:
      config: of the run.
      init: the first state of a replica from its seed; its shapes are taken, it is not run.
      example: one of the training set.
      mesh: the devices.

    Raises:
      InputError: it is too little.
    """
    program, state = jax.make_jaxpr(init, return_shape=True)(jax.ShapeDtypeStruct((), jnp.int32))
    replicas = config["replicas"] // mesh.shape["replica"]
    at_once = replicas_at_once(config["replicas"]) // mesh.shape["replica"]
    images = config["batch_size"] // mesh.shape["data"] if jax.default_backend() != "cpu" else config["batch_size"]
    parts = {
        "parameters and optimiser": replicas * _bytes((state.params, state.optimizer)),
        "gradients": at_once * _bytes(state.params),
        "codebooks": replicas * _bytes(state.collections),
        "images": replicas * images * BYTES_OF_IMAGES * sum(np.size(value) for value in example.values()),
        "the largest activation": at_once * 2 * images // config["micro_batches"] * _largest_activation(program.jaxpr),
    }
    needed, (there, whose) = sum(parts.values()), _memory()
    if needed > there:
        listed = ", ".join(f"{name} {_gibibytes(part)}" for name, part in parts.items())
        raise InputError(
            f"a step needs at least {_gibibytes(needed)} ({listed}), and {whose} has {_gibibytes(there)}; a lower "
            f"batch_size ({config['batch_size']}), fewer replicas ({config['replicas']}), more micro_batches "
            f"({config['micro_batches']}) or a smaller model would do"
        )


def _bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _largest_activation(jaxpr) -> int:
    """Bytes of the largest image [1, h, w, c] that a program computes from a batch of one example."""
    largest = 0
    for equation in jaxpr.eqns:
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                largest = max(largest, _largest_activation(inner))
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            shapes = [out.aval for out in equation.outvars if out.aval.ndim == 4 and out.aval.shape[0] == 1]
            largest = max([largest, *map(lambda shape: _bytes([shape]), shapes)])
    return largest


def _gibibytes(number: int) -> str:
    return f"{number / 2**30:,.1f} GiB"


def _memory() -> tuple[int, str]:
    """How many bytes there are, and whose they are."""
    device = jax.local_devices()[0]
    if found := (device.memory_stats() or {}).get("bytes_limit"):
        return found, f"a {device.device_kind}"
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        there = min(there, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return there, "this machine"
