"""Figures of a fitted `kvae.SOM`.

Each function draws on the matplotlib axes `ax`, or on a new figure, and returns the figure. A map must have one or two
axes, except for `spanning_tree`. The modules of this package also draw the figures of training runs as PNG files.

Example:
  >>> import kvae
  >>> from sklearn.datasets import load_iris
  >>> X, y = load_iris(return_X_y=True)
  >>> som = kvae.SOM((4, 5), n_epochs=2).fit(X)
  >>> figure = kvae.plots.classes(som, X, y)  # figure.savefig("classes.png", dpi=200)
"""

from kvae.plots.labels import classes, missing, pies
from kvae.plots.som import clusters, component, components, hits, page, trajectory, u_matrix
from kvae.plots.tree import spanning_tree

__all__ = [
    "classes",
    "clusters",
    "component",
    "components",
    "hits",
    "missing",
    "page",
    "pies",
    "spanning_tree",
    "trajectory",
    "u_matrix",
]
