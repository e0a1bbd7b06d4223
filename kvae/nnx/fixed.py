"""Quantiser layers for Flax NNX with a fixed codebook; gradients only train projections and linear maps."""

from flax import nnx

from kvae import quantizers
from kvae.nnx.wrapper import NnxQuantizer


class FSQ(NnxQuantizer):
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
      levels, squashing, noise_dropout: see `kvae.FSQ`. Noise uses the random stream `dropout`.
      rngs: random streams; `params` initialises the projections.
      use_running_average: True turns the noise off; `model.train()` and `model.eval()` set it.
    """

    def __init__(
        self,
        features: int,
        *,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        squashing: str = "tanh",
        noise_dropout: float = 0.0,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.FSQ(levels=levels, squashing=squashing, noise_dropout=noise_dropout)
        super().__init__(linen, features, rngs, use_running_average)


class _SignVQ(NnxQuantizer):
    """Base class of `LFQ` and `BSQ`, which have the same fields. A subclass names its linen layer."""

    linen_layer: type[quantizers.Quantizer]

    def __init__(
        self,
        features: int,
        *,
        bits: int = 10,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = self.linen_layer(
            bits=bits, commitment_weight=commitment_weight, entropy_weight=entropy_weight,
            diversity_weight=diversity_weight, temperature=temperature,
        )  # fmt: skip
        super().__init__(linen, features, rngs, use_running_average)


class LFQ(_SignVQ):
    """Lookup-free quantiser: `kvae.LFQ` for NNX.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.LFQ(16, bits=9, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 16))).quantized.shape
      (5, 16)

    Args:
      features: d, the length of the vectors.
      rngs: random streams; `params` initialises the projections.
      use_running_average: has no effect here.

    The other arguments are the fields of `kvae.LFQ`, with the same defaults.
    """

    linen_layer = quantizers.LFQ


class BSQ(_SignVQ):
    """Binary spherical quantiser: `kvae.BSQ` for NNX.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.BSQ(16, bits=9, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 16))).quantized.shape
      (5, 16)

    Args:
      features: d, the length of the vectors.
      rngs: random streams; `params` initialises the projections.
      use_running_average: has no effect here.

    The other arguments are the fields of `kvae.BSQ`, with the same defaults.
    """

    linen_layer = quantizers.BSQ


class SimVQ(NnxQuantizer):
    """Frozen random codebook under a learned linear map: `kvae.SimVQ` for NNX.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.SimVQ(16, codebook_size=32, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 16))).codes.shape
      (5,)

    Args:
      features: d, the length of the vectors.
      codebook_size, commitment_weight, gradient: see `kvae.SimVQ`.
      rngs: random streams; `params` initialises the codebook and the linear map.
      use_running_average: has no effect here.
    """

    def __init__(
        self,
        features: int,
        *,
        codebook_size: int = 512,
        commitment_weight: float = 0.25,
        gradient: str = "straight_through",
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.SimVQ(codebook_size=codebook_size, commitment_weight=commitment_weight, gradient=gradient)
        super().__init__(linen, features, rngs, use_running_average)


class IBQ(NnxQuantizer):
    """Codebook learned through a softmax over all codes: `kvae.IBQ` for NNX.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import kvae
      >>> layer = kvae.nnx.IBQ(16, codebook_size=32, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 16))).codes.shape
      (5,)

    Args:
      features: d, the length of the vectors.
      codebook_size, codebook_weight, entropy_weight, diversity_weight, temperature: see `kvae.IBQ`.
      rngs: random streams; `params` initialises the codebook.
      use_running_average: has no effect here.
    """

    def __init__(
        self,
        features: int,
        *,
        codebook_size: int = 512,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.05,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        rngs: nnx.Rngs,
        use_running_average: bool = False,
    ):
        linen = quantizers.IBQ(codebook_size, codebook_weight, entropy_weight, diversity_weight, temperature)
        super().__init__(linen, features, rngs, use_running_average)
