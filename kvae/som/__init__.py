"""A self-organising map as a scikit-learn estimator."""

from kvae.som.estimator import SOM

__all__ = ["SOM"]
