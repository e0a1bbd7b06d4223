"""`kvae.SOM` as a scikit-learn estimator: its checks, the fitted map, and every kind of data."""

import pickle

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import kvae
from kvae import classic, measures
from kvae.benchmark import som_widths
from kvae.core.errors import InputError
from kvae.topology import Neighborhood, Plane, matrix
from vectors import DATA, RNG, START

SMALL = dict(grid_shape=(3, 4), init=START, n_epochs=4)


def test_scikit_learn_checks_pass():
    results = check_estimator(kvae.SOM(), on_skip=None)
    assert len(results) > 50
    # This check is skipped unless an environment variable enables array libraries in SciPy.
    assert {r["check_name"] for r in results if r["status"] != "passed"} <= {"check_array_api_input"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_neighbours_map_equals_k_means(dtype):
    som = kvae.SOM((12,), neighborhood="none", init=START, n_epochs=3).fit(DATA.astype(dtype))
    k_means = KMeans(12, init=START.astype(dtype), n_init=1, algorithm="lloyd", max_iter=3, tol=0).fit(
        DATA.astype(dtype)
    )
    np.testing.assert_allclose(som.cluster_centers_, k_means.cluster_centers_, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(som.transform(DATA), k_means.transform(DATA), rtol=1e-4, atol=2e-4)
    assert som.cluster_centers_.dtype == som.transform(DATA.astype(dtype)).dtype == dtype


@pytest.mark.parametrize("topology", kvae.GRIDS)
def test_epoch_equals_equations_19_to_21(topology):
    som = kvae.SOM((4, 3), topology=topology, init=START, n_epochs=1, initial_width=2.0).fit(DATA.astype(float))
    members = np.argmin(np.sum((DATA[:, None] - START) ** 2, axis=-1), axis=1)
    A = np.exp(-(np.asarray(som.grid_.distances(), float)[:, members] ** 2) / 4)
    np.testing.assert_allclose(som.cluster_centers_, A @ DATA / A.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_constant_width_equals_fit_batch():
    som = kvae.SOM(**SMALL, initial_width=1.0, final_width=1.0).fit(DATA)
    neighborhood = Neighborhood(Plane((3, 4)), "gaussian", shrink_step=0.0)
    expected = classic.fit_batch(DATA, neighborhood, 4, jax.random.key(0), START)
    np.testing.assert_allclose(som.cluster_centers_, expected, rtol=1e-4, atol=2e-5)
    codewords = jnp.asarray(som.cluster_centers_)
    assert som.quantization_error_ == pytest.approx(float(measures.quantization_error(DATA, codewords)), rel=1e-5)
    assert som.topographic_error_ == pytest.approx(float(measures.topographic_error(DATA, codewords, Plane((3, 4)))))
    assert som.score(DATA) == pytest.approx(-som.quantization_error_)


def test_width_shrinks_by_constant_factor():
    som = kvae.SOM(**SMALL, initial_width=4.0, final_width=0.5).fit(DATA)
    np.testing.assert_allclose(som.history_["width"], [4, 2, 1, 0.5])
    assert som.history_["quantization_error"].shape == (4,)
    assert som.quantization_error_ < som.history_["quantization_error"][-1]


def test_map_is_the_same_far_from_origin():
    near = kvae.SOM((3, 4)).fit(DATA.astype(float))
    far = kvae.SOM((3, 4)).fit(DATA.astype(float) + 1e7)
    np.testing.assert_array_equal(near.labels_, far.labels_)


def test_cosine_metric_ignores_lengths():
    lengths = np.exp(RNG.normal(size=(200, 1)))
    som = kvae.SOM((3, 4), metric="cosine").fit(DATA.astype(float))
    other = kvae.SOM((3, 4), metric="cosine").fit(DATA * lengths)
    np.testing.assert_allclose(som.cluster_centers_, other.cluster_centers_, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(som.cluster_centers_, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(som.labels_, som.transform(DATA).argmin(axis=1))
    assert som.quantization_error_ == pytest.approx(som.transform(DATA).min(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_map_does_not_depend_on_split_into_batches(metric, tmp_path):
    np.save(tmp_path / "rows.npy", DATA)
    single = kvae.SOM((3, 4), init=START, metric=metric).fit(DATA)
    for X, options in [
        (DATA, dict(batch_size=64)),
        (np.load(tmp_path / "rows.npy", mmap_mode="r"), dict(batch_size=77)),
        (grain.MapDataset.source(DATA).batch(64), {}),
        ([DATA[:150].tolist(), DATA[150:]][::-1], dict(batch_size=41)),
    ]:
        som = kvae.SOM((3, 4), init=START, metric=metric, **options).fit(X)
        np.testing.assert_allclose(som.cluster_centers_, single.cluster_centers_, atol=1e-5)
        assert som.topographic_error_ == pytest.approx(single.topographic_error_)
        np.testing.assert_array_equal(som.predict(X), som.labels_)


def test_map_does_not_depend_on_device_count(monkeypatch):
    eight = kvae.SOM((3, 4)).fit(DATA)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    one = kvae.SOM((3, 4)).fit(DATA)
    np.testing.assert_allclose(one.cluster_centers_, eight.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(one.labels_, eight.labels_)


def test_partial_fit_without_decay_equals_fit():
    fitted, parts = kvae.SOM(**SMALL).fit(DATA), kvae.SOM(**SMALL, decay=0.0)
    for _ in range(4):
        parts.partial_fit(DATA)
    np.testing.assert_allclose(parts.cluster_centers_, fitted.cluster_centers_, atol=1e-6)
    assert parts.n_iter_ == 4


def test_partial_fit_decays_earlier_sums_and_survives_pickle():
    som = kvae.SOM(**SMALL, decay=0.5, initial_width=1.0, final_width=1.0)
    som.partial_fit(DATA[:100])
    som = pickle.loads(pickle.dumps(som)).partial_fit(DATA[100:])
    weights = np.r_[np.full(100, 0.5), np.ones(100)]
    first = kvae.SOM(**SMALL | {"n_epochs": 1}, initial_width=1.0, final_width=1.0).fit(DATA[:100])
    members = np.r_[np.argmin(np.sum((DATA[:100, None] - START) ** 2, axis=-1), axis=1), first.predict(DATA[100:])]
    A = np.asarray(matrix(Neighborhood(Plane((3, 4)), "gaussian"), 0))[:, members] * weights
    np.testing.assert_allclose(som.cluster_centers_, A @ DATA / A.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_partial_fit_continues_from_fit():
    once = kvae.SOM(**SMALL | {"n_epochs": 1}, initial_width=1.0, final_width=1.0)
    som = clone(once).set_params(decay=0.5).fit(DATA).partial_fit(DATA[:50])
    weights = np.r_[np.full(200, 0.5), np.ones(50)]
    rows = np.concatenate([DATA, DATA[:50]])
    members = np.r_[np.argmin(np.sum((DATA[:, None] - START) ** 2, axis=-1), axis=1), once.fit(DATA).predict(DATA[:50])]
    A = np.asarray(matrix(Neighborhood(Plane((3, 4)), "gaussian"), 0))[:, members] * weights
    np.testing.assert_allclose(som.cluster_centers_, A @ rows / A.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_map_of_square_is_ordered():
    square = RNG.random((2000, 2))
    for topology in ("plane", "hexagonal"):
        som = kvae.SOM((10, 10), topology=topology).fit(square)
        assert som.topographic_error_ < 0.1
        assert som.quantization_error_ < 0.05
        assert len(np.unique(som.labels_)) == 100


def test_random_init_depends_on_seed_alone():
    one, same, other = (kvae.SOM((3, 4), init="random", random_state=seed).fit(DATA) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.cluster_centers_, same.cluster_centers_)
    assert np.any(one.cluster_centers_ != other.cluster_centers_)


def test_clusters_are_connected_on_grid():
    blobs = np.concatenate([RNG.normal(center, 0.1, size=(100, 2)) for center in ((0, 0), (5, 0), (0, 5))])
    som = kvae.SOM((6, 6), n_clusters=3).fit(blobs)
    groups = som.cluster_
    assert groups.shape == (36,)
    np.testing.assert_array_equal(groups, som.clusters(3))
    np.testing.assert_array_equal(som.labels_, groups[som.nodes_])
    np.testing.assert_array_equal(som.predict(blobs), groups[som.predict_nodes(blobs)])
    distances = np.asarray(som.grid_.distances())
    row_groups = som.labels_.reshape(3, 100)
    assert np.all(row_groups == row_groups[:, :1]) and len(np.unique(row_groups[:, 0])) == 3
    for group in range(3):
        nodes = np.flatnonzero(groups == group)
        reached = {nodes[0]}
        while grown := {n for n in nodes if n not in reached and any(distances[n, m] < 1.5 for m in reached)}:
            reached |= grown
        assert len(reached) == len(nodes)


def test_map_works_in_pipeline_search_and_pickle():
    frame = pd.DataFrame(DATA, columns=list("abcde"))
    pipeline = make_pipeline(StandardScaler(), kvae.SOM((2, 3), n_epochs=2)).set_output(transform="pandas")
    distances = pipeline.fit_transform(frame)
    assert list(distances.columns) == [f"som{k}" for k in range(6)]
    search = GridSearchCV(kvae.SOM(n_epochs=3), {"grid_shape": [(1, 2), (3, 4)]}, cv=2).fit(frame)
    assert search.best_params_ == {"grid_shape": (3, 4)}
    som = search.best_estimator_
    assert not hasattr(clone(som), "cluster_centers_")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(som)).predict(frame), som.predict(frame))


@pytest.mark.parametrize("topology", ["plane", "torus"])
def test_order_score_is_distance_plus_way_to_second_node(topology):
    som = kvae.SOM((1, 5), topology=topology, n_epochs=0, init=[[0], [10], [1], [3], [20]])
    som.fit(np.array([[0], [20.0]]))
    # Nearest and second nearest: nodes 0 and 2, two steps apart (10 + 9).
    assert kvae.som.order_scorer(som, [[0.25]]) == -(0.25 + 19)
    # Nodes 3 and 2 are neighbours.
    assert kvae.som.order_scorer(som, np.array([[2.5]])) == -(0.5 + 2)
    assert kvae.som.order_scorer(som, [[0.25], [2.5]]) == -(19.25 + 2.5) / 2
    assert kvae.som.order_scorer(kvae.SOM((1,), n_epochs=0, init=[[1]]).fit([[0.0]]), [[3.0]]) == -2
    scaled = kvae.SOM((1, 5), n_epochs=0, init=np.ldexp([[0.0], [10], [1], [3], [20]], 900))
    assert kvae.som.order_scorer(scaled.fit(np.ldexp([[0], [20.0]], 900)), [[2.5 * 2.0**900]]) == -2.5 * 2.0**900


def test_grid_search_by_order_prefers_ordered_map():
    X, widths = RNG.random((300, 2)), {"som__final_width": [0.1, 1.0]}
    for metric in ("euclidean", "cosine"):
        pipeline = Pipeline([("scale", StandardScaler()), ("som", kvae.SOM((8, 8), n_epochs=3, metric=metric))])
        search = GridSearchCV(pipeline, widths, scoring=kvae.som.order_scorer, cv=2).fit(X)
        assert search.best_params_ == {"som__final_width": 1.0}
    with pytest.raises(
        InputError, match=r"estimator is a KMeans; it must be a kvae.SOM or a pipeline that ends in one"
    ):
        kvae.som.order_scorer(KMeans(), X)
    with pytest.raises(NotFittedError):
        kvae.som.order_scorer(kvae.SOM(), X)


def test_widths_are_compared_on_held_out_rows(monkeypatch):
    monkeypatch.setattr(som_widths, "SETS", {"square": lambda: RNG.random((300, 2))})
    monkeypatch.setattr(som_widths, "WIDTHS", (0.2, 1.0))
    row = som_widths.compare_widths()["square"]
    assert row["0.2 error"] == 1 < row["1.0 error"]
    assert row["0.2 disorder"] > row["1.0 disorder"]


@pytest.mark.parametrize(
    ("options", "X", "message"),
    [
        (dict(grid_shape=(0, 3)), DATA, r"grid_shape is \(0, 3\); it must be"),
        (dict(topology="toros"), DATA, "topology is 'toros'; did you mean 'torus'"),
        (dict(neighborhood="gausian"), DATA, "neighborhood is 'gausian'; did you mean 'gaussian'"),
        (dict(metric="manhatan"), DATA, "metric is 'manhatan'; did you mean 'manhattan'"),
        (dict(n_clusters=101), DATA, "n_clusters is 101; it must be at most the number of nodes, 100"),
        (dict(init="pcs"), DATA, "init is 'pcs'; did you mean 'pca'"),
        (dict(init=START[:5]), DATA, r"init has the shape \(5, 5\).*must be \(100, 5\)"),
        (dict(final_width=0.0), DATA, "final_width is 0.0; it must be a number from 1e-06 to 1000000.0"),
        ({}, (DATA[:10] for _ in range(3)), "X is an iterator and can be read only once"),
        ({}, [DATA[:10], DATA[:10, :3]], "X has 3 features, but SOM is expecting 5 features as input"),
        ({}, np.where(DATA > 2, np.nan, DATA), "X contains NaN; set missing='ignore'"),
        ({}, [DATA[:10], DATA[:10] * np.nan], "X contains NaN; set missing='ignore'"),
    ],
)  # fmt: skip
def test_bad_parameters_and_data_are_rejected(options, X, message):
    with pytest.raises(ValueError, match=message) as raised:
        kvae.SOM(**options).fit(X)
    assert "\n" not in str(raised.value) or not isinstance(raised.value, InputError)


def test_bad_weights_are_rejected():
    with pytest.raises(ValueError, match="at least one non-zero number"):
        kvae.SOM().fit(DATA, sample_weight=np.zeros(200))
    with pytest.raises(ValueError, match="Negative values"):
        kvae.SOM().fit(DATA, sample_weight=-np.ones(200))
    with pytest.raises(InputError, match="cannot be combined with an iterable of batches"):
        kvae.SOM().fit([DATA], sample_weight=np.ones(200))
    with pytest.raises(NotFittedError):
        kvae.SOM().predict(DATA)


@pytest.mark.parametrize(("topology", "neighbor"), [("plane", 18), ("hexagonal", 13)])
def test_map_of_known_codewords(topology, neighbor):
    """As in the tests of MiniSom: a 5 x 5 map of known codewords, with node 12 in the middle."""
    codewords = np.zeros((25, 1))
    codewords[[12, neighbor, 24, 0], 0] = 5, 6, 15, 14
    som = kvae.SOM((5, 5), topology=topology, n_epochs=0, init=codewords).fit([[5.0], [15.0]])
    np.testing.assert_array_equal(som.cluster_centers_, codewords)
    np.testing.assert_array_equal(som.labels_, [12, 24])
    assert som.score([[5.0], [15.0]]) == 0
    assert som.score([[4.0], [16.0]]) == -1
    # The two nearest nodes of 5 are neighbours; those of 15 are opposite corners.
    assert som.topographic_error_ == 0.5
    X = np.arange(-5.0, 5)[:, None]
    np.testing.assert_array_equal(som.transform(X), np.abs(X - codewords[:, 0]))


def test_training_lowers_error_and_starts_from_rows():
    for X in ([[4.0, 2], [3, 1]], [[1.0, 5], [6, 7]]):
        som = kvae.SOM((5, 5), init="random", random_state=1, initial_width=1.0).fit(X)
        assert som.quantization_error_ < kvae.SOM((5, 5), init=np.zeros((25, 2)), n_epochs=0).fit(X).quantization_error_
    np.testing.assert_array_equal(
        kvae.SOM((2, 2), init="random", n_epochs=0).fit([[1.0, 0]]).cluster_centers_, [[1, 0]] * 4
    )
    assert np.all(kvae.SOM((2, 2), metric="cosine").fit(DATA).transform(np.zeros((1, 5))) == 1)
