"""The grid and its neighbourhoods, against hand-worked cases and the dense matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae import topology
from kvae.errors import InputError
from kvae.topology import Neighborhood

SQUARE = (2, 2)


def test_codes_number_the_grid_row_by_row():
    coordinates = topology.coordinates((3, 4))
    assert coordinates.shape == (12, 2)
    np.testing.assert_array_equal(coordinates[7], np.unravel_index(7, (3, 4)))
    np.testing.assert_array_equal(coordinates[4], [1, 0])


def test_distances_on_two_by_two():
    d = np.sqrt(2)
    expected = [[0, 1, 1, d], [1, 0, d, 1], [1, d, 0, 1], [d, 1, 1, 0]]
    np.testing.assert_allclose(topology.distances(SQUARE), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "step", "beside", "diagonal"),
    [
        ("none", 0, 0, 0),
        ("hard", 0, 1, 1),
        ("hard", 10, 1 / 2, 1 / 2),
        ("gaussian", 0, np.exp(-1), np.exp(-2)),
        ("gaussian", 10, np.exp(-2), np.exp(-4)),
        ("exponential", 0, np.exp(-0.1), np.exp(-np.sqrt(2) / 10)),
        ("exponential", 10, np.exp(-0.2), np.exp(-np.sqrt(2) / 5)),
    ],
)
def test_weights_on_two_by_two(kernel, step, beside, diagonal):
    weights = topology.matrix(Neighborhood(SQUARE, kernel, shrink_step=0.1), step)
    expected = [
        [1, beside, beside, diagonal],
        [beside, 1, diagonal, beside],
        [beside, diagonal, 1, beside],
        [diagonal, beside, beside, 1],
    ]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize(("grid", "neighbors"), [((7,), 2), ((5, 5), 8), ((3, 3, 3), 18)])
def test_radius_of_one_and_a_half_reaches_the_diagonal_neighbors_in_the_plane(grid, neighbors):
    hard = Neighborhood(grid, "hard")
    assert len(hard.window) == neighbors
    middle = np.ravel_multi_index([n // 2 for n in grid], grid)
    assert np.count_nonzero(topology.matrix(hard, 0)[middle]) == neighbors + 1


@pytest.mark.parametrize(
    ("grid", "kernel", "radius"),
    [
        ((12,), "hard", 1.5),
        ((5, 7), "hard", 1.5),
        ((5, 7), "hard", 2.0),
        ((5, 7), "hard", 0.5),
        ((5, 7), "hard", 4.5),
        ((3, 4, 2), "hard", 1.5),
        ((12,), "gaussian", 1.5),
        ((5, 7), "gaussian", 1.5),
        ((3, 4, 2), "gaussian", 1.5),
        ((5, 7), "exponential", 1.5),
        ((5, 7), "none", 1.5),
        ((1, 1), "hard", 1.5),
    ],
)
def test_spread_equals_the_dense_matrix(grid, kernel, radius):
    neighborhood = Neighborhood(grid, kernel, radius=radius)
    values = np.random.default_rng(0).standard_normal((neighborhood.size, 3)).astype(np.float32)
    spread = jax.jit(functools.partial(topology.spread, neighborhood))
    for step in (0, 7, 100_000):
        dense = np.asarray(topology.matrix(neighborhood, step), np.float64)
        np.testing.assert_allclose(spread(values, step), dense.T @ values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spread(values, 7)[:, 0], topology.spread(neighborhood, values[:, 0], 7), atol=1e-5)


@pytest.mark.parametrize("kernel", ["hard", "gaussian"])
@pytest.mark.parametrize("schedule", topology.SCHEDULES)
def test_every_schedule_spreads_as_its_dense_matrix(schedule, kernel):
    neighborhood = Neighborhood((4, 5), kernel, schedule=schedule)
    for step in (0, 1_000):
        dense = topology.matrix(neighborhood, step)
        assert dense.min() >= 0
        assert dense.max() <= 1
        np.testing.assert_allclose(topology.spread(neighborhood, jnp.eye(20), step), dense, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("inverse", [1, 1 / 11, 1 / 1001]),
        ("held", [1, 1, 1]),
        ("floor_0.3", [1, 0.3, 0.3]),
        ("slow", [1, 1 / 1.3, 0.3]),
        ("narrowing", [16, 0.25 + 15.75 / 11, 0.25 + 15.75 / 1001]),
    ],
)
def test_the_strength_after_none_a_hundred_and_ten_thousand_updates(schedule, expected):
    found = [float(topology.SCHEDULES[schedule](jnp.float32(step), 0.1)) for step in (0, 100, 10_000)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_paper_s_schedule_is_the_default_and_falls_to_the_identity():
    assert Neighborhood((4, 4)).schedule == "inverse"
    for kernel in ("hard", "gaussian"):
        far = topology.matrix(Neighborhood((4, 4), kernel), 10**8)
        np.testing.assert_allclose(far, np.eye(16), atol=1e-6)


def test_large_maps_need_no_matrix():
    large = (256, 256)
    values = jnp.zeros(65_536).at[0].set(1.0)
    assert topology.spread(Neighborhood(large, "hard"), values, 0).sum() == 4
    topology.spread(Neighborhood(large, "gaussian"), values, 0)
    for kernel, radius in [("exponential", 1.5), ("hard", 9.0)]:
        with pytest.raises(InputError, match="refused for K = 65536"):
            Neighborhood(large, kernel, radius=radius)


@pytest.mark.parametrize("grid", [(), (0,), (4, -1), (4, 2.5), 4, (True, 2), "16"])
def test_impossible_grids(grid):
    with pytest.raises(InputError, match=r"grid_shape is .* it must be one or more positive integers"):
        Neighborhood(grid)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "hadr"}, "neighborhood is 'hadr'; it must be one of none, hard"),
        ({"schedule": "x"}, "schedule is 'x'"),
        ({"shrink_step": -0.1}, "shrink_step is -0.1"),
        ({"radius": 0.0}, "radius is 0.0"),
        ({"shrink_step": float("nan")}, "shrink_step is nan"),
    ],
)
def test_impossible_fields(fields, message):
    with pytest.raises(InputError, match=message):
        Neighborhood((4, 4), **fields)
