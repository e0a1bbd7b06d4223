"""Convolution layers and the residual stacks of VQ-VAE and VQ-VAE-2.

Kernels and biases are initialised with PyTorch's default, U(+-1/sqrt(fan_in)), as in the authors' release.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae.models.autoencoders.convolutions import convolve, convolve_strided, convolve_transposed


def uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Returns PyTorch's default initialiser, U(+-1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution [b, h, w, i] -> [b, h, w, features], or [b, h/2, w/2, features] with `downsample`.

    Attributes:
      features: output channels.
      size: side of the kernel: odd, or 4 with `downsample`.
      downsample: True for stride 2.
      use_bias: True adds a bias.
      dtype: dtype of the arithmetic; parameters are float32.
    """

    features: int
    size: int = 3
    downsample: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution."""
        fan_in = self.size * self.size * x.shape[-1]
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32).astype(self.dtype)
        y = (convolve_strided if self.downsample else convolve)(x.astype(self.dtype), kernel)
        if not self.use_bias:
            return y
        bias = self.param("bias", uniform(fan_in), (self.features,), jnp.float32).astype(self.dtype)
        return y + bias.reshape(1, 1, 1, -1)


class TransposedConv(nn.Module):
    """4 x 4 transposed convolution of stride 2, [b, h, w, i] -> [b, 2h, 2w, features].

    Attributes:
      features: output channels.
      dtype: dtype of the arithmetic; parameters are float32.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the transposed convolution."""
        fan_in = 16 * self.features  # PyTorch computes a transposed convolution's fan-in from its output channels
        shape = (4, 4, self.features, x.shape[-1])
        kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", uniform(fan_in), (self.features,), jnp.float32).astype(self.dtype)
        return convolve_transposed(x.astype(self.dtype), kernel) + bias.reshape(1, 1, 1, -1)


class ResidualBlock(nn.Module):
    """Residual block [b, h, w, channels] -> [b, h, w, channels].

    Computes x + 1x1(relu(3x3(relu(x)))), as in VQ-VAE-2. If `rectified`, computes relu(x) + 1x1(relu(3x3(relu(x))))
    without biases, as in the authors' VQ-VAE, whose first relu works in place and so rectifies the skip connection too.

    Attributes:
      channels: channels of input and output.
      residual_channels: filters of the 3 x 3 convolution.
      rectified: True rectifies the skip connection and omits biases.
      dtype: dtype of the arithmetic; parameters are float32.
    """

    channels: int
    residual_channels: int
    rectified: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        y = nn.relu(x)
        residual = Conv(self.residual_channels, 3, use_bias=not self.rectified, dtype=self.dtype)(y)
        residual = Conv(self.channels, 1, use_bias=not self.rectified, dtype=self.dtype)(nn.relu(residual))
        return (y if self.rectified else x) + residual


class Encoder(nn.Module):
    """Strided convolutions, then residual blocks: [b, h, w, i] -> [b, h / 2^n, w / 2^n, channels].

    Attributes:
      num_downsamples: n, the number of strided convolutions, at least 1. If there are several, the last one has
        `channels` filters and the others have half as many. If there is only one, it has half as many.
      channels, residual_channels, residual_blocks: see `Autoencoder`.
      rectified: see `ResidualBlock`.
      dtype: dtype of the arithmetic; parameters are float32.
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
        for i in range(self.num_downsamples):
            # A single strided convolution has channels / 2 filters, as in the top level of VQ-VAE-2.
            features = self.channels if 0 < i == self.num_downsamples - 1 else self.channels // 2
            x = nn.relu(Conv(features, 4, downsample=True, dtype=self.dtype)(x))
        x = Conv(self.channels, 3, dtype=self.dtype)(x)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.channels, self.residual_channels, self.rectified, self.dtype)(x)
        return nn.relu(x)


class Decoder(nn.Module):
    """Residual blocks, then transposed convolutions: [b, h, w, i] -> [b, 2^n h, 2^n w, features].

    Attributes:
      features: output channels.
      num_upsamples: n, the number of transposed convolutions, at least 1.
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
