"""IBQ against its paper's equations in NumPy, where the N x K arrays exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import kvae
from kvae import kohonen
from kvae.core.errors import InputError
from kvae.quantizers.ibq import assignment_entropies, soft_means
from modules import init
from vectors import vectors

Z, W, PULL = vectors(9, 4).astype(np.float64), vectors(6, 4, seed=1).astype(np.float64), vectors(9, 4, seed=2)
WEIGHTS = dict(codebook_weight=0.5, entropy_weight=0.3, diversity_weight=2.0, temperature=0.7)


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


@pytest.fixture(params=["one chunk", "five chunks"])
def chunks(request, monkeypatch):
    if request.param == "five chunks":
        monkeypatch.setattr(kohonen, "SCORES_PER_CHUNK", {"cpu": 2 * len(W)})


def test_codes_and_loss_follow_the_paper(chunks):
    codes = np.argmax(Z @ W.T, axis=1)
    errors = np.mean((Z - W[codes]) ** 2)
    p = softmax(Z @ W.T / 0.7)
    out = kvae.IBQ(codebook_size=6, **WEIGHTS).apply({"params": {"codewords": jnp.float32(W)}}, jnp.float32(Z))
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_array_equal(out.quantized, np.float32(W)[codes])
    expected = 2.5 * errors + 0.3 * (entropy(p).mean() - 2 * entropy(p.mean(axis=0)))
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(out.counts, np.bincount(codes, minlength=6))


def test_gradient_passes_through_the_softmax_to_all_codewords(chunks):
    def pulled(z, w):
        return jnp.sum(kvae.IBQ(6).apply({"params": {"codewords": w}}, z).quantized * PULL)

    gradients = jax.jit(jax.grad(pulled, (0, 1)))(jnp.float32(Z), jnp.float32(W))
    p, hard = softmax(Z @ W.T), np.eye(6)[np.argmax(Z @ W.T, axis=1)]
    by_code = PULL @ W.T
    to_logits = p * (by_code - np.sum(p * by_code, axis=1, keepdims=True))
    np.testing.assert_allclose(gradients[0], to_logits @ W, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], hard.T @ PULL + to_logits.T @ Z, rtol=1e-4, atol=1e-5)


def test_gradient_of_the_loss_equals_that_of_whole_matrices(chunks):
    layer, mask = kvae.IBQ(6, **WEIGHTS), np.arange(9) < 7

    def whole(z, w):
        z, stop = z[:7], jax.lax.stop_gradient
        logits = z @ w.T
        soft, hard = jax.nn.softmax(logits), jax.nn.one_hot(jnp.argmax(logits, axis=1), 6)
        q, nearest, p = (hard - stop(soft) + soft) @ w, hard @ w, jax.nn.softmax(logits / 0.7)
        errors = jnp.square(q - z) + jnp.square(stop(nearest) - z) + 0.5 * jnp.square(nearest - stop(z))
        clear, even = (-jnp.sum(p * jnp.log(p), axis=-1) for p in (p, p.mean(axis=0)))
        return errors.mean() + 0.3 * (clear.mean() - 2 * even)

    def by_layer(z, w):
        return layer.apply({"params": {"codewords": w}}, z, mask=mask).loss

    z, w = jnp.float32(Z), jnp.float32(W)
    (value, gradients), (expected, wanted) = (jax.value_and_grad(f, (0, 1))(z, w) for f in (by_layer, whole))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, wanted)


def test_step_of_65536_codes_needs_no_matrix_of_codes():
    """An N x K array of 4,096 x 2^16 numbers takes 1 GiB."""
    layer, z = kvae.IBQ(2**16), jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((1, 8))))
    gradient = jax.jit(jax.grad(lambda params, z: layer.apply({"params": params}, z).loss, (0, 1)))
    assert gradient.lower(variables["params"], z).compile().memory_analysis().temp_size_in_bytes < 2**27


def test_gradients_on_a_mesh_equal_those_of_one_device():
    z, w = jnp.float32(vectors(16, 4)), jnp.float32(W)

    def value(z, w):
        clear, even = assignment_entropies(z, w, 0.7)
        return clear - even + jnp.sum(soft_means(z, w) * z)

    gradient = jax.jit(jax.grad(value, (0, 1)))
    expected = gradient(z, w)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        sharded = gradient(*map(jax.device_put, (z, w), place))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.device_get(sharded), expected)


def test_huge_logits_give_finite_losses():
    layer, z = kvae.IBQ(6, temperature=1e-30), jnp.float32(1e9 * Z)
    variables = init(layer, jax.random.key(0), z)
    loss, gradient = jax.value_and_grad(lambda z: layer.apply(variables, z).loss)(z)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_variables_of_another_size_are_refused():
    layer, z = kvae.IBQ(6), vectors(9, 4)
    variables = init(layer, jax.random.key(0), z)
    for call in (
        lambda: kvae.IBQ(8).apply(variables, z),
        lambda: kvae.IBQ(8).apply(variables, np.zeros(2, int), method="lookup"),
    ):
        with pytest.raises(InputError, match="codebook_size is 8, but the codebook has 6 codewords; use the"):
            call()
    with pytest.raises(InputError, match="z has 5-dimensional vectors; for this codebook they must be 4-dimensional"):
        layer.apply(variables, vectors(9, 5))
