"""The options of a map: scaled vectors, the rotation trick, restarts, an attribute `train`, a mapped axis."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import kvae
from kvae import kohonen
from kvae.core.errors import InputError
from kvae.kohonen import CodebookState, Statistics
from kvae.quantizers import base as quantizer
from modules import apply, init

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((64, 8)).astype(np.float32)


def train(layer, variables, z, **options):
    return apply(layer, variables, z, train=True, mutable=["codebook"], **options)


def test_cosine_compares_directions_only():
    layer = kvae.KohonenVQ((4, 4), metric="cosine")
    variables = init(layer, jax.random.key(0), Z)
    out, updated = train(layer, variables, Z)
    words = np.asarray(variables["codebook"]["codewords"])
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out.codes, np.argmax(Z @ words.T / np.linalg.norm(Z, axis=1)[:, None], axis=1))
    np.testing.assert_array_equal(train(layer, variables, 5 * Z)[0].codes, out.codes)
    np.testing.assert_allclose(np.linalg.norm(updated["codebook"]["codewords"], axis=1), 1, rtol=1e-5)
    units = Z / np.linalg.norm(Z, axis=1)[:, None]
    np.testing.assert_allclose(out.loss, 0.25 * np.mean((units - words[out.codes]) ** 2), rtol=1e-4)


def test_the_quantization_error_of_cosine_is_of_vectors_as_they_are_compared():
    layer = kvae.KohonenVQ((4, 4), metric="cosine")
    variables = init(layer, jax.random.key(0), Z)

    def sums(z):
        return apply(layer, variables, z, apply(layer, variables, z), np.ones(len(z), bool), method="batch_sums")

    words, units = np.asarray(variables["codebook"]["codewords"]), Z / np.linalg.norm(Z, axis=1)[:, None]
    nearest = words[np.argmax(units @ words.T, axis=1)]
    np.testing.assert_allclose(sums(Z)["quantization_error"], np.linalg.norm(units - nearest, axis=1).sum(), rtol=1e-4)
    for name, value in sums(Z).items():
        np.testing.assert_allclose(sums(7 * Z)[name], value, rtol=1e-5)


def test_the_rotation_trick_turns_and_stretches_gradients():
    """d quantized / dz is (|w| / |z|) R, R the rotation in the plane of z and w that takes z's direction to w's."""
    z, w = RNG.standard_normal((2, 5)).astype(np.float32)
    np.testing.assert_array_equal(quantizer.rotation(z, w), w)
    jacobian = jax.jacobian(lambda z: quantizer.rotation(z, w))(z)
    scale = np.linalg.norm(w) / np.linalg.norm(z)
    rotation = np.asarray(jacobian) / scale
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, rtol=1e-4)
    np.testing.assert_allclose(scale * rotation @ z, w, atol=1e-5)
    apart = RNG.standard_normal(5)  # what is orthogonal to both stays
    basis = np.linalg.qr(np.stack([z, w], axis=1))[0]
    apart -= basis @ (basis.T @ apart)
    np.testing.assert_allclose(rotation @ apart, apart, atol=1e-5)


def test_codes_that_are_hardly_used_start_at_vectors_of_the_batch():
    codebook = CodebookState(jnp.eye(3), jnp.eye(3), jnp.array([0.1, 5.0, 0.2]), jnp.int32(1))
    samples = Statistics(jnp.array([[2.0, 0, 0], [9, 9, 9], [0, 0, 0]]), jnp.array([2.0, 1, 0]))
    after = kohonen.restart(codebook, samples, 0.5)
    # The first starts at the mean of its two samples; the last has none, and stays.
    np.testing.assert_allclose(after.codewords, [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(after.counts, [0.5, 5, 0.2])
    np.testing.assert_allclose(after.sums, [[0.5, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_restarts_bring_a_collapsed_codebook_to_life():
    used = {}
    for threshold in (0.0, 0.5):
        layer = kvae.KohonenVQ((32,), "none", restart_below=threshold)
        variables = init(layer, jax.random.key(0), Z)
        step = jax.jit(lambda v, z, layer=layer: train(layer, v, z)[1])
        for t in range(100):
            variables = step(variables, 10 + np.random.default_rng(t).standard_normal((64, 8)).astype(np.float32))
        used[threshold] = len(np.unique(apply(layer, variables, 10 + Z).codes))
    assert used[0.0] <= 3
    assert used[0.5] >= 16


def test_samples_are_vectors_of_the_batch_without_the_masked_and_the_infinite():
    mask = np.arange(64) < 60
    z = np.where(np.arange(64)[:, None] == 3, np.nan, Z)
    found = kohonen.draw_samples(jnp.asarray(z, jnp.float32), 200, jnp.int32(5), jnp.asarray(mask))
    drawn = np.asarray(found.sums)[np.asarray(found.counts) == 1]
    places = [np.flatnonzero(np.all(row == Z, axis=1)) for row in drawn]
    assert {int(p[0]) for p in places} <= set(range(60)) - {3}
    assert 0 < np.sum(found.counts == 0) < 40
    other = kohonen.draw_samples(jnp.asarray(Z), 200, jnp.int32(6))
    assert np.any(np.asarray(other.sums) != np.asarray(found.sums))


def test_train_can_be_an_attribute_as_lifted_transformations_need_it():
    """Under `nn.vmap` and `nn.remat` a call's keyword is dropped or traced; BatchNorm has an attribute for it, too."""

    def layer(cls, **more):
        return cls((4, 4), train=True, **more)

    over_seeds = nn.vmap(
        kvae.KohonenVQ, variable_axes={"codebook": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
    )
    for lifted, steps in ((layer(over_seeds), [1, 1, 1]), (layer(nn.remat(kvae.KohonenVQ)), 1)):
        variables = lifted.init(jax.random.key(0), Z)
        _, updated = lifted.apply(variables, Z, mutable=["codebook"])
        np.testing.assert_array_equal(updated["codebook"]["step"], steps)
    frozen = layer(kvae.KohonenVQ)
    _, same = frozen.apply(frozen.init(jax.random.key(0), Z), Z, train=False, mutable=["codebook"])
    assert same["codebook"]["step"] == 0  # the call's argument wins


def test_forgetting_mutable_is_an_error_with_the_words_that_mend_it():
    layer = kvae.KohonenVQ((4, 4))
    with pytest.raises(InputError, match=r'mutable: call apply\(\.\.\., mutable=\["codebook"\]\), or train=False'):
        layer.apply(layer.init(jax.random.key(0), Z), Z, train=True)


def test_a_mapped_axis_is_summed_over_so_that_devices_agree():
    mesh = Mesh(np.array(jax.devices()), "data")
    codebooks = {}
    for name in ("data", None):
        layer = kvae.KohonenVQ((4, 4), axis_name=name)
        variables = init(layer, jax.random.key(0), Z)
        spec, sharded = PartitionSpec(), PartitionSpec("data")

        def step(variables, z, layer=layer):
            updated = train(layer, variables, z)[1]
            return jax.tree.map(lambda leaf: leaf[None], updated)

        mapped = jax.shard_map(step, mesh=mesh, in_specs=(spec, sharded), out_specs=sharded, check_vma=False)
        codebooks[name] = jax.jit(mapped)(variables, Z)["codebook"]["codewords"]
    whole = train(layer, variables, Z)[1]["codebook"]["codewords"]
    for of_device in codebooks["data"]:
        np.testing.assert_allclose(of_device, whole, rtol=1e-5, atol=1e-6)
    assert np.ptp(codebooks[None], axis=0).max() > 1e-3  # what happens without


def test_one_vector_that_is_not_finite_is_left_out_of_the_statistics_and_shown_by_the_loss():
    layer = kvae.KohonenVQ((4, 4))
    variables = init(layer, jax.random.key(0), Z)
    for bad in (np.nan, np.inf):
        hurt = Z.copy()
        hurt[5, 2] = bad
        out, updated = train(layer, variables, hurt)
        _, without = train(layer, variables, np.delete(Z, 5, axis=0))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), updated, without)
        assert not np.isfinite(out.loss)
    gradient = jax.grad(lambda z: train(layer, variables, z, mask=np.arange(64) != 5)[0].loss)(hurt)
    assert np.all(np.isfinite(gradient))  # a masked one does not even touch the gradient
