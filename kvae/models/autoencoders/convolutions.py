"""The convolutions of VQ-VAE, and gradients for them that a CPU computes fast."""

import jax
import jax.numpy as jnp

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

FEWEST_PHASE_CHANNELS = 16
"""With fewer output channels than this, four small convolutions are slower on a CPU than one dilated one (measured)."""


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
