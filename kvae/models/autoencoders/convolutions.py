"""The convolutions of VQ-VAE, with gradients that are fast on a CPU.

Values and gradients equal those of `jax.lax.conv_general_dilated`; only the computation differs.
"""

import jax
import jax.numpy as jnp

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

FEWEST_PHASE_CHANNELS = 16
"""With fewer output channels, four small convolutions are slower on a CPU than a single dilated one (measured)."""


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `convolve` with XLA's own gradient."""
    if kernel.shape[0] == 1:
        return x @ kernel[0, 0]
    padding = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=DIMENSIONS)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of stride 1, zero-padded: x [b, h, w, i], kernel [s, s, i, o], s odd -> [b, h, w, o]."""
    return _convolve(x, kernel)


def _convolve_gradients(saved, gradient):
    """Returns the gradients of `convolve` with respect to x and the kernel."""
    x, kernel = saved
    size, _, inputs, outputs = kernel.shape
    if size == 1 or inputs <= outputs or jax.default_backend() != "cpu":
        return jax.vjp(_convolve, x, kernel)[1](gradient)
    # To compute a kernel gradient, XLA:CPU transposes the first array, which is slow. Pass the narrower array first.
    transposed = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    transposed_gradient = jax.vjp(lambda kernel: _convolve(gradient, kernel), transposed)[1](x)[0]
    return _convolve(gradient, transposed), jnp.swapaxes(transposed_gradient, 2, 3)[::-1, ::-1]


convolve.defvjp(lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _convolve_gradients)


def _convolve_strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `convolve_strided` with XLA's own gradient."""
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=DIMENSIONS)


@jax.custom_vjp
def convolve_strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4 x 4 convolution of stride 2: x [b, 2h, 2w, i], kernel [4, 4, i, o] -> [b, h, w, o]."""
    return _convolve_strided(x, kernel)


@jax.custom_vjp
def convolve_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4 x 4 transposed convolution of stride 2, the transpose of `convolve_strided`.

    Args:
      x: [b, h, w, o].
      kernel: [4, 4, i, o].

    Returns:
      [b, 2h, 2w, i].
    """
    if jax.default_backend() == "cpu" and kernel.shape[2] >= FEWEST_PHASE_CHANNELS:
        return _convolve_phases(x, kernel)
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return jax.lax.conv_general_dilated(
        x, flipped, (1, 1), [(2, 2)] * 2, lhs_dilation=(2, 2), dimension_numbers=DIMENSIONS
    )


def _convolve_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes the transposed convolution as four 2 x 2 convolutions, one per parity of row and column.

    Unlike the dilated convolution, this does not multiply by interleaved zeros, which is slow on a CPU.
    """
    b, h, w, _ = x.shape
    kernel = jnp.swapaxes(kernel, 2, 3)

    def phase(row: int, column: int) -> jax.Array:
        padding = [(1 - row, row), (1 - column, column)]
        taps = kernel[3 - row :: -2, 3 - column :: -2]
        return jax.lax.conv_general_dilated(x, taps, (1, 1), padding, dimension_numbers=DIMENSIONS)

    rows = [jnp.stack([phase(row, 0), phase(row, 1)], axis=3) for row in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[3])


# XLA:CPU computes the gradients of an input-dilated convolution slowly. The strided and the transposed convolution are
# transposes of each other, so both kernel gradients can be computed from the strided one.
def _kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns the gradient of `convolve_strided` with respect to the kernel."""
    return jax.vjp(lambda kernel: _convolve_strided(x, kernel), kernel)[1](gradient)[0]


convolve_strided.defvjp(
    lambda x, kernel: (convolve_strided(x, kernel), (x, kernel)),
    lambda saved, gradient: (convolve_transposed(gradient, saved[1]), _kernel_gradient(*saved, gradient)),
)
convolve_transposed.defvjp(
    lambda x, kernel: (convolve_transposed(x, kernel), (x, kernel)),
    lambda saved, gradient: (convolve_strided(gradient, saved[1]), _kernel_gradient(gradient, saved[1], saved[0])),
)
