"""Output heads, by name in `HEADS`: each computes p(code | hidden vector).

A head splits a code into digits. The probability of the code is the product of the probabilities of its digits, each
given the digits before it (`Factors`). The heads differ in the digits: the code itself, its index along each axis of
the grid, or its block of the grid and the place in the block.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvae.models.priors.embeddings import EMBEDDING_INIT, grid_of, standardized
from kvae.models.priors.layout import Level

HIGHEST = jax.lax.Precision.HIGHEST


@struct.dataclass
class Factors:
    """The distribution of codes given a hidden vector h, as a product over digits.

        log p(code | h) = sum_f log softmax(gelu(h + e_1[digit_1] + ... + e_{f-1}[digit_{f-1}]) W_f + b_f)[digit_f]

    The first factor has no gelu, so that a single digit is an ordinary softmax layer.

    Attributes:
      digits: digits of each code, int32 [K, F]; each combination of digits occurs once.
      kernels: W_f, float32 [width, n_f].
      biases: b_f, float32 [n_f].
      contexts: e_f, float32 [n_f, width], for all factors but the last.
    """

    digits: jax.Array
    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    contexts: tuple[jax.Array, ...]

    def log_probability(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Returns log p(code | h), float32 [...], of codes int [...] given hidden vectors [..., width]."""
        # As a matrix of all positions: XLA's matrix products are then twice as fast on CPUs.
        total, state = 0.0, hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
        digits = self.digits[codes.ravel()]
        for factor in range(len(self.kernels)):
            digit = digits[..., factor]
            total += jnp.take_along_axis(self._log_softmax(factor, state), digit[..., None], axis=-1)[..., 0]
            if factor < len(self.contexts):
                state = state + self.contexts[factor][digit]
        return total.reshape(codes.shape)

    def log_probabilities(self, hidden: jax.Array) -> jax.Array:
        """Returns log p(code | h) of all codes, float32 [..., K], given hidden vectors [..., width]."""
        state = hidden.astype(jnp.float32)
        joint = self._log_softmax(0, state)
        for factor, context in enumerate(self.contexts):
            state = state[..., None, :] + context
            joint = joint[..., None] + self._log_softmax(factor + 1, state)
        lengths = [len(bias) for bias in self.biases]
        joint = joint.reshape(*hidden.shape[:-1], math.prod(lengths))
        return jnp.take(joint, jnp.ravel_multi_index(tuple(self.digits.T), lengths, mode="clip"), axis=-1)

    def _log_softmax(self, factor: int, state: jax.Array) -> jax.Array:
        state = nn.gelu(state) if factor else state
        return nn.log_softmax(jnp.matmul(state, self.kernels[factor], precision=HIGHEST) + self.biases[factor])


def whole(level: Level) -> np.ndarray:
    """Returns one digit, the code: int32 [K, 1]."""
    return np.arange(level.size, dtype=np.int32)[:, None]


def address(level: Level) -> np.ndarray:
    """Returns the index of each code along each axis of the grid, int32 [K, axes]."""
    return grid_of(level, "head").coordinates.astype(np.int32)


def block_and_place(level: Level) -> np.ndarray:
    """Returns each code's block of the grid, and its place in the block: int32 [K, 2].

    Along an axis of n nodes, a block spans the largest divisor of n up to sqrt(n): 4 x 4 on a grid of 16 x 32.
    """
    grid = grid_of(level, "head")
    blocks = [max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0) for n in grid.shape]
    counts = [n // block for n, block in zip(grid.shape, blocks, strict=True)]
    block, place = (grid.coordinates // blocks).T, (grid.coordinates % blocks).T
    return np.stack([np.ravel_multi_index(block, counts), np.ravel_multi_index(place, blocks)], -1).astype(np.int32)


class FactoredHead(nn.Module):
    """A head with learned weights for each digit.

    Attributes:
      level: the level whose codes it predicts.
      width: dimension of the hidden vectors.
      digits_of: function that returns the digits of a level's codes.
    """

    level: Level
    width: int
    digits_of: Callable[[Level], np.ndarray]

    @nn.compact
    def __call__(self, codewords: jax.Array) -> Factors:
        """Returns the weights; the codewords, float32 [K, d], are ignored."""
        digits = self.digits_of(self.level)
        lengths = (digits.max(axis=0) + 1).tolist()
        zeros = nn.initializers.zeros
        return Factors(
            jnp.asarray(digits),
            tuple(self.param(f"kernel_{f}", EMBEDDING_INIT, (self.width, n)) for f, n in enumerate(lengths)),
            tuple(self.param(f"bias_{f}", zeros, (n,)) for f, n in enumerate(lengths)),
            tuple(self.param(f"context_{f}", EMBEDDING_INIT, (n, self.width)) for f, n in enumerate(lengths[:-1])),
        )


class CodewordHead(nn.Module):
    """A softmax whose weights are tied to the codewords: logit_k = h . phi(w_k) + b_k, phi a small MLP.

    With a linear phi the logits would have only rank d: for 3-dimensional codewords, no code inside the cloud of
    codewords could be the likeliest.

    Attributes:
      level: the level whose codes it predicts.
      width: dimension of the hidden vectors.
    """

    level: Level
    width: int

    @nn.compact
    def __call__(self, codewords: jax.Array) -> Factors:
        """Returns the weights computed from the codewords, float32 [K, d]."""
        inner = nn.gelu(nn.Dense(self.width, name="inner")(standardized(self.level, codewords)))
        kernel = nn.Dense(self.width, name="outer", use_bias=False, kernel_init=EMBEDDING_INIT)(inner).T
        bias = self.param("bias", nn.initializers.zeros, (self.level.size,))
        return Factors(jnp.asarray(whole(self.level)), (kernel,), (bias,), ())


HEADS: dict[str, Callable[..., nn.Module]] = {
    "softmax": functools.partial(FactoredHead, digits_of=whole),
    "address": functools.partial(FactoredHead, digits_of=address),
    "clusters": functools.partial(FactoredHead, digits_of=block_and_place),
    "codewords": CodewordHead,
}
"""Heads by name: functions of `level` and `width` to a module that maps the level's codewords to `Factors`.

`softmax` has K logits. `address` has one factor for each axis of the grid: 16 + 32 logits for a map of 16 x 32.
`clusters` predicts a block of the grid and then the code in the block; the clusters are IAR's idea (Hu et al.,
arXiv:2501.00880), which takes them from k-means. `codewords` is a softmax tied to the codewords.
"""
