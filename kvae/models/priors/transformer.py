"""A causal transformer with pre-normalisation (GPT-2): each position attends to itself and earlier positions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a layer norm and inside a residual connection.

    Attributes:
      num_heads: number of attention heads.
      dropout: probability that an attention weight or an output is dropped in training.
      dtype: dtype of the computation; parameters are float32.
    """

    num_heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, decode: bool) -> jax.Array:
        """Returns float [b, T, width]; see `Transformer.__call__`."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads,
            dtype=self.dtype,
            dropout_rate=self.dropout,
            deterministic=not train,
            decode=decode,
            force_fp32_for_softmax=True,
            name="attention",
        )
        # With a cache, the layer itself masks the positions that are not filled yet.
        mask = None if decode else nn.make_causal_mask(jnp.ones(x.shape[:2]), dtype=bool)
        x = x + drop(attention(nn.LayerNorm(dtype=self.dtype, name="norm_attention")(x), mask=mask))
        inner = nn.Dense(4 * x.shape[-1], dtype=self.dtype, name="inner")
        outer = nn.Dense(x.shape[-1], dtype=self.dtype, name="outer")
        # As a matrix of all positions: XLA's matrix products are then twice as fast on CPUs.
        rows = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")(x).reshape(-1, x.shape[-1])
        return x + drop(outer(nn.gelu(inner(rows))).reshape(x.shape))


class Transformer(nn.Module):
    """Blocks followed by a layer norm.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = Transformer(depth=2, num_heads=2, dropout=0.0)
      >>> x = jax.random.normal(jax.random.key(0), (1, 5, 8))
      >>> variables = jax.jit(model.init)(jax.random.key(1), x)
      >>> jacobian = jax.jit(jax.jacobian(lambda x: model.apply(variables, x).sum(axis=-1)))(x)
      >>> jnp.any(jacobian[0, :, 0], axis=-1).astype(int)  # inputs that matter to each output
      Array([[1, 0, 0, 0, 0],
             [1, 1, 0, 0, 0],
             [1, 1, 1, 0, 0],
             [1, 1, 1, 1, 0],
             [1, 1, 1, 1, 1]], dtype=int32)

    Attributes:
      depth: number of blocks.
      num_heads, dropout, dtype: see `Block`.
    """

    depth: int
    num_heads: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, decode: bool = False) -> jax.Array:
        """Transforms a sequence of vectors.

        Args:
          x: float [b, T, width].
          train: True applies dropout.
          decode: True keeps keys and values in the collection `cache`: the first call creates the cache for T
            positions, and each later call takes the vector of the next position, [b, 1, width].

        Returns:
          float32 [b, T, width], or [b, 1, width] with a cache.
        """
        x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(self.dtype))
        for number in range(self.depth):
            block = Block(self.num_heads, self.dropout, self.dtype, name=f"block_{number}")
            x = block(x, train=train, decode=decode)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x).astype(jnp.float32)
