"""The options of `KohonenVQ`: metric, gradient, restart_below, train, axis_name."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import kvae
from kvae.core.errors import InputError
from kvae.kohonen import CodebookState, Samples
from kvae.quantizers import restarts
from kvae.quantizers.gradients import rotation
from modules import apply, init

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((64, 8)).astype(np.float32)


def train(layer, variables, z, **options):
    return apply(layer, variables, z, train=True, mutable=["codebook"], **options)


def test_help_shows_types_and_ranges_of_fields():
    shown = str(inspect.signature(kvae.KohonenVQ)).replace("typing.", "")  # Python 3.13 leaves the module out
    assert "shrink_step: Annotated[float, Ge(ge=0), Le(le=1e+30)] = 0.1" in shown


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


def test_quantization_error_of_cosine_is_of_scaled_vectors():
    layer = kvae.KohonenVQ((4, 4), metric="cosine")
    variables = init(layer, jax.random.key(0), Z)

    @jax.jit
    def sums(z):
        return apply(layer, variables, z, apply(layer, variables, z), np.ones(len(z), bool), method="batch_sums")

    words, units = np.asarray(variables["codebook"]["codewords"]), Z / np.linalg.norm(Z, axis=1)[:, None]
    nearest = words[np.argmax(units @ words.T, axis=1)]
    np.testing.assert_allclose(sums(Z)["quantization_error"], np.linalg.norm(units - nearest, axis=1).sum(), rtol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), sums(7 * Z), sums(Z))


def test_rotation_trick_rotates_and_scales_gradients():
    """d quantized / dz is (|w| / |z|) R, where R rotates the direction of z to the direction of w."""
    z, w = RNG.standard_normal((2, 5)).astype(np.float32)
    rotate = jax.jit(rotation)
    np.testing.assert_array_equal(rotate(z, w), w)
    jacobian = jax.jit(jax.jacobian(rotate))(z, w)
    scale = np.linalg.norm(w) / np.linalg.norm(z)
    R = np.asarray(jacobian) / scale
    np.testing.assert_allclose(R @ R.T, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(R), 1, rtol=1e-4)
    np.testing.assert_allclose(scale * R @ z, w, atol=1e-5)
    orthogonal = RNG.standard_normal(5)
    basis = np.linalg.qr(np.stack([z, w], axis=1))[0]
    orthogonal -= basis @ (basis.T @ orthogonal)
    np.testing.assert_allclose(R @ orthogonal, orthogonal, atol=1e-5)


def test_rarely_used_codes_restart_at_their_samples():
    codebook = CodebookState(jnp.eye(3), jnp.eye(3), jnp.array([0.1, 5.0, 0.2]), jnp.int32(1))
    samples = Samples(jnp.array([[1.0, 0, 0], [9, 9, 9], [0, 0, 0]]), jnp.array([1.0, 1, 0]))
    after = restarts.restart(codebook, samples, 0.5)
    # The second is in use; the last has no sample.
    np.testing.assert_allclose(after.codewords, [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(after.counts, [0.5, 5, 0.2])
    np.testing.assert_allclose(after.sums, [[0.5, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_restarts_revive_a_collapsed_codebook():
    batches = np.stack([10 + np.random.default_rng(t).standard_normal((64, 8)) for t in range(100)]).astype(np.float32)
    codes_used = {}
    for threshold in (0.0, 0.5):
        layer = kvae.KohonenVQ((32,), "none", restart_below=threshold)
        variables = init(layer, jax.random.key(0), Z)
        variables, _ = jax.jit(
            lambda v, layer=layer: jax.lax.scan(lambda v, z: (train(layer, v, z)[1], None), v, batches)
        )(variables)
        codes_used[threshold] = len(np.unique(apply(layer, variables, 10 + Z).codes))
    assert codes_used[0.0] <= 3
    assert codes_used[0.5] >= 16


def test_samples_are_unmasked_finite_vectors_of_the_batch():
    draw = jax.jit(restarts.draw_samples, static_argnums=1)
    mask = np.arange(64) < 60
    z = np.where(np.arange(64)[:, None] == 3, np.nan, Z)
    samples = draw(jnp.asarray(z, jnp.float32), 200, jnp.int32(5), jnp.asarray(mask))
    is_drawn = np.asarray(samples.counts) > 0
    drawn = np.asarray(samples.sums)[is_drawn] / np.asarray(samples.counts)[is_drawn, None]
    rows = [np.flatnonzero(np.all(row == Z, axis=1)) for row in drawn]
    assert {int(row[0]) for row in rows} <= set(range(60)) - {3}
    assert 0 < np.sum(samples.counts == 0) < 40
    other = draw(jnp.asarray(Z), 200, jnp.int32(6), jnp.asarray(mask))
    assert np.any(np.asarray(other.sums) != np.asarray(samples.sums))


def test_train_can_be_an_attribute():
    """Under `nn.vmap` and `nn.remat` the keyword of a call is dropped or traced."""
    over_seeds = nn.vmap(
        kvae.KohonenVQ, variable_axes={"codebook": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
    )
    for lifted, steps in ((over_seeds, [1, 1, 1]), (nn.remat(kvae.KohonenVQ), 1)):
        layer = lifted((4, 4), train=True)
        _, updated = apply(layer, init(layer, jax.random.key(0), Z), Z, mutable=["codebook"])
        np.testing.assert_array_equal(updated["codebook"]["step"], steps)
    layer = kvae.KohonenVQ((4, 4), train=True)
    _, same = apply(layer, init(layer, jax.random.key(0), Z), Z, train=False, mutable=["codebook"])
    assert same["codebook"]["step"] == 0  # the argument of the call wins


def test_missing_mutable_is_an_error():
    layer = kvae.KohonenVQ((4, 4))
    with pytest.raises(InputError, match=r'mutable; call apply\(\.\.\., mutable=\["codebook"\]\), or pass train=False'):
        apply(layer, init(layer, jax.random.key(0), Z), Z, train=True)


def test_statistics_are_summed_over_axis_name():
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
    expected = train(layer, variables, Z)[1]["codebook"]["codewords"]
    for of_device in codebooks["data"]:
        np.testing.assert_allclose(of_device, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(codebooks[None], axis=0).max() > 1e-3  # without it, devices differ


def test_updates_ignore_nan_and_the_loss_shows_it():
    layer = kvae.KohonenVQ((4, 4))
    variables = init(layer, jax.random.key(0), Z)
    _, expected = train(layer, variables, np.delete(Z, 5, axis=0))
    for value in (np.nan, np.inf):
        with_odd = Z.copy()
        with_odd[5, 2] = value
        out, updated = train(layer, variables, with_odd)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), updated, expected)
        assert not np.isfinite(out.loss)
