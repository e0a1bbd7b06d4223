"""Grids and neighbourhoods, against cases worked by hand and the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae import topology
from kvae.core.errors import InputError
from kvae.topology import Cylinder, Hexagonal, HexagonalTorus, Kernel, Neighborhood, Plane, Torus

SQUARE = Plane((2, 2))
matrix = jax.jit(topology.matrix, static_argnums=0)
spread = jax.jit(topology.spread, static_argnums=0)


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
    ("kernel", "step", "adjacent", "diagonal"),
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
def test_weights_on_two_by_two(kernel, step, adjacent, diagonal):
    weights = matrix(Neighborhood(SQUARE, kernel, shrink_step=0.1), step)
    expected = [
        [1, adjacent, adjacent, diagonal],
        [adjacent, 1, diagonal, adjacent],
        [adjacent, diagonal, 1, adjacent],
        [diagonal, adjacent, adjacent, 1],
    ]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize(("grid", "neighbors"), [((7,), 2), ((5, 5), 8), ((3, 3, 3), 18)])
def test_radius_1_5_reaches_diagonal_neighbors(grid, neighbors):
    codes, _ = Neighborhood(Plane(grid), "hard").neighbors
    assert len(codes) == neighbors


@pytest.mark.parametrize(
    ("grid", "kernel", "fields"),
    [
        (Plane((12,)), "hard", {}),
        (Plane((5, 7)), "hard", {}),
        (Plane((5, 7)), "hard", {"radius": 2.0}),
        (Plane((5, 7)), "hard", {"radius": 0.5}),
        (Plane((5, 7)), "hard", {"radius": 4.5}),
        (Plane((3, 4, 2)), "hard", {}),
        (Plane((12,)), "gaussian", {}),
        (Plane((5, 7)), "gaussian", {}),
        (Plane((3, 4, 2)), "gaussian", {}),
        (Plane((5, 7)), "exponential", {}),
        (Plane((5, 7)), "none", {}),
        (Plane((1, 1)), "hard", {}),
        *[(Plane((4, 5)), kernel, {"initial_width": 4.0, "lowest_width": 0.5}) for kernel in topology.NEIGHBORHOODS],
        *[(Torus((4, 5)), kernel, {}) for kernel in ("hard", "gaussian", "exponential")],
        *[(Torus((7,)), kernel, {}) for kernel in ("hard", "gaussian")],
        *[(Hexagonal((4, 5)), kernel, {}) for kernel in ("hard", "gaussian", "exponential")],
        *[(Cylinder((4, 5)), kernel, {}) for kernel in ("hard", "gaussian")],
        (HexagonalTorus((4, 5)), "hard", {}),
    ],
)
def test_spread_multiplies_by_the_matrix(grid, kernel, fields):
    neighborhood = Neighborhood(grid, kernel, **fields)
    values = np.random.default_rng(0).standard_normal((grid.size, 3)).astype(np.float32)
    for step in (0, 7, 100_000):
        dense = np.asarray(matrix(neighborhood, step), np.float64)
        np.testing.assert_allclose(dense, dense.T, atol=1e-7)
        assert dense.min() >= 0 and dense.max() <= 1
        np.testing.assert_allclose(spread(neighborhood, values, step), dense.T @ values, rtol=1e-4, atol=1e-5)


def test_spread_takes_one_value_a_code():
    neighborhood, values = Neighborhood(Plane((5, 7))), np.random.default_rng(0).random((35, 1)).astype(np.float32)
    np.testing.assert_array_equal(spread(neighborhood, values[:, 0], 7), spread(neighborhood, values, 7)[:, 0])


@pytest.mark.parametrize(
    ("initial", "lowest", "expected"),
    [(1, 0, [1, 11**-0.5, 1001**-0.5]), (1, 0.5, [1, 0.5, 0.5]), (4, 0.5, [4, 4 / 11**0.5, 0.5])],
)
def test_width_falls_with_the_square_root(initial, lowest, expected):
    neighborhood = Neighborhood(SQUARE, shrink_step=0.1, initial_width=initial, lowest_width=lowest)
    np.testing.assert_allclose([neighborhood.width(step) for step in (0, 100, 10_000)], expected, rtol=1e-6)


def test_torus_wraps_around():
    grid = Torus((3, 5))
    assert grid.distance(0, 4) == 1
    assert grid.distance(0, 10) == 1
    np.testing.assert_allclose(grid.distance(0, 14), np.sqrt(2), rtol=1e-6)
    assert set(grid.neighbors(1.5)[0][:, 0].tolist()) == {1, 4, 5, 10, 6, 9, 11, 14}
    assert grid.shift(jnp.array([4, 14]), 1).tolist() == [5, 0]
    assert Plane((3, 5)).shift(jnp.array([4, 14]), 1).tolist() == [9, 14]


def test_cylinder_wraps_along_rows_only():
    grid = Cylinder((3, 5))
    assert grid.distance(0, 4) == 1
    assert grid.distance(0, 10) == 2
    assert set(grid.neighbors(1.5)[0][:, 0].tolist()) == {0, 1, 4, 5, 6, 9}
    assert grid.shift(jnp.array([4, 14]), 1).tolist() == [5, 10]
    assert grid.between(4, 6, 0.5) == 0
    np.testing.assert_array_equal(Cylinder((5,)).distances(), Torus((5,)).distances())


def test_hexagonal_torus_looks_the_same_from_every_node():
    grid = HexagonalTorus((4, 5))
    codes, are_neighbors = grid.neighbors(1.1)
    assert are_neighbors.all() and len(codes) == 6
    assert set(codes[:, 0].tolist()) == {1, 4, 5, 9, 15, 19}
    assert set(codes[:, 19].tolist()) == {14, 18, 10, 15, 4, 0}  # row 3 is shifted to the right
    np.testing.assert_allclose(np.sort(grid.distances(), axis=1), np.sort(grid.distances(), axis=1)[:1].repeat(20, 0))
    with pytest.raises(InputError, match=r"grid_shape is \(3, 4\); a hexagonal torus must have an even number of rows"):
        HexagonalTorus((3, 4))


def test_neighbor_counts_once_on_a_tiny_torus():
    _, are_neighbors = Torus((2, 2)).neighbors(1.5)
    assert are_neighbors.sum(axis=0).tolist() == [3, 3, 3, 3]
    np.testing.assert_allclose(spread(Neighborhood(Torus((2, 2))), np.arange(4.0), 0), [6, 6, 6, 6])


def test_hexagon_has_six_neighbors():
    grid = Hexagonal((4, 5))
    codes, are_neighbors = grid.neighbors(1.1)
    assert are_neighbors.sum(axis=0).reshape(4, 5)[1:-1, 1:-1].tolist() == [[6] * 3] * 2
    assert set(codes[are_neighbors[:, 7], 7].tolist()) == {6, 8, 2, 3, 12, 13}  # row 1 is shifted to the right
    assert are_neighbors.sum(axis=0)[0] == 2  # the corner: one to the right, one below


@pytest.mark.parametrize(
    "grid",
    [
        *(Plane((4, 6)), Torus((3, 6)), Hexagonal((5, 4)), Plane((3, 3, 3)), Torus((2, 5))),
        *(Cylinder((3, 6)), Cylinder((2, 2, 3)), HexagonalTorus((4, 5)), HexagonalTorus((2, 3))),
    ],
)
def test_neighbors_are_the_nodes_at_a_distance_below_the_radius(grid):
    """Candidates, which are fewer than all nodes, leave none out."""
    distances = np.array(grid.distances())
    np.fill_diagonal(distances, np.inf)
    own = np.arange(grid.size)
    for radius in (0.5, 1.0, 1.1, 1.5, 1.74, 2.0, 2.4, 2.66, 3.01):
        codes, are_neighbors = grid.neighbors(radius)
        assert np.all(np.where(are_neighbors, -1, codes) == np.where(are_neighbors, -1, own))
        listed = np.zeros((grid.size, grid.size), int)
        np.add.at(listed, (np.broadcast_to(own, codes.shape)[are_neighbors], codes[are_neighbors]), 1)
        np.testing.assert_array_equal(listed, distances < radius)


def test_default_schedule_is_the_papers():
    assert Neighborhood(Plane((4, 4))) == Neighborhood(Plane((4, 4)), initial_width=1.0, lowest_width=0.0)
    for kernel in ("hard", "gaussian"):
        np.testing.assert_allclose(matrix(Neighborhood(SQUARE, kernel), 10**8), np.eye(4), atol=1e-6)


def test_large_maps_spread_without_a_matrix():
    large = Plane((256, 256))
    values = jnp.zeros(65_536).at[0].set(1.0)
    assert spread(Neighborhood(large, "hard"), values, 0).sum() == 4
    spread(Neighborhood(large, "gaussian"), values, 0)
    with pytest.raises(InputError, match="K must be at most 16384"):
        Neighborhood(Plane((200_000,)), "gaussian")
    for kernel, radius in [("exponential", 1.5), ("hard", 9.0)]:
        with pytest.raises(InputError, match="K must be at most 16384"):
            Neighborhood(large, kernel, radius=radius)


@pytest.mark.parametrize("grid", [(), (0,), (4, -1), (4, 2.5), 4, (True, 2), "16"])
def test_impossible_grids_are_rejected(grid):
    with pytest.raises(InputError, match=r"shape is .*; it must be a tuple of one or more integers, each >= 1"):
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
def test_impossible_fields_are_rejected(fields, message):
    with pytest.raises(InputError, match=message):
        Neighborhood(Plane((4, 4)), **fields)


def test_layers_use_redefined_kernels_and_grids(monkeypatch):
    """As in a notebook, where a cell that adds an entry is changed and run again."""
    for weight, grid in [(0.5, Plane), (0.25, Plane), (0.25, Torus)]:
        monkeypatch.setitem(kvae.NEIGHBORHOODS, "mine", Kernel(lambda distance, *_, w=weight: w * (distance < 1.5)))
        monkeypatch.setitem(kvae.GRIDS, "mine", grid)
        spreading = kvae.KohonenVQ((4,), neighborhood="mine", topology="mine").spreading
        row = topology.matrix(spreading, 0)[0].tolist()
        assert row == [1, weight, 0, weight if grid is Torus else 0]
