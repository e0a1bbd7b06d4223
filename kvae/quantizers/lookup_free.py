"""Lookup-free quantisers: a code consists of the signs of a few elements, so no codebook is learned or searched."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le

from kvae import kohonen, measures
from kvae.core.auto_axes import replicated
from kvae.core.fields import NotNegative
from kvae.quantizers.base import (
    Quantized,
    along_last_axis,
    check_codes,
    check_vectors,
    codebook_sums,
    masked,
    masked_mean,
)
from kvae.quantizers.gradients import straight_through
from kvae.quantizers.projections import Projected

Bits = Annotated[int, Ge(1), Le(20)]
"""Number of bits of a code. The counts of 2^20 codes take 4 MiB."""

Temperature = Annotated[float, Ge(1e-30), Le(1e30)]
"""The lower limit keeps its inverse within the range of float32."""

LARGEST_LOGIT = 1e4
"""Limit of the logits; the entropy of a bit, and its gradient, are 0 in float32 far below it."""

SMALLEST_PROBABILITY = 1e-30
"""Lower bound of a probability inside the logarithm of an entropy."""


def bit_entropy(logits: jax.Array) -> jax.Array:
    """Returns the entropy, in nats, of bits that are 1 with probability sigmoid(logit): float32 [...] -> [...]."""
    size = jnp.abs(logits)
    return jnp.log1p(jnp.exp(-size)) + size * jax.nn.sigmoid(-size)


def mean_code_probabilities(logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the mean probability of each code over all positions, without an N x K array.

    The probability of a code is the product of the probabilities of its bits: p(c | z) = p(a | z) p(b | z), where a is
    the first half of the bits and b the second. The mean over N positions is therefore a product of two matrices, each
    of about N x sqrt(K) elements.

    Args:
      logits: float32 [..., bits]; a bit is 1 with probability sigmoid(logit).
      mask: optional bool [...], False for positions to leave out.

    Returns:
      float32 [2^bits]; the first bit is the most significant one of a code.
    """
    mask = jnp.ones(logits.shape[:-1], bool) if mask is None else mask
    return replicated(_mean_code_probabilities, logits, mask)


def _mean_code_probabilities(logits, mask):
    logits, weights = logits.reshape(-1, logits.shape[-1]), mask.reshape(-1, 1).astype(jnp.float32)
    half = logits.shape[-1] // 2
    first, second = _word_probabilities(logits[:, :half]) * weights, _word_probabilities(logits[:, half:])
    totals = jnp.matmul(first.T, second, precision=jax.lax.Precision.HIGHEST)
    return totals.reshape(-1) / jnp.maximum(jnp.sum(weights), 1)


def _word_probabilities(logits: jax.Array) -> jax.Array:
    """Returns the probabilities of all words of n independent bits: [N, n] -> [N, 2^n]."""
    n = logits.shape[-1]
    words = (np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1
    by_bit = jnp.concatenate([jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)], axis=-1)
    chosen = np.concatenate([words, 1 - words], axis=-1, dtype=np.float32)
    return jnp.exp(jnp.matmul(by_bit, chosen.T, precision=jax.lax.Precision.HIGHEST))


class _SignVQ(Projected):
    """Base class of `LFQ` and `BSQ`, with codes, lookup and loss. A subclass defines `scaled` and `magnitude`."""

    bits: Bits = 10
    commitment_weight: NotNegative = 0.25
    entropy_weight: NotNegative = 0.1
    diversity_weight: NotNegative = 1.0
    temperature: Temperature = 0.01
    train: bool | None = None

    @property
    def codebook_size(self) -> int:
        """K = 2^bits."""
        return 2**self.bits

    @property
    def magnitude(self) -> float:
        """Absolute value of the elements of a codeword."""
        raise NotImplementedError

    def scaled(self, vectors: jax.Array) -> jax.Array:
        """Returns the vectors, float32 [..., bits], whose signs become the code."""
        raise NotImplementedError

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`); `train` has no effect."""
        check_vectors(z, mask)
        self.declare_projections(z, self.bits)
        vectors = self.project_in(masked(z, mask))
        total = jnp.sum(vectors, axis=-1, keepdims=True)  # not finite if any element is not
        vectors = self.scaled(vectors)
        codes = jnp.sum(jnp.where(vectors > 0, along_last_axis(self._weights, vectors), 0), axis=-1, dtype=jnp.int32)
        counts = kohonen.batch_statistics(total, codes, self.codebook_size, mask).counts
        nearest = self._signs_of(codes)
        loss = self.commitment_weight * masked_mean(jnp.square(nearest - vectors), mask)
        loss += self.entropy_weight * self._entropy_penalty(vectors, mask)
        quantized = self.project_out(straight_through(vectors, nearest)).astype(z.dtype)
        return Quantized(quantized, codes, loss, measures.perplexity(counts), counts, {})

    def _entropy_penalty(self, vectors: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns mean H(p(c | z)) - diversity_weight * H(mean p(c | z))."""
        logits = jnp.clip(4 * self.magnitude / self.temperature * vectors, -LARGEST_LOGIT, LARGEST_LOGIT)
        uncertainty = masked_mean(bit_entropy(logits), mask) * self.bits
        if not self.diversity_weight:
            return uncertainty
        probabilities = mean_code_probabilities(logits, mask)
        # The gradient of p log p is infinite at 0.
        surprise = -jnp.log(jnp.maximum(probabilities, SMALLEST_PROBABILITY))
        return uncertainty - self.diversity_weight * jnp.sum(probabilities * surprise)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the vectors [..., d] of codes, int [...]."""
        check_codes(codes, self.codebook_size)
        return self.project_out(self._signs_of(jnp.asarray(codes)))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns `Quantizer.batch_sums` of the vectors whose signs become the code."""
        vectors = self.scaled(self.project_in(masked(z, mask)))
        return codebook_sums(vectors, out, mask, self._signs_of(out.codes), None, None)

    @property
    def _weights(self) -> np.ndarray:
        return 2 ** np.arange(self.bits, dtype=np.int32)[::-1]

    def _signs_of(self, codes: jax.Array) -> jax.Array:
        codes = codes.astype(jnp.int32)[..., None]
        ones = (codes & along_last_axis(self._weights, codes)) > 0
        return jnp.where(ones, self.magnitude, -self.magnitude).astype(jnp.float32)


class LFQ(_SignVQ):
    """Lookup-free quantiser (Yu et al., "Language Model Beats Diffusion", 2023, arXiv:2310.05737, Section 3).

    Each element of a vector of length `bits` is replaced by its sign: q(z_i) = 1 if z_i > 0, else -1 (Eq. 3). A code
    consists of the bits 1{z_i > 0}, the most significant first. With p(c | z) proportional to exp(-|z - c|^2 /
    temperature) over all 2^bits codes, the loss is

        commitment_weight * mean |sg(q(z)) - z|^2
        + entropy_weight * (mean H(p(c | z)) - diversity_weight * H(mean p(c | z))).

    The first entropy rewards clear decisions, the second equal use of all codes (Eq. 5). Both are in nats and exact for
    up to 2^20 codes, without an N x K array.

    If the length of the vectors is not `bits`, two learned linear layers in `params` project them to that length and
    back. Under `shard_map` or in micro-batches, the second entropy is computed for each part separately.

    Example:
      >>> import jax, kvae
      >>> layer = kvae.LFQ(bits=9)
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out = layer.apply(variables, z)
      >>> layer.codebook_size, out.codes.shape, out.quantized.shape
      (512, (10,), (10, 16))

    Attributes:
      bits: number of bits of a code; K is 2^bits.
      commitment_weight: weight of the commitment loss.
      entropy_weight: weight of the entropy terms.
      diversity_weight: gamma, the weight of the term for equal use of all codes, relative to the term for clear
        decisions.
      temperature: temperature of the code probabilities in the entropy terms, in units of squared distance.
      train: default for the argument `train` of a call, which has no effect here.
    """

    @property
    def magnitude(self) -> float:
        """1."""
        return 1.0

    def scaled(self, vectors: jax.Array) -> jax.Array:
        """Returns the vectors unchanged."""
        return vectors


class BSQ(_SignVQ):
    """Binary spherical quantiser (Zhao, Xiong and Krähenbühl, 2024, arXiv:2406.07548, Section 4).

    A vector v with `bits` elements is scaled to unit norm, u = v / |v|. Each element is then replaced by its sign
    divided by sqrt(bits), so that codewords also have unit norm: q(u) = sign(u) / sqrt(bits). With p(c | u)
    proportional to exp(-|u - c|^2 / temperature), which is the paper's exp(tau c . u) for tau = 2 / temperature, the
    loss is

        commitment_weight * mean |sg(q(u)) - u|^2
        + entropy_weight * (mean H(p(c | u)) - diversity_weight * H(mean p(c | u))).

    The paper approximates the second entropy by groups of bits; here it is exact, as in `LFQ`. Codes and projections
    are the same as in `LFQ`.

    Example:
      >>> import jax, kvae
      >>> layer = kvae.BSQ(bits=9)
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> layer.apply(variables, z).codes.shape
      (10,)

    Attributes:
      bits: number of bits of a code; K is 2^bits.
      commitment_weight: weight of the commitment loss.
      entropy_weight: weight of the entropy terms.
      diversity_weight: gamma, the weight of the term for equal use of all codes, relative to the term for clear
        decisions.
      temperature: temperature of the code probabilities in the entropy terms, in units of squared distance.
      train: default for the argument `train` of a call, which has no effect here.
    """

    @property
    def magnitude(self) -> float:
        """1 / sqrt(bits)."""
        return 1 / math.sqrt(self.bits)

    def scaled(self, vectors: jax.Array) -> jax.Array:
        """Returns the vectors scaled to length 1."""
        return kohonen.unit(vectors)
