"""The convolutions of VQ-VAE, with gradients that are fast on a CPU.

Values and gradients equal those of `jax.lax.conv_general_dilated`; only the computation differs.
"""

import jax
import jax.numpy as jnp

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

FEWEST_CHANNELS = 16
"""With fewer output channels, four small convolutions are slower on a CPU than a single dilated one (measured).

With fewer input channels, a product of all windows is faster than a strided convolution.
"""

FEWEST_SEPARATE_CHANNELS = 48
"""With fewer channels, one matrix product of all windows is faster on a CPU than one per place of the kernel."""


def _windows(x: jax.Array, size: int, stride: int, height: int, width: int) -> list[jax.Array]:
    """Returns what each place of a kernel sees, row by row: size^2 arrays [b * height * width, i].

    Args:
      x: [b, stride * height, stride * width, i].
      size: side of the kernel: odd for stride 1, 4 for stride 2.
      stride: 1 or 2.
      height, width: size of the output.
    """
    padding = (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    return [
        x[:, row : row + rows : stride, column : column + columns : stride].reshape(-1, x.shape[-1])
        for row in range(size)
        for column in range(size)
    ]


def _kernel_gradient(x: jax.Array, gradient: jax.Array, size: int, stride: int = 1) -> jax.Array:
    """Returns the gradient of a zero-padded convolution with respect to its kernel, as matrix products.

    The gradient at each place is window^T gradient. To compute it as a convolution, XLA:CPU transposes both arrays,
    which takes 1.2 to 4 times as long.

    Args:
      x: the input, [b, stride * h, stride * w, i].
      gradient: the gradient with respect to the output, [b, h, w, o].
      size, stride: see `_windows`.

    Returns:
      [size, size, i, o].
    """
    shape = (size, size, x.shape[-1], gradient.shape[-1])
    windows = _windows(x, size, stride, *gradient.shape[1:3])
    gradient = gradient.reshape(-1, gradient.shape[-1])
    if x.shape[-1] < FEWEST_SEPARATE_CHANNELS:
        return (jnp.concatenate(windows, axis=1).T @ gradient).reshape(shape)
    return jnp.stack([window.T @ gradient for window in windows]).reshape(shape)


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
    if jax.default_backend() != "cpu":
        return jax.vjp(_convolve, x, kernel)[1](gradient)
    size, _, inputs, outputs = kernel.shape
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    if inputs <= outputs:
        return _convolve(gradient, flipped), _kernel_gradient(x, gradient, size)
    # The windows of the narrower array are smaller.
    return _convolve(gradient, flipped), jnp.swapaxes(_kernel_gradient(gradient, x, size), 2, 3)[::-1, ::-1]


convolve.defvjp(lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _convolve_gradients)


def _convolve_strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `convolve_strided` with XLA's own gradient."""
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=DIMENSIONS)


@jax.custom_vjp
def convolve_strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4 x 4 convolution of stride 2: x [b, 2h, 2w, i], kernel [4, 4, i, o] -> [b, h, w, o]."""
    (b, height, width, inputs), outputs = x.shape, kernel.shape[-1]
    if jax.default_backend() != "cpu" or inputs >= FEWEST_CHANNELS:
        return _convolve_strided(x, kernel)
    windows = jnp.concatenate(_windows(x, 4, 2, height // 2, width // 2), axis=1)
    return (windows @ kernel.reshape(-1, outputs)).reshape(b, height // 2, width // 2, outputs)


@jax.custom_vjp
def convolve_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4 x 4 transposed convolution of stride 2, the transpose of `convolve_strided`.

    Args:
      x: [b, h, w, o].
      kernel: [4, 4, i, o].

    Returns:
      [b, 2h, 2w, i].
    """
    if jax.default_backend() == "cpu" and kernel.shape[2] >= FEWEST_CHANNELS:
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
def _strided_kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns the gradient of `convolve_strided` with respect to the kernel."""
    if jax.default_backend() == "cpu":
        return _kernel_gradient(x, gradient, kernel.shape[0], stride=2)
    return jax.vjp(lambda kernel: _convolve_strided(x, kernel), kernel)[1](gradient)[0]


convolve_strided.defvjp(
    lambda x, kernel: (convolve_strided(x, kernel), (x, kernel)),
    lambda saved, gradient: (convolve_transposed(gradient, saved[1]), _strided_kernel_gradient(*saved, gradient)),
)
convolve_transposed.defvjp(
    lambda x, kernel: (convolve_transposed(x, kernel), (x, kernel)),
    lambda saved, gradient: (
        convolve_strided(gradient, saved[1]),
        _strided_kernel_gradient(gradient, saved[1], saved[0]),
    ),
)
