"""The quantiser layers for Flax NNX: the same fields, the same output, bit for bit, as those for linen.

    layer = kvae.nnx.KohonenVQ(64, grid_shape=(16, 32), rngs=nnx.Rngs(0))
    out = layer(z)  # learns; after model.eval() it does not

A layer holds the variables of its linen twin, and calls it as the pure function that it is. The codebook is of a type
of its own, `Codebook`, and is updated in place, as `flax.nnx.BatchNorm` does with its statistics. Differentiate with
respect to `nnx.Param` only, as everywhere in NNX: `nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param))`.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from kvae import quantizers
from kvae.core.errors import InputError
from kvae.core.fields import Count, validate
from kvae.quantizers.base import Quantized

__all__ = ["FSQ", "Codebook", "GradientVQ", "GroupedVQ", "KohonenVQ", "ResidualVQ"]


class Codebook(nnx.Variable):
    """What a quantiser learns without gradients: codewords and their averages, and the number of updates."""


class Quantizer(nnx.Module):
    """A quantiser layer. Abstract: see the classes below, whose fields are those of their linen twins.

    Args:
      features: d, the length of the vectors.
      rngs: for the initial codebook, and for random streams in training.
      use_running_average: what it is for `flax.nnx.BatchNorm`: True leaves the codebook alone. `model.train()` and
        `model.eval()` set it.
      **fields: see the linen layer. A stack takes the linen layer that it is made of.

    Attributes:
      codebook: variables by name, nested as the collection `codebook` of the linen layer.
      params: the parameters, nested as the collection `params` of the linen layer; empty for most.
    """

    LINEN: ClassVar[type]

    def __init__(self, features: int, *, rngs: nnx.Rngs, use_running_average: bool = False, **fields):
        if fields.pop("train", None) is not None:
            raise InputError("train is set by model.train() and model.eval(), or in a call")
        self.linen = self.LINEN(**fields)
        features = validate("features", features, Count)
        self.use_running_average = use_running_average
        variables = self.linen.init(rngs.params(), jnp.zeros((1, features)))
        self.codebook = _as_variables(variables.get("codebook", {}), Codebook)
        self.params = _as_variables(variables.get("params", {}), nnx.Param)
        self.rngs = rngs.fork() if getattr(self.linen, "dropout", 0) else None

    def __call__(self, z: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> Quantized:
        """Quantises vectors float [..., d], and learns from them in training.

        Args:
          z: vectors.
          train: whether the codebook learns from them; by default not `use_running_average`.
          mask: optional bool [...]; where False the position is left out of loss, statistics and perplexity.
        """
        train = not self.use_running_average if train is None else train
        rngs = {"dropout": self.rngs.dropout()} if train and self.rngs is not None else None
        out, updated = self.linen.apply(
            self.variables, z, train=train, mask=mask, rngs=rngs, mutable=["codebook"] if train else []
        )
        _set(self.codebook, updated.get("codebook", {}))
        return out

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The vectors [..., d] that codes stand for."""
        return self.linen.apply(self.variables, codes, method="lookup")

    def codewords(self) -> jax.Array:
        """What each code stands for, float32 [K, d], or [q, K, d] of several codebooks."""
        return self.linen.apply(self.variables, method="codewords")

    @property
    def variables(self) -> dict[str, Any]:
        """What the linen layer takes."""
        return {"codebook": _values(self.codebook), "params": _values(self.params)}


class KohonenVQ(Quantizer):
    """`kvae.KohonenVQ` for NNX."""

    LINEN = quantizers.KohonenVQ


class GradientVQ(Quantizer):
    """`kvae.GradientVQ` for NNX."""

    LINEN = quantizers.GradientVQ


class FSQ(Quantizer):
    """`kvae.FSQ` for NNX."""

    LINEN = quantizers.FSQ


class ResidualVQ(Quantizer):
    """`kvae.ResidualVQ` for NNX."""

    LINEN = quantizers.ResidualVQ


class GroupedVQ(Quantizer):
    """`kvae.GroupedVQ` for NNX."""

    LINEN = quantizers.GroupedVQ


def _as_variables(tree, kind) -> nnx.Dict:
    return nnx.Dict({k: _as_variables(v, kind) if isinstance(v, dict) else kind(v) for k, v in tree.items()})


def _values(variables: nnx.Dict) -> dict:
    return {k: _values(v) if isinstance(v, nnx.Dict) else v.get_value() for k, v in variables.items()}


def _set(variables: nnx.Dict, values: dict) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _set(variables[name], value)
        else:
            variables[name].set_value(value)
