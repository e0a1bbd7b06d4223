"""LFQ, BSQ and SimVQ, against their papers' equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import kvae
from kvae.core.errors import InputError
from kvae.quantizers.lookup_free import bit_entropy, mean_code_probabilities
from modules import apply, init
from vectors import vectors


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)


def reference(z, bits, magnitude, temperature):
    """Returns signs, codes, mean commitment, mean entropy and entropy of the mean, over all 2^bits codes."""
    everything = np.array(list(np.ndindex((2,) * bits))) * 2 - 1
    distance = np.sum((z[:, None] - magnitude * everything) ** 2, axis=-1)
    codes = np.argmin(distance, axis=1)
    signs = magnitude * everything[codes]
    p = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / temperature)
    p /= p.sum(axis=1, keepdims=True)
    return signs, codes, np.mean((z - signs) ** 2), entropy(p).mean(), entropy(p.mean(axis=0))


WEIGHTS = dict(commitment_weight=0.5, entropy_weight=0.3, diversity_weight=2.0, temperature=0.7)


@pytest.mark.parametrize("kind", [kvae.LFQ, kvae.BSQ])
def test_codes_and_loss_follow_the_paper(kind):
    z = vectors(7, 3)
    layer, scaled = kind(bits=3, **WEIGHTS), z if kind is kvae.LFQ else z / np.linalg.norm(z, axis=1, keepdims=True)
    signs, codes, commitment, clear, even = reference(scaled, 3, 1 if kind is kvae.LFQ else 3**-0.5, 0.7)
    out = apply(layer, {}, z)
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.quantized, signs, rtol=1e-6)
    np.testing.assert_allclose(out.loss, 0.5 * commitment + 0.3 * (clear - 2.0 * even), rtol=1e-5)
    np.testing.assert_array_equal(out.counts, np.bincount(codes, minlength=8))
    np.testing.assert_allclose(apply(layer, {}, out.codes, method="lookup"), signs, rtol=1e-6)
    sums = apply(layer, {}, z, out, np.ones(7, bool), method="batch_sums")
    np.testing.assert_allclose(sums["quantization_error"], np.linalg.norm(scaled - signs, axis=1).sum(), rtol=1e-5)


def test_masked_positions_leave_the_entropies():
    z, mask = vectors(7, 3), np.arange(7) < 5
    layer = kvae.LFQ(bits=3, **WEIGHTS)
    np.testing.assert_allclose(apply(layer, {}, z, mask=mask).loss, apply(layer, {}, z[:5]).loss, rtol=1e-5)


def test_bit_entropy_is_exact_where_probabilities_are_1():
    logits = np.array([-200.0, -3.0, 0.0, 3.0, 200.0, 1e30], np.float32)
    p = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
    np.testing.assert_allclose(bit_entropy(logits), entropy(np.stack([p, 1 - p], axis=-1)), rtol=1e-5, atol=1e-30)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(bit_entropy(x)))(logits))
    np.testing.assert_array_equal(gradient[[0, 2, 4, 5]], 0)


def test_mean_probabilities_of_1_bit_are_its_means():
    p = mean_code_probabilities(jnp.array([[0.0], [np.log(3.0)]]))
    np.testing.assert_allclose(p, [3 / 8, 5 / 8], rtol=1e-6)


def test_diversity_of_262144_codes_needs_no_matrix_of_codes():
    """An N x K array of 4,096 x 2^18 numbers takes 4 GiB."""
    z = jax.ShapeDtypeStruct((4096, 18), jnp.float32)
    gradient = jax.jit(jax.grad(lambda z: kvae.LFQ(bits=18).apply({}, z).loss))
    assert gradient.lower(z).compile().memory_analysis().temp_size_in_bytes < 2**27


def test_gradient_of_the_diversity_on_a_mesh():
    """Under Explicit axes, the default of `jax.make_mesh`, it equals the gradient on one device."""
    z, layer = vectors(16, 5), kvae.LFQ(bits=5, **WEIGHTS)
    gradient = jax.jit(jax.grad(lambda z: layer.apply({}, z).loss))
    expected = gradient(z)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = gradient(jax.device_put(z, NamedSharding(mesh, PartitionSpec("data"))))
    np.testing.assert_allclose(jax.device_get(sharded), expected, rtol=1e-5, atol=1e-7)


def test_simvq_moves_a_frozen_codebook_by_a_linear_map():
    z = vectors(9, 4)
    layer = kvae.SimVQ(codebook_size=6, commitment_weight=0.5)
    variables = init(layer, jax.random.key(0), z)
    frozen, kernel = variables["codebook"]["frozen"], variables["params"]["kernel"]
    params = {"kernel": kernel, "bias": jnp.arange(4.0)}
    words = np.asarray(frozen) @ np.asarray(kernel) + np.arange(4)
    codes = np.argmin(((z[:, None] - words) ** 2).sum(-1), axis=1)

    def loss(params, z):
        out, updated = layer.apply({**variables, "params": params}, z, train=True, mutable=["codebook"])
        return out.loss, (out, updated)

    (value, (out, updated)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, z)
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.quantized, words[codes], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, 1.5 * np.mean((z - words[codes]) ** 2), rtol=1e-5)
    np.testing.assert_array_equal(updated["codebook"]["frozen"], frozen)
    pull = 2 * (words[codes] - z) / z.size
    np.testing.assert_allclose(gradients[0]["kernel"], np.asarray(frozen)[codes].T @ pull, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[0]["bias"], pull.sum(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[1], -0.5 * pull, rtol=1e-4, atol=1e-6)


def test_simvq_refuses_variables_of_another_size():
    layer, z = kvae.SimVQ(codebook_size=6), vectors(9, 4)
    variables = init(layer, jax.random.key(0), z)
    with pytest.raises(InputError, match="codebook_size is 8, but the codebook has 6 codewords; use the"):
        kvae.SimVQ(codebook_size=8).apply(variables, z)
    with pytest.raises(InputError, match="z has 5-dimensional vectors; for this codebook they must be 4-dimensional"):
        layer.apply(variables, vectors(9, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kvae.LFQ(bits=21), "bits is 21; it must be an integer from 1 to 20"),
        (lambda: kvae.BSQ(bits=0), "bits is 0"),
        (lambda: kvae.LFQ(temperature=0.0), "temperature is 0.0"),
        (lambda: kvae.SimVQ(codebook_size=2**21), "codebook_size is 2097152"),
        (lambda: kvae.SimVQ(gradient="rotate"), "gradient is 'rotate'; .*rotation"),
        (lambda: kvae.FSQ(squashing="sigmoid"), "squashing is 'sigmoid'; it must be one of tanh, ifsq"),
        (lambda: kvae.ResidualVQ(kvae.LFQ()), "quantizer is LFQ; it must be a layer with a learned codebook"),
    ],
)
def test_impossible_fields_are_rejected(make, message):
    with pytest.raises(InputError, match=message):
        make()
