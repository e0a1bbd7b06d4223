"""Quantiser layers for Flax NNX: the same fields and, bit for bit, the same output as the linen layers of `kvae`.

A layer holds the variables of its linen twin and calls it as a pure function. Its codebook has a variable type of its
own, `Codebook`, and is updated in place, as `flax.nnx.BatchNorm` updates its statistics. Differentiate with respect to
`nnx.Param` only, as everywhere in NNX: `nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param))`.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kvae import quantizers
from kvae.core.fields import Count, validate
from kvae.quantizers.base import Quantized

__all__ = ["FSQ", "Codebook", "GradientVQ", "GroupedVQ", "KohonenVQ", "ResidualVQ"]


class Codebook(nnx.Variable):
    """Variable type of what a quantiser learns without gradients: codewords, moving averages, number of updates.

    Example:
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(0))
      >>> sorted(nnx.state(layer, kvae.nnx.Codebook)["codebook"])
      ['codewords', 'counts', 'step', 'sums']
    """


class _Quantizer(nnx.Module):
    """A quantiser layer: what the classes below share.

    Attributes:
      linen: the linen layer.
      codebook: variables nested as the collection `codebook` of the linen layer.
      params: parameters nested as the collection `params` of the linen layer; empty for most layers.
      use_running_average: True leaves the codebook alone; `model.train()` and `model.eval()` set it.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # The metaclass of `nnx.Module` hides the arguments from `help`, which would show (*args, **kwargs).
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        cls.__signature__ = inspect.Signature(parameters)

    def __init__(self, linen: quantizers.Quantizer, features: int, rngs: nnx.Rngs, use_running_average: bool):
        self.linen = linen
        features = validate("features", features, Count)
        self.use_running_average = use_running_average
        variables = self.linen.init(rngs.params(), jnp.zeros((1, features)))
        self.codebook = _as_variables(variables.get("codebook", {}), Codebook)
        self.params = _as_variables(variables.get("params", {}), nnx.Param)
        self.rngs = rngs.fork() if getattr(self.linen, "dropout", 0) else None

    def __call__(self, z: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> Quantized:
        """Quantises vectors and, in training, updates the codebook afterwards.

        Args:
          z: vectors, float [..., d].
          train: True updates the codebook; None means `not use_running_average`.
          mask: optional bool [...]; where False, the position does not count in loss, statistics and perplexity.

        Raises:
          InputError: `z` or `mask` has the wrong shape or dtype.
        """
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


class KohonenVQ(_Quantizer):
    """Vector quantiser whose codebook is learned by Kohonen's self-organising map: `kvae.KohonenVQ` for NNX.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(0))
      >>> z = jax.random.normal(jax.random.key(1), (2, 5, 5, 16))
      >>> layer(z).codes.shape, int(layer.codebook["step"][...])  # a call learns
      ((2, 5, 5), 1)
      >>> layer.eval()  # from now on it does not
      >>> layer(z).codes.shape, int(layer.codebook["step"][...])
      ((2, 5, 5), 1)

    Args:
      features: d, the length of the vectors.
      rngs: random streams; `params` initialises the codebook.
      use_running_average: True leaves the codebook alone; `model.train()` and `model.eval()` set it.

    The other arguments are the fields of `kvae.KohonenVQ`, with the same defaults.
    """

    def __init__(
        self,
        features: int,
        *,
        grid_shape: tuple[int, ...],
        neighborhood: str = "hard",
        shrink_step: float = 0.1,
        radius: float = 1.5,
        commitment_weight: float = 0.25,
        topology: str = "plane",
        initial_width: float | None = None,
        lowest_width: float | None = None,
        decay: float = 0.99,
        init_count: float = 1.0,
        update_empty: bool = True,
        metric: str = "euclidean",
        gradient: str = "straight_through",
        restart_below: float = 0.0,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.KohonenVQ(
            grid_shape=grid_shape, neighborhood=neighborhood, shrink_step=shrink_step, radius=radius,
            commitment_weight=commitment_weight, topology=topology, initial_width=initial_width,
            lowest_width=lowest_width, decay=decay, init_count=init_count, update_empty=update_empty, metric=metric,
            gradient=gradient, restart_below=restart_below, axis_name=axis_name,
        )  # fmt: skip
        super().__init__(linen, features, rngs, use_running_average)


class GradientVQ(_Quantizer):
    """Vector quantiser whose codebook is learned by gradient descent: `kvae.GradientVQ` for NNX.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.GradientVQ(16, grid_shape=(32,), rngs=nnx.Rngs(0))
      >>> nnx.grad(lambda layer: layer(jnp.ones((5, 16))).loss)(layer)["params"]["codewords"].shape
      (32, 16)

    Args:
      features: d, the length of the vectors.
      rngs, use_running_average: see `KohonenVQ`.

    The other arguments are the fields of `kvae.GradientVQ`, with the same defaults.
    """

    def __init__(
        self,
        features: int,
        *,
        grid_shape: tuple[int, ...],
        neighborhood: str = "none",
        shrink_step: float = 0.1,
        radius: float = 1.5,
        commitment_weight: float = 0.25,
        topology: str = "plane",
        initial_width: float | None = None,
        lowest_width: float | None = None,
        pull: str = "encoder",
        neighbor_weight: float = 1.0,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.GradientVQ(
            grid_shape=grid_shape, neighborhood=neighborhood, shrink_step=shrink_step, radius=radius,
            commitment_weight=commitment_weight, topology=topology, initial_width=initial_width,
            lowest_width=lowest_width, pull=pull, neighbor_weight=neighbor_weight,
        )  # fmt: skip
        super().__init__(linen, features, rngs, use_running_average)


class FSQ(_Quantizer):
    """Finite scalar quantiser: `kvae.FSQ` for NNX.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.FSQ(16, levels=(8, 5, 5, 5), rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 16))).quantized.shape
      (5, 16)

    Args:
      features: d, the length of the vectors.
      levels: see `kvae.FSQ`.
      rngs, use_running_average: see `KohonenVQ`.
    """

    def __init__(
        self,
        features: int,
        *,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        super().__init__(quantizers.FSQ(levels=levels), features, rngs, use_running_average)


class ResidualVQ(_Quantizer):
    """Residual quantiser: `kvae.ResidualVQ` for NNX.

    Example:
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.ResidualVQ(16, quantizer=kvae.KohonenVQ((4, 8)), depth=3, rngs=nnx.Rngs(0))
      >>> layer.codewords().shape
      (3, 32, 16)

    Args:
      features: d, the length of the vectors.
      quantizer: linen layer that each part copies.
      depth, dropout: see `kvae.ResidualVQ`; `dropout` uses the random stream `dropout`.
      rngs, use_running_average: see `KohonenVQ`.
    """

    def __init__(
        self,
        features: int,
        *,
        quantizer: quantizers.Quantizer,
        depth: int = 4,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.ResidualVQ(quantizer=quantizer, depth=depth, dropout=dropout)
        super().__init__(linen, features, rngs, use_running_average)


class GroupedVQ(_Quantizer):
    """Product quantiser: `kvae.GroupedVQ` for NNX.

    Example:
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.GroupedVQ(16, quantizer=kvae.KohonenVQ((4, 8)), groups=2, rngs=nnx.Rngs(0))
      >>> layer.codewords().shape
      (2, 32, 8)

    Args:
      features: d, the length of the vectors.
      quantizer: linen layer that each part copies.
      groups: see `kvae.GroupedVQ`.
      rngs, use_running_average: see `KohonenVQ`.
    """

    def __init__(
        self,
        features: int,
        *,
        quantizer: quantizers.Quantizer,
        groups: int = 4,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        super().__init__(quantizers.GroupedVQ(quantizer=quantizer, groups=groups), features, rngs, use_running_average)


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
