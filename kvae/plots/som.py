"""Figures of a fitted `kvae.SOM`, exported by `kvae.plots`."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

import kvae
from kvae import measures
from kvae.core.errors import InputError
from kvae.plots.canvas import INK
from kvae.plots.labels import classes
from kvae.plots.nodes import (
    add_class_legend,
    check_map,
    class_colors,
    draw_nodes,
    draw_values,
    map_axes,
    map_page,
    node_positions,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PLANES = 12
"""Maximum number of component planes on a `page`; those that vary most over the map are drawn."""

Data = ArrayLike | Iterable[ArrayLike]
"""Data for `kvae.SOM.predict_nodes`: an array, a data frame, or an iterable of batches [n, d]."""


def u_matrix(som: "kvae.SOM", ax: "Axes | None" = None) -> "Figure":
    """Draws the mean distance from each centre to its neighbours. Dark ridges separate clusters, which are light.

    Args:
      som: the fitted map, with a grid of one or two axes.
      ax: matplotlib axes; None for a new figure.

    Returns:
      The figure of the axes.

    Raises:
      InputError: the map cannot be drawn. NotFittedError: it is not fitted.

    Example:
      >>> import kvae
      >>> som = kvae.SOM((4, 5), n_epochs=2).fit([[0.0, 0.0], [0.1, 0.0], [1.0, 2.0], [1.1, 2.0]])
      >>> figure = kvae.plots.u_matrix(som)  # figure.savefig("u_matrix.png", dpi=200)
    """
    check_map(som)
    with map_axes(som, ax) as ax:
        codewords = _codewords(som).astype(np.float32)
        distances = np.asarray(measures.u_matrix(codewords, som.grid_), np.float64).ravel()
        draw_values(som, ax, distances * som._coordinates.distance(1.0), "bone_r", "mean distance to neighbours")
        ax.set_title("U-matrix")
    return ax.figure


def hits(som: "kvae.SOM", X: Data, ax: "Axes | None" = None) -> "Figure":
    """Draws the number of rows of X at each node. Nodes without rows stay white.

    Args:
      som, ax: as in `u_matrix`.
      X: float [n, d], or an iterable of batches.

    Returns:
      The figure of the axes.

    Raises:
      InputError, NotFittedError: as in `u_matrix`.

    Example:
      >>> import kvae
      >>> X = [[0.0, 0.0], [0.1, 0.0], [1.0, 2.0], [1.1, 2.0]]
      >>> figure = kvae.plots.hits(kvae.SOM((4, 5), n_epochs=2).fit(X), X)
      >>> figure.axes[0].get_title(loc="left")
      'Hits: 4 of 20 nodes, N = 4 rows'
    """
    check_map(som)
    with map_axes(som, ax) as ax:
        counts = np.bincount(som.predict_nodes(X), minlength=som.grid_.size)
        draw_values(som, ax, np.ma.masked_equal(counts, 0), "YlGnBu", "rows", lowest=0)
        ax.set_title(f"Hits: {np.sum(counts > 0):,} of {len(counts):,} nodes, N = {counts.sum():,} rows")
    return ax.figure


def component(
    som: "kvae.SOM", feature: int | str, ax: "Axes | None" = None, limits: tuple[float, float] | None = None
) -> "Figure":
    """Draws one feature of the centres over the map.

    Args:
      som, ax: as in `u_matrix`.
      feature: index of the feature, or its name in `som.feature_names_in_`.
      limits: values at the ends of the colour scale; None for the lowest and the highest value of the feature.

    Returns:
      The figure of the axes.

    Raises:
      InputError: the map has no such feature, or cannot be drawn. NotFittedError: the map is not fitted.

    Example:
      >>> import kvae
      >>> from sklearn.datasets import load_iris
      >>> X = load_iris(as_frame=True).data
      >>> som = kvae.SOM((4, 5), n_epochs=2).fit(X)
      >>> figure = kvae.plots.component(som, "petal length (cm)")
    """
    check_map(som)
    number = _feature_number(som, feature)
    with map_axes(som, ax) as ax:
        draw_values(som, ax, som.cluster_centers_[:, number], "viridis", "", limits=limits)
        ax.set_title(_feature_names(som)[number])
    return ax.figure


def components(som: "kvae.SOM", features: Sequence[int | str] | None = None, shared_scale: bool = False) -> "Figure":
    """Draws several features of the centres on one page.

    Args:
      som: the fitted map, with a grid of one or two axes.
      features: indices or names; None for all features, but at most the first 64.
      shared_scale: True gives all features one colour scale, for features in the same unit; otherwise each has its own.

    Returns:
      A new figure.

    Raises:
      InputError, NotFittedError: as in `component`.
    """
    check_map(som)
    features = range(min(64, som.n_features_in_)) if features is None else features
    if isinstance(features, (str, int, np.integer)) or len(features) == 0:
        raise InputError(f"features is {features!r}; it must be a list of one or more integers or column names")
    columns = math.ceil(math.sqrt(1.5 * len(features)))
    rows = math.ceil(len(features) / columns)
    limits = None
    if shared_scale:
        values = som.cluster_centers_[:, [_feature_number(som, feature) for feature in features]]
        limits = float(values.min()), float(values.max())
    with map_page(som, rows, columns) as figure:
        for panel, feature in enumerate(features, 1):
            component(som, feature, figure.add_subplot(rows, columns, panel), limits)
    return figure


def _feature_number(som: "kvae.SOM", feature: int | str) -> int:
    """Returns the index of a feature given by its index or name."""
    names = _feature_names(som)
    number = names.index(feature) if isinstance(feature, str) and feature in names else feature
    if not isinstance(number, (int, np.integer)) or not -len(names) <= number < len(names):
        raise InputError(f"feature is {feature!r}; it must be an integer below {len(names)} or the name of a column")
    return int(number)


def clusters(som: "kvae.SOM", n_clusters: int, ax: "Axes | None" = None) -> "Figure":
    """Draws the groups of nodes that `SOM.clusters` returns.

    Args:
      som, ax: as in `u_matrix`.
      n_clusters: number of groups, from 1 to K.

    Returns:
      The figure of the axes.

    Raises:
      InputError, NotFittedError: as in `u_matrix`. ValueError: scikit-learn rejects `n_clusters`.
    """
    check_map(som)
    with map_axes(som, ax) as ax:
        groups, colors = som.clusters(n_clusters), class_colors(n_clusters)
        draw_nodes(som, ax, colors[groups])
        add_class_legend(ax, range(n_clusters), colors)
        ax.set_title(f"{n_clusters} clusters of nodes (Ward's method)")
    return ax.figure


def trajectory(som: "kvae.SOM", X: Data, ax: "Axes | None" = None) -> "Figure":
    """Draws consecutive rows, such as a time series, as a path over the map, from dark to bright.

    On a grid that wraps, a step across the border leaves on one side and enters on the opposite side.

    Args:
      som, ax: as in `u_matrix`.
      X: rows in order, float [n, d], or an iterable of batches.

    Returns:
      The figure of the axes.

    Raises:
      InputError, NotFittedError: as in `u_matrix`.

    Example:
      >>> import kvae
      >>> X = [[0.0, 0.0], [0.4, 0.8], [1.0, 2.0], [1.1, 2.0]]
      >>> figure = kvae.plots.trajectory(kvae.SOM((4, 5), n_epochs=2).fit(X), X)
    """
    check_map(som)
    from matplotlib.collections import LineCollection

    with map_axes(som, ax) as ax:
        points = node_positions(som)[som.predict_nodes(X)]
        steps, starts = np.diff(points, axis=0), points[:-1]
        periods = np.append(np.inf, som.grid_.periods)[-2:]  # a line is drawn as a single row
        wraps = np.isfinite(periods)
        steps[:, wraps] -= periods[wraps] * np.round(steps[:, wraps] / periods[wraps])
        # Draw each step from its start and to its end. The two lines differ only for steps across the border.
        lines = np.concatenate([np.stack([starts, starts + steps], 1), np.stack([points[1:] - steps, points[1:]], 1)])
        draw_nodes(som, ax, np.full((som.grid_.size, 3), 0.95))
        path = LineCollection(lines[..., ::-1], cmap="plasma", linewidths=1.2, alpha=0.8, capstyle="round")
        path.set_array(np.tile(np.arange(len(steps)), 2))
        ax.add_collection(path, autolim=False)
        for row, marker, name in ((0, "o", "first row"), (-1, "s", "last row")):
            ax.plot(*points[row, ::-1], marker, color=INK, markersize=5, label=name, clip_on=False)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        ax.set_title("Trajectory, from dark to bright")
    return ax.figure


def page(som: "kvae.SOM", X: Data | None = None, y: ArrayLike | None = None) -> "Figure":
    """Draws the U-matrix, the hits of X, the classes of y and the component planes that vary most, on one page.

    Args:
      som: the fitted map, with a grid of one or two axes.
      X: float [n, d], or an iterable of batches; None leaves out hits and classes.
      y: labels [n]; None leaves out classes.

    Returns:
      A new figure.

    Raises:
      InputError, NotFittedError: as in `classes`.

    Example:
      >>> import kvae
      >>> from sklearn.datasets import load_iris
      >>> X, y = load_iris(return_X_y=True)
      >>> figure = kvae.plots.page(kvae.SOM((4, 5), n_epochs=2).fit(X), X, y)
    """
    check_map(som)
    panels = [lambda ax: u_matrix(som, ax)]
    if X is not None:
        panels.append(lambda ax: hits(som, X, ax))
    if X is not None and y is not None:
        panels.append(lambda ax: classes(som, X, y, ax))
    columns = max(3, len(panels))
    features = np.sort(np.argsort(-np.var(_codewords(som), axis=0), kind="stable")[:MOST_PLANES])
    panels += [lambda ax, feature=feature: component(som, int(feature), ax) for feature in features]
    rows = math.ceil(len(panels) / columns)
    with map_page(som, rows, columns) as figure:
        for panel, draw in enumerate(panels, 1):
            draw(figure.add_subplot(rows, columns, panel))
    return figure


def _codewords(som: "kvae.SOM") -> np.ndarray:
    """Returns the centres in the map's coordinates, where their squares do not overflow: float [K, d]."""
    return som._coordinates.vectors("cluster_centers_", som.cluster_centers_)


def _feature_names(som: "kvae.SOM") -> list[str]:
    return [str(name) for name in getattr(som, "feature_names_in_", [f"x{i}" for i in range(som.n_features_in_)])]
