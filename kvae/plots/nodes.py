"""Drawing the nodes of a fitted `kvae.SOM` on matplotlib axes: layout, cells, colour bars and legends."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

import kvae
from kvae.core.errors import InputError
from kvae.plots.canvas import DPI, FAINT, PALETTE, QUIET, STYLE, color_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure


def check_map(som: "kvae.SOM") -> None:
    """Raises an error unless a map can be drawn.

    Raises:
      InputError: `som` is not a `kvae.SOM`, or its grid has more than two axes.
      NotFittedError: the map is not fitted.
    """
    check_fitted(som)
    if len(som.grid_.shape) > 2:
        raise InputError(f"grid_shape is {som.grid_.shape}; it must have one or two axes to be drawn")


def check_fitted(som: "kvae.SOM") -> None:
    """Raises InputError if `som` is not a `kvae.SOM`, and NotFittedError if it is not fitted."""
    if not hasattr(som, "clusters"):  # importing kvae.SOM for isinstance would be circular
        message = f"som is a {type(som).__name__}; it must be a kvae.SOM"
        if hasattr(som, "steps"):
            message += ", such as pipeline[-1]; X must then be pipeline[:-1].transform(X)"
        raise InputError(message)
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(som)


@contextlib.contextmanager
def map_page(som: "kvae.SOM", rows: int, columns: int) -> Iterator["Figure"]:
    """Yields an empty figure with room for `rows` x `columns` maps."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"axes.grid": False, "figure.dpi": DPI / 2}):
        down, across = np.ptp(node_positions(som), axis=0) + 1.2
        side = 4.2 if rows == columns == 1 else 3.2
        height = min(max(0.5 + 0.8 * side * _aspect(som) * down / across, 1.2), 1.6 * side)
        yield Figure(figsize=(side * columns + 0.6, height * rows), layout="constrained")


@contextlib.contextmanager
def map_axes(som: "kvae.SOM", ax: "Axes | None") -> Iterator["Axes"]:
    """Yields `ax`, or new axes, laid out for the map with row 0 at the top."""
    if ax is None:
        with map_page(som, 1, 1) as figure, map_axes(som, figure.add_subplot()) as ax:
            yield ax
        return
    rows, columns = node_positions(som).T
    ax.set_aspect(_aspect(som))
    ax.set(xlim=(columns.min() - 0.6, columns.max() + 0.6), ylim=(rows.max() + 0.65, rows.min() - 0.65))
    ax.set(xticks=[], yticks=[], xlabel=som.grid_.border)
    ax.spines[:].set_visible(False)
    yield ax


def _aspect(som: "kvae.SOM") -> float:
    """Returns the height of a cell divided by its width. Cells of a long line are tall, so that they remain visible."""
    return max(1.0, som.grid_.size / 12) if len(som.grid_.shape) == 1 else 1.0


def node_positions(som: "kvae.SOM") -> np.ndarray:
    """Returns the row and column at which each node is drawn, float [K, 2]. A line is a single row."""
    points = som.grid_.points
    return points if points.shape[1] == 2 else np.column_stack([np.zeros(len(points)), points])


def draw_nodes(som: "kvae.SOM", ax: "Axes", colors: np.ndarray | None = None, **options) -> "PolyCollection":
    """Draws every node as a square or a hexagon.

    Args:
      som: the fitted map.
      ax: the axes.
      colors: float [K, 3], from 0 to 1, if `options` do not colour the nodes.
      **options: options of `matplotlib.collections.PolyCollection`.

    Returns:
      The cells, in the order of the nodes.
    """
    from matplotlib.collections import PolyCollection

    corners, radius = (6, 1 / math.sqrt(3)) if som.grid_.cell == "hexagon" else (4, math.sqrt(0.5))
    angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    outline = radius * np.column_stack([np.cos(angles), np.sin(angles)])  # hexagons point upwards
    cells = node_positions(som)[:, None, ::-1] + outline
    edges = {"edgecolors": FAINT, "linewidths": 0.4}
    return ax.add_collection(PolyCollection(cells, facecolors=colors, **edges, **options), autolim=False)


def draw_values(
    som: "kvae.SOM",
    ax: "Axes",
    values: np.ndarray,
    colormap: str,
    label: str,
    lowest: float | None = None,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws nodes in the colours of their values, with a colour bar.

    Args:
      som: the fitted map.
      ax: the axes.
      values: float or int [K]; nodes with NaN or a masked value stay white.
      colormap: name of a matplotlib colour map.
      label: label of the colour bar.
      lowest: lower end of the colour bar; None for the lowest value.
      limits: both ends of the colour bar; None for those of the values.
    """
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    values = np.ma.masked_invalid(values)
    limits = limits or color_limits(values.compressed(), lowest)
    nodes = draw_nodes(som, ax, array=values, cmap=colormap, norm=Normalize(*limits))
    # Inset axes keep the same distance from the map on every panel of a page.
    ticks = MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=np.issubdtype(values.dtype, np.integer))
    bar = ax.figure.colorbar(nodes, cax=ax.inset_axes((1.03, 0.05, 0.035, 0.9)), label=label, ticks=ticks)
    bar.outline.set_visible(False)


def draw_pies(ax: "Axes", positions: np.ndarray, table: np.ndarray, colors: np.ndarray, radius: float) -> None:
    """Draws pie charts whose areas are proportional to their totals; small pies are enlarged.

    Args:
      ax: the axes.
      positions: x and y of each pie, float [K, 2].
      table: sizes of the slices, float [K, C], at least 0; a pie of zeros is not drawn.
      colors: colour of each slice, float [C, 3], from 0 to 1.
      radius: radius of the largest pie; every pie has at least 0.4 of this radius.
    """
    from matplotlib.collections import PolyCollection

    totals = table.sum(axis=1)
    radii = radius * np.maximum(np.sqrt(totals / max(totals.max(), 1)), 0.4)
    ends = np.cumsum(table, axis=1) / np.maximum(totals, 1)[:, None]
    slices, slice_colors = [], []
    for node, number in np.argwhere(table > 0):
        first, last = (0.0 if number == 0 else ends[node, number - 1]), ends[node, number]
        angles = 2 * np.pi * np.linspace(first, last, 2 + math.ceil(24 * (last - first)))
        # Start at the top, clockwise.
        arc = positions[node] + radii[node] * np.column_stack([np.sin(angles), -np.cos(angles)])
        slices.append(np.vstack([positions[node], arc]))
        slice_colors.append(colors[number])
    ax.add_collection(PolyCollection(slices, facecolors=slice_colors, edgecolors="none"), autolim=False)


def class_colors(count: int) -> np.ndarray:
    """Returns a colour for each class, float [count, 3], from 0 to 1."""
    import matplotlib
    from matplotlib.colors import to_rgb

    if count <= len(PALETTE):
        return np.array([to_rgb(color) for color in PALETTE[:count]])
    return matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, count))[:, :3]


def add_class_legend(ax: "Axes", names: Iterable, colors: np.ndarray) -> None:
    """Adds a legend of classes to the right of a map."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=str(name)) for name, color in zip(names, colors, strict=True)]
    style = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False, "ncols": math.ceil(len(handles) / 20)}
    ax.legend(handles=handles, handlelength=1, handleheight=1, labelcolor=QUIET, **style)
