"""Inputs to the newer layers and estimators that once ended in a traceback or, silently, in a wrong value."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import kvae
from modules import apply, init
from refusals import refusal
from vectors import DATA, vectors

Z = vectors(6, 8)
SMALL = dict(grid_shape=(3, 4), n_epochs=1)
CLASSES = np.arange(200) % 3


def start(layer):
    return init(layer, {"params": jax.random.key(0)}, Z)


@pytest.mark.parametrize(
    ("layer", "scale"),
    [
        (kvae.BSQ(8), 1e38),
        (kvae.KohonenVQ((3, 4), metric="cosine"), 1e38),
        (kvae.KohonenVQ((3, 4), gradient="diveq"), 1e20),
    ],
)
def test_vectors_too_large_to_be_squared_have_their_codes(layer, scale):
    variables = start(layer)
    out = apply(layer, variables, np.float32(scale) * Z)
    np.testing.assert_allclose(out.quantized, apply(layer, variables, out.codes, method="lookup"), rtol=1e-5)
    if getattr(layer, "metric", "cosine") == "cosine":  # the code depends on the direction alone
        np.testing.assert_array_equal(out.codes, apply(layer, variables, Z).codes)


@pytest.mark.parametrize("kind", [kvae.LFQ, kvae.BSQ])
def test_lowest_temperature_gives_finite_entropies(kind):
    assert "temperature is 1e-31; it must be a number >= 1e-30" in refusal(kind, 8, temperature=1e-31)
    layer = kind(8, temperature=1e-30)
    loss, gradient = jax.jit(jax.value_and_grad(lambda z: layer.apply({}, z).loss))(jnp.asarray(Z) * 1e9)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


OTHER_VARIABLES = {
    "bits": (kvae.LFQ(4), kvae.LFQ(5), "this LFQ has 4-dimensional codewords, but its variables are for 5"),
    "SimVQ": (kvae.SimVQ(12), kvae.LFQ(5), "the variables have no codebook/frozen, which this SimVQ needs"),
    "IBQ": (kvae.IBQ(12), kvae.LFQ(5), "the variables have no params/codewords, which this IBQ needs"),
    "map": (
        kvae.KohonenVQ((3, 4)),
        kvae.LFQ(5),
        "the variables have no codebook/codewords, which this KohonenVQ needs",
    ),
    "gradient": (kvae.GradientVQ((3, 4)), kvae.LFQ(5), "the variables have no params/codewords, which this GradientVQ"),
}


@pytest.mark.parametrize("name", OTHER_VARIABLES)
def test_lookup_with_variables_of_another_layer_is_refused(name):
    layer, other, message = OTHER_VARIABLES[name]
    assert message in refusal(layer.apply, start(other), np.zeros(2, int), method="lookup")


@pytest.fixture(scope="module")
def som():
    return kvae.SOM(**SMALL).fit(DATA)


@pytest.fixture
def fitted(som):
    """A map of the test's own."""
    return copy.deepcopy(som)


CHANGES = {
    "grid_shape": ((2, 2), "grid_shape is (2, 2), but the map has another one; call fit to train a new map"),
    "topology": ("torus", "topology is 'torus', but the map has another one"),
    "metric": ("cosine", "metric is 'cosine', but the map has another one"),
    "feature_weights": ([1, 2, 1, 1, 1], "feature_weights is [1, 2, 1, 1, 1], but the map has another one"),
    "n_clusters": (13, "n_clusters is 13; it must be at most the number of nodes, 12"),
    "missing": ("ignor", "missing is 'ignor'; did you mean 'ignore'?"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_partial_fit_refuses_parameters_of_another_map(fitted, name):
    value, message = CHANGES[name]
    assert message in refusal(fitted.set_params(**{name: value}).partial_fit, DATA)


def test_fitted_map_keeps_its_metric(fitted):
    score = fitted.score(DATA)
    assert fitted.set_params(metric="cosine").score(DATA) == score
    assert "missing is 'ignor'; did you mean" in refusal(fitted.set_params(missing="ignor").predict, DATA)


@pytest.mark.parametrize("n_clusters", [0, -1, 13, 1.5, "x", None, 10**400])
def test_numbers_of_clusters_out_of_range_are_refused(som, n_clusters):
    assert "n_clusters is " in refusal(som.clusters, n_clusters)


def test_single_node_is_one_cluster():
    assert kvae.SOM((1,), n_clusters=1, n_epochs=1).fit(DATA).cluster_.tolist() == [0]


def test_constant_features_with_missing_values_do_not_vary():
    X = np.where(np.random.default_rng(0).random((9, 5)) < 0.3, np.nan, 1.0)
    som = kvae.SOM(**SMALL, missing="ignore").fit(X)  # once: a warning about outliers
    np.testing.assert_array_equal(som.cluster_centers_, 1)


def test_weights_beyond_float32_are_refused_without_a_warning():
    for estimator in (kvae.SOM(**SMALL), kvae.SOMClassifier(**SMALL)):
        with pytest.raises(ValueError, match="sample_weight contains infinity or a value too large"):
            estimator.fit(DATA, CLASSES, sample_weight=np.full(200, 1e300))
        assert "integer larger than any float" in refusal(estimator.fit, DATA, CLASSES, [10**400] * 200)


def test_constant_targets_do_not_shape_the_map(som):
    """Divided by the rounding error of their mean, they would have outweighed all features."""
    y = np.tile(np.array([0.1, 7.3], np.float32), (200, 1))
    regressor = kvae.SOMRegressor(**SMALL).fit(DATA, y)
    assert np.mean(regressor.som_.nodes_ == som.nodes_) > 0.95
    np.testing.assert_allclose(regressor.predict(DATA), y, rtol=1e-5)
    first = kvae.SOMClassifier(**SMALL).fit(DATA, CLASSES, sample_weight=(CLASSES == 0) * 1.0)
    assert np.all(first.predict(DATA) == 0)


@pytest.mark.parametrize("unlabeled", [[], {}, pd.NA, np.ones(3)])
def test_mark_of_unknown_classes_is_a_single_value(unlabeled):
    line = refusal(kvae.SOMClassifier(**SMALL, unlabeled=unlabeled).fit, DATA, CLASSES)
    assert "unlabeled is " in line and "it must be a single value of y" in line


def test_unknown_classes_may_be_nan():
    y = np.where(CLASSES == 1, np.nan, CLASSES)
    classifier = kvae.SOMClassifier(**SMALL, unlabeled=np.nan).fit(DATA, y)
    assert classifier.classes_.tolist() == [0, 2]
    for estimator in (kvae.SOMClassifier, kvae.SOMRegressor):
        assert "missing is " in refusal(estimator(**SMALL, missing=np.ones(3)).fit, DATA, CLASSES)
