"""The figures of a `kvae.SOM`: every grid can be drawn, and the figures show the values of the map."""

import matplotlib.figure
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

import kvae
from kvae import plots
from kvae.core.errors import InputError
from vectors import DATA, START


def test_every_function_draws_every_grid_on_given_axes():
    labels = np.where(DATA[:, 0] > 0, "right", "left")
    for topology, shape, corners in (
        ("plane", (3, 4), 4),
        ("torus", (3, 4), 4),
        ("hexagonal", (3, 4), 6),
        ("plane", (12,), 4),
    ):
        som = kvae.SOM(shape, topology=topology, n_epochs=0, init=START).fit(DATA)
        figure = matplotlib.figure.Figure()
        for draw in (
            plots.u_matrix,
            lambda som, ax: plots.hits(som, DATA, ax),
            lambda som, ax: plots.component(som, "x1", ax),
            lambda som, ax: plots.classes(som, DATA, labels, ax),
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
    with pytest.raises(InputError, match="feature is 'y'; it must be a number below 5"):
        plots.component(som, "y")
    with pytest.raises(InputError, match=r"X has 200 rows and y has 5 labels; the numbers must be equal"):
        plots.classes(som, DATA, range(5))
    halves = plots.classes(som, [DATA[:100], DATA[100:]], DATA[:, 0] > 0)  # an iterable of batches
    assert halves.axes[0].get_title(loc="left") == titles[2]
    with pytest.raises(InputError, match=r"the map is a Pipeline; it must be a kvae.SOM, such as pipeline\[-1\]"):
        plots.hits(make_pipeline(som), DATA)
    with pytest.raises(NotFittedError):
        plots.u_matrix(kvae.SOM())


def test_trajectory_wraps_around_torus():
    som = kvae.SOM((3, 4), topology="torus", n_epochs=0, init=START).fit(DATA)
    first, last = som.cluster_centers_[[0, 3]]  # the ends of the first row, which are neighbours
    path = plots.trajectory(som, np.stack([first, last])).axes[0].collections[1]
    np.testing.assert_allclose([line[:, 0] for line in path.get_segments()], [[0, -1], [4, 3]])
