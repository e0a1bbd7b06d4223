"""FSQ, against the paper's formula in NumPy."""

import jax
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from modules import apply, init

RNG = np.random.default_rng(0)


def reference(z, levels):
    """Returns the quantised vectors of Mentzer et al. (2023), and their codes row by row."""
    half = (np.array(levels) - 1) * (1 + 1e-3) / 2
    offset = np.where(np.array(levels) % 2 == 0, 0.5, 0.0)
    rounded = np.round(half * np.tanh(z + np.arctanh(offset / half)) - offset)
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
    projected, codes = reference(z @ params["to_levels_kernel"] + params["to_levels_bias"], (5, 4))
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.quantized, projected @ params["back_kernel"] + params["back_bias"], atol=1e-5)


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


def test_more_codes_than_int32_holds_are_refused():
    for levels in ((16,) * 8, (2**24 + 1,)):
        with pytest.raises(InputError, match=r"levels is .* at most [\d,]+"):
            kvae.FSQ(levels)


def test_variables_of_other_levels_are_refused():
    z = RNG.standard_normal((9, 16)).astype(np.float32)
    variables = init(kvae.FSQ((5, 4)), jax.random.key(0), z)
    with pytest.raises(InputError, match="variables are of 2 levels, and levels is"):
        kvae.FSQ((5, 4, 3)).apply(variables, z)


def test_impossible_levels_are_rejected():
    for levels in ((), (1,), (4, 0), 4):
        with pytest.raises(InputError, match="levels is"):
            kvae.FSQ(levels)
