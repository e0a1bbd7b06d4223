"""The quantiser layers, against an independent EMA-VQ and closed forms; test_conformance has the laws of all."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import kvae
from kvae import kohonen, quantizers, topology
from kvae.topology import NEIGHBORHOODS, Neighborhood, Plane
from modules import apply, init
from vectors import vectors


def train(layer, variables, z, **options):
    return apply(layer, variables, z, train=True, mutable=["codebook"], **options)


def test_collections_and_their_leaves():
    variables = init(kvae.KohonenVQ(grid_shape=(4, 8)), jax.random.key(0), vectors(2, 3, 16))
    assert set(variables) == {"codebook"}
    leaves = {name: (leaf.shape, leaf.dtype) for name, leaf in variables["codebook"].items()}
    assert leaves == {
        "codewords": ((32, 16), jnp.float32),
        "sums": ((32, 16), jnp.float32),
        "counts": ((32,), jnp.float32),
        "step": ((), jnp.int32),
    }
    np.testing.assert_array_equal(variables["codebook"]["sums"], variables["codebook"]["codewords"])
    pointers = {leaf.unsafe_buffer_pointer() for leaf in variables["codebook"].values()}
    assert len(pointers) == 4  # leaves that share a buffer cannot be donated
    gradient = init(kvae.GradientVQ(grid_shape=(4, 8)), jax.random.key(0), vectors(2, 3, 16))
    assert jax.tree.map(jnp.shape, gradient) == {"params": {"codewords": (32, 16)}, "codebook": {"step": ()}}


class EmaVq:
    """EMA-VQ in float64 by Eqs. 6-8, with the smoothing of common implementations; independent of kvae."""

    def __init__(self, codewords, init_count):
        self.codewords = np.asarray(codewords, np.float64)
        self.sums = self.codewords.copy()
        self.counts = np.full(len(codewords), init_count, np.float64)

    def __call__(self, z, update_empty):
        z = np.asarray(z, np.float64)
        codes = np.array([np.argmin(((self.codewords - x) ** 2).sum(1)) for x in z])
        quantized = self.codewords[codes]
        members = [z[codes == k] for k in range(len(self.codewords))]
        for k, rows in enumerate(members):
            if update_empty or len(rows):
                self.counts[k] = 0.99 * self.counts[k] + 0.01 * len(rows)
                self.sums[k] = 0.99 * self.sums[k] + 0.01 * rows.sum(0)
        if update_empty:
            total = self.counts.sum()
            self.counts = (self.counts + 1e-5) / (total + len(self.counts) * 1e-5) * total
        used = self.counts > 0
        self.codewords[used] = self.sums[used] / self.counts[used, None]
        return codes, quantized


@pytest.mark.parametrize("init_count", [1.0, 0.0])
@pytest.mark.parametrize("update_empty", [True, False])
def test_kernel_none_is_ema_vq(init_count, update_empty):
    layer = kvae.KohonenVQ((3, 4), "none", init_count=init_count, update_empty=update_empty)
    variables = init(layer, jax.random.key(0), vectors(1, 5))
    reference = EmaVq(variables["codebook"]["codewords"], init_count)
    step = jax.jit(lambda variables, z: train(layer, variables, z))
    for t in range(30):
        z = vectors(40, 5, seed=t)
        codes, quantized = reference(z, update_empty)
        out, variables = step(variables, z)
        np.testing.assert_array_equal(out.codes, codes)
        np.testing.assert_allclose(out.quantized, quantized, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.loss, 0.25 * np.mean((quantized - z) ** 2), rtol=1e-4)
    np.testing.assert_allclose(variables["codebook"]["codewords"], reference.codewords, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variables["codebook"]["counts"], reference.counts, rtol=1e-4, atol=1e-9)


def test_one_update_by_hand():
    """Two codes on a line, one vector at 3, beta = 0.5, neighbourhood 1: S = [3, 3], C = [1, 1]."""
    codebook = kohonen.CodebookState(jnp.array([[0.0], [2.0]]), jnp.array([[0.0], [2.0]]), jnp.ones(2), jnp.int32(0))
    z = jnp.array([[3.0]])
    codes = kohonen.nearest_code(z, codebook.codewords)
    assert codes.tolist() == [1]
    updated = kohonen.update_codebook(
        codebook,
        kohonen.batch_statistics(z, codes, 2),
        Neighborhood(Plane((2,)), "hard"),
        decay=0.5,
        update_empty=False,
    )
    np.testing.assert_allclose(updated.sums[:, 0], [1.5, 2.5])
    np.testing.assert_allclose(updated.counts, [1, 1])
    np.testing.assert_allclose(updated.codewords[:, 0], [1.5, 2.5])
    assert updated.step == 1


def test_equally_near_codes_go_to_the_lowest():
    assert kohonen.nearest_code(jnp.zeros((1, 2)), jnp.array([[1.0, 0], [0, 1], [-1, 0]])).tolist() == [0]


@pytest.mark.parametrize("kernel", NEIGHBORHOODS)
@pytest.mark.parametrize("update_empty", [True, False])
def test_codebook_stays_finite(kernel, update_empty):
    """With every kernel and both initial counts, over 100 updates."""
    neighborhood = kvae.KohonenVQ((6, 4), kernel).spreading
    batches = np.stack([vectors(48, 8, seed=t) for t in range(100)])

    def update(codebook, z):
        statistics = kohonen.batch_statistics(z, kohonen.nearest_code(z, codebook.codewords), 24)
        return kohonen.update_codebook(codebook, statistics, neighborhood, update_empty=update_empty), None

    train_all = jax.jit(lambda codebook: jax.lax.scan(update, codebook, batches)[0])
    for init_count in (1.0, 0.0):
        codebook = train_all(kohonen.initial_codebook(jax.random.key(0), 24, 8, init_count))
        assert all(np.isfinite(leaf).all() for leaf in codebook)
        if init_count:  # from 0, m / N starts a hundred times too large, as the paper warns
            assert np.abs(codebook.codewords).max() < 10


def test_masked_positions_do_not_count_in_perplexity():
    layer, z, outliers = kvae.KohonenVQ((4, 4)), vectors(30, 8), vectors(10, 8, seed=1) * 100
    variables = init(layer, jax.random.key(0), z)
    padded = apply(layer, variables, np.concatenate([z, outliers]), mask=np.arange(40) < 30)
    np.testing.assert_allclose(padded.perplexity, apply(layer, variables, z).perplexity, rtol=1e-6)


def test_empty_batch_is_harmless():
    for init_count in (0.0, 1.0):
        layer = kvae.KohonenVQ((4, 4), init_count=init_count)
        variables = init(layer, jax.random.key(0), vectors(1, 8))
        for z, mask in [(vectors(0, 8), None), (vectors(3, 8), np.zeros(3, bool))]:
            out, updated = train(layer, variables, z, mask=mask)
            assert out.loss == 0
            assert all(np.isfinite(leaf).all() for leaf in updated["codebook"].values())


@pytest.mark.parametrize("count", [1, 1024, 4099, 6400])
def test_lookup_in_chunks_is_argmin(count, monkeypatch):
    z, codewords = vectors(count, 8), vectors(64, 8, seed=1)
    expected = np.argmin(((z[:, None] - codewords) ** 2).sum(-1), axis=1)
    monkeypatch.setitem(kohonen.SCORES_PER_CHUNK, "cpu", 64 * 256)
    np.testing.assert_array_equal(kohonen.nearest_code(z.reshape(1, count, 8), codewords)[0], expected)


def test_losses_and_statistics_of_bfloat16_vectors_are_float32():
    layer, z = kvae.KohonenVQ((4, 4)), jnp.zeros((64, 8), jnp.bfloat16)
    variables = jax.eval_shape(layer.init, jax.random.key(0), z)
    out, updated = jax.eval_shape(lambda v, z: layer.apply(v, z, train=True, mutable=["codebook"]), variables, z)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((out.loss, out.perplexity, out.statistics))}
    assert dtypes == {"float32"}
    assert jax.tree.map(lambda leaf: leaf.dtype, updated) == jax.tree.map(lambda leaf: leaf.dtype, variables)


def test_gradients_pass_straight_through():
    layer = kvae.KohonenVQ((4, 4), commitment_weight=0.0)
    z, weights = vectors(5, 8), vectors(5, 8, seed=1)
    variables = init(layer, jax.random.key(0), z)
    gradient = jax.grad(lambda z: jnp.sum(train(layer, variables, z)[0].quantized * weights))(z)
    np.testing.assert_array_equal(gradient, weights)


@pytest.mark.parametrize("pull", quantizers.PULLS)
def test_neighbors_loss_is_the_double_sum(pull):
    layer = kvae.GradientVQ((2, 3), "gaussian", pull=pull, neighbor_weight=0.7, commitment_weight=0.3)
    z = vectors(10, 4)
    variables = init(layer, jax.random.key(0), z)
    w = np.asarray(variables["params"]["codewords"], np.float64)
    out = apply(layer, variables, z)
    codes = np.asarray(out.codes)
    weights = np.asarray(topology.matrix(Neighborhood(Plane((2, 3)), "gaussian", initial_width=4.0), 0))
    neighbors = 0
    for x, code in zip(z, codes, strict=True):
        target = x if pull == "encoder" else w[code]
        neighbors += sum(weights[code, k] * np.sum((w[k] - target) ** 2) for k in range(6) if k != code)
    expected = 1.3 * np.mean((w[codes] - z) ** 2) + 0.7 * neighbors / len(z)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)


class Autoencoder(nn.Module):
    """Maps 64-dimensional rows to one of 64 codes, and back."""

    fields: dict

    @nn.compact
    def __call__(self, x, train=False):
        z = nn.Dense(16)(nn.gelu(nn.Dense(64)(x)))
        out = kvae.KohonenVQ((8, 8), "gaussian", **self.fields)(z, train=train)
        return nn.Dense(64)(nn.gelu(nn.Dense(64)(out.quantized))), out


@pytest.mark.parametrize(
    ("fields", "fewest", "most"),
    [({}, 48, 64), ({"initial_width": 1.0, "lowest_width": 0.0}, 1, 16)],
    ids=["kvae's widths", "the paper's widths"],
)
def test_default_gaussian_uses_its_codes(fields, fewest, most):
    """The paper's Gaussian, Eq. 16, starts one node wide: too narrow for few steps on the digits."""
    x, key, optimizer = jnp.asarray(load_digits().data / 16, jnp.float32), jax.random.key(0), optax.adam(1e-3)
    model = Autoencoder(fields)

    def step(t, state):
        params, codebook, moments = state
        batch = x[jax.random.randint(jax.random.fold_in(key, t), (64,), 0, len(x))]

        def loss(params):
            variables = {"params": params, "codebook": codebook}
            (y, out), updated = model.apply(variables, batch, train=True, mutable=["codebook"])
            return jnp.mean(jnp.square(y - batch)) + out.loss, updated["codebook"]

        gradients, codebook = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), codebook, moments

    variables = jax.jit(model.init)(key, x[:1])
    start = variables["params"], variables["codebook"], optimizer.init(variables["params"])
    params, codebook, _ = jax.jit(lambda start: jax.lax.fori_loop(0, 400, step, start))(start)
    _, out = model.apply({"params": params, "codebook": codebook}, x)
    assert fewest <= np.count_nonzero(out.counts) <= most
