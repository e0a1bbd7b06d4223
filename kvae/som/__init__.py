"""Kohonen's self-organising map as a scikit-learn estimator: `kvae.SOM`."""

from kvae.som.estimator import SOM

__all__ = ["SOM"]
