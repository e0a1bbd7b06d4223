"""Kohonen's self-organising map as a scikit-learn estimator, `kvae.SOM`, and a scorer for model selection."""

from kvae.som.estimator import SOM
from kvae.som.scoring import order_scorer
from kvae.som.supervised import SOMClassifier, SOMRegressor

__all__ = ["SOM", "SOMClassifier", "SOMRegressor", "order_scorer"]
