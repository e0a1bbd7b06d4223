"""IBQ: a codebook learned through a softmax over all codes."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from kvae import kohonen, measures
from kvae.core.auto_axes import replicated, sharded_like
from kvae.core.fields import NotNegative
from kvae.grids import LARGEST_SIZE
from kvae.quantizers.base import (
    Quantized,
    Quantizer,
    check_codebook_size,
    check_codes,
    check_dimension,
    check_vectors,
    masked,
    masked_mean,
)
from kvae.quantizers.lookup_free import LARGEST_LOGIT, SMALLEST_PROBABILITY, Temperature


class IBQ(Quantizer):
    """Index back-propagation quantiser (Shi et al., 2024, arXiv:2412.02692).

    With logits l_k = z . w_k and p = softmax(l), the code is argmax l, and the output is the code's one-hot vector h
    times the codebook. In the backward pass, p replaces the indicator: the output is that of (h + p - sg(p)) W. Each
    step therefore moves all codewords, used or not. If q is the output and w the codeword of z, the loss is

        mean |q - z|^2 + mean |sg(w) - z|^2 + codebook_weight * mean |w - sg(z)|^2
        + entropy_weight * (mean H(p) - diversity_weight * H(mean p)),    p = softmax(l / temperature) in this line.

    The N x K arrays are computed in chunks, and again in the backward pass. Memory is O(N d + K d); a step takes about
    five times as long as a search for the nearest codeword.

    The collection `params` holds `codewords`, float32 [K, d], drawn from N(0, 1).

    Example:
      >>> import jax, kvae
      >>> layer = kvae.IBQ(codebook_size=32)
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> gradient = jax.grad(lambda params: layer.apply({"params": params}, z).quantized.sum())(variables["params"])
      >>> bool((gradient["codewords"] != 0).all())
      True

    Attributes:
      codebook_size: K, the number of codes.
      codebook_weight: weight of the loss that pulls codewords towards vectors; the paper's beta.
      entropy_weight: weight of the two entropies in the loss; 0 saves their time.
      diversity_weight: weight of the entropy of the mean probabilities, relative to the other entropy.
      temperature: of the softmax in the entropies.
      train: default for the argument `train` of a call, which has no effect here.
    """

    codebook_size: Annotated[int, Ge(1), Le(LARGEST_SIZE)] = 512
    codebook_weight: NotNegative = 0.25
    entropy_weight: NotNegative = 0.05
    diversity_weight: NotNegative = 1.0
    temperature: Temperature = 0.01
    train: bool | None = None

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`); `train` has no effect."""
        check_vectors(z, mask)
        size, stop = self.codebook_size, jax.lax.stop_gradient
        if self.has_variable("params", "codewords"):
            check_dimension(z, self.codewords())
        self.param("codewords", nn.initializers.normal(1.0), (size, z.shape[-1]), jnp.float32)
        codewords, z32 = self.codewords(), masked(z, mask).astype(jnp.float32)
        codes = kohonen.by_chunks(kohonen.lowest, stop(z32), stop(codewords), lambda z, w: -_logits(z, w))
        counts = kohonen.batch_statistics(z32, codes, size, mask).counts
        nearest = kohonen.codewords_of(codes, codewords)
        means = soft_means(z32, codewords)
        # Adding x - sg(x), which is 0, keeps the values exact.
        quantized = nearest + (means - stop(means))
        loss = masked_mean(jnp.square(quantized - z32), mask) + masked_mean(jnp.square(stop(nearest) - z32), mask)
        loss += self.codebook_weight * masked_mean(jnp.square(nearest - stop(z32)), mask)
        if self.entropy_weight:
            clear, even = assignment_entropies(z32, codewords, self.temperature, mask)
            loss += self.entropy_weight * (clear - self.diversity_weight * even)
        return Quantized(quantized.astype(z.dtype), codes, loss, measures.perplexity(counts), counts, {})

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the codewords [..., d] of codes, int [...]."""
        check_codes(codes, self.codebook_size)
        return kohonen.codewords_of(jnp.asarray(codes), self.codewords())

    def codewords(self) -> jax.Array:
        """Returns the codewords, float32 [K, d]."""
        codewords = self.stored("params", "codewords")
        check_codebook_size(codewords, self.codebook_size)
        return codewords


def soft_means(z: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns means of the codewords, softmax(z W^T) sg(W), whose gradient passes only through the softmax.

    Args:
      z: float32 [..., d].
      codewords: W, float32 [K, d].

    Returns:
      float32 [..., d].
    """
    return sharded_like(z, _soft_means, z, codewords)


def _soft_means(z, codewords):
    targets = jax.lax.stop_gradient(codewords)

    @jax.checkpoint
    def means(chunk):
        weights = jax.nn.softmax(_logits(chunk.reshape(-1, chunk.shape[-1]), codewords))
        return jnp.matmul(weights, targets, precision=jax.lax.Precision.HIGHEST)

    chunks, join = kohonen.split_rows(z, len(codewords))
    return join(jax.lax.map(means, chunks))


def assignment_entropies(
    z: jax.Array, codewords: jax.Array, temperature: float, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean entropy of p = softmax(z W^T / temperature), and the entropy of the mean of p, in nats.

    Args:
      z: float32 [..., d].
      codewords: W, float32 [K, d].
      temperature: divides the logits.
      mask: optional bool [...], False for positions to leave out.

    Returns:
      Two float32 [], from 0 to log K.
    """
    mask = jnp.ones(z.shape[:-1], bool) if mask is None else mask

    def entropies(z, codewords, mask):
        return _assignment_entropies(z, codewords, temperature, mask)

    return replicated(entropies, z, codewords, mask)


def _assignment_entropies(z, codewords, temperature, mask):
    @jax.checkpoint
    def add(sums, chunk):
        vectors, weights = (array.reshape(-1, array.shape[-1]) for array in chunk)
        logits = _logits(vectors, codewords)
        below = (logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))) / temperature
        log_p = jax.nn.log_softmax(jnp.maximum(below, -LARGEST_LOGIT))
        p = weights * jnp.exp(log_p)
        return (sums[0] - jnp.sum(p * log_p), sums[1] + jnp.sum(p, axis=0)), None

    size, weights = len(codewords), mask[..., None].astype(jnp.float32)
    chunks = kohonen.split_rows(z, size)[0], kohonen.split_rows(weights, size)[0]
    sums, _ = jax.lax.scan(add, (jnp.float32(0), jnp.zeros(size, jnp.float32)), chunks)
    total = jnp.maximum(jnp.sum(weights), 1)
    probabilities = sums[1] / total
    # The gradient of p log p is infinite at 0.
    surprise = -jnp.log(jnp.maximum(probabilities, SMALLEST_PROBABILITY))
    return sums[0] / total, jnp.sum(probabilities * surprise)


def _logits(vectors: jax.Array, codewords: jax.Array) -> jax.Array:
    return jnp.matmul(vectors, codewords.T, precision=jax.lax.Precision.HIGHEST)
