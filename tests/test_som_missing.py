"""`missing="ignore"`: distances and means over the known values, in every method and for every form of data."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import nan_euclidean_distances
from sklearn.utils import get_tags

import kvae
from kvae.core.errors import InputError
from kvae.som import missing
from vectors import DATA, START

HOLES = np.where(np.random.default_rng(1).random(DATA.shape) < 0.2, np.nan, DATA)
MAP = dict(grid_shape=(3, 4), init=START, missing="ignore", n_epochs=2)


def test_complete_rows_give_the_usual_map():
    som, usual = kvae.SOM(**MAP).fit(DATA), kvae.SOM(**MAP | {"missing": "error"}).fit(DATA)
    np.testing.assert_allclose(som.cluster_centers_, usual.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(som.labels_, usual.labels_)
    assert som.quantization_error_ == pytest.approx(usual.quantization_error_, rel=1e-5)


def test_epoch_averages_known_values():
    weights = np.arange(1.0, 201)
    som = kvae.SOM(**MAP | {"n_epochs": 1}, initial_width=2.0).fit(HOLES, sample_weight=weights)
    nearest = np.nanmean((HOLES[:, None] - START) ** 2, axis=-1).argmin(axis=1)
    A = np.exp(-(np.asarray(som.grid_.distances(), float)[:, nearest] ** 2) / 4) * weights
    means = A @ np.nan_to_num(HOLES) / (A @ ~np.isnan(HOLES))
    np.testing.assert_allclose(som.cluster_centers_, means, rtol=1e-5, atol=1e-6)


def test_distances_are_scaled_to_all_features():
    som = kvae.SOM(**MAP).fit(HOLES)
    expected = nan_euclidean_distances(HOLES, som.cluster_centers_)
    np.testing.assert_allclose(som.transform(HOLES), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(som.predict(HOLES), expected.argmin(axis=1))
    np.testing.assert_array_equal(som.labels_, expected.argmin(axis=1))
    assert som.score(HOLES) == pytest.approx(-expected.min(axis=1).mean(), rel=1e-5)
    assert som.quantization_error_ == pytest.approx(-som.score(HOLES))


def test_map_with_missing_values_does_not_depend_on_split(tmp_path):
    np.save(tmp_path / "rows.npy", HOLES)
    single = kvae.SOM(**MAP).fit(HOLES)
    for X, options in [
        (np.load(tmp_path / "rows.npy", mmap_mode="r"), dict(batch_size=77)),
        ([HOLES[:150], HOLES[150:]], {}),
    ]:
        som = kvae.SOM(**MAP, **options).fit(X)
        np.testing.assert_allclose(som.cluster_centers_, single.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(som.predict(X), single.labels_)
    parts = kvae.SOM(**MAP, decay=0.0).partial_fit(HOLES).partial_fit(HOLES)
    np.testing.assert_allclose(parts.cluster_centers_, single.cluster_centers_, atol=1e-5)


def test_missing_values_may_begin_with_partial_fit():
    som = kvae.SOM(**MAP | {"missing": "error"}, decay=0.5).fit(DATA).set_params(missing="ignore", final_width=1e-3)
    centers = som.cluster_centers_
    som.partial_fit(np.column_stack([DATA[:, :4], np.full(200, np.nan)]))
    assert np.all(np.isfinite(som.cluster_centers_)) and np.any(som.cluster_centers_ != centers)


def test_imputed_values_are_those_of_the_nearest_node():
    X = np.array([[0, 0, 5], [0, 1, 5], [9, 9, 7], [np.nan, 8, 7], [1, np.nan, np.nan]])
    som = kvae.SOM((1, 2), init=[[0, 0.5, 5], [9, 9, 7]], neighborhood="none", n_epochs=1, missing="ignore").fit(X)
    np.testing.assert_allclose(som.cluster_centers_, [[1 / 3, 0.5, 5], [9, 8.5, 7]], rtol=1e-6)
    filled = som.impute(X)
    np.testing.assert_array_equal(filled[:3], X[:3])
    np.testing.assert_allclose(filled[3:], [[9, 8, 7], [1, 0.5, 5]], rtol=1e-6)
    assert np.isnan(X[3, 0])


def test_reference_predicts_deviations_by_linear_regression():
    random = np.random.default_rng(2)
    reference, deviations = random.normal(size=(2, 30, 4)) @ (np.eye(4) + 0.3 * random.normal(size=(4, 4)))
    reference[random.random(reference.shape) < 0.1] = np.nan
    deviations[random.random(deviations.shape) < 0.3] = np.nan
    filled = missing.predict_deviations(deviations, reference)

    known = ~np.isnan(reference)
    sizes = np.sqrt(np.nanmean(reference**2, axis=0))
    z = np.where(known, reference / sizes, 0)
    products = z[:, :, None] * z[:, None, :]
    pairs = np.sqrt(np.outer(known.sum(axis=0), known.sum(axis=0)))
    C = products.sum(axis=0) / pairs
    variances = ((products**2).sum(axis=0) / pairs - C**2) / (pairs - 1)
    off = ~np.eye(4, dtype=bool)
    a = variances[off].sum() / (C[off] ** 2).sum()
    assert 4 / 34 < a < 1
    S = np.outer(sizes, sizes) * ((1 - a) * C + a * np.eye(4))
    for row, result in zip(deviations, filled, strict=True):
        m = np.isnan(row)
        o = ~m
        np.testing.assert_array_equal(result[o], row[o])
        np.testing.assert_allclose(result[m], S[np.ix_(m, o)] @ np.linalg.inv(S[np.ix_(o, o)]) @ row[o], rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e250])
def test_reference_recovers_features_that_vary_together(unit):
    random = np.random.default_rng(3)
    slope = random.normal(size=500)
    X = unit * (np.repeat([[0.0, 0, 3], [90, 90, 7]], 250, axis=0) + slope[:, None] * [1, -2, 0])
    holes = np.where((np.arange(500) % 5 == 0)[:, None] & [False, True, False], np.nan, X)
    som = kvae.SOM((2,), init=X[[0, -1]], neighborhood="none", missing="ignore").fit(holes)
    errors = [np.abs(filled - X).max() / unit for filled in (som.impute(holes), som.impute(holes, reference=holes))]
    assert errors[0] > 1 and errors[1] < 0.6


def test_few_reference_rows_predict_little():
    deviations = np.array([[1.0, np.nan]])
    for rows, share in ((1, 1 / 3), (2, 1 / 2), (998, 0.998)):
        filled = missing.predict_deviations(deviations, np.ones((rows, 2)))
        assert filled[0, 1] == pytest.approx(share)


def test_reference_with_equal_and_constant_features():
    X = np.column_stack([DATA, DATA[:, 0], np.full(len(DATA), 4.0)])
    som = kvae.SOM((3, 4), missing="ignore", n_epochs=2, metric="euclidean").fit(X)
    holes = X.copy()
    holes[::3, 0], holes[1::3, -1] = np.nan, np.nan
    filled = som.impute(holes, reference=X)
    np.testing.assert_allclose(filled[1::3, -1], 4)
    assert np.abs(filled - X).max() < 0.2 < 1 < np.abs(som.impute(holes) - X).max()
    assert som.impute(holes.astype(np.float32), reference=X).dtype == np.float32


def test_tag_follows_parameter():
    assert get_tags(kvae.SOM(missing="ignore")).input_tags.allow_nan
    assert not get_tags(kvae.SOM()).input_tags.allow_nan


UNKNOWN = HOLES.copy()
UNKNOWN[130] = np.nan


@pytest.mark.parametrize(
    ("options", "X", "message"),
    [
        ({}, UNKNOWN, "^row 130 of X has no known value; remove such rows$"),
        ({}, [UNKNOWN[:100], UNKNOWN[100:]], "^row 130 of X has no known value"),
        ({}, np.where(np.arange(5) == 3, np.nan, HOLES), "^column 3 of X has no known value; remove such columns$"),
        (dict(missing="error"), HOLES, "^X contains NaN; set missing='ignore' to compute distances over the known"),
        (dict(missing="ignor"), HOLES, "missing is 'ignor'; did you mean 'ignore'"),
        (
            dict(metric="cosine"),
            HOLES,
            "missing is 'ignore' and metric is 'cosine'; to ignore missing values, use",
        ),
        ({}, np.where(HOLES > 2, np.inf, HOLES), "contains infinity"),
        (dict(init=HOLES[:12]), HOLES, "init contains NaN"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(options, X, message):
    with pytest.raises(ValueError, match=message) as raised:
        kvae.SOM(**MAP | options).fit(X)
    assert "\n" not in str(raised.value) or not isinstance(raised.value, InputError)


def test_row_without_known_value_is_refused_after_fit():
    som = kvae.SOM(**MAP | {"n_epochs": 0}).fit(HOLES)
    for method in (som.predict, som.transform, som.score, som.impute):
        with pytest.raises(InputError, match=r"^row 130 of X has no known value"):
            method(UNKNOWN)
