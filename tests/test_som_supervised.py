"""`kvae.SOMClassifier`, `kvae.SOMRegressor` and `feature_weights`."""

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import check_estimator

import kvae
from kvae.core.errors import InputError
from vectors import DATA, START

CLASSES = np.array(["low", "middle", "high"])[np.digitize(DATA[:, 0], [-0.5, 0.5])]
SMALL = dict(grid_shape=(3, 4), n_epochs=3)


@pytest.mark.parametrize("estimator", [kvae.SOMClassifier(), kvae.SOMRegressor()])
def test_scikit_learn_checks_pass(estimator, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    results = check_estimator(estimator, on_skip=None)
    assert len(results) > 50
    # This check is skipped unless an environment variable enables array libraries in SciPy.
    assert {r["check_name"] for r in results if r["status"] != "passed"} <= {"check_array_api_input"}


def test_classifier_learns_layers_divided_by_their_deviation():
    classifier = kvae.SOMClassifier(**SMALL, target_weight=0.3).fit(DATA, CLASSES)
    Y = (CLASSES[:, None] == classifier.classes_).astype(np.float32)
    x_scale, y_scale = (np.sqrt(layer.var(axis=0).sum()) for layer in (DATA, Y))
    weights = np.r_[np.full(5, 0.7), np.full(3, 0.3)]
    both = kvae.SOM(**SMALL, feature_weights=weights).fit(np.hstack([DATA / x_scale, Y / y_scale]))
    np.testing.assert_allclose(classifier.som_.cluster_centers_, both.cluster_centers_[:, :5] * x_scale, atol=1e-4)
    np.testing.assert_allclose(classifier.node_targets_, both.cluster_centers_[:, 5:] * y_scale, atol=1e-4)
    shares = classifier.predict_proba(DATA)
    np.testing.assert_allclose(shares, classifier.node_targets_[classifier.som_.predict(DATA)], atol=1e-5)
    np.testing.assert_array_equal(classifier.predict(DATA), classifier.classes_[shares.argmax(axis=1)])


def test_target_weight_pulls_classes_apart():
    def purity(target_weight):
        return kvae.SOMClassifier(**SMALL, target_weight=target_weight).fit(DATA, CLASSES).score(DATA, CLASSES)

    assert purity(0.9) > purity(1e-6)


def test_rows_of_unknown_class_shape_the_map_alone():
    y = np.where(np.arange(200) % 2, CLASSES, "?")
    classifier = kvae.SOMClassifier(**SMALL, unlabeled="?").fit(DATA, y)
    assert classifier.classes_.tolist() == ["high", "low", "middle"]
    known = kvae.SOMClassifier(**SMALL).fit(DATA[1::2], y[1::2])
    assert np.any(classifier.som_.cluster_centers_ != known.som_.cluster_centers_)
    assert classifier.score(DATA[::2], CLASSES[::2]) > 0.5
    np.testing.assert_allclose(classifier.predict_proba(DATA).sum(axis=1), 1, rtol=1e-6)


def test_regressor_predicts_means_of_known_targets():
    y = np.column_stack([DATA[:, 0], DATA[:, 1] * 100])
    y[::5, 1] = np.nan
    regressor = kvae.SOMRegressor(**SMALL).fit(pd.DataFrame(DATA, columns=list("abcde")), y)
    assert regressor.feature_names_in_.tolist() == list("abcde")
    predicted = regressor.predict(pd.DataFrame(DATA, columns=list("abcde")))
    assert predicted.shape == (200, 2) and np.isfinite(predicted).all()
    assert np.corrcoef(predicted[:, 1], DATA[:, 1])[0, 1] > 0.5


def test_map_of_features_can_be_drawn_and_may_miss_values():
    holes = np.where(np.random.default_rng(1).random(DATA.shape) < 0.1, np.nan, DATA)
    classifier = kvae.SOMClassifier(**SMALL, missing="ignore").fit(holes, CLASSES)
    assert classifier.score(holes, CLASSES) > 0.5
    kvae.plots.classes(classifier.som_, holes, CLASSES)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_weighted_features_equal_scaled_ones(metric):
    weights = np.array([1, 4, 0.25, 16, 1])
    options = dict(grid_shape=(3, 4), n_epochs=2, metric=metric)
    som = kvae.SOM(**options, init=START, feature_weights=weights).fit(DATA)
    scaled = kvae.SOM(**options, init=START * np.sqrt(weights)).fit(DATA * np.sqrt(weights))
    np.testing.assert_array_equal(som.labels_, scaled.labels_)
    np.testing.assert_allclose(som.transform(DATA), scaled.transform(DATA * np.sqrt(weights)), rtol=1e-4, atol=1e-5)
    assert som.quantization_error_ == pytest.approx(scaled.quantization_error_, rel=1e-5)
    if metric == "euclidean":
        np.testing.assert_allclose(som.cluster_centers_ * np.sqrt(weights), scaled.cluster_centers_, atol=1e-5)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: kvae.SOM(feature_weights=[1, 2]).fit(DATA), "feature_weights has 2 weights; X has 5 features"),
        (lambda: kvae.SOM(feature_weights=[1, 0, 1, 1, 1]).fit(DATA), r"feature_weights is \[1, 0, 1, 1, 1\]; it must"),
        (lambda: kvae.SOM(feature_weights="abc").fit(DATA), "feature_weights is 'abc'; it must be"),
        (lambda: kvae.SOMClassifier(target_weight=1.0).fit(DATA, CLASSES), "target_weight is 1.0; it must be"),
        (lambda: kvae.SOMClassifier(unlabeled=7).fit(DATA, [7] * 200), "every value of y is 7, which marks rows"),
        (lambda: kvae.SOMRegressor().fit(DATA, [np.nan] * 200), "every value of y is NaN"),
        (lambda: kvae.SOMRegressor().fit(DATA, None), "SOMRegressor requires y to be passed"),
        (lambda: kvae.SOMClassifier(topology="toros").fit(DATA, CLASSES), "topology is 'toros'; did you mean"),
    ],
)
def test_bad_targets_and_weights_are_one_line(fit, message):
    with pytest.raises(InputError, match=message) as raised:
        fit()
    assert "\n" not in str(raised.value)
