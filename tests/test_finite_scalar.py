"""FSQ, against the paper's formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from modules import apply, init

RNG = np.random.default_rng(0)


def bounded(z, levels):
    """Returns f(z) of Mentzer et al. (2023)."""
    half = (np.array(levels) - 1) * (1 + 1e-3) / 2
    offset = np.where(np.array(levels) % 2 == 0, 0.5, 0.0)
    return half * np.tanh(z + np.arctanh(offset / half)) - offset


def reference(z, levels):
    """Returns the quantised vectors of Mentzer et al. (2023), and their codes row by row."""
    rounded = np.round(bounded(z, levels))
    indices = (rounded + np.array(levels) // 2).astype(int)
    return rounded / (np.array(levels) // 2), np.ravel_multi_index(np.moveaxis(indices, -1, 0), levels)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 3), (7, 4)])
def test_values_and_codes_follow_the_paper(levels):
    z = (3 * RNG.standard_normal((50, len(levels)))).astype(np.float32)
    layer = kvae.FSQ(levels)
    out = apply(layer, {}, z)
    expected, codes = reference(z.astype(np.float64), levels)
    np.testing.assert_allclose(out.quantized, expected, atol=1e-6)
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(apply(layer, {}, out.codes, method="lookup"), expected, atol=1e-6)
    assert out.loss == 0
    assert out.counts.sum() == 50


def test_ifsq_bounds_by_a_scaled_sigmoid():
    """For an odd L the bound is (L - 1) / 2 (2 sigmoid(1.6 z) - 1), as in arXiv:2601.17124."""
    z = (2 * RNG.standard_normal((50, 2))).astype(np.float32)
    values = kvae.FSQ((5, 9), squashing="ifsq").apply({}, z, method="bounded")
    expected = np.array([2, 4]) * (2 / (1 + np.exp(-1.6 * z)) - 1)
    np.testing.assert_allclose(values, 1.001 * expected, rtol=1e-4, atol=1e-6)
    even = kvae.FSQ((8,), squashing="ifsq").apply({}, np.zeros((1, 1), np.float32), method="bounded")
    np.testing.assert_allclose(even, 0, atol=1e-6)


def test_ifsq_makes_normal_elements_uniform():
    """Its bound is at most 0.02 from uniform in distribution, FSQ's tanh 0.06."""
    z = np.sort(RNG.standard_normal((20_000, 1)), axis=0).astype(np.float32)
    share = np.arange(len(z)) / len(z)
    distances = {}
    for name in ("tanh", "ifsq"):
        values = np.asarray(kvae.FSQ((9,), squashing=name).apply({}, z, method="bounded"))[:, 0]
        distances[name] = np.abs((values / 4 + 1) / 2 - share).max()
    assert distances["ifsq"] < 0.025 < 0.04 < distances["tanh"]


def test_noise_dropout_replaces_rounding_in_training():
    z, levels = (2 * RNG.standard_normal((400, 2))).astype(np.float32), (5, 4)
    layer = kvae.FSQ(levels, noise_dropout=0.25)
    rounded, codes = reference(z.astype(np.float64), levels)
    out = apply(layer, {}, z, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(out.codes, codes)
    is_noisy = np.abs(np.asarray(out.quantized) - rounded) > 1e-5
    assert 0.2 < is_noisy.mean() < 0.3
    noise = (np.asarray(out.quantized) * 2 - bounded(z, levels))[is_noisy]  # both half widths are 2
    assert np.abs(noise).max() <= 0.5 + 1e-5
    assert abs(noise.mean()) < 0.05
    np.testing.assert_allclose(apply(layer, {}, z).quantized, rounded, atol=1e-6)
    gradient = jax.grad(lambda z: layer.apply({}, z, train=True, rngs={"dropout": jax.random.key(0)}).quantized.sum())
    plain = jax.grad(lambda z: layer.apply({}, z).quantized.sum())
    np.testing.assert_allclose(jax.jit(gradient)(z), jax.jit(plain)(z), rtol=1e-6)


def test_every_level_is_reached_and_codes_are_distinct():
    layer = kvae.FSQ((4, 3))
    words = np.asarray(apply(layer, {}, method="codewords"))
    np.testing.assert_allclose(sorted(set(words[:, 0])), [-1, -0.5, 0, 0.5])
    np.testing.assert_allclose(sorted(set(words[:, 1])), [-1, 0, 1])
    assert len(np.unique(words, axis=0)) == layer.codebook_size == 12
    far = np.array([[s * 9.0, t * 9.0] for s in (-1, 1) for t in (-1, 1)], np.float32)
    np.testing.assert_array_equal(apply(layer, {}, far).codes, [0, 2, 9, 11])  # the corners


def test_gradient_is_the_gradient_of_the_bound():
    z = RNG.standard_normal((6, 2)).astype(np.float32)
    levels = (5, 3)
    gradient = jax.jit(jax.grad(lambda z: kvae.FSQ(levels).apply({}, z).quantized.sum()))(z)
    half = (np.array(levels) - 1) * (1 + 1e-3) / 2
    np.testing.assert_allclose(gradient, half / np.cosh(z) ** 2 / (np.array(levels) // 2), rtol=1e-4)


def test_vectors_of_another_length_are_projected():
    z = RNG.standard_normal((9, 16)).astype(np.float32)
    layer = kvae.FSQ((5, 4))
    variables = init(layer, jax.random.key(0), z)
    params = jax.tree.map(np.asarray, variables["params"])
    out = apply(layer, variables, z)
    projected, codes = reference(z @ params["project_in_kernel"] + params["project_in_bias"], (5, 4))
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(
        out.quantized, projected @ params["project_out_kernel"] + params["project_out_bias"], atol=1e-5
    )


@pytest.mark.parametrize("levels", [(1002,), (65536,), (2, 1001, 4)])
def test_far_vectors_get_the_outermost_levels(levels):
    far = np.array([[-9.0] * len(levels), [9.0] * len(levels)], np.float32)
    layer = kvae.FSQ(levels)
    out = apply(layer, {}, far)
    np.testing.assert_array_equal(out.codes, [0, layer.codebook_size - 1])
    np.testing.assert_allclose(layer.apply({}, out.codes, method="lookup"), out.quantized)


@pytest.mark.parametrize("levels", [(16,) * 5 + (2,), (2,) * 17])
def test_levels_beyond_a_grid_are_quantised(levels):
    layer, z = kvae.FSQ(levels), RNG.standard_normal((9, len(levels))).astype(np.float32)
    out = apply(layer, {}, z)
    assert (layer.grid, layer.is_map, out.counts.shape) == (None, False, (np.prod(levels),))
    np.testing.assert_array_equal(out.codes, reference(z.astype(np.float64), levels)[1])
    np.testing.assert_allclose(layer.apply({}, out.codes, method="lookup"), out.quantized)
    sums = layer.apply({}, z, out, np.ones(9, bool), method="batch_sums")
    assert sums.keys() == {"counts", "quantization_error"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_input_wraps_a_code(dtype):
    """Indices were negative for some inputs in vector-quantize-pytorch (issue 207)."""
    values = [np.nan, np.inf, -np.inf, 3e38, -3e38, 6e4, -6e4, 1e-45, -0.0, 0.0, 0.5, -0.5, 1.0, -1.0]
    z = np.array(np.meshgrid(values, values)).reshape(2, -1).T
    with np.errstate(over="ignore"):
        z = z.astype(jnp.dtype(dtype))
    for levels, squashing in (((8, 5), "tanh"), ((256, 256), "ifsq"), ((2**15, 2**16 - 1), "tanh")):
        layer = kvae.FSQ(levels, squashing=squashing)
        codes = np.asarray(jax.jit(lambda z, layer=layer: layer.apply({}, z).codes)(z))
        assert codes.dtype == np.int32
        assert codes.min() >= 0
        assert codes.max() < layer.codebook_size


def test_more_codes_than_int32_holds_are_refused():
    """The message names levels and bound, where vector-quantize-pytorch overflows (issue 207)."""
    for levels in ((16,) * 8, (2**24 + 1,)):
        with pytest.raises(InputError, match=r"levels is .* at most [\d,]+"):
            kvae.FSQ(levels)


def test_variables_of_other_levels_are_refused():
    z = RNG.standard_normal((9, 16)).astype(np.float32)
    variables = init(kvae.FSQ((5, 4)), jax.random.key(0), z)
    with pytest.raises(InputError, match="this FSQ has 3-dimensional codewords, but its variables are for 2"):
        kvae.FSQ((5, 4, 3)).apply(variables, z)
    with pytest.raises(InputError, match="z has 16-dimensional vectors and codewords have 2 dimensions, but"):
        kvae.FSQ((5, 4)).apply({}, z)


def test_impossible_levels_are_rejected():
    for levels in ((), (1,), (4, 0), 4):
        with pytest.raises(InputError, match="levels is"):
            kvae.FSQ(levels)
