"""Adapters that give linen layers, NNX layers and pure functions the same interface for the checks."""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
from flax import nnx

from kvae.quantizers.base import Quantizer

POSITIONS = (16, 6)
"""Leading shape of the vectors in most checks."""


class Output(NamedTuple):
    """The output of a quantiser: quantised vectors [..., d], codes int [...] or [..., q], and the loss []."""

    quantized: jax.Array
    codes: jax.Array
    loss: jax.Array


class Subject(Protocol):
    """A quantiser as pure functions. Implement this for a quantiser whose call signature differs from kvae's layers."""

    def init(self, key: jax.Array, z: jax.Array) -> Any:
        """Returns the state before training, any tree of arrays, for vectors float [..., d]."""

    def apply(self, state: Any, z: jax.Array, train: bool, mask: jax.Array | None) -> tuple[Output, Any]:
        """Returns the output and the new state, for vectors float [..., d] and an optional mask bool [...]."""


@dataclasses.dataclass(frozen=True)
class _Linen:
    layer: nn.Module

    def init(self, key: jax.Array, z: jax.Array) -> Any:
        return jax.jit(self.layer.init)({"params": key, "dropout": key}, z)

    def apply(self, state: Any, z: jax.Array, train: bool, mask: jax.Array | None) -> tuple[Output, Any]:
        rngs = {"dropout": jax.random.key(0)}
        out, updated = self.layer.apply(state, z, train=train, mask=mask, rngs=rngs, mutable=["codebook"])
        return Output(out.quantized, out.codes, out.loss), {**state, **updated}


@dataclasses.dataclass(frozen=True)
class _Nnx:
    module: Any

    @property
    def layer(self) -> Any:
        """The linen layer inside a layer of `kvae.nnx`; None for other modules."""
        return getattr(self.module, "linen", None)

    def init(self, key: jax.Array, z: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(self.module))

    def apply(self, state: Any, z: jax.Array, train: bool, mask: jax.Array | None) -> tuple[Output, Any]:
        graph, old = nnx.split(self.module)
        old = jax.tree.map(lambda leaf: leaf, old)
        nnx.replace_by_pure_dict(old, state)
        module = nnx.merge(graph, old, copy=True)
        out = module(z, train=train, mask=mask)
        return Output(out.quantized, out.codes, out.loss), nnx.to_pure_dict(nnx.state(module))


def as_subject(layer: Any) -> Subject:
    """Returns a `Subject` for a linen or NNX layer; any other object with a method `apply` must already be one."""
    if isinstance(layer, nn.Module):
        return _Linen(layer)
    return layer if hasattr(layer, "apply") else _Nnx(layer)


class Trial:
    """The argument of each check: a quantiser, its state after three updates, and vectors z, float32 [16, 6, d]."""

    def __init__(self, subject: Subject, dimension: int):
        self.subject, self.dimension = subject, dimension
        self.z = self.vectors(0)
        self.state = subject.init(jax.random.key(0), self.z)
        for seed in range(1, 4):
            _, self.state = self.apply(self.state, self.vectors(seed), train=True)

    @property
    def layer(self) -> Quantizer | None:
        """The linen layer of a kvae quantiser, whether linen or NNX; None for any other quantiser."""
        layer = self.subject.layer if isinstance(self.subject, (_Linen, _Nnx)) else None
        return layer if isinstance(layer, Quantizer) else None

    @property
    def variables(self) -> Any:
        """The state as the variables of `layer`."""
        return self.variables_of(self.state)

    def variables_of(self, state: Any) -> Any:
        """Returns the part of a state that holds the variables of `layer`; an NNX state also has random streams."""
        return {name: state[name] for name in ("codebook", "params") if name in state}

    def vectors(self, seed: int, *leading: int) -> jax.Array:
        """Draws random vectors, float32 [16, 6, d] or [*leading, d]."""
        return jax.random.normal(jax.random.key(seed), (*(leading or POSITIONS), self.dimension))

    def apply(self, state: Any, z: jax.Array, train: bool = False, mask: jax.Array | None = None) -> tuple[Output, Any]:
        """Calls the compiled quantiser: see `Subject.apply`."""
        return _compiled(self.subject.apply, train)(state, z, mask)


@functools.lru_cache(maxsize=256)
def _compiled(apply, train):
    return jax.jit(lambda state, z, mask: apply(state, z, train, mask))
