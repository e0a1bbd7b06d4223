"""Values and gradients of the convolutions, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae.models.autoencoders import convolutions, layers

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def reference_strided(x, kernel):
    """Every output is the sum over its 4 x 4 window, written as loops over the taps."""
    b, h, w, _ = x.shape
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((b, h // 2, w // 2, kernel.shape[3]))
    for i in range(4):
        for j in range(4):
            out += padded[:, i : i + h - 1 : 2, j : j + w - 1 : 2] @ np.asarray(kernel[i, j], np.float64)
    return out


def reference_transposed(x, kernel):
    """Every input pixel adds a 4 x 4 patch at twice its position; a border of one pixel is cut off."""
    b, h, w, _ = x.shape
    out = np.zeros((b, 2 * h + 2, 2 * w + 2, kernel.shape[2]))
    for i in range(4):
        for j in range(4):
            out[:, i : i + 2 * h : 2, j : j + 2 * w : 2] += np.asarray(x, np.float64) @ np.asarray(
                kernel[i, j].T, np.float64
            )
    return out[:, 1:-1, 1:-1]


@pytest.mark.parametrize("wide", [3, 24, 48])  # around FEWEST_CHANNELS and FEWEST_SEPARATE_CHANNELS
def test_strided_and_transposed_convolution_and_their_gradients(wide):
    x, y, kernel = normal(2, 6, 8, wide), normal(2, 3, 4, 5), normal(4, 4, wide, 5)
    np.testing.assert_allclose(
        convolutions.convolve_strided(x, kernel), reference_strided(x, kernel), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        convolutions.convolve_transposed(y, kernel), reference_transposed(y, kernel), rtol=1e-4, atol=1e-4
    )
    # <y, strided(x, k)> = <transposed(y, k), x>, so the two share the gradient of the kernel.
    grad_x, grad_kernel = jax.grad(lambda x, k: jnp.sum(convolutions.convolve_strided(x, k) * y), argnums=(0, 1))(
        x, kernel
    )
    grad_y, grad_kernel_transposed = jax.grad(
        lambda y, k: jnp.sum(convolutions.convolve_transposed(y, k) * x), argnums=(0, 1)
    )(y, kernel)
    np.testing.assert_allclose(grad_x, reference_transposed(y, kernel), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_y, reference_strided(x, kernel), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_kernel, grad_kernel_transposed, rtol=1e-4, atol=1e-4)
    direction = normal(*kernel.shape)
    np.testing.assert_allclose(
        np.sum(grad_kernel * direction), np.sum(y * reference_strided(x, direction)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("inputs", "outputs"), [(7, 3), (3, 7), (48, 50), (50, 48)])  # a CPU computes each differently
def test_convolution_and_its_gradients(size, inputs, outputs):
    x, y, kernel = normal(2, 5, 6, inputs), normal(2, 5, 6, outputs), normal(size, size, inputs, outputs)
    reach = size // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))  # [b, h, w, i, s, s]
    np.testing.assert_allclose(
        convolutions.convolve(x, kernel), np.einsum("bhwikl,klio->bhwo", windows, kernel), rtol=1e-4, atol=1e-4
    )
    grad_x, grad_kernel = jax.grad(lambda x, k: jnp.sum(convolutions.convolve(x, k) * y), argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(grad_kernel, np.einsum("bhwikl,bhwo->klio", windows, y), rtol=1e-4, atol=1e-4)
    direction = normal(*x.shape)
    np.testing.assert_allclose(
        np.sum(grad_x * direction), np.sum(y * convolutions.convolve(direction, kernel)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("module", "shape", "fan_in"),
    [
        (layers.Conv(7, 3), (1, 4, 4, 5), 45),
        (layers.Conv(7, 4, downsample=True), (1, 4, 4, 5), 80),
        (layers.TransposedConv(3), (1, 4, 4, 64), 48),
    ],
)
def test_initialisation_is_the_default_of_pytorch(module, shape, fan_in):
    keys = jax.random.split(jax.random.key(0), 64)
    params = jax.vmap(lambda key: module.init(key, jnp.zeros(shape)))(keys)["params"]
    bound = 1 / np.sqrt(fan_in)
    for leaf in params.values():
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.97 * bound
        np.testing.assert_allclose(np.mean(leaf), 0, atol=0.15 * bound)


def test_residual_blocks_of_both_releases():
    x = normal(1, 4, 4, 6)
    for rectified in (True, False):
        block = layers.ResidualBlock(6, 3, rectified)
        variables = block.init(jax.random.key(0), x)
        assert ("bias" in variables["params"]["Conv_0"]) == (not rectified)
        silent = jax.tree.map(jnp.zeros_like, variables)
        np.testing.assert_array_equal(block.apply(silent, x), np.maximum(x, 0) if rectified else x)
