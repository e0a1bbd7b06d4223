"""Convolution layers and the residual stacks of VQ-VAE and VQ-VAE-2.

Initialisation is PyTorch's default, which the authors' release uses: U(+-1/sqrt(fan_in)) for kernels and biases.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae.models.autoencoders.convolutions import convolve, double, halve


def uniform(fan_in: int):
    """PyTorch's default initialiser: U(+-1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution [b, h, w, i] -> [b, h, w, features]; of stride 2 and size 4 where `halves`.

    Attributes:
      features: output channels.
      size: side of the kernel.
      halves: whether the output is half as high and wide.
      use_bias: whether a bias is added.
      dtype: of the arithmetic; parameters are float32.
    """

    features: int
    size: int = 3
    halves: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution."""
        fan_in = self.size * self.size * x.shape[-1]
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32).astype(self.dtype)
        y = (halve if self.halves else convolve)(x.astype(self.dtype), kernel)
        if not self.use_bias:
            return y
        return y + self.param("bias", uniform(fan_in), (self.features,), jnp.float32).astype(self.dtype)


class TransposedConv(nn.Module):
    """4 x 4 transposed convolution of stride 2, [b, h, w, i] -> [b, 2h, 2w, features]."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the transposed convolution."""
        fan_in = 16 * self.features  # PyTorch counts a transposed convolution's fan-in at its output
        shape = (4, 4, self.features, x.shape[-1])
        kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", uniform(fan_in), (self.features,), jnp.float32).astype(self.dtype)
        return double(x.astype(self.dtype), kernel) + bias


class ResidualBlock(nn.Module):
    """x + 1x1(relu(3x3(relu(x)))), as in VQ-VAE-2; `rectified`, relu(x) + 1x1(relu(3x3(relu(x)))) without biases.

    The second is what VQ-VAE's release computes: its first relu works in place, so the skip is rectified too.
    """

    channels: int
    residual_channels: int
    rectified: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block, [b, h, w, channels] -> the same."""
        y = nn.relu(x)
        residual = Conv(self.residual_channels, 3, use_bias=not self.rectified, dtype=self.dtype)(y)
        residual = Conv(self.channels, 1, use_bias=not self.rectified, dtype=self.dtype)(nn.relu(residual))
        return (y if self.rectified else x) + residual


class Encoder(nn.Module):
    """Strided convolutions, then residual blocks: [b, h, w, i] -> [b, h / 2^n, w / 2^n, channels], n = num_downsamples.

    Attributes:
      num_downsamples: how many times height and width are halved, at least 1. The last of several has `channels`
        filters, all others half as many.
      channels, residual_channels, residual_blocks: widths and depth.
      rectified: the kind of residual block.
      dtype: of the arithmetic.
    """

    num_downsamples: int
    channels: int
    residual_channels: int
    residual_blocks: int
    rectified: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the encoder."""
        for halving in range(self.num_downsamples):
            # One halving alone has channels / 2, as the top level of VQ-VAE-2.
            features = self.channels if 0 < halving == self.num_downsamples - 1 else self.channels // 2
            x = nn.relu(Conv(features, 4, halves=True, dtype=self.dtype)(x))
        x = Conv(self.channels, 3, dtype=self.dtype)(x)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.channels, self.residual_channels, self.rectified, self.dtype)(x)
        return nn.relu(x)


class Decoder(nn.Module):
    """Residual blocks, then transposed convolutions: [b, h, w, i] -> [b, 2^n h, 2^n w, features], n = num_upsamples.

    Attributes:
      features: output channels.
      num_upsamples: how many times height and width are doubled, at least 1.
      channels, residual_channels, residual_blocks, rectified, dtype: as in `Encoder`.
    """

    features: int
    num_upsamples: int
    channels: int
    residual_channels: int
    residual_blocks: int
    rectified: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the decoder."""
        x = Conv(self.channels, 3, dtype=self.dtype)(x)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.channels, self.residual_channels, self.rectified, self.dtype)(x)
        x = nn.relu(x)
        for _ in range(self.num_upsamples - 1):
            x = nn.relu(TransposedConv(self.channels // 2, self.dtype)(x))
        return TransposedConv(self.features, self.dtype)(x)
