"""The figures of a `kvae.SOM`: every grid can be drawn, and the figures show the values of the map."""

import matplotlib.figure
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

import kvae
from kvae import plots
from kvae.core.errors import InputError
from kvae.plots import tree
from vectors import DATA, START


def test_every_function_draws_every_grid_on_given_axes():
    labels = np.where(DATA[:, 0] > 0, "right", "left")
    for topology, shape, corners in (
        ("plane", (3, 4), 4),
        ("torus", (3, 4), 4),
        ("cylinder", (3, 4), 4),
        ("hexagonal", (3, 4), 6),
        ("hexagonal_torus", (4, 3), 6),
        ("plane", (12,), 4),
    ):
        som = kvae.SOM(shape, topology=topology, n_epochs=0, init=START).fit(DATA)
        figure = matplotlib.figure.Figure()
        for draw in (
            plots.u_matrix,
            lambda som, ax: plots.hits(som, DATA, ax),
            lambda som, ax: plots.component(som, "x1", ax),
            lambda som, ax: plots.classes(som, DATA, labels, ax),
            lambda som, ax: plots.pies(som, DATA, labels, ax),
            lambda som, ax: plots.missing(som, DATA, ax),
            lambda som, ax: plots.clusters(som, 3, ax),
            lambda som, ax: plots.trajectory(som, DATA, ax),
        ):
            ax = figure.add_subplot()
            assert draw(som, ax=ax) is figure
            nodes = ax.collections[0]
            assert len(nodes.get_paths()) == 12
            assert len(nodes.get_paths()[0].vertices) == corners + 1
            ax.remove()


def test_figures_show_values_of_map():
    som = kvae.SOM((3, 4), n_epochs=0, init=START).fit(DATA)
    counts = plots.hits(som, DATA).axes[0].collections[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(counts, 0), np.bincount(som.labels_, minlength=12))
    plane = plots.component(som, 2).axes[0].collections[0].get_array()
    np.testing.assert_array_equal(plane, som.cluster_centers_[:, 2])
    titles = [ax.get_title(loc="left") for ax in som.plot(DATA, DATA[:, 0] > 0).axes if ax.get_title(loc="left")]
    assert titles[0] == "U-matrix" and titles[1].startswith("Hits") and titles[2].startswith("Classes")
    assert titles[3:] == ["x0", "x1", "x2", "x3", "x4"]
    with pytest.raises(InputError, match="feature is 'y'; it must be an integer below 5"):
        plots.component(som, "y")
    with pytest.raises(InputError, match=r"y has 5 labels; it must have one for each of the 200 rows of X"):
        plots.classes(som, DATA, range(5))
    halves = plots.classes(som, [DATA[:100], DATA[100:]], DATA[:, 0] > 0)  # an iterable of batches
    assert halves.axes[0].get_title(loc="left") == titles[2]
    with pytest.raises(InputError, match=r"som is a Pipeline; it must be a kvae.SOM, such as pipeline\[-1\]"):
        plots.hits(make_pipeline(som), DATA)
    with pytest.raises(NotFittedError):
        plots.u_matrix(kvae.SOM())


def test_pies_show_classes_of_rows():
    som = kvae.SOM((1, 3), n_epochs=0, init=[[0], [1], [2]]).fit([[0.0], [2]])
    X, y = [[0.0]] * 3 + [[0.1]] + [[2.0]], ["a", "a", "a", "b", "b"]
    slices = plots.pies(som, X, y).axes[0].collections[1]
    # Node 0 has three rows of a and one of b, node 1 none, and node 2, of a quarter of the area, one of b.
    areas = [polygon_area(path.vertices) / (np.pi * 0.46**2) for path in slices.get_paths()]
    np.testing.assert_allclose(areas, [3 / 4, 1 / 4, 1 / 4], rtol=0.02)
    assert (slices.get_facecolors()[1] == slices.get_facecolors()[2]).all()
    np.testing.assert_allclose([path.vertices[0] for path in slices.get_paths()], [[0, 0], [0, 0], [2, 0]])


def polygon_area(vertices):
    x, y = vertices.T
    return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def test_missing_shares_are_means_over_rows():
    X = np.array([[0, 0], [0, np.nan], [9, 9]])
    som = kvae.SOM((1, 3), n_epochs=0, init=[[0, 0], [5, 5], [9, 9]], missing="ignore").fit(X)
    shares = plots.missing(som, X).axes[0].collections[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shares, -1), [25, -1, 0])


def test_u_matrix_of_torus_crosses_its_border():
    som = kvae.SOM((3, 4), topology="torus", n_epochs=0, init=np.arange(12.0)[:, None]).fit([[0.0], [11]])
    heights = plots.u_matrix(som).axes[0].collections[0].get_array()
    np.testing.assert_allclose(
        heights[[0, 5]], [(1 + 3 + 4 + 8 + 5 + 7 + 9 + 11) / 8, (1 + 1 + 4 + 4 + 5 + 3 + 3 + 5) / 8]
    )


def test_spanning_tree_has_links_of_least_length():
    # On a line in space: 0, 1, 3 and twice 7. The order on the grid does not matter.
    som = kvae.SOM((5, 1, 1), n_epochs=0, init=[[7.0], [0], [3], [7], [1]]).fit([[0.0], [7]])
    links = tree.minimum_links(som.transform(som.cluster_centers_))
    pairs = {tuple(sorted(link)) for link in links.tolist()}
    assert pairs in ({(1, 4), (2, 4), (0, 3), (0, 2)}, {(1, 4), (2, 4), (0, 3), (2, 3)})
    positions = tree.tree_positions(links, 5)
    lengths = np.linalg.norm(positions[links[:, 0]] - positions[links[:, 1]], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=0.01)  # a path of four links is laid out straight
    ends = np.linalg.norm(positions[:, None] - positions, axis=-1).max()
    assert ends == pytest.approx(4, abs=0.05)


def test_spanning_tree_is_drawn_on_given_axes():
    som, ax = kvae.SOM((3, 4), n_epochs=0, init=START).fit(DATA), matplotlib.figure.Figure().add_subplot()
    assert plots.spanning_tree(som, DATA, DATA[:, 0] > 0, ax) is ax.figure
    assert "Minimum spanning tree of the nodes, N = 200 rows" in (ax.get_title(), ax.get_title(loc="left"))
    plots.spanning_tree(kvae.SOM((1,), n_epochs=0, init=START[:1]).fit(DATA))
    with pytest.raises(InputError, match=r"^y is given without X; pass the rows that it labels$"):
        plots.spanning_tree(som, y=DATA[:, 0])
    with pytest.raises(InputError, match=r"^som has 2,501 nodes; its spanning tree is drawn for up to 2,500$"):
        plots.spanning_tree(kvae.SOM((2501,), n_epochs=0, init=np.zeros((2501, 5))).fit(DATA))


def test_trajectory_wraps_around_torus():
    som = kvae.SOM((3, 4), topology="torus", n_epochs=0, init=START).fit(DATA)
    first, last = som.cluster_centers_[[0, 3]]  # the ends of the first row, which are neighbours
    path = plots.trajectory(som, np.stack([first, last])).axes[0].collections[1]
    np.testing.assert_allclose([line[:, 0] for line in path.get_segments()], [[0, -1], [4, 3]])
    som = kvae.SOM((4, 3), topology="hexagonal_torus", n_epochs=0, init=START).fit(DATA)
    first, last = som.cluster_centers_[[0, 9]]  # the left nodes of the first and the last row, which are neighbours
    path = plots.trajectory(som, np.stack([first, last])).axes[0].collections[1]
    rows = [line[:, 1] / np.sqrt(0.75) for line in path.get_segments()]
    np.testing.assert_allclose(rows, [[0, -1], [4, 3]], atol=1e-12)


def test_color_bar_spans_values_of_its_plane():
    for offset, scale, dtype in (
        (-122, 0.1, np.float32),
        (122, 0.1, np.float64),
        (0, 1e-20, np.float64),
        (0, 1e200, float),
    ):
        X = (offset + scale * DATA.astype(np.float64)).astype(dtype)
        som = kvae.SOM((3, 4), n_epochs=1).fit(X)
        values = som.cluster_centers_[:, 2]
        norm = plots.component(som, 2).axes[0].collections[0].norm
        np.testing.assert_allclose([norm.vmin, norm.vmax], [values.min(), values.max()])
    for constant in (-122.0, 0.0, 1e20):
        som = kvae.SOM((3, 4), n_epochs=0, init=np.full((12, 5), constant)).fit(DATA.astype(float) + constant)
        ax = plots.component(som, 0).axes[0]
        low, high = ax.child_axes[0].get_ylim()
        assert low == pytest.approx(constant) and high - low <= max(1, 2e-6 * abs(constant))


@pytest.mark.parametrize(("offset", "exponent"), [(0, -90), (0, 900), (1e7, 0)])
def test_u_matrix_does_not_depend_on_origin_and_unit(offset, exponent):
    som = kvae.SOM((3, 4), n_epochs=1).fit(DATA.astype(float))
    other = kvae.SOM((3, 4), n_epochs=1).fit(np.ldexp(DATA.astype(float) + offset, exponent))
    one, two = (np.asarray(plots.u_matrix(som).axes[0].collections[0].get_array()) for som in (som, other))
    np.testing.assert_allclose(two, np.ldexp(one, exponent), rtol=1e-4)
    np.testing.assert_array_equal(other.clusters(3), som.clusters(3))
    other.plot(np.ldexp(DATA.astype(float) + offset, exponent))


def test_maps_of_three_axes_are_refused_in_one_line():
    som = kvae.SOM((2, 2, 3), n_epochs=0, init=START).fit(DATA)
    for draw in (
        lambda: som.plot(DATA),
        lambda: plots.u_matrix(som),
        lambda: plots.hits(som, DATA),
        lambda: plots.component(som, 0),
        lambda: plots.components(som),
        lambda: plots.classes(som, DATA, DATA[:, 0] > 0),
        lambda: plots.pies(som, DATA, DATA[:, 0] > 0),
        lambda: plots.missing(som, DATA),
        lambda: plots.clusters(som, 2),
        lambda: plots.trajectory(som, DATA),
    ):
        with pytest.raises(InputError, match=r"^grid_shape is \(2, 2, 3\); it must have one or two axes to be drawn$"):
            draw()
    for features in ([], 3, "x1"):
        with pytest.raises(
            InputError, match=r"features is .*; it must be a list of one or more integers or column names"
        ):
            plots.components(kvae.SOM((3, 4), n_epochs=0, init=START).fit(DATA), features)


@pytest.mark.parametrize("is_shared", [False, True])
def test_component_planes_share_a_scale_if_asked(is_shared):
    som = kvae.SOM((3, 4), n_epochs=0, init=START).fit(DATA)
    figure = plots.components(som, [0, 1], shared_scale=is_shared)
    drawn = [ax.collections[0].get_clim() for ax in figure.axes if ax.child_axes]
    centers = som.cluster_centers_[:, :2]
    own = list(zip(centers.min(axis=0), centers.max(axis=0), strict=True))
    np.testing.assert_allclose(drawn, [(centers.min(), centers.max())] * 2 if is_shared else own)


def test_color_bars_are_equally_far_from_their_maps():
    som = kvae.SOM((3, 4), n_epochs=0, init=START).fit(DATA)
    figure = som.plot(DATA, np.where(DATA[:, 0] > 0, "a class of a very long name", "another"))
    figure.draw_without_rendering()
    maps = [ax for ax in figure.axes if ax.child_axes]
    gaps = [ax.child_axes[0].get_window_extent().x0 - ax.get_window_extent().x1 for ax in maps]
    assert len(gaps) == 7
    np.testing.assert_allclose(gaps, gaps[0], atol=1)
