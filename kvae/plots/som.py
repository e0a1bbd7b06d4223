"""Pictures of a fitted `kvae.SOM`: each draws on matplotlib axes, its own or those that it is given.

    figure = kvae.plots.classes(som, X, y)
    figure.savefig("classes.png")

Every function takes `ax`, and returns the figure that it belongs to. Grids of one or two axes can be drawn.
"""

import contextlib
import math
from collections.abc import Sequence

import numpy as np

from kvae import measures
from kvae.core.errors import InputError
from kvae.plots.canvas import DPI, FAINT, INK, PALETTE, QUIET, STYLE

MOST_PLANES = 12
"""How many component planes `page` shows, those that vary most over the map."""


def u_matrix(som, ax=None):
    """Mean distance of each centre from those of its neighbours: valleys are groups, ridges are borders."""
    _check_map(som)
    with _axes(som, ax) as ax:
        distances = np.asarray(measures.u_matrix(som.cluster_centers_.astype(np.float32), som.grid_)).ravel()
        _colored(som, ax, distances, "bone_r", "distance from neighbours")
        ax.set_title("U-matrix")
    return ax.figure


def hits(som, X, ax=None):
    """How many rows of X each node wins; nodes that win none stay white."""
    _check_map(som)
    with _axes(som, ax) as ax:
        counts = np.bincount(som.predict(X), minlength=som.grid_.size).astype(float)
        _colored(som, ax, np.where(counts > 0, counts, np.nan), "YlGnBu", "rows", lowest=0)
        ax.set_title(f"Hits: {np.sum(counts > 0):,} of {len(counts):,} nodes")
    return ax.figure


def component(som, feature: int | str, ax=None):
    """One feature of the centres over the map, by its number or its name in `feature_names_in_`."""
    _check_map(som)
    names = _feature_names(som)
    number = names.index(feature) if isinstance(feature, str) and feature in names else feature
    if not isinstance(number, (int, np.integer)) or not -len(names) <= number < len(names):
        raise InputError(f"feature is {feature!r}; it must be a number below {len(names)}, or a name of a column")
    with _axes(som, ax) as ax:
        _colored(som, ax, som.cluster_centers_[:, number], "viridis", "")
        ax.set_title(names[number])
    return ax.figure


def components(som, features: Sequence[int | str] | None = None):
    """A page of component planes: of these features, by default of all, at most 64."""
    _check_map(som)
    features = range(min(64, som.n_features_in_)) if features is None else features
    columns = math.ceil(math.sqrt(1.5 * len(features)))
    rows = math.ceil(len(features) / columns)
    with _page(som, rows, columns) as figure:
        for place, feature in enumerate(features):
            component(som, feature, figure.add_subplot(rows, columns, place + 1))
    return figure


def classes(som, X, y, ax=None):
    """The commonest label among the rows that each node wins; the more of them have it, the stronger its colour."""
    _check_map(som)
    names, labels = np.unique(np.asarray(y), return_inverse=True)
    nodes = som.predict(X)
    if len(labels) != len(nodes):
        raise InputError(f"X has {len(nodes):,} rows and y {len(labels):,} labels; they must be as many")
    table = np.zeros((som.grid_.size, len(names)))
    np.add.at(table, (nodes, labels), 1)
    total, winner = table.sum(axis=1), table.argmax(axis=1)
    share = table.max(axis=1) / np.maximum(total, 1)
    with _axes(som, ax) as ax:
        colors = _class_colors(len(names))
        strength = (0.25 + 0.75 * share)[:, None]
        _nodes(som, ax, np.where(total[:, None] > 0, strength * colors[winner] + 1 - strength, 1.0))
        _legend(ax, names, colors)
        ax.set_title(f"Classes: {table.max(axis=1).sum() / max(total.sum(), 1):.0%} of rows have their node's label")
    return ax.figure


def clusters(som, n_clusters: int, ax=None):
    """The groups of nodes that `SOM.clusters` finds."""
    _check_map(som)
    with _axes(som, ax) as ax:
        groups, colors = som.clusters(n_clusters), _class_colors(n_clusters)
        _nodes(som, ax, colors[groups])
        _legend(ax, range(n_clusters), colors)
        ax.set_title(f"{n_clusters} clusters (Ward)")
    return ax.figure


def trajectory(som, X, ax=None):
    """The way of rows in their order, such as a time series, over the map; dark first, bright last.

    On a torus a step across the border leaves on one side and comes in on the other.
    """
    _check_map(som)
    from matplotlib.collections import LineCollection

    with _axes(som, ax) as ax:
        points = _points(som)[som.predict(X)]
        steps, starts = np.diff(points, axis=0), points[:-1]
        if som.grid_.border:
            turn = np.array(som.grid_.shape if len(som.grid_.shape) == 2 else (1, *som.grid_.shape))
            steps -= turn * np.round(steps / turn)
        # Each step from where it starts, and again to where it ends: the same line but for a step across the border.
        lines = np.concatenate([np.stack([starts, starts + steps], 1), np.stack([points[1:] - steps, points[1:]], 1)])
        _nodes(som, ax, np.full((som.grid_.size, 3), 0.95))
        path = LineCollection(lines[..., ::-1], cmap="plasma", linewidths=1.2, alpha=0.8, capstyle="round")
        path.set_array(np.tile(np.arange(len(steps)), 2))
        ax.add_collection(path, autolim=False)
        for place, marker, name in ((0, "o", "first"), (-1, "s", "last")):
            ax.plot(*points[place, ::-1], marker, color=INK, markersize=5, label=name, clip_on=False)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        ax.set_title("Trajectory")
    return ax.figure


def page(som, X=None, y=None):
    """U-matrix, hits of X, classes of y, and the component planes that vary most, on one page."""
    _check_map(som)
    parts = [lambda ax: u_matrix(som, ax)]
    if X is not None:
        parts.append(lambda ax: hits(som, X, ax))
    if X is not None and y is not None:
        parts.append(lambda ax: classes(som, X, y, ax))
    columns = max(3, len(parts))
    features = np.sort(np.argsort(-np.var(som.cluster_centers_, axis=0), kind="stable")[:MOST_PLANES])
    parts += [lambda ax, feature=feature: component(som, int(feature), ax) for feature in features]
    rows = math.ceil(len(parts) / columns)
    with _page(som, rows, columns) as figure:
        for place, part in enumerate(parts):
            part(figure.add_subplot(rows, columns, place + 1))
    return figure


def _check_map(som) -> None:
    """Raises InputError where it is no map, and scikit-learn's own error where it is not fitted."""
    if not hasattr(som, "clusters"):  # its own class imports this module
        what = f"the map is a {type(som).__name__}; it must be a kvae.SOM"
        if hasattr(som, "steps"):
            what += ", such as pipeline[-1], and X the rows that reach it, pipeline[:-1].transform(X)"
        raise InputError(what)
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(som)


@contextlib.contextmanager
def _page(som, rows, columns):
    """A figure with room for so many maps."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"axes.grid": False, "figure.dpi": DPI / 2}):
        down, across = np.ptp(_points(som), axis=0) + 1.2
        height = min(max(0.5 + 2.5 * down / across, 2.0), 5.0)
        yield Figure(figsize=(3.2 * columns + 0.6, height * rows), layout="constrained")


@contextlib.contextmanager
def _axes(som, ax):
    """The axes given, or those of a new figure, laid out for the map: row 0 at the top."""
    if len(som.grid_.shape) > 2:
        raise InputError(f"grid_shape is {som.grid_.shape}; a map of one or two axes can be drawn")
    if ax is None:
        with _page(som, 1, 1) as figure, _axes(som, figure.add_subplot()) as ax:
            yield ax
        return
    rows, columns = _points(som).T
    ax.set_aspect("equal")
    ax.set(xlim=(columns.min() - 0.6, columns.max() + 0.6), ylim=(rows.max() + 0.65, rows.min() - 0.65))
    ax.set(xticks=[], yticks=[], xlabel=som.grid_.border)
    ax.spines[:].set_visible(False)
    yield ax


def _points(som) -> np.ndarray:
    """Where nodes are drawn, float [K, 2]: a line is a single row."""
    points = som.grid_.points
    return points if points.shape[1] == 2 else np.column_stack([np.zeros(len(points)), points])


def _nodes(som, ax, colors=None, **options):
    """Draws every node as a square or a hexagon in its colour [K, 3], or in what `options` say."""
    from matplotlib.collections import PolyCollection

    corners, radius = (6, 1 / math.sqrt(3)) if som.grid_.cell == "hexagon" else (4, math.sqrt(0.5))
    angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    corners = radius * np.column_stack([np.cos(angles), np.sin(angles)])  # a corner of a hexagon points up
    edges = {"edgecolors": FAINT, "linewidths": 0.4}
    return ax.add_collection(
        PolyCollection(_points(som)[:, None, ::-1] + corners, facecolors=colors, **edges, **options), autolim=False
    )


def _colored(som, ax, values, colormap, label, lowest=None):
    from matplotlib.colors import Normalize

    finite = values[np.isfinite(values)]
    norm = Normalize(finite.min(initial=np.inf) if lowest is None else lowest, max(finite.max(initial=0), 1e-12))
    nodes = _nodes(som, ax, array=np.ma.masked_invalid(values), cmap=colormap, norm=norm)
    bar = ax.figure.colorbar(nodes, ax=ax, shrink=0.8, aspect=25, pad=0.02, label=label)
    bar.outline.set_visible(False)


def _class_colors(count) -> np.ndarray:
    """Colours [count, 3], from 0 to 1."""
    import matplotlib
    from matplotlib.colors import to_rgb

    if count <= len(PALETTE):
        return np.array([to_rgb(color) for color in PALETTE[:count]])
    return matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, count))[:, :3]


def _legend(ax, names, colors):
    from matplotlib.patches import Patch

    ax.legend(
        handles=[Patch(color=color, label=str(name)) for name, color in zip(names, colors, strict=True)],
        loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelcolor=QUIET, ncols=math.ceil(len(names) / 20),
    )  # fmt: skip


def _feature_names(som) -> list[str]:
    return [str(name) for name in getattr(som, "feature_names_in_", [f"x{i}" for i in range(som.n_features_in_)])]
