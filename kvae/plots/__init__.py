"""Figures: arrays in, PNG files or matplotlib figures out.

The functions exported here draw a fitted `kvae.SOM`.
"""

from kvae.plots.som import classes, clusters, component, components, hits, page, trajectory, u_matrix

__all__ = ["classes", "clusters", "component", "components", "hits", "page", "trajectory", "u_matrix"]
