"""Residual and grouped quantisers are sums and concatenations of their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae import models
from kvae.core.errors import InputError
from kvae.runs.run import Run
from modules import apply, init

Z = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
MAP = kvae.KohonenVQ((3, 4))


def perplexity(counts):
    shares = counts[counts > 0] / counts.sum()
    return np.exp(-np.sum(shares * np.log(shares)))


def start(layer, z=Z):
    return init(layer, {"params": jax.random.key(0), "dropout": jax.random.key(1)}, z)


def test_each_part_quantises_the_residual():
    layer = kvae.ResidualVQ(MAP, depth=3)
    variables = start(layer)
    out, updated = apply(layer, variables, Z, train=True, mutable=["codebook"])
    left, total, loss = Z, 0, 0
    for i in range(3):
        alone = {"codebook": variables["codebook"][f"parts_{i}"]}
        part, expected = apply(MAP, alone, left, train=True, mutable=["codebook"])
        np.testing.assert_array_equal(out.codes[:, i], part.codes)
        np.testing.assert_array_equal(out.counts[i], part.counts)
        jax.tree.map(np.testing.assert_array_equal, updated["codebook"][f"parts_{i}"], expected["codebook"])
        total, left, loss = total + part.quantized, left - part.quantized, loss + part.loss
    np.testing.assert_allclose(out.quantized, total, rtol=1e-6)
    np.testing.assert_allclose(out.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(apply(layer, variables, out.codes, method="lookup"), total, rtol=1e-6)
    first_two = apply(layer, variables, out.codes[:, :2], method="lookup")
    np.testing.assert_allclose(Z - first_two, left + part.quantized, rtol=1e-5, atol=1e-6)


def test_residual_of_depth_1_is_its_part():
    layer = kvae.ResidualVQ(MAP, depth=1)
    variables = start(layer)
    out = apply(layer, variables, Z)
    alone = apply(MAP, {"codebook": variables["codebook"]["parts_0"]}, Z)
    np.testing.assert_array_equal(out.quantized, alone.quantized)
    np.testing.assert_array_equal(out.codes[:, 0], alone.codes)


def test_model_numbers_the_codebook_of_a_depth_1_stack():
    quantizer = {"name": "residual", "depth": 1, "quantizer": {"name": "kohonen", "grid_shape": (3, 4)}}
    small = dict(channels=8, residual_channels=4, residual_blocks=0, embedding_dim=8)
    model = models.build({"name": "vqvae", **small, "quantizer": quantizer})
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    variables = init(model, jax.random.key(0), images)
    sums = apply(model, variables, {"image": images, "mask": np.ones(2, bool)}, method="batch_sums")
    assert model.codebook_views(variables, {"image": images}).keys() == {"codebook_0"}
    pictures = model.pictures(variables, {"image": images}, jax.device_get(sums), 1)
    assert {"codebook_map_0", "hit_map_0", "u_matrix_0"} < pictures.keys()
    assert {*model.compute_metrics(jax.device_get(sums))} <= {*model.metrics}
    assert Run("", {"dataset": {}}, 1, model, variables).codebooks["codebook_0"].shape == (3, 4, 8)


def test_each_part_quantises_its_group():
    layer = kvae.GroupedVQ(MAP, groups=2)
    variables = start(layer)
    out = apply(layer, variables, Z)
    for i, group in enumerate(np.split(Z, 2, axis=1)):
        alone = apply(MAP, {"codebook": variables["codebook"][f"parts_{i}"]}, group)
        np.testing.assert_array_equal(out.codes[:, i], alone.codes)
        np.testing.assert_array_equal(out.quantized[:, 4 * i : 4 * i + 4], alone.quantized)
    assert apply(layer, variables, method="codewords").shape == (2, 12, 4)


def test_groups_may_be_residual_quantisers():
    layer = kvae.GroupedVQ(kvae.ResidualVQ(MAP, depth=3), groups=2)
    variables = start(layer)
    out = apply(layer, variables, Z)
    assert layer.n_codebooks == 6
    assert (out.codes.shape, out.counts.shape) == ((40, 6), (6, 12))
    assert apply(layer, variables, method="codewords").shape == (6, 12, 4)
    np.testing.assert_allclose(layer.apply(variables, out.codes, method="lookup"), out.quantized, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"integer array \[\.\.\., 6\]"):
        layer.apply(variables, out.codes[:, :5], method="lookup")


@pytest.mark.parametrize("layer", [kvae.ResidualVQ(MAP, depth=2), kvae.GroupedVQ(MAP, groups=2)])
def test_gradients_pass_straight_through(layer):
    variables = start(layer)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(apply(layer, variables, z).quantized * Z[::-1])))(Z)
    np.testing.assert_array_equal(gradient, Z[::-1])


def test_dropout_uses_and_trains_only_the_first_codebooks():
    layer = kvae.ResidualVQ(kvae.KohonenVQ((3, 4), "none", update_empty=False), depth=3, dropout=1.0)
    variables = start(layer)
    depths = set()
    for seed in range(12):
        rngs = {"dropout": jax.random.key(seed)}
        out, updated = apply(layer, variables, Z, train=True, mutable=["codebook"], rngs=rngs)
        depth = int(np.count_nonzero(out.counts.sum(axis=1)))
        assert np.all(out.codes[:, :depth] >= 0)
        assert np.all(out.codes[:, depth:] == -1)
        looked_up = apply(layer, variables, out.codes, method="lookup")
        np.testing.assert_allclose(out.quantized, looked_up, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(out.perplexity, np.mean([perplexity(n) for n in out.counts[:depth]]), rtol=1e-5)
        assert np.all(out.counts[:depth].sum(axis=1) == len(Z))
        cut = apply(layer, variables, out.codes[:, :depth], method="lookup")
        np.testing.assert_allclose(out.quantized, cut, rtol=1e-5, atol=1e-6)
        for i in range(depth, 3):
            before, after = variables["codebook"][f"parts_{i}"], updated["codebook"][f"parts_{i}"]
            np.testing.assert_array_equal(before["codewords"], after["codewords"])
        depths.add(depth)
    assert depths == {1, 2, 3}
    assert np.all(apply(layer, variables, Z).counts.sum(axis=1) == len(Z))  # evaluation uses all


def test_error_falls_with_the_number_of_codebooks():
    layer = kvae.ResidualVQ(kvae.KohonenVQ((4, 4), decay=0.8), depth=4)
    variables = start(layer)
    step = jax.jit(lambda v: apply(layer, v, Z, train=True, mutable=["codebook"])[1])
    for _ in range(60):
        variables = step(variables)
    codes = apply(layer, variables, Z).codes
    # The first codebooks do not depend on the later ones: truncated codes equal a shallower quantiser's.
    errors = [np.mean((apply(layer, variables, codes[:, :q], method="lookup") - Z) ** 2) for q in (1, 2, 4)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kvae.ResidualVQ(kvae.FSQ((3, 3))), "quantizer is FSQ"),
        (lambda: kvae.ResidualVQ(kvae.GroupedVQ(MAP)), "GroupedVQ; it must be a layer with one codebook"),
        (lambda: kvae.ResidualVQ(3), "quantizer is 3; it must be a linen layer, such as kvae.KohonenVQ"),
        (lambda: kvae.ResidualVQ(MAP, depth=0), "depth is 0"),
        (lambda: kvae.ResidualVQ(MAP, dropout=1.5), "dropout is 1.5"),
        (
            lambda: start(kvae.GroupedVQ(MAP, groups=3)),
            "8-dimensional vectors; the dimension must be a multiple of groups, 3",
        ),
    ],
)
def test_impossible_stacks_are_rejected(make, message):
    with pytest.raises(InputError, match=message):
        make()
