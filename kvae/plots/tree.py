"""The minimum spanning tree of a fitted `kvae.SOM`, exported by `kvae.plots`."""

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

import kvae
from kvae.core.errors import InputError
from kvae.plots.canvas import DPI, QUIET, STYLE
from kvae.plots.labels import Data, class_table
from kvae.plots.nodes import add_class_legend, check_fitted, class_colors, draw_pies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_TREE = 2_500
"""Maximum number of nodes. The layout takes K x K matrices."""

LAYOUT_STEPS = 100
"""Number of steps of stress majorisation."""


def spanning_tree(
    som: "kvae.SOM", X: Data | None = None, y: ArrayLike | None = None, ax: "Axes | None" = None
) -> "Figure":
    """Draws the minimum spanning tree of the centres: the K - 1 links of least total length that connect all nodes.

    The picture does not depend on the grid: similar nodes are linked even where the map is folded. This is how FlowSOM
    shows a map (Van Gassen et al., Cytometry A 87(7), 2015). Distances between nodes approximate the number of
    links between them (Kamada and Kawai, 1989); the length of a line has no meaning.

    Args:
      som: the fitted map, with at most 2,500 nodes and a grid of any number of axes.
      X: float [n, d], or an iterable of batches; the area of a node grows with its number of rows. None: equal areas.
      y: labels [n], drawn as pie charts; None draws the groups of nodes, `som.cluster_`, if `n_clusters` is set.
      ax: matplotlib axes; None for a new figure.

    Returns:
      The figure of the axes.

    Raises:
      InputError: the map has too many nodes, y is given without X, or X and y differ in length. NotFittedError: the map
        is not fitted.

    Example:
      >>> import kvae
      >>> from sklearn.datasets import load_iris
      >>> X, y = load_iris(return_X_y=True)
      >>> som = kvae.SOM((6, 6), n_epochs=2).fit(X)
      >>> figure = kvae.plots.spanning_tree(som, X, y)  # figure.savefig("tree.png", dpi=200)
    """
    check_fitted(som)
    if som.grid_.size > LARGEST_TREE:
        raise InputError(f"som has {som.grid_.size:,} nodes; its spanning tree is drawn for up to {LARGEST_TREE:,}")
    if X is None and y is not None:
        raise InputError("y is given without X; pass the rows that it labels")
    names, table = _parts(som, X, y)
    links = minimum_links(som.transform(som.cluster_centers_))
    with _tree_axes(som.grid_.size, ax) as ax:
        _draw(ax, tree_positions(links, som.grid_.size), links, names, table)
        ax.set_title("Minimum spanning tree of the nodes" + ("" if X is None else f", N = {int(table.sum()):,} rows"))
    return ax.figure


def minimum_links(distances: np.ndarray) -> np.ndarray:
    """Returns the links of the minimum spanning tree, int [K - 1, 2], from distances float [K, K]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    pairs = np.triu_indices(len(distances), 1)
    # SciPy treats 0 as a missing link, and in dense matrices also numbers below 1e-8.
    lengths = np.maximum(distances[pairs].astype(np.float64), np.finfo(np.float64).tiny)
    return np.column_stack(minimum_spanning_tree(coo_array((lengths, pairs), distances.shape).tocsr()).nonzero())


def tree_positions(links: np.ndarray, size: int) -> np.ndarray:
    """Returns positions whose distances are close to the numbers of links between nodes, float64 [K, 2].

    Stress majorisation (Gansner, Koren and North, 2004) from classical scaling: each step solves
    sum_j d_ij^-2 (p_i - p_j) = sum_j d_ij^-1 (p_i - p_j) / |p_i - p_j|.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import shortest_path
    from scipy.spatial.distance import cdist

    if size == 1:
        return np.zeros((1, 2))
    graph = coo_array((np.ones(len(links)), links.T), shape=(size, size))
    steps = shortest_path(graph, directed=False, unweighted=True)
    centered = np.square(steps) - np.square(steps).mean(axis=0)
    values, vectors = np.linalg.eigh(-0.5 * (centered - centered.mean(axis=1, keepdims=True)))
    positions = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
    positions = positions + 1e-3 * np.random.default_rng(0).normal(size=positions.shape)  # separates coincident nodes
    np.fill_diagonal(steps, 1)
    weights = 1 / np.square(steps)
    np.fill_diagonal(weights, 0)
    inverse = np.linalg.pinv(np.diag(weights.sum(axis=1)) - weights, hermitian=True)
    for _ in range(LAYOUT_STEPS):
        apart = cdist(positions, positions)
        pull = weights * steps / np.maximum(apart, 1e-9)
        positions = inverse @ (pull.sum(axis=1)[:, None] * positions - pull @ positions)
    return positions


@contextlib.contextmanager
def _tree_axes(size: int, ax: "Axes | None") -> Iterator["Axes"]:
    """Yields `ax`, or new axes whose size grows with the number of nodes."""
    if ax is not None:
        yield ax
        return
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"axes.grid": False, "figure.dpi": DPI / 2}):
        side = min(max(3.0, 2.0 + 0.2 * math.sqrt(size)), 10.0)
        yield Figure(figsize=(side + 1, side), layout="constrained").add_subplot()


def _parts(som: "kvae.SOM", X: Data | None, y: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns names of the slices [C], and their sizes at each node, float [K, C]."""
    if y is not None:
        return class_table(som, X, y)
    names = np.arange(som.cluster_.max() + 1) if som.n_clusters is not None else np.array(["all"])
    counts = np.ones(som.grid_.size) if X is None else np.bincount(som.predict_nodes(X), minlength=som.grid_.size)
    groups = som.cluster_ if som.n_clusters is not None else np.zeros(som.grid_.size, int)
    return names, counts[:, None] * (groups[:, None] == np.arange(len(names)))


def _draw(ax: "Axes", positions: np.ndarray, links: np.ndarray, names: np.ndarray, table: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    colors = class_colors(len(names))
    ax.add_collection(LineCollection(positions[links], colors=QUIET, linewidths=0.6, zorder=0), autolim=False)
    empty = positions[table.sum(axis=1) == 0]
    ax.plot(*empty.T, "o", color="white", markeredgecolor=QUIET, markeredgewidth=0.5, markersize=2)
    # On a large tree, nodes must be larger than the links to be visible.
    radius = max(0.45, 0.012 * np.ptp(positions, axis=0).max())
    if np.ptp(table.sum(axis=1)) == 0:  # all nodes have the same size
        radius *= 0.5
    draw_pies(ax, positions, table, colors, radius)
    low, high = positions.min(axis=0) - 2 * radius, positions.max(axis=0) + 2 * radius
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    if len(names) > 1:
        add_class_legend(ax, names, colors)
