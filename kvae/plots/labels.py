"""Figures of labels and missing values on a fitted `kvae.SOM`, exported by `kvae.plots`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

import kvae
from kvae.core.errors import InputError
from kvae.plots.nodes import (
    add_class_legend,
    check_map,
    class_colors,
    draw_nodes,
    draw_pies,
    draw_values,
    map_axes,
    node_positions,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = ArrayLike | Iterable[ArrayLike]
"""Data for `kvae.SOM.predict_nodes`: an array, a data frame, or an iterable of batches [n, d]."""


def classes(som: "kvae.SOM", X: Data, y: ArrayLike, ax: "Axes | None" = None) -> "Figure":
    """Draws the most common label among the rows at each node. The larger its share, the stronger the colour.

    Args:
      som, ax: as in `kvae.plots.u_matrix`.
      X: float [n, d], or an iterable of batches.
      y: labels [n], of any type that NumPy can sort.

    Returns:
      The figure of the axes.

    Raises:
      InputError: X and y differ in length, or the map cannot be drawn. NotFittedError: the map is not fitted.

    Example:
      >>> import kvae
      >>> X, y = [[0.0, 0.0], [0.1, 0.0], [1.0, 2.0], [1.1, 2.0]], ["low", "low", "high", "high"]
      >>> figure = kvae.plots.classes(kvae.SOM((4, 5), n_epochs=2).fit(X), X, y)
    """
    check_map(som)
    names, table = class_table(som, X, y)
    total, winner = table.sum(axis=1), table.argmax(axis=1)
    share = table.max(axis=1) / np.maximum(total, 1)
    with map_axes(som, ax) as ax:
        colors = class_colors(len(names))
        strength = (0.25 + 0.75 * share)[:, None]
        draw_nodes(som, ax, np.where(total[:, None] > 0, strength * colors[winner] + 1 - strength, 1.0))
        add_class_legend(ax, names, colors)
        agreement = table.max(axis=1).sum() / max(total.sum(), 1)
        ax.set_title(f"Classes: {agreement:.0%} of rows match their node")
    return ax.figure


def pies(som: "kvae.SOM", X: Data, y: ArrayLike, ax: "Axes | None" = None) -> "Figure":
    """Draws at each node a pie chart of the labels of its rows. The area of a pie grows with the number of rows.

    The node with the most rows has the largest pie. Every other pie has at least a sixth of its area.

    Args:
      som, X, y, ax: as in `classes`.

    Returns:
      The figure of the axes.

    Raises:
      InputError, NotFittedError: as in `classes`.

    Example:
      >>> import kvae
      >>> X, y = [[0.0, 0.0], [0.1, 0.0], [1.0, 2.0], [1.1, 2.0]], ["low", "low", "high", "high"]
      >>> figure = kvae.plots.pies(kvae.SOM((4, 5), n_epochs=2).fit(X), X, y)
    """
    check_map(som)
    names, table = class_table(som, X, y)
    with map_axes(som, ax) as ax:
        colors = class_colors(len(names))
        draw_nodes(som, ax, np.ones((som.grid_.size, 3)))
        draw_pies(ax, node_positions(som)[:, ::-1], table, colors, radius=0.46)
        add_class_legend(ax, names, colors)
        ax.set_title(f"Classes of the rows at each node, N = {int(table.sum()):,} rows")
    return ax.figure


def missing(som: "kvae.SOM", X: ArrayLike, ax: "Axes | None" = None) -> "Figure":
    """Draws the share of missing values in the rows at each node. Nodes without rows stay white.

    Args:
      som: the fitted map, with `missing="ignore"` and a grid of one or two axes.
      X: float [n, d], an array or a data frame; NaN marks a missing value.
      ax: matplotlib axes; None for a new figure.

    Returns:
      The figure of the axes.

    Raises:
      InputError, NotFittedError: as in `kvae.plots.u_matrix`.

    Example:
      >>> import numpy as np, kvae
      >>> X = np.array([[0.0, 0.0], [0.1, np.nan], [1.0, 2.0], [1.1, 2.0]])
      >>> figure = kvae.plots.missing(kvae.SOM((4, 5), n_epochs=2, missing="ignore").fit(X), X)
      >>> figure.axes[0].get_title(loc="left")
      'Missing values: 12.5% of 4 x 2'
    """
    check_map(som)
    nodes, shares = som.predict_nodes(X), np.mean(np.isnan(np.asarray(X, np.float64)), axis=1)
    with map_axes(som, ax) as ax:
        counts = np.bincount(nodes, minlength=som.grid_.size)
        sums = np.bincount(nodes, shares, som.grid_.size)
        values = np.ma.masked_array(100 * sums / np.maximum(counts, 1), counts == 0)
        draw_values(som, ax, values, "YlOrRd", "missing values, %", lowest=0)
        ax.set_title(f"Missing values: {np.mean(shares):.1%} of {len(nodes):,} x {som.n_features_in_}")
    return ax.figure


def class_table(som: "kvae.SOM", X: Data, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels in order, [C], and the number of rows of each label at each node, float [K, C].

    Raises:
      InputError: X and y differ in length.
    """
    names, labels = np.unique(np.asarray(y), return_inverse=True)
    nodes = som.predict_nodes(X)
    if len(labels) != len(nodes):
        raise InputError(f"y has {len(labels):,} labels; it must have one for each of the {len(nodes):,} rows of X")
    table = np.zeros((som.grid_.size, len(names)))
    np.add.at(table, (nodes, labels), 1)
    return names, table
