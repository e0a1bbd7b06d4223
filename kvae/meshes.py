"""Arrays in a mesh whose axes are Explicit, the default of `jax.make_mesh`: who must say how results are sharded.

Lookups gather and scatter, and JAX cannot tell by itself where their results lie. Everywhere else, in a mesh with Auto
axes or in none, these functions call what they are given and do nothing.
"""

from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec


def along(array: jax.Array, function: Callable, *arguments):
    """`function(*arguments)`, whose results [..., *] are sharded as the leading axes of `array` [..., d] are."""
    return _automatic(function, arguments, _spec(array)[:-1])


def replicated(function: Callable, *arguments):
    """`function(*arguments)`, whose results are the same on every device."""
    return _automatic(function, arguments, ())


def _spec(array) -> tuple:
    sharding = getattr(jax.typeof(array), "sharding", None)
    return tuple(sharding.spec) if sharding is not None else ()


def _automatic(function, arguments, spec):
    mesh = jax.sharding.get_abstract_mesh()
    explicit = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    )
    if not explicit:
        return function(*arguments)
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=PartitionSpec(*spec))(*arguments)
