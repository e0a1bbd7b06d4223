"""Compiled `init` and `apply` of Flax modules: run eagerly, each operation would be compiled separately."""

import functools

import jax


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "method"))
def init(module, rngs, *arrays, **options):
    """`module.init`."""
    return module.init(rngs, *arrays, **options)


def apply(module, variables, *arrays, mutable=(), **options):
    """`module.apply`."""
    return _apply(module, tuple(mutable), variables, *arrays, **options)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("train", "method"))
def _apply(module, mutable, variables, *arrays, **options):
    return module.apply(variables, *arrays, mutable=list(mutable) or False, **options)
