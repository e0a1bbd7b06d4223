"""The classic forms, against Eqs. 12-21 in NumPy and K-means; maps order themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from kvae import classic, kohonen, measures, topology
from kvae.core.errors import InputError
from kvae.kohonen import CodebookState, batch_statistics, nearest_code
from kvae.topology import NEIGHBORHOODS, Neighborhood, Plane
from vectors import DATA, START

GRID = (3, 4)
matrix = jax.jit(topology.matrix, static_argnums=0)
update_codebook = jax.jit(kohonen.update_codebook, static_argnames=("neighborhood", "decay", "update_empty"))


def assert_close(actual, expected, atol=2e-5):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=atol)


def winner_of(x, codewords):
    return np.argmin(np.sum((codewords - x) ** 2, axis=1))


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 128, 129, 900])
def test_lowest_is_argmin(size):
    scores = np.random.default_rng(size).integers(0, 1 + size // 3, (50, size)).astype(np.float32)
    np.testing.assert_array_equal(kohonen.lowest(scores), np.argmin(scores, axis=1))
    assert kohonen.lowest(np.full((1, size), np.nan, np.float32)) == 0


@pytest.mark.parametrize("kernel", NEIGHBORHOODS)
def test_online_update_is_equations_12_and_13(kernel):
    neighborhood = Neighborhood(Plane(GRID), kernel)
    codewords = expected = START
    for step, x in enumerate(DATA[50:70]):
        codewords = classic.online_update(codewords, x, neighborhood, step, 0.3)
        weights = np.asarray(matrix(neighborhood, step))[winner_of(x, expected)]
        expected = expected + 0.3 * weights[:, None] * (x - expected)
        assert_close(codewords, expected)


def test_online_without_neighbours_is_online_k_means():
    codewords = expected = START
    expected = expected.copy()
    for step, x in enumerate(DATA[50:100]):
        codewords = classic.online_update(codewords, x, Neighborhood(Plane(GRID), "none"), step, 0.1)
        winner = winner_of(x, expected)
        expected[winner] = 0.9 * expected[winner] + 0.1 * x
    assert_close(codewords, expected)


@pytest.mark.parametrize("kernel", NEIGHBORHOODS)
def test_batch_update_is_equations_19_to_21(kernel):
    neighborhood = Neighborhood(Plane(GRID), kernel)
    A = np.asarray(matrix(neighborhood, 7), np.float64)
    members = [[x for x in DATA if winner_of(x, START) == k] for k in range(12)]
    for k, codeword in enumerate(np.asarray(classic.batch_update(START, DATA, neighborhood, 7))):
        m = sum(A[j, k] * np.sum(members[j], axis=0) for j in range(12))
        N = sum(A[j, k] * len(members[j]) for j in range(12))
        assert_close(codeword, m / N)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_batch_without_neighbours_is_lloyds_k_means(iterations):
    codewords = classic.fit_batch(DATA, Neighborhood(Plane(GRID), "none"), iterations, jax.random.key(0), START)
    k_means = KMeans(12, init=START, n_init=1, algorithm="lloyd", max_iter=iterations, tol=0).fit(DATA)
    assert_close(codewords, k_means.cluster_centers_)


def test_batch_update_keeps_codewords_without_members():
    codewords = jnp.array([[0.0], [1.0], [100.0], [200.0]])
    data = jnp.array([[0.2], [-0.4], [1.5]])
    moved = classic.batch_update(codewords, data, Neighborhood(Plane((4,)), "none"), 0)
    assert_close(moved, [[-0.1], [1.5], [100.0], [200.0]])
    moved = classic.batch_update(codewords, data, Neighborhood(Plane((4,)), "hard", shrink_step=0.0), 0)
    assert_close(moved, [[1.3 / 3], [1.3 / 3], [1.5], [200.0]])


def test_batch_update_in_the_far_tail_of_a_gaussian():
    # At a distance of 7 the weight is exp(-49 * 1.4) = 1.6e-30; at 8 float32 has no digits left.
    codewords = jnp.arange(16.0)[:, None] + jnp.where(jnp.arange(16) > 0, 1000.0, 0.0)[:, None]
    moved = classic.batch_update(codewords, jnp.full((3, 1), 0.25), Neighborhood(Plane((16,)), "gaussian"), 4)
    assert_close(moved[:8], 0.25)
    np.testing.assert_array_equal(moved[8:], codewords[8:])


@pytest.mark.parametrize("kernel", NEIGHBORHOODS)
def test_moving_average_with_decay_0_is_the_batch_form(kernel):
    neighborhood = Neighborhood(Plane(GRID), kernel, shrink_step=0.01)
    codebook = CodebookState(jnp.asarray(START), jnp.asarray(START), jnp.zeros(12), jnp.int32(0))
    codewords = START
    for step in range(3):
        statistics = batch_statistics(DATA, nearest_code(DATA, codebook.codewords), 12)
        codebook = update_codebook(codebook, statistics, neighborhood, decay=0.0, update_empty=False)
        codewords = classic.batch_update(codewords, DATA, neighborhood, step)
        assert_close(codebook.codewords, codewords)


def test_hebbian_update_of_unit_codewords_is_the_online_form():
    codewords = jnp.asarray(START / np.linalg.norm(START, axis=1, keepdims=True))
    neighborhood = Neighborhood(Plane(GRID), "none")
    for x in DATA[:50]:
        online = classic.online_update(codewords, x, neighborhood, 0, 0.2)
        assert_close(classic.hebbian_update(codewords, x, neighborhood, 0, 0.2), online)


def test_hebbian_update_by_hand():
    codewords = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    x = jnp.array([0.0, 2.0])  # equally near to 1 and 2, so 1 wins; 2 has the largest dot product
    neighborhood = Neighborhood(Plane((3,)), "hard", shrink_step=1.0)
    # At step 1 a neighbour has the weight 1/2, and moves along the same vector as the winner, (0, -1).
    moved = classic.hebbian_update(codewords, x, neighborhood, 1, 0.5)
    assert_close(moved, [[1.0, 0.0], [0.0, 0.75], [0.0, 2.5]])
    assert_close(classic.online_update(codewords, x, neighborhood, 1, 0.5), [[0.75, 0.5], [0.0, 1.5], [0.0, 2.75]])


def disordered(data, codewords, grid_shape):
    return float(measures.topographic_error(data, codewords, Plane(grid_shape)))


def on_a_ring(count):
    angle = 2 * np.pi * np.random.default_rng(1).random(count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_a_line_orders_itself_along_a_ring():
    data = on_a_ring(1000)
    line = Neighborhood(Plane((30,)), "gaussian", shrink_step=1.0, initial_width=4.0, lowest_width=0.5)
    batch = classic.fit_batch(data, line, 60, jax.random.key(0))
    online = classic.fit_online(
        data,
        Neighborhood(Plane((30,)), "gaussian", 0.01, initial_width=4.0, lowest_width=0.5),
        5000,
        lambda t: 0.5 / (1 + t / 500),
        jax.random.key(0),
    )
    k_means = classic.fit_batch(data, Neighborhood(Plane((30,)), "none"), 60, jax.random.key(0))
    for codewords in (batch, online):
        assert disordered(data, codewords, (30,)) < 0.1
        assert measures.quantization_error(data, codewords) < 0.08
    assert disordered(data, k_means, (30,)) > 0.7


def test_a_plane_unfolds_over_a_square():
    data = np.random.default_rng(1).random((2000, 2)).astype(np.float32)
    plane = Neighborhood(Plane((10, 10)), "gaussian", shrink_step=1.0, initial_width=4.0, lowest_width=0.5)
    codewords = classic.fit_batch(data, plane, 60, jax.random.key(1))
    assert disordered(data, codewords, (10, 10)) < 0.05
    assert measures.trustworthiness(codewords, Plane((10, 10)), 8) > 0.98
    assert measures.neighborhood_preservation(codewords, Plane((10, 10)), 8) > 0.98


def test_fit_online_starts_from_the_given_codewords():
    data = DATA[:1]
    neighborhood = Neighborhood(Plane(GRID), "hard")
    codewords = classic.fit_online(data, neighborhood, 3, lambda step: 0.1 * (step + 1), jax.random.key(0), START)
    expected = START
    for step in range(3):
        expected = classic.online_update(expected, data[0], neighborhood, step, 0.1 * (step + 1))
    assert_close(codewords, expected)
    assert_close(classic.fit_online(data, neighborhood, 0, 0.1, jax.random.key(0), START), START)


def test_initial_codewords_are_different_rows():
    start = classic.fit_batch(DATA, Neighborhood(Plane((10, 20)), "none"), 0, jax.random.key(0))
    np.testing.assert_array_equal(np.unique(start, axis=0), np.unique(DATA, axis=0))
    start = classic.fit_batch(DATA[:3], Neighborhood(Plane(GRID)), 0, jax.random.key(0))
    assert start.shape == (12, 5)


def test_fits_reject_wrong_shapes():
    for fit in (classic.fit_batch, functools.partial(classic.fit_online, learning_rate=0.1)):
        for data in (np.zeros((0, 5), np.float32), np.zeros(5, np.float32)):
            with pytest.raises(InputError, match="data has the shape"):
                fit(
                    data,
                    Neighborhood(Plane(GRID)),
                    key=jax.random.key(0),
                    **{"epochs" if fit is classic.fit_batch else "steps": 1},
                )
    with pytest.raises(InputError, match=r"codewords has the shape \(11, 5\).*must be \(12, 5\)"):
        classic.fit_batch(DATA, Neighborhood(Plane(GRID)), 1, jax.random.key(0), START[:11])
