"""Finite scalar quantisation: a fixed grid instead of a learned codebook."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, MinLen

from kvae import kohonen, measures
from kvae.core.errors import InputError, short_repr
from kvae.core.fields import LARGEST_COUNT
from kvae.grids import LARGEST_SIZE
from kvae.quantizers.base import (
    Quantized,
    Quantizer,
    check_codes,
    check_dimension,
    check_vectors,
    codebook_sums,
    masked,
    straight_through,
)
from kvae.topology import Grid, Plane

MARGIN = 1e-3
"""Excess of the bound over the outermost levels, which makes them reachable."""

MOST_LEVELS = 2**24
"""Most levels of an element: float32 tells no more apart."""


class FSQ(Quantizer):
    """Finite scalar quantiser (Mentzer, Minnen, Agustsson and Tschannen, "Finite Scalar Quantization", 2023).

    Each element of a vector is bounded by f(z) = (L - 1)(1 + margin) / 2 tanh(z + shift) - offset and rounded to one of
    L levels; offset is 1/2 for an even L, else 0, and shift makes f(0) = 0. There is no loss. Codes number the levels
    row by row, so the grid is a plane with the shape `levels`; there is no grid beyond 2^20 codes or 16 levels.

    Two learned linear layers in `params` project vectors of another length than `levels` there and back.

    Example:
      >>> import jax, kvae
      >>> layer = kvae.FSQ(levels=(8, 5, 5, 5))
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out = layer.apply(variables, z)
      >>> layer.codebook_size, out.codes.shape, out.quantized.shape
      (1000, (10,), (10, 16))

    Attributes:
      levels: L of each element; the paper takes (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5)
        for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16.
      train: default for the argument `train` of a call, which changes nothing here.
    """

    levels: Annotated[tuple[Annotated[int, Ge(2)], ...], MinLen(1)] = (8, 5, 5, 5)
    train: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.codebook_size > LARGEST_COUNT:
            raise InputError(
                f"levels is {short_repr(self.levels)}, which has {self.codebook_size:,} codes; codes are int32: at "
                f"most {LARGEST_COUNT:,}"
            )
        if max(self.levels) > MOST_LEVELS:
            raise InputError(f"levels is {short_repr(self.levels)}; each may be at most {MOST_LEVELS:,}")

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """See `Quantizer.quantize`; `train` changes nothing."""
        check_vectors(z, mask)
        if self.has_variable("params", "back_kernel"):
            kernel = self.get_variable("params", "back_kernel")
            if len(kernel) != len(self.levels):
                raise InputError(
                    f"the variables are of {len(kernel)} levels, and levels is {self.levels}; make the layer with the "
                    "levels of the variables, or initialise it again"
                )
            check_dimension(z, kernel)
        if z.shape[-1] != len(self.levels):
            for name, shape in (
                ("to_levels", (z.shape[-1], len(self.levels))),
                ("back", (len(self.levels), z.shape[-1])),
            ):
                self.param(f"{name}_kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
                self.param(f"{name}_bias", nn.initializers.zeros, shape[1:], jnp.float32)
        bounded = self.bounded(masked(z, mask))
        # The margin is more than half a level from 1,002 levels on.
        half_widths, levels = self._half_widths, np.array(self.levels)
        nearest = jnp.clip(jnp.round(jax.lax.stop_gradient(bounded)), -half_widths, levels - 1 - half_widths)
        codes = self._codes(nearest)
        total = jnp.sum(bounded, axis=-1, keepdims=True)  # not finite if an element is not
        counts = kohonen.batch_statistics(total, codes, self.codebook_size, mask).counts
        quantized = self._back(straight_through(bounded, nearest)).astype(z.dtype)
        return Quantized(quantized, codes, jnp.zeros((), jnp.float32), measures.perplexity(counts), counts, {})

    def bounded(self, z: jax.Array) -> jax.Array:
        """Returns f(z) before rounding, in units of a level: float [..., d] -> float32 [..., number of levels]."""
        levels = np.array(self.levels)
        half, offset = (levels - 1) * (1 + MARGIN) / 2, np.where(levels % 2 == 0, 0.5, 0.0)
        projected = self._projected("to_levels", z.astype(jnp.float32))
        return half * jnp.tanh(projected + np.arctanh(offset / half)) - offset

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the vectors [..., d] of codes, int [...]."""
        check_codes(codes, self.codebook_size)
        return self._back(self._levels_of(codes))

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
        """A plane with the shape `levels`; None for more than 2^20 codes or 16 levels."""
        has_grid = self.codebook_size <= LARGEST_SIZE and len(self.levels) <= 16
        return Plane(self.levels) if has_grid else None

    @property
    def is_map(self) -> bool:
        """True if there is a grid: codes that are near on it are similar by construction."""
        return self.grid is not None

    @property
    def _half_widths(self) -> np.ndarray:
        return np.array(self.levels) // 2

    @property
    def _weights(self) -> np.ndarray:
        """Number of codes between two levels of each element, int32."""
        return np.cumprod([1, *self.levels[:0:-1]])[::-1].astype(np.int32)

    def _codes(self, nearest: jax.Array) -> jax.Array:
        indices = jnp.clip((nearest + self._half_widths).astype(jnp.int32), 0)  # a NaN is any integer
        return jnp.sum(indices * self._weights, axis=-1, dtype=jnp.int32)

    def _levels_of(self, codes: jax.Array) -> jax.Array:
        """Returns the levels of codes, 0 in the middle: int [...] -> float32 [..., number of levels]."""
        weights = self._weights
        indices = jnp.asarray(codes, jnp.int32)[..., None] // weights % np.array(self.levels, np.int32)
        return indices.astype(jnp.float32) - self._half_widths.astype(np.float32)

    def _back(self, nearest: jax.Array) -> jax.Array:
        return self._projected("back", nearest / self._half_widths)

    def _projected(self, name: str, vectors: jax.Array) -> jax.Array:
        if not self.has_variable("params", f"{name}_kernel"):
            return vectors
        kernel, bias = (self.get_variable("params", f"{name}_{part}") for part in ("kernel", "bias"))
        return jnp.matmul(vectors, kernel, precision=jax.lax.Precision.HIGHEST) + bias
