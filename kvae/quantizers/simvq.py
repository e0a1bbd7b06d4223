"""SimVQ: a frozen random codebook under a learned linear map."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from kvae import kohonen, measures
from kvae.core.fields import NotNegative, OneOf
from kvae.grids import LARGEST_SIZE
from kvae.quantizers.base import (
    Quantized,
    Quantizer,
    along_last_axis,
    check_codebook_size,
    check_codes,
    check_dimension,
    check_vectors,
    masked,
    masked_mean,
)
from kvae.quantizers.gradients import GRADIENTS


class SimVQ(Quantizer):
    """SimVQ (Zhu et al., "Addressing Representation Collapse", 2024, arXiv:2411.02038).

    The codewords are W^T c_k + b. The vectors c_k are drawn from N(0, 1 / d) and do not change. The gradient changes
    the linear map, and thereby moves all codewords at once, used or not. If w is the codeword nearest to z, the loss is

        mean |sg(z) - w|^2 + commitment_weight * mean |z - sg(w)|^2.

    The collection `params` holds `kernel`, W [d, d], and `bias`, b [d]. The collection `codebook` holds `frozen`, the
    vectors c_k [K, d], which training does not change. All are float32.

    Example:
      >>> import jax, kvae
      >>> layer = kvae.SimVQ(codebook_size=32)
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> gradient = jax.grad(lambda params: layer.apply({**variables, "params": params}, z).loss)(variables["params"])
      >>> gradient["kernel"].shape
      (16, 16)

    Attributes:
      codebook_size: K, the number of codes.
      commitment_weight: weight of the commitment loss.
      gradient: gradient estimator for the encoder, a name in `kvae.quantizers.GRADIENTS`.
      train: default for the argument `train` of a call, which has no effect here.
    """

    codebook_size: Annotated[int, Ge(1), Le(LARGEST_SIZE)] = 512
    commitment_weight: NotNegative = 0.25
    gradient: Annotated[str, OneOf(GRADIENTS)] = "straight_through"
    train: bool | None = None

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`); `train` has no effect."""
        check_vectors(z, mask)
        size, dimension = self.codebook_size, z.shape[-1]
        self.variable("codebook", "frozen", lambda: _draw_frozen(self.make_rng("params"), size, dimension))
        check_dimension(z, self._frozen())
        self.param("kernel", nn.initializers.lecun_normal(), (dimension, dimension), jnp.float32)
        self.param("bias", nn.initializers.zeros, (dimension,), jnp.float32)
        stop = jax.lax.stop_gradient
        z32 = masked(z, mask).astype(jnp.float32)
        codes = kohonen.nearest_code(stop(z32), stop(self.codewords()))
        counts = kohonen.batch_statistics(z32, codes, size, mask).counts
        nearest = self._codewords_of(codes)
        loss = masked_mean(jnp.square(nearest - stop(z32)), mask)
        loss += self.commitment_weight * masked_mean(jnp.square(stop(nearest) - z32), mask)
        quantized = GRADIENTS[self.gradient](z32, nearest).astype(z.dtype)
        return Quantized(quantized, codes, loss, measures.perplexity(counts), counts, {})

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the codewords [..., d] of codes, int [...]."""
        check_codes(codes, self.codebook_size)
        return self._codewords_of(jnp.asarray(codes))

    def codewords(self) -> jax.Array:
        """Returns the codewords, float32 [K, d]."""
        return self._map(self._frozen())

    def _codewords_of(self, codes: jax.Array) -> jax.Array:
        """Returns the codewords [..., d] of codes, without mapping or differentiating all K frozen vectors."""
        return self._map(kohonen.codewords_of(codes, self._frozen()))

    def _frozen(self) -> jax.Array:
        frozen = self.stored("codebook", "frozen")
        check_codebook_size(frozen, self.codebook_size)
        return frozen

    def _map(self, vectors: jax.Array) -> jax.Array:
        kernel, bias = self.stored("params", "kernel"), self.stored("params", "bias")
        return jnp.matmul(vectors, kernel, precision=jax.lax.Precision.HIGHEST) + along_last_axis(bias, vectors)


def _draw_frozen(key: jax.Array, size: int, dimension: int) -> jax.Array:
    return jax.random.normal(key, (size, dimension), jnp.float32) / math.sqrt(dimension)
