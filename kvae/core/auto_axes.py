"""Functions of arrays that run on a mesh with Explicit axes as they do on one with Auto axes.

With Explicit mesh axes, the default of `jax.make_mesh`, shardings are part of array types, and JAX rejects some
gathers, scatters and reshapes. Under Auto axes, XLA chooses all shardings except the result's.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def sharded_like(array: jax.Array, function: Callable, *arguments: Any) -> Any:
    """Returns `function(*arguments)`, with results [..., *] sharded like the leading axes of `array` [..., d]."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    spec = tuple(sharding.spec) if sharding is not None else ()
    return _under_auto_axes(function, arguments, spec[:-1])


def replicated(function: Callable, *arguments: Any) -> Any:
    """Returns `function(*arguments)`, with results replicated on every device."""
    return _under_auto_axes(function, arguments, ())


def _under_auto_axes(function: Callable, arguments: tuple, spec: tuple) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in axes if kind == AxisType.Explicit)
    if not explicit:
        return function(*arguments)
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=PartitionSpec(*spec))(*arguments)
