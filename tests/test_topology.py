"""The grid and its neighbourhoods, against hand-worked cases and the dense matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae import topology
from kvae.core.errors import InputError
from kvae.topology import Hexagonal, Neighborhood, Plane, Torus

SQUARE = Plane((2, 2))


def test_codes_number_the_grid_row_by_row():
    coordinates = Plane((3, 4)).coordinates
    assert coordinates.shape == (12, 2)
    np.testing.assert_array_equal(coordinates[7], np.unravel_index(7, (3, 4)))
    np.testing.assert_array_equal(coordinates[4], [1, 0])


def test_distances_on_two_by_two():
    d = np.sqrt(2)
    expected = [[0, 1, 1, d], [1, 0, d, 1], [1, d, 0, 1], [d, 1, 1, 0]]
    np.testing.assert_allclose(SQUARE.distances(), expected, rtol=1e-6)


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
    hard = Neighborhood(Plane(grid), "hard")
    assert len(hard.neighbors[0]) == neighbors
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
    neighborhood = Neighborhood(Plane(grid), kernel, radius=radius)
    values = np.random.default_rng(0).standard_normal((neighborhood.grid.size, 3)).astype(np.float32)
    spread = jax.jit(functools.partial(topology.spread, neighborhood))
    for step in (0, 7, 100_000):
        dense = np.asarray(topology.matrix(neighborhood, step), np.float64)
        np.testing.assert_allclose(spread(values, step), dense.T @ values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spread(values, 7)[:, 0], topology.spread(neighborhood, values[:, 0], 7), atol=1e-5)


@pytest.mark.parametrize("kernel", topology.NEIGHBORHOODS)
@pytest.mark.parametrize(("initial", "lowest"), [(1.0, 0.5), (4.0, 0.5)])
def test_every_kernel_spreads_as_its_dense_matrix_at_any_width(kernel, initial, lowest):
    neighborhood = Neighborhood(Plane((4, 5)), kernel, initial_width=initial, lowest_width=lowest)
    for step in (0, 1_000):
        dense = topology.matrix(neighborhood, step)
        assert dense.min() >= 0
        assert dense.max() <= 1
        np.testing.assert_allclose(topology.spread(neighborhood, jnp.eye(20), step), dense, atol=1e-6)


@pytest.mark.parametrize(
    ("initial", "lowest", "expected"),
    [(1, 0, [1, 11**-0.5, 1001**-0.5]), (1, 0.5, [1, 0.5, 0.5]), (4, 0.5, [4, 4 / 11**0.5, 0.5])],
)
def test_width_falls_with_the_square_root(initial, lowest, expected):
    neighborhood = Neighborhood(SQUARE, shrink_step=0.1, initial_width=initial, lowest_width=lowest)
    np.testing.assert_allclose([neighborhood.width(step) for step in (0, 100, 10_000)], expected, rtol=1e-6)


def test_around_a_torus_the_last_node_is_beside_the_first():
    grid = Torus((3, 5))
    assert grid.distance(0, 4) == 1
    assert grid.distance(0, 10) == 1
    np.testing.assert_allclose(grid.distance(0, 14), np.sqrt(2), rtol=1e-6)
    assert set(grid.neighbors(1.5)[0][:, 0].tolist()) == {1, 4, 5, 10, 6, 9, 11, 14}
    assert grid.shift(jnp.array([4, 14]), 1).tolist() == [5, 0]
    assert Plane((3, 5)).shift(jnp.array([4, 14]), 1).tolist() == [9, 14]


def test_around_a_torus_of_two_a_neighbor_counts_once():
    _, there = Torus((2, 2)).neighbors(1.5)
    assert there.sum(axis=0).tolist() == [3, 3, 3, 3]
    values = jnp.arange(4.0)
    np.testing.assert_allclose(topology.spread(Neighborhood(Torus((2, 2))), values, 0), [6, 6, 6, 6])


def test_inside_a_hexagonal_grid_every_node_has_six_neighbors():
    grid = Hexagonal((4, 5))
    codes, there = grid.neighbors(1.1)
    assert there.sum(axis=0).reshape(4, 5)[1:-1, 1:-1].tolist() == [[6] * 3] * 2
    of_node_7 = {int(code) for code, here in zip(codes[:, 7], there[:, 7], strict=True) if here}
    assert of_node_7 == {6, 8, 2, 3, 12, 13}  # row 1 is shifted to the right
    assert there.sum(axis=0)[0] == 2  # the corner: one beside it, one below


@pytest.mark.parametrize("grid", [Torus((4, 5)), Torus((7,)), Hexagonal((4, 5))])
@pytest.mark.parametrize("kernel", ["hard", "gaussian", "exponential"])
def test_every_grid_spreads_as_its_dense_matrix(grid, kernel):
    neighborhood = Neighborhood(grid, kernel)
    dense = topology.matrix(neighborhood, 3)
    np.testing.assert_allclose(dense, dense.T, atol=1e-7)
    np.testing.assert_allclose(topology.spread(neighborhood, jnp.eye(grid.size), 3), dense, atol=1e-6)


def test_neighbors_found_by_offsets_are_those_of_all_distances():
    for grid in (Plane((4, 6)), Torus((3, 6)), Hexagonal((5, 4)), Plane((3, 3, 3)), Torus((2, 5))):
        for radius in (0.5, 1.0, 1.1, 1.5, 1.74, 2.0, 2.4, 2.66, 3.01):
            codes, there = grid.neighbors(radius)
            near = np.zeros((grid.size, grid.size), bool)
            near[np.broadcast_to(np.arange(grid.size), codes.shape)[there], codes[there]] = True
            expected = np.asarray(grid.distances()) < radius
            np.fill_diagonal(expected, False)
            np.testing.assert_array_equal(near, expected)


def test_the_paper_s_schedule_is_the_default_and_falls_to_the_identity():
    assert Neighborhood(Plane((4, 4))) == Neighborhood(Plane((4, 4)), initial_width=1.0, lowest_width=0.0)
    for kernel in ("hard", "gaussian"):
        far = topology.matrix(Neighborhood(Plane((4, 4)), kernel), 10**8)
        np.testing.assert_allclose(far, np.eye(16), atol=1e-6)


def test_large_maps_need_no_matrix():
    large = Plane((256, 256))
    values = jnp.zeros(65_536).at[0].set(1.0)
    assert topology.spread(Neighborhood(large, "hard"), values, 0).sum() == 4
    topology.spread(Neighborhood(large, "gaussian"), values, 0)
    with pytest.raises(InputError, match="refused above n = 16384"):
        Neighborhood(Plane((200_000,)), "gaussian")
    for kernel, radius in [("exponential", 1.5), ("hard", 9.0)]:
        with pytest.raises(InputError, match="refused above n = 16384"):
            Neighborhood(large, kernel, radius=radius)


@pytest.mark.parametrize("grid", [(), (0,), (4, -1), (4, 2.5), 4, (True, 2), "16"])
def test_impossible_grids(grid):
    with pytest.raises(InputError, match=r"shape is .*; it must be a tuple of one or more integers, each 1 or larger"):
        Plane(grid)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "hadr"}, "kernel is 'hadr'; did you mean 'hard'?"),
        ({"lowest_width": -1}, "lowest_width is -1"),
        ({"initial_width": float("inf")}, "initial_width is inf"),
        ({"radius": "x"}, "radius is 'x'"),
        ({"shrink_step": -0.1}, "shrink_step is -0.1"),
        ({"radius": 0.0}, "radius is 0.0"),
        ({"shrink_step": float("nan")}, "shrink_step is nan"),
    ],
)
def test_impossible_fields(fields, message):
    with pytest.raises(InputError, match=message):
        Neighborhood(Plane((4, 4)), **fields)
