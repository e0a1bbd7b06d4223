"""DiVeQ, starts at vectors of a batch, smaller codebooks, shared codebooks, orthogonality: each against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import kvae
from kvae.core.errors import InputError
from kvae.kohonen import CodebookState, Samples, Statistics
from kvae.quantizers import starts
from kvae.quantizers.gradient_vq import orthogonality
from kvae.quantizers.gradients import diveq
from modules import apply, init
from vectors import vectors

Z = vectors(40, 8)


def train(layer, variables, z, **options):
    return apply(layer, variables, z, train=True, mutable=["codebook"], **options)


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_diveq_splits_the_gradient_along_the_error():
    """d w / d z = I - u u^T and d w / d codeword = u u^T, for the direction u of the error."""
    z, w = vectors(2, 5)
    value, (by_z, by_w) = diveq(z, w), jax.jit(jax.jacobian(diveq, argnums=(0, 1)))(z, w)
    np.testing.assert_array_equal(value, w)
    u = unit(w - z)
    np.testing.assert_allclose(by_z, np.eye(5) - np.outer(u, u), atol=1e-5)
    np.testing.assert_allclose(by_w, np.outer(u, u), atol=1e-5)
    np.testing.assert_allclose(jax.jacobian(diveq)(z, z), np.eye(5), atol=1e-5)


def test_diveq_moves_the_codewords_of_gradient_vq():
    layer = kvae.GradientVQ((3,), gradient="diveq")
    variables = init(layer, jax.random.key(0), Z)
    words = variables["params"]["codewords"]
    out = apply(layer, variables, Z)
    target = lambda w: layer.apply({**variables, "params": {"codewords": w}}, Z).quantized[0] @ Z[1]  # noqa: E731
    u = unit(np.asarray(words)[out.codes[0]] - Z[0])
    expected = np.zeros((3, 8))
    expected[out.codes[0]] = u * (u @ Z[1])
    np.testing.assert_allclose(jax.jit(jax.grad(target))(words), expected, rtol=1e-4, atol=1e-5)


def test_kmeans_start_averages_over_batches():
    """t = 0 places codes; then m and N are means over batches, and codes without vectors are placed again."""
    rng, K = np.random.default_rng(0), 4
    state = CodebookState(jnp.ones((K, 2)), jnp.ones((K, 2)), jnp.ones(K), jnp.int32(0))
    counts = np.array([[9, 9, 9, 9], [2, 0, 0, 1], [0, 3, 0, 1]], np.float32)
    sums = rng.standard_normal((3, K, 2)).astype(np.float32) * (counts > 0)[:, :, None]
    drawn, is_drawn = rng.standard_normal((3, K, 2)).astype(np.float32), np.ones((3, K), np.float32)
    is_drawn[:, 2] = [1, 1, 0]  # the last time no vector could be drawn for code 2
    for t in range(3):
        samples = Samples(jnp.asarray(drawn[t] * is_drawn[t][:, None]), jnp.asarray(is_drawn[t]))
        state = starts.start(state, Statistics(jnp.asarray(sums[t]), jnp.asarray(counts[t]), samples))
        if t == 0:
            np.testing.assert_allclose(state.codewords, drawn[0], rtol=1e-6)
    words = [sums[1, 0] / 2, sums[2, 1] / 3, drawn[1, 2], (sums[1, 3] + sums[2, 3]) / 2]
    np.testing.assert_allclose(state.codewords, words, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(state.counts, [1, 1.5, 1e-3, 1], rtol=2e-3)
    np.testing.assert_allclose(state.sums[0], sums[1, 0] / 2, rtol=1e-5)


def test_kmeans_start_uses_codes_that_a_normal_start_leaves():
    """Clusters far from N(0, 1): after 12 updates the start has used all codes, EMA-VQ a few."""
    batches = np.stack([10 + 3 * vectors(64, 8, seed=t) for t in range(12)])
    used = {}
    for start in ("normal", "kmeans"):
        layer = kvae.KohonenVQ((16,), "none", start=start)
        variables = init(layer, jax.random.key(0), Z)
        scan = jax.jit(lambda v, layer=layer: jax.lax.scan(lambda v, z: (train(layer, v, z)[1], None), v, batches)[0])
        used[start] = np.count_nonzero(apply(layer, scan(variables), batches[0]).counts)
    assert used["normal"] <= 3
    assert used["kmeans"] >= 14


def test_start_on_devices_takes_vectors_of_the_batch():
    layer = kvae.KohonenVQ((32,), "none", start="samples", axis_name="data")
    z = vectors(64, 8)
    variables = init(layer, jax.random.key(0), z)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    step = lambda v, z: jax.tree.map(lambda leaf: leaf[None], train(layer, v, z)[1]["codebook"])  # noqa: E731
    specs = dict(in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec("data"))
    codebook = jax.jit(jax.shard_map(step, mesh=mesh, check_vma=False, **specs))(variables, z)
    words = np.asarray(codebook["codewords"])
    assert np.ptp(words, axis=0).max() == 0  # equal on all devices
    rows, before = (
        {row.tobytes() for row in z},
        {row.tobytes() for row in np.asarray(variables["codebook"]["codewords"])},
    )
    placed = [word.tobytes() in rows for word in words[0]]
    assert np.mean(placed) > 0.25
    assert all(is_placed or word.tobytes() in before for is_placed, word in zip(placed, words[0], strict=True))


@pytest.mark.parametrize("kind", [kvae.KohonenVQ, kvae.GradientVQ])
def test_codebook_of_fewer_dimensions_projects_in_and_out(kind):
    layer = kind((3, 4), "none", codebook_dim=2, metric="cosine")
    variables = init(layer, jax.random.key(0), Z)
    params = jax.tree.map(np.asarray, variables["params"])
    words = np.asarray(apply(layer, variables, method="codewords"))
    assert words.shape == (12, 2)
    projected = unit(Z @ params["project_in_kernel"] + params["project_in_bias"])
    codes = np.argmax(projected @ unit(words).T, axis=1)
    out = apply(layer, variables, Z)
    np.testing.assert_array_equal(out.codes, codes)
    expected = unit(words)[codes] @ params["project_out_kernel"] + params["project_out_bias"]
    np.testing.assert_allclose(out.quantized, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(layer, variables, codes, method="lookup"), expected, rtol=1e-4, atol=1e-5)
    weight = 0.25 if kind is kvae.KohonenVQ else 1.25
    np.testing.assert_allclose(out.loss, weight * np.mean((projected - unit(words)[codes]) ** 2), rtol=1e-4)
    sums = apply(layer, variables, Z, out, np.ones(40, bool), method="batch_sums")
    errors = np.linalg.norm(projected - unit(words)[codes], axis=1)
    np.testing.assert_allclose(sums["quantization_error"], errors.sum(), rtol=1e-4)


def test_orthogonality_is_the_distance_of_products_from_the_identity():
    words = vectors(6, 3)
    products = unit(words) @ unit(words).T - np.eye(6)
    np.testing.assert_allclose(orthogonality(jnp.asarray(words)), np.sum(products**2) / 36, rtol=1e-4)
    np.testing.assert_allclose(orthogonality(jnp.eye(3)), 0, atol=1e-6)
    losses = []
    for weight in (0.0, 2.0):
        layer = kvae.GradientVQ((3, 4), orthogonal_weight=weight)
        variables = init(layer, jax.random.key(0), Z)
        losses.append(apply(layer, variables, Z).loss)
    words = variables["params"]["codewords"]
    np.testing.assert_allclose(losses[1] - losses[0], 2 * orthogonality(words), rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [lambda part, **o: kvae.ResidualVQ(part, depth=2, **o), lambda part, **o: kvae.GroupedVQ(part, groups=2, **o)],
)
def test_shared_codebook_learns_from_the_sum_over_its_parts(make):
    part = kvae.KohonenVQ((3, 4))
    layer = make(part, codebooks="shared")
    variables = init(layer, jax.random.key(0), Z)
    assert [*variables["codebook"]] == ["parts_0"]
    out, updated = train(layer, variables, Z)
    total = jax.tree.map(lambda *leaves: sum(leaves), *out.statistics)
    alone = {"codebook": variables["codebook"]["parts_0"]}
    expected = apply(part, alone, total, method="update", mutable=["codebook"])[1]
    jax.tree.map(np.testing.assert_array_equal, updated["codebook"]["parts_0"], expected["codebook"])
    np.testing.assert_allclose(apply(layer, variables, out.codes, method="lookup"), out.quantized, rtol=1e-5, atol=1e-6)


def test_heads_split_the_projected_vector():
    layer = kvae.GroupedVQ(kvae.KohonenVQ((3, 4), "none"), groups=3, codebooks="shared", codebook_dim=2)
    variables = init(layer, jax.random.key(0), Z)
    params = jax.tree.map(np.asarray, variables["params"])
    words = np.asarray(variables["codebook"]["parts_0"]["codewords"])
    heads = (Z @ params["project_in_kernel"] + params["project_in_bias"]).reshape(40, 3, 2)
    codes = np.argmin(((heads[:, :, None] - words) ** 2).sum(-1), axis=-1)
    out = apply(layer, variables, Z)
    np.testing.assert_array_equal(out.codes, codes)
    expected = words[codes].reshape(40, 6) @ params["project_out_kernel"] + params["project_out_bias"]
    np.testing.assert_allclose(out.quantized, expected, rtol=1e-4, atol=1e-5)


def test_residual_quantiser_projects_once():
    layer = kvae.ResidualVQ(kvae.KohonenVQ((3, 4), "none"), depth=2, codebook_dim=3)
    variables = init(layer, jax.random.key(0), Z)
    params = jax.tree.map(np.asarray, variables["params"])
    out = apply(layer, variables, Z)
    words = [np.asarray(variables["codebook"][f"parts_{i}"]["codewords"]) for i in range(2)]
    left = Z @ params["project_in_kernel"] + params["project_in_bias"]
    total = 0
    for level in range(2):
        codes = np.argmin(((left[:, None] - words[level]) ** 2).sum(-1), axis=1)
        np.testing.assert_array_equal(out.codes[:, level], codes)
        total, left = total + words[level][codes], left - words[level][codes]
    expected = total @ params["project_out_kernel"] + params["project_out_bias"]
    np.testing.assert_allclose(out.quantized, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        InputError, match=r"quantizer\.codebook_dim is 3; it must be None: set codebook_dim of the ResidualVQ"
    ):
        kvae.ResidualVQ(kvae.KohonenVQ((3, 4), codebook_dim=3))
