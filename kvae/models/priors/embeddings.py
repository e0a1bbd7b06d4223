"""Input embeddings of codes, by name in `EMBEDDINGS`; a prior adds those that its field `embeddings` lists."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae.core.errors import InputError
from kvae.grids import Grid
from kvae.models.priors.layout import Level

EMBEDDING_INIT = nn.initializers.normal(0.02)


class Embedding(nn.Module):
    """Abstract base class: a vector for each code of a level. A subclass defines `__call__`.

    Attributes:
      level: the level.
      width: dimension of the vectors.
    """

    level: Level
    width: int

    def __call__(self, codewords: jax.Array) -> jax.Array:
        """Returns the vector of each code, float32 [K, width], from the codewords, float32 [K, d]."""
        raise NotImplementedError


class Table(Embedding):
    """A learned vector for each code."""

    @nn.compact
    def __call__(self, codewords: jax.Array) -> jax.Array:
        """Returns the vectors."""
        return self.param("embedding", EMBEDDING_INIT, (self.level.size, self.width))


class Address(Embedding):
    """The sum of a learned vector for each axis of the grid, chosen by the code's index along that axis."""

    @nn.compact
    def __call__(self, codewords: jax.Array) -> jax.Array:
        """Returns the vectors."""
        grid = grid_of(self.level, "embedding")
        axes = [
            self.param(f"embedding_{axis}", EMBEDDING_INIT, (length, self.width))
            for axis, length in enumerate(grid.shape)
        ]
        return sum(axis[index] for axis, index in zip(axes, grid.coordinates.T, strict=True))


class Codeword(Embedding):
    """A linear map of the codeword."""

    @nn.compact
    def __call__(self, codewords: jax.Array) -> jax.Array:
        """Returns the vectors."""
        vectors = standardized(self.level, codewords)
        # At the scale of the other embeddings, or the places would be drowned out.
        kernel_init = nn.initializers.normal(0.02 / max(vectors.shape[-1], 1) ** 0.5)
        return nn.Dense(self.width, kernel_init=kernel_init, name="linear")(vectors)


EMBEDDINGS: dict[str, type[Embedding]] = {"table": Table, "address": Address, "codeword": Codeword}
"""Embeddings of codes by name. The name in a message is "embedding"."""


def grid_of(level: Level, user: str) -> Grid:
    """Returns the grid of a level.

    Args:
      level: the level.
      user: what needs the grid, for the message.

    Raises:
      InputError: the codes have no grid.
    """
    if level.grid is None:
        raise InputError(f"the codebook {level.name!r} has no grid, which the {user} of this prior needs")
    return level.grid


def standardized(level: Level, codewords: jax.Array) -> jax.Array:
    """Returns codewords, float32 [K, d], minus their mean and divided by the root mean square of what remains.

    Raises:
      InputError: the codewords are unknown.
    """
    if not level.dim:
        raise InputError(
            f"the codewords of {level.name!r} are unknown, because an older version wrote the tokens; run "
            "kvae.tokenize again, or use no codewords in model.embeddings, model.head and model.loss"
        )
    centered = codewords - jnp.mean(codewords, axis=0, keepdims=True)
    return centered / jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(centered))), 1e-12)
