"""Data of every range, order and form that `kvae.SOM` takes, and one line for those that it does not."""

import itertools

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

import kvae
from kvae.core.errors import InputError
from kvae.som.distances import euclidean_distances
from vectors import DATA, START

SMALL = dict(grid_shape=(3, 4), n_epochs=2)


class Passes:
    """An iterable that gives other batches in each pass: `batches` maps the number of the pass to an iterable."""

    def __init__(self, batches):
        self.batches, self.count = batches, itertools.count(1)

    def __iter__(self):
        return iter(self.batches(next(self.count)))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(np.float32, -100), (np.float32, 120), (np.float64, -700), (np.float64, 1000)]
)
def test_map_does_not_depend_on_unit_of_data(metric, dtype, exponent):
    X, scaled = DATA.astype(dtype), np.ldexp(DATA.astype(dtype), exponent)
    som, other = (kvae.SOM(**SMALL, metric=metric).fit(data) for data in (X, scaled))
    np.testing.assert_array_equal(other.labels_, som.labels_)
    power = 0 if metric == "cosine" else exponent
    np.testing.assert_array_equal(other.cluster_centers_, np.ldexp(som.cluster_centers_, power))
    np.testing.assert_allclose(other.transform(scaled), np.ldexp(som.transform(X), power), rtol=1e-6)
    for attribute in ("quantization_error_", "topographic_error_"):
        expected = getattr(som, attribute) * (2.0**power if attribute == "quantization_error_" else 1)
        assert getattr(other, attribute) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        other.history_["quantization_error"], np.ldexp(som.history_["quantization_error"], power), rtol=1e-6
    )


@pytest.mark.parametrize("exponent", [-900, 900])
def test_map_does_not_depend_on_unit_of_weights(exponent):
    X, weights = DATA.astype(float), np.arange(1.0, 201)
    som = kvae.SOM(**SMALL).fit(X, sample_weight=weights)
    other = kvae.SOM(**SMALL).fit(X, sample_weight=np.ldexp(weights, exponent))
    np.testing.assert_array_equal(other.cluster_centers_, som.cluster_centers_)


def test_weight_two_equals_row_given_twice():
    X, weights = DATA.astype(float) ** 3, np.arange(200) % 3
    som = kvae.SOM().fit(X, sample_weight=weights)
    repeated = kvae.SOM().fit(np.repeat(X, weights, axis=0))
    np.testing.assert_allclose(som.cluster_centers_, repeated.cluster_centers_, atol=1e-9)
    np.testing.assert_array_equal(som.predict(X), repeated.predict(X))


@pytest.mark.parametrize("value", [1e25, 9.97e36, -3e38])
def test_fill_values_are_one_line_and_never_nan(value):
    X = DATA.copy()
    for rows in (slice(7, 8), slice(0, None, 2)):
        X[rows] = value
        with pytest.warns(UserWarning, match=r"remove fill values and outliers, or take logarithms$"):
            som = kvae.SOM(**SMALL).fit(X)
        assert np.all(np.isfinite(som.cluster_centers_))
    som = kvae.SOM(**SMALL).fit(DATA)
    with pytest.raises(
        InputError, match=r"X has the value .* so distances would overflow; remove fill values"
    ) as raised:
        som.predict(X)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"X has the value"):
        som.partial_fit(X)
    with pytest.raises(InputError, match=r"init has the value 1e\+30"):
        kvae.SOM(**SMALL, init=np.full((12, 5), 1e30)).fit(DATA)
    with pytest.raises(InputError, match=r"sample_weight has the value 1e\+30"):
        som.partial_fit(DATA, sample_weight=np.full(200, 1e30))


@pytest.mark.parametrize("device_count", [1, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_distances_give_the_lowest_node(device_count, dtype, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:device_count])
    monkeypatch.setattr(jax, "local_device_count", lambda: device_count)
    for X, init, nodes in [
        ([[0], [1], [1]], [[0], [2]], [0, 0, 0]),
        ([[0], [0.25], [0.25]], [[0], [0.5]], [0, 0, 0]),
        ([[1000], [1001], [1001], [1002]], [[1000], [1002]], [0, 0, 0, 1]),
        ([[0, 0, 7], [2, 2, 7], [1, 1, 7]], [[0, 0, 7], [2, 2, 7]], [0, 1, 0]),
        ([[0], [1], [1]], [[2], [2]], [0, 0, 0]),
    ]:
        som = kvae.SOM((1, 2), init=init, n_epochs=0).fit(np.array(X, dtype))
        np.testing.assert_array_equal(som.labels_, nodes)
        np.testing.assert_array_equal(som.predict(np.array(X, dtype)), nodes)
        np.testing.assert_array_equal(kvae.SOM((1, 2), init=init, n_epochs=0).fit([np.array(X, dtype)]).labels_, nodes)


def test_loader_may_refill_one_array():
    buffer = np.empty((50, 5), np.float32)

    def refill(_):
        for start in range(0, 200, 50):
            buffer[:] = DATA[start : start + 50]
            yield buffer

    for metric in ("euclidean", "cosine"):
        expected = kvae.SOM(**SMALL, metric=metric).fit([DATA[start : start + 50] for start in range(0, 200, 50)])
        som = kvae.SOM(**SMALL, metric=metric).fit(Passes(refill))
        np.testing.assert_array_equal(som.cluster_centers_, expected.cluster_centers_)
        np.testing.assert_array_equal(som.labels_, expected.labels_)


@pytest.mark.parametrize(
    "shuffled",
    [
        lambda rng: [DATA[rng.permutation(200)]],
        lambda rng: [DATA[50 * k : 50 * k + 50] for k in rng.permutation(4)],
        lambda rng: [DATA + 0.01 * rng.normal(size=(200, 5)).astype(np.float32)],
    ],
)
def test_labels_of_shuffled_batches_are_not_set(shuffled):
    X = Passes(lambda count: shuffled(np.random.default_rng(count)))
    som = kvae.SOM(**SMALL).fit(DATA)
    for fit in (som.fit, som.partial_fit):
        with pytest.warns(UserWarning, match=r"a different order in each pass, so labels_ is not set; call predict"):
            fit(X)
        assert not hasattr(som, "labels_")
        assert som.quantization_error_ > 0
    assert som.fit([DATA[:90], DATA[90:]]).labels_.shape == (200,)


def test_batches_may_be_tuples_that_start_with_rows():
    expected = kvae.SOM(**SMALL).fit(DATA)
    y = np.zeros(100)
    for X in (
        [(DATA[:100], y), (DATA[100:], y)],
        Passes(lambda _: [[DATA[:100]], [DATA[100:]]]),
        Passes(lambda _: ((DATA[i : i + 100], y, "name") for i in (0, 100))),
    ):
        som = kvae.SOM(**SMALL).fit(X)
        np.testing.assert_allclose(som.cluster_centers_, expected.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(som.predict(X), som.labels_)


def fails_midway(count):
    yield DATA[:50]
    if count > 2:
        raise KeyError("mine")
    yield DATA[50:]


class EndsAtOnce:
    def __iter__(self):
        raise StopIteration


class OneIterator:
    def __init__(self):
        self.iterator = iter([DATA[:50], DATA[50:]])

    def __iter__(self):
        return self.iterator


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (Passes(fails_midway), KeyError, "^'mine'$"),
        (Passes(lambda _: 1 / 0), ZeroDivisionError, "division by zero"),
        (
            Passes(lambda count: [DATA, DATA][: 3 - count]),
            InputError,
            "X yielded 200 rows in a pass, but 400 in the first",
        ),
        (Passes(lambda count: [DATA][: 4 - count]), InputError, "X yielded 0 rows in a pass, but 200 in the first"),
        (Passes(lambda count: [DATA][: 2 - count]), InputError, "X yielded 0 rows in a pass, but 200 in the first"),
        (Passes(lambda count: [DATA[:, : 7 - count]]), ValueError, "X has 4 features, but SOM is expecting 5"),
        (OneIterator(), InputError, "X yielded 0 rows in a pass, but"),
        (EndsAtOnce(), InputError, "X raised StopIteration at the start of a pass"),
        ([DATA, None], InputError, "a batch of X is a NoneType, None; it must be an array"),
        (Passes(lambda _: [{"x": DATA}]), InputError, "a batch of X is a dict, "),
        (Passes(lambda _: [[1.0, 2.0]]), InputError, r"a batch of X is a ndarray with the shape \(2,\)"),
        (Passes(lambda _: ["abc"]), InputError, "a batch of X is a str, 'abc'"),
        ({1.0, 2.0}, InputError, "a batch of X is a float"),
        ([DATA, DATA[0]], InputError, r"a batch of X is a ndarray with the shape \(5,\)"),
        ([[10**400], [1]], InputError, "X contains an integer larger than any float"),
        ([DATA, [[10**400] * 5]], InputError, "X contains an integer larger than any float"),
    ],
)
def test_iterables_that_fail_are_one_line(X, error, message):
    with pytest.raises(error, match=message) as raised:
        kvae.SOM(**SMALL).fit(X)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(initial_width=1e300), r"initial_width is 1e\+300; it must be None or a number from 1e-06 to 1000000.0"),
        (dict(initial_width=10**400), "initial_width is 1000"),
        (dict(final_width=1e-300), "final_width is 1e-300; it must be a number from 1e-06 to 1000000.0"),
        (dict(random_state=-1), "random_state is -1; it must be an integer from 0 to 4294967295"),
        (dict(random_state=10**30), "random_state is 1000"),
        (dict(random_state="seed"), "random_state is 'seed'; it must be an integer"),
        (dict(n_epochs=10**30), "n_epochs is 1000"),
        (dict(batch_size=10**30), "batch_size is 1000"),
        (dict(init=[[10**400] * 5] * 12), "init contains an integer larger than any float"),
        (dict(init=None), r"init has the shape \(\); for this grid and data it must be \(12, 5\)"),
    ],
)
def test_huge_parameters_are_one_line(options, message):
    with pytest.raises(InputError, match=message) as raised:
        kvae.SOM(**SMALL | options).fit(DATA)
    assert "\n" not in str(raised.value)


def test_transform_of_many_rows_equals_direct_distances():
    X = np.resize(DATA, (2500, 5))  # more than two blocks
    som = kvae.SOM((3, 4), init=START, n_epochs=0).fit(DATA)
    distances = som.transform(X)
    expected = np.linalg.norm(X[:, None].astype(float) - som.cluster_centers_.astype(float), axis=-1)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    assert distances.dtype == np.float32
    np.testing.assert_array_equal(np.diag(som.transform(som.cluster_centers_)), 0)


@pytest.mark.parametrize("shift", [0, 1e-9, 1e-4, 1, 1e6, 1e200])
def test_fast_distances_keep_their_digits(shift):
    vectors, centers = DATA[:30].astype(float), DATA[:12].astype(float)
    vectors[:12] += shift  # equal to the centres, close to them or far away
    expected = cdist(vectors, centers)
    np.testing.assert_allclose(euclidean_distances(vectors, centers), expected, rtol=1e-9)
    assert np.all(np.diag(euclidean_distances(centers, centers)) == 0)
    far = 1e8  # without the origin between them
    np.testing.assert_allclose(euclidean_distances(vectors + far, centers + far), cdist(vectors + far, centers + far))
