"""The metrics of `kvae.SOM` against SciPy, and sparse rows against dense ones."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from scipy.spatial.distance import cdist
from sklearn.utils import get_tags

import kvae
from kvae.core.errors import InputError
from kvae.kohonen import by_chunks, lowest
from kvae.som.metrics import METRICS
from vectors import DATA, START

ROWS = DATA.astype(float)
MAP = dict(grid_shape=(3, 4), init=START, n_epochs=2)
SPARSE = np.where(np.random.default_rng(2).random((200, 9)) < 0.7, 0, np.random.default_rng(3).normal(size=(200, 9)))


@pytest.mark.parametrize(("metric", "name"), [("manhattan", "cityblock"), ("correlation", "correlation")])
def test_epoch_averages_nearest_rows_by_metric(metric, name):
    som = kvae.SOM(**MAP | {"n_epochs": 1}, metric=metric, initial_width=2.0).fit(ROWS)
    A = np.exp(-(np.asarray(som.grid_.distances(), float)[:, cdist(ROWS, START, name).argmin(axis=1)] ** 2) / 4)
    rows = ROWS
    if metric == "correlation":
        rows = ROWS - ROWS.mean(axis=1, keepdims=True)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    means = A @ rows / A.sum(axis=1, keepdims=True)
    if metric == "correlation":
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(som.cluster_centers_, means, rtol=1e-5, atol=1e-6)
    distances = cdist(ROWS, som.cluster_centers_, name)
    np.testing.assert_allclose(som.transform(ROWS), distances, atol=1e-9)
    np.testing.assert_array_equal(som.labels_, distances.argmin(axis=1))
    assert som.quantization_error_ == pytest.approx(distances.min(axis=1).mean(), rel=1e-5)


def test_correlation_ignores_offsets_and_lengths():
    som = kvae.SOM(**MAP, metric="correlation").fit(ROWS)
    powers = np.random.default_rng(4).integers(-300, 300, (200, 1))
    other = kvae.SOM(**MAP, metric="correlation").fit(np.ldexp(ROWS + 3 * np.arange(200)[:, None] / 100, powers))
    np.testing.assert_allclose(other.cluster_centers_, som.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(other.labels_, som.labels_)
    np.testing.assert_allclose(som.transform(np.full((2, 5), 0.1) * [[1], [0]]), 1)  # equal features: no direction


def test_feature_weights_multiply_absolute_differences():
    weights = np.array([3.0, 0.5, 1.0, 2.0, 0.25])
    som = kvae.SOM(**MAP, metric="manhattan", feature_weights=weights).fit(ROWS)
    distances = cdist(ROWS * weights, som.cluster_centers_ * weights, "cityblock")
    np.testing.assert_allclose(som.transform(ROWS), distances, rtol=1e-9)
    np.testing.assert_array_equal(som.labels_, distances.argmin(axis=1))
    weighted = kvae.SOM(**MAP, metric="correlation", feature_weights=[1, 1, 1, 1, 2]).fit(ROWS)
    repeated = kvae.SOM(**MAP | {"init": START[:, [0, 1, 2, 3, 4, 4]]}, metric="correlation").fit(
        ROWS[:, [0, 1, 2, 3, 4, 4]]
    )
    np.testing.assert_array_equal(weighted.labels_, repeated.labels_)
    np.testing.assert_allclose(weighted.transform(ROWS), repeated.transform(ROWS[:, [0, 1, 2, 3, 4, 4]]), atol=1e-5)


def test_manhattan_lookup_never_holds_all_differences():
    n, K, d = 4096, 64, 256
    lookup = jax.jit(lambda z, w: by_chunks(lowest, z, w, METRICS["manhattan"].scores))
    compiled = lookup.lower(jnp.zeros((n, d)), jnp.zeros((K, d))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * K * d / 8


def test_order_score_adds_manhattan_distances():
    som = kvae.SOM((1, 3), metric="manhattan", n_epochs=0, init=[[0, 0], [9, 9], [1, 1]]).fit([[0.0, 0], [9, 9]])
    # Nearest: node 0, at 0.5 + 0.25. Second nearest: node 2, over node 1 (18 + 16).
    assert kvae.som.order_scorer(som, [[0.5, 0.25]]) == -(0.75 + 34)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("init", ["pca", "random"])
def test_sparse_rows_give_the_map_of_dense_rows(metric, init):
    options = dict(grid_shape=(3, 4), metric=metric, init=init, random_state=0, n_epochs=3)
    weights, rows = np.arange(200.0) % 4, scipy.sparse.csr_array(SPARSE)
    dense = kvae.SOM(**options).fit(SPARSE, sample_weight=weights)
    for X in (rows, scipy.sparse.coo_matrix(SPARSE)):
        som = kvae.SOM(**options, batch_size=77).fit(X, sample_weight=weights)
        np.testing.assert_allclose(som.cluster_centers_, dense.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(som.labels_, dense.labels_)
        np.testing.assert_array_equal(dense.predict(X), dense.labels_)
        np.testing.assert_allclose(dense.transform(X), dense.transform(SPARSE), atol=1e-7)
        assert som.score(X) == pytest.approx(dense.score(SPARSE), rel=1e-6)
        assert som.topographic_error_ == pytest.approx(dense.topographic_error_)
        assert kvae.som.order_scorer(som, X) == pytest.approx(kvae.som.order_scorer(dense, SPARSE), rel=1e-5)


def test_sparse_batches_and_parts_add_up():
    options = dict(grid_shape=(3, 4), init=SPARSE[:12], n_epochs=2, decay=0.0, feature_weights=np.arange(1.0, 10))
    rows, single = scipy.sparse.csr_array(SPARSE), kvae.SOM(**options).fit(SPARSE)
    for som in (
        kvae.SOM(**options).fit([rows[:90], rows[90:]]),
        kvae.SOM(**options).fit([rows[:90], rows[90:].toarray()]),
        kvae.SOM(**options).partial_fit(rows).partial_fit(rows),
        kvae.SOM(**options).partial_fit(SPARSE).partial_fit(rows),  # in coordinates with an offset
    ):
        np.testing.assert_allclose(som.cluster_centers_, single.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(som.labels_, single.labels_)
    terms = scipy.sparse.csr_array(([1.0, 2.0, 5.0], [0, 0, 8], [0, 2, 3]), (2, 9))  # 1 + 2 in one place
    np.testing.assert_allclose(single.transform(terms), single.transform(terms.toarray()))


def test_sparse_rows_are_never_made_dense():
    wide = scipy.sparse.random_array((500, 200_000), density=1e-4, rng=np.random.default_rng(0), format="csr")
    tracemalloc.start()
    som = kvae.SOM((1, 2), init="random", random_state=0, n_epochs=1).fit(wide)
    som.transform(wide), som.score(wide)
    assert tracemalloc.get_traced_memory()[1] < 100e6 < wide.shape[0] * wide.shape[1] * 8
    tracemalloc.stop()


def test_other_parameters_refuse_sparse_rows_in_one_line():
    rows = scipy.sparse.csr_array(SPARSE)
    message = (
        "^X is sparse, but this SOM.* needs dense rows; .* with the metric 'euclidean' or 'cosine' and missing='error'$"
    )
    for som in (kvae.SOM(metric="manhattan"), kvae.SOM(metric="correlation"), kvae.SOM(missing="ignore")):
        assert not get_tags(som).input_tags.sparse
        with pytest.raises(InputError, match=message):
            som.fit(rows)
    with pytest.raises(InputError, match=message):
        kvae.SOMClassifier().fit(rows, np.zeros(200))
    with pytest.raises(InputError, match=r"^X is sparse; its zeros are known values, so impute"):
        kvae.SOM(n_epochs=0).fit(rows).impute(rows)
    assert get_tags(kvae.SOM()).input_tags.sparse
    with pytest.raises(InputError, match=r"^X has the value .* distances would overflow"):
        kvae.SOM(n_epochs=0).fit(rows).predict(rows * 1e30)
