"""Finite scalar quantisation: a fixed grid instead of a learned codebook."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, MinLen

from kvae import kohonen, measures
from kvae.core.auto_axes import sharded_like
from kvae.core.errors import InputError, short_repr
from kvae.core.fields import LARGEST_COUNT, OneOf, Probability
from kvae.grids import LARGEST_SIZE
from kvae.quantizers.base import (
    Quantized,
    along_last_axis,
    check_codes,
    check_vectors,
    codebook_sums,
    masked,
)
from kvae.quantizers.gradients import straight_through
from kvae.quantizers.projections import Projected
from kvae.topology import Grid, Plane

MARGIN = 1e-3
"""Share by which the bound exceeds the outermost levels, so that they can be reached."""

MOST_LEVELS = 2**24
"""Maximum number of levels of an element; float32 cannot represent all integers beyond it."""

SQUASHINGS = {"tanh": 1.0, "ifsq": 0.8}
"""Maps the values of the field `squashing` to the slope a in tanh(a z)."""


class FSQ(Projected):
    """Finite scalar quantiser (Mentzer et al., "Finite Scalar Quantization", 2023, arXiv:2309.15505).

    Each element of a vector is bounded by f(z) = (L - 1)(1 + margin) / 2 tanh(a (z + shift)) - offset and rounded to
    one of L levels. The offset is 1/2 for an even L and 0 for an odd L; the shift makes f(0) = 0. There is no loss.
    Codes number the levels row by row, so the grid is a plane with the shape `levels`. There is no grid for more than
    2^20 codes or 16 elements.

    In the paper, a = 1. With `squashing="ifsq"`, a = 0.8 as in iFSQ (Lin et al., 2026, arXiv:2601.17124), since
    tanh(0.8 z) = 2 sigmoid(1.6 z) - 1. This makes normally distributed elements about uniform before rounding.

    If the vectors do not have one element for each entry of `levels`, two learned linear layers in `params` project
    them to that length and back.

    Example:
      >>> import jax, kvae
      >>> layer = kvae.FSQ(levels=(8, 5, 5, 5))
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out = layer.apply(variables, z)
      >>> layer.codebook_size, out.codes.shape, out.quantized.shape
      (1000, (10,), (10, 16))

    Attributes:
      levels: L, the number of levels, of each element; the paper uses (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for
        2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16.
      squashing: function that bounds the elements, "tanh" or "ifsq".
      noise_dropout: probability that, in training, an element gets uniform noise from -1/2 to 1/2 level instead of
        being rounded (Parker et al., 2024, arXiv:2411.19842). The codes are still computed from the rounded elements.
        Requires the random stream "dropout".
      train: default for the argument `train` of a call, which matters only for `noise_dropout`.
    """

    levels: Annotated[tuple[Annotated[int, Ge(2)], ...], MinLen(1)] = (8, 5, 5, 5)
    squashing: Annotated[str, OneOf(SQUASHINGS)] = "tanh"
    noise_dropout: Probability = 0.0
    train: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.codebook_size > LARGEST_COUNT:
            raise InputError(
                f"levels is {short_repr(self.levels)}, which has {self.codebook_size:,} codes; it must have at most "
                f"{LARGEST_COUNT:,}, because codes are int32"
            )
        if max(self.levels) > MOST_LEVELS:
            raise InputError(f"levels is {short_repr(self.levels)}; each must be at most {MOST_LEVELS:,}")

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`). With `noise_dropout`, noise is added if `train` is True."""
        check_vectors(z, mask)
        self.declare_projections(z, len(self.levels))
        bounded = self.bounded(masked(z, mask))
        # With 1,002 levels or more, the margin exceeds half a level, so clipping is necessary.
        lowest, highest = -self._half_widths, np.array(self.levels) - 1 - self._half_widths
        lowest, highest = (along_last_axis(np.float32(level), z) for level in (lowest, highest))
        nearest = jnp.clip(jnp.round(jax.lax.stop_gradient(bounded)), lowest, highest)
        codes = self._codes(nearest)
        total = jnp.sum(bounded, axis=-1, keepdims=True)  # not finite if any element is not
        counts = kohonen.batch_statistics(total, codes, self.codebook_size, mask).counts
        if train and self.noise_dropout:
            nearest = self._with_noise(bounded, nearest)
        quantized = self._vectors_of(straight_through(bounded, nearest)).astype(z.dtype)
        return Quantized(quantized, codes, jnp.zeros((), jnp.float32), measures.perplexity(counts), counts, {})

    def bounded(self, z: jax.Array) -> jax.Array:
        """Returns f(z) before rounding, in units of a level: float [..., d] -> float32 [..., number of elements]."""
        levels = np.array(self.levels)
        half, offset = (levels - 1) * (1 + MARGIN) / 2, np.where(levels % 2 == 0, 0.5, 0.0)
        # Under jax_enable_x64, float64 arrays would make the result float64.
        constants = (half, offset, np.arctanh(offset / half))
        half, offset, shift = (along_last_axis(np.float32(constant), z) for constant in constants)
        return half * jnp.tanh(SQUASHINGS[self.squashing] * self.project_in(z) + shift) - offset

    def _with_noise(self, bounded: jax.Array, nearest: jax.Array) -> jax.Array:
        """Returns the nearest levels, except for randomly chosen elements, which get noise instead."""

        def add_noise(bounded, nearest, key):
            coin_key, noise_key = jax.random.split(key)
            is_noisy = jax.random.bernoulli(coin_key, self.noise_dropout, bounded.shape)
            noise = jax.random.uniform(noise_key, bounded.shape, bounded.dtype, -0.5, 0.5)
            return jnp.where(is_noisy, bounded + noise, nearest)

        return sharded_like(bounded, add_noise, jax.lax.stop_gradient(bounded), nearest, self.make_rng("dropout"))

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the vectors [..., d] of codes, int [...]."""
        check_codes(codes, self.codebook_size)
        return self._vectors_of(self._levels_of(codes))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns `Quantizer.batch_sums` of the bounded vectors, in units of a level."""
        grid, bounded = self.grid, self.bounded(masked(z, mask))
        levels = self._levels_of(jnp.arange(grid.size)) if grid else None
        return codebook_sums(bounded, out, mask, self._levels_of(out.codes), levels, grid)

    @property
    def codebook_size(self) -> int:
        """K, the product of the levels."""
        return math.prod(self.levels)

    @property
    def grid(self) -> Grid | None:
        """A plane with the shape `levels`; None for more than 2^20 codes or 16 elements."""
        has_grid = self.codebook_size <= LARGEST_SIZE and len(self.levels) <= 16
        return Plane(self.levels) if has_grid else None

    @property
    def is_map(self) -> bool:
        """True if there is a grid, on which near codes are similar by construction."""
        return self.grid is not None

    @property
    def _half_widths(self) -> np.ndarray:
        return np.array(self.levels) // 2

    @property
    def _weights(self) -> np.ndarray:
        """Difference in code between adjacent levels of each element, int32."""
        return np.cumprod([1, *self.levels[:0:-1]])[::-1].astype(np.int32)

    def _codes(self, nearest: jax.Array) -> jax.Array:
        constants = (np.float32(self._half_widths), self._weights)
        half_widths, weights = (along_last_axis(constant, nearest) for constant in constants)
        indices = jnp.clip((nearest + half_widths).astype(jnp.int32), 0)  # NaN becomes an arbitrary integer
        return jnp.sum(indices * weights, axis=-1, dtype=jnp.int32)

    def _levels_of(self, codes: jax.Array) -> jax.Array:
        """Returns the levels of codes, centred at 0: int [...] -> float32 [..., number of elements]."""
        codes = jnp.asarray(codes, jnp.int32)[..., None]
        constants = (self._weights, np.int32(self.levels), np.float32(self._half_widths))
        weights, levels, half_widths = (along_last_axis(constant, codes) for constant in constants)
        return (codes // weights % levels).astype(jnp.float32) - half_widths

    def _vectors_of(self, nearest: jax.Array) -> jax.Array:
        return self.project_out(nearest / along_last_axis(np.float32(self._half_widths), nearest))
