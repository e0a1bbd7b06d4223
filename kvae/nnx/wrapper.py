"""The base class of the layers in `kvae.nnx`: an NNX module that wraps a linen quantiser."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kvae import quantizers
from kvae.core.errors import InputError, short_repr
from kvae.core.fields import Count, validate
from kvae.quantizers.base import Quantized


class Codebook(nnx.Variable):
    """Variable type of the state that a quantiser updates without gradients: codewords, moving averages and step.

    Example:
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(0))
      >>> sorted(nnx.state(layer, kvae.nnx.Codebook)["codebook"])
      ['codewords', 'counts', 'step', 'sums']
    """


class NnxQuantizer(nnx.Module):
    """The base class of the quantiser layers in `kvae.nnx`.

    Attributes:
      linen: the linen layer.
      codebook: variables nested as the collection `codebook` of the linen layer.
      params: parameters nested as the collection `params` of the linen layer; empty for most layers.
      use_running_average: True stops codebook updates; `model.train()` and `model.eval()` set it.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # Without this, `help` would show (*args, **kwargs), because the metaclass of `nnx.Module` hides the arguments.
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        cls.__signature__ = inspect.Signature(parameters)

    def __init__(self, linen: quantizers.Quantizer, features: int, rngs: nnx.Rngs, use_running_average: bool):
        self.linen = linen
        features = validate("features", features, Count)
        self.use_running_average = use_running_average
        has_dropout = _has_dropout(linen)
        _check_rngs(rngs, has_dropout)
        variables = self.linen.init(rngs.params(), jnp.zeros((1, features)))
        self.codebook = _as_variables(variables.get("codebook", {}), Codebook)
        self.params = _as_variables(variables.get("params", {}), nnx.Param)
        self.rngs = rngs.fork() if has_dropout else None

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the attributes of a view, as in `flax.nnx.view(model, use_running_average=True)`.

        Args:
          use_running_average: True stops codebook updates; None does not change the attribute.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, z: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> Quantized:
        """Quantises vectors and, in training, updates the codebook afterwards.

        Args:
          z: vectors, float [..., d].
          train: True updates the codebook; None means `not use_running_average`.
          mask: optional bool [...], False for positions to leave out of loss, statistics and perplexity.

        Raises:
          InputError: `z` or `mask` has the wrong shape or dtype, or neither `train` nor `use_running_average` is set.
        """
        if train is None and self.use_running_average is None:
            raise InputError(
                "use_running_average is None; set it in the constructor, with flax.nnx.view, or with .train() or "
                ".eval(), or pass train=True or train=False to the call"
            )
        train = not self.use_running_average if train is None else train
        rngs = {"dropout": self.rngs.dropout()} if train and self.rngs is not None else None
        out, updated = self.linen.apply(
            self.variables, z, train=train, mask=mask, rngs=rngs, mutable=["codebook"] if train else []
        )
        _set(self.codebook, updated.get("codebook", {}))
        return out

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the vectors [..., d] of codes, int [...], or [..., q] for q codebooks."""
        return self.linen.apply(self.variables, codes, method="lookup")

    def codewords(self) -> jax.Array:
        """Returns the vector of each code, float32 [K, d], or [q, K, d] for q codebooks."""
        return self.linen.apply(self.variables, method="codewords")

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the linen layer, by collection."""
        return {"codebook": _values(self.codebook), "params": _values(self.params)}


def _has_dropout(linen: quantizers.Quantizer) -> bool:
    part = getattr(linen, "quantizer", None)
    rates = (getattr(linen, name, 0) for name in ("dropout", "noise_dropout"))
    return any(rates) or (part is not None and _has_dropout(part))


def _check_rngs(rngs: Any, has_dropout: bool) -> None:
    if not isinstance(rngs, nnx.Rngs):
        raise InputError(f"rngs is {short_repr(rngs)}; it must be a flax.nnx.Rngs, such as flax.nnx.Rngs(0)")
    for stream in ("params", "dropout") if has_dropout else ("params",):
        if not {stream, "default"} & {*rngs}:
            raise InputError(f"rngs has no stream {stream!r}; add it, as in flax.nnx.Rngs(0, {stream}=1)")


def _as_variables(tree: dict[str, Any], kind: type[nnx.Variable]) -> nnx.Dict:
    return nnx.Dict({k: _as_variables(v, kind) if isinstance(v, dict) else kind(v) for k, v in tree.items()})


def _values(variables: nnx.Dict) -> dict[str, Any]:
    return {k: _values(v) if isinstance(v, nnx.Dict) else v.get_value() for k, v in variables.items()}


def _set(variables: nnx.Dict, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _set(variables[name], value)
        else:
            variables[name].set_value(value)
