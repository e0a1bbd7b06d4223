"""Quantiser layers for Flax NNX, with the same fields as the linen layers of `kvae` and bit-identical output.

A layer holds the variables of a linen layer and calls it as a pure function. The codebook has its own variable type,
`Codebook`, and is updated in place, like the statistics of `flax.nnx.BatchNorm`. Differentiate only with respect to
`nnx.Param`, as usual in NNX: `nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param))`.
"""

from flax import nnx

from kvae import quantizers
from kvae.nnx.fixed import BSQ, FSQ, IBQ, LFQ, SimVQ
from kvae.nnx.wrapper import Codebook, NnxQuantizer

__all__ = ["BSQ", "FSQ", "IBQ", "LFQ", "Codebook", "GradientVQ", "GroupedVQ", "KohonenVQ", "ResidualVQ", "SimVQ"]


class KohonenVQ(NnxQuantizer):
    """Vector quantiser whose codebook is learned by Kohonen's self-organising map: `kvae.KohonenVQ` for NNX.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(0))
      >>> z = jax.random.normal(jax.random.key(1), (2, 5, 5, 16))
      >>> layer(z).codes.shape, int(layer.codebook["step"][...])  # updates the codebook
      ((2, 5, 5), 1)
      >>> layer.eval()  # stops updates
      >>> layer(z).codes.shape, int(layer.codebook["step"][...])
      ((2, 5, 5), 1)

    Args:
      features: d, the length of the vectors.
      rngs: random streams; `params` initialises the codebook.
      use_running_average: True stops codebook updates; `model.train()` and `model.eval()` set it.

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
        metric: str = "euclidean",
        gradient: str = "straight_through",
        codebook_dim: int | None = None,
        decay: float = 0.99,
        init_count: float = 1.0,
        update_empty: bool = True,
        restart_below: float = 0.0,
        start: str = "normal",
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.KohonenVQ(
            grid_shape=grid_shape, neighborhood=neighborhood, shrink_step=shrink_step, radius=radius,
            commitment_weight=commitment_weight, topology=topology, initial_width=initial_width,
            lowest_width=lowest_width, metric=metric, gradient=gradient, codebook_dim=codebook_dim, decay=decay,
            init_count=init_count, update_empty=update_empty, restart_below=restart_below, start=start,
            axis_name=axis_name,
        )  # fmt: skip
        super().__init__(linen, features, rngs, use_running_average)


class GradientVQ(NnxQuantizer):
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
        metric: str = "euclidean",
        gradient: str = "straight_through",
        codebook_dim: int | None = None,
        pull: str = "encoder",
        neighbor_weight: float = 1.0,
        orthogonal_weight: float = 0.0,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.GradientVQ(
            grid_shape=grid_shape, neighborhood=neighborhood, shrink_step=shrink_step, radius=radius,
            commitment_weight=commitment_weight, topology=topology, initial_width=initial_width,
            lowest_width=lowest_width, metric=metric, gradient=gradient, codebook_dim=codebook_dim, pull=pull,
            neighbor_weight=neighbor_weight, orthogonal_weight=orthogonal_weight,
        )  # fmt: skip
        super().__init__(linen, features, rngs, use_running_average)


class ResidualVQ(NnxQuantizer):
    """Residual quantiser: `kvae.ResidualVQ` for NNX.

    Example:
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.ResidualVQ(16, quantizer=kvae.KohonenVQ((4, 8)), depth=3, rngs=nnx.Rngs(0))
      >>> layer.codewords().shape
      (3, 32, 16)

    Args:
      features: d, the length of the vectors.
      quantizer: linen layer that is copied for each part.
      codebooks, codebook_dim, depth, dropout: see `kvae.ResidualVQ`. Dropout uses the random stream `dropout`.
      rngs, use_running_average: see `KohonenVQ`.
    """

    def __init__(
        self,
        features: int,
        *,
        quantizer: quantizers.Quantizer,
        codebooks: str = "separate",
        codebook_dim: int | None = None,
        depth: int = 4,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.ResidualVQ(
            quantizer=quantizer, codebooks=codebooks, codebook_dim=codebook_dim, depth=depth, dropout=dropout
        )
        super().__init__(linen, features, rngs, use_running_average)


class GroupedVQ(NnxQuantizer):
    """Product quantiser: `kvae.GroupedVQ` for NNX.

    Example:
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.GroupedVQ(16, quantizer=kvae.KohonenVQ((4, 8)), groups=2, rngs=nnx.Rngs(0))
      >>> layer.codewords().shape
      (2, 32, 8)

    Args:
      features: d, the length of the vectors.
      quantizer: linen layer that is copied for each part.
      codebooks, codebook_dim, groups: see `kvae.GroupedVQ`.
      rngs, use_running_average: see `KohonenVQ`.
    """

    def __init__(
        self,
        features: int,
        *,
        quantizer: quantizers.Quantizer,
        codebooks: str = "separate",
        codebook_dim: int | None = None,
        groups: int = 4,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.GroupedVQ(quantizer=quantizer, codebooks=codebooks, codebook_dim=codebook_dim, groups=groups)
        super().__init__(linen, features, rngs, use_running_average)
