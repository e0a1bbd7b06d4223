"""Convolutions and the residual stacks of VQ-VAE and VQ-VAE-2.

Initialisation is PyTorch's default, which the authors' release uses: U(+-1/sqrt(fan_in)) for kernels and biases.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae.errors import InputError

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

FEWEST_PHASE_CHANNELS = 16
"""With fewer output channels than this, four small convolutions are slower on a CPU than one dilated one (measured)."""


def check_images(images: jax.Array) -> None:
    """Raises InputError unless images are uint8 [b, h, w, 3]."""
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(f"images are {images.dtype}{list(images.shape)}; they must be uint8[b, h, w, 3]")


def _convolve(x, kernel):
    if kernel.shape[0] == 1:
        return x @ kernel[0, 0]
    padding = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=DIMENSIONS)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of stride 1 that keeps height and width: x [b, h, w, i], kernel [s, s, i, o], s odd."""
    return _convolve(x, kernel)


def _convolve_gradients(saved, gradient):
    x, kernel = saved
    size, _, inputs, outputs = kernel.shape
    if size == 1 or inputs <= outputs or jax.default_backend() != "cpu":
        return jax.vjp(_convolve, x, kernel)[1](gradient)
    # XLA:CPU turns the first array of a kernel gradient inside out, which is slow: the narrower of the two shall be it.
    transposed = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    of_transposed = jax.vjp(lambda kernel: _convolve(gradient, kernel), transposed)[1](x)[0]
    return _convolve(gradient, transposed), jnp.swapaxes(of_transposed, 2, 3)[::-1, ::-1]


convolve.defvjp(lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _convolve_gradients)


def _halve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=DIMENSIONS)


@jax.custom_vjp
def halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4 x 4 convolution of stride 2: x [b, 2h, 2w, i], kernel [4, 4, i, o] -> [b, h, w, o]."""
    return _halve(x, kernel)


@jax.custom_vjp
def double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4 x 4 transposed convolution of stride 2, the transpose of `halve`: x [b, h, w, o], kernel [4, 4, i, o].

    Returns [b, 2h, 2w, i].
    """
    if jax.default_backend() == "cpu" and kernel.shape[2] >= FEWEST_PHASE_CHANNELS:
        return _double_by_phases(x, kernel)
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return jax.lax.conv_general_dilated(
        x, flipped, (1, 1), [(2, 2)] * 2, lhs_dilation=(2, 2), dimension_numbers=DIMENSIONS
    )


def _double_by_phases(x, kernel):
    """As four 2 x 2 convolutions, one for each parity of row and column: on a CPU, interleaved zeros are not free."""
    b, h, w, _ = x.shape
    kernel = jnp.swapaxes(kernel, 2, 3)

    def phase(row, column):
        padding = [(1 - row, row), (1 - column, column)]
        taps = kernel[3 - row :: -2, 3 - column :: -2]
        return jax.lax.conv_general_dilated(x, taps, (1, 1), padding, dimension_numbers=DIMENSIONS)

    rows = [jnp.stack([phase(row, 0), phase(row, 1)], axis=3) for row in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[3])


# XLA:CPU has no good kernel for the gradients of an input-dilated convolution. Each of the two is the other's
# transpose, and both kernel gradients are the strided convolution's.
def _kernel_gradient(x, kernel, gradient):
    return jax.vjp(lambda kernel: _halve(x, kernel), kernel)[1](gradient)[0]


halve.defvjp(
    lambda x, kernel: (halve(x, kernel), (x, kernel)),
    lambda saved, gradient: (double(gradient, saved[1]), _kernel_gradient(saved[0], saved[1], gradient)),
)
double.defvjp(
    lambda x, kernel: (double(x, kernel), (x, kernel)),
    lambda saved, gradient: (halve(gradient, saved[1]), _kernel_gradient(gradient, saved[1], saved[0])),
)


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
    """Strided convolutions, then residual blocks: [b, h, w, i] -> [b, h / 2^halvings, w / 2^halvings, channels].

    Attributes:
      halvings: how many times height and width are halved, 1 or 2.
      channels, residual_channels, residual_blocks: widths and depth; the first of them has channels / 2.
      rectified: the kind of residual block.
      dtype: of the arithmetic.
    """

    halvings: int
    channels: int
    residual_channels: int
    residual_blocks: int
    rectified: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the encoder."""
        for features in (self.channels // 2, self.channels)[: self.halvings]:
            x = nn.relu(Conv(features, 4, halves=True, dtype=self.dtype)(x))
        x = Conv(self.channels, 3, dtype=self.dtype)(x)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.channels, self.residual_channels, self.rectified, self.dtype)(x)
        return nn.relu(x)


class Decoder(nn.Module):
    """Residual blocks, then transposed convolutions: [b, h, w, i] -> [b, 2^doublings h, 2^doublings w, features].

    Attributes:
      features: output channels.
      doublings: how many times height and width are doubled, 1 or 2.
      channels, residual_channels, residual_blocks, rectified, dtype: as in `Encoder`.
    """

    features: int
    doublings: int
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
        if self.doublings == 2:
            x = nn.relu(TransposedConv(self.channels // 2, self.dtype)(x))
        return TransposedConv(self.features, self.dtype)(x)
