"""The types and ranges of the parameters of `kvae.SOM`."""

from typing import Annotated

import annotated_types
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from kvae.core.errors import InputError, short_repr
from kvae.core.fields import Count, Natural, OneOf, Shape, Share, validate
from kvae.grids import GRIDS, Grid, make_grid
from kvae.som.clustering import CLUSTERINGS
from kvae.som.metrics import METRICS, MISSING, choose_metric
from kvae.topology import NEIGHBORHOODS, Neighborhood

Width = Annotated[float, annotated_types.Ge(1e-6), annotated_types.Le(1e6)]
"""A width in nodes. The limits keep its square, and squares of distances divided by it, within the range of float32."""

FeatureWeights = Annotated[
    tuple[Annotated[float, annotated_types.Ge(1e-6), annotated_types.Le(1e6)], ...], annotated_types.MinLen(1)
]

PARAMETERS = {
    "grid_shape": Shape,
    "topology": Annotated[str, OneOf(GRIDS)],
    "n_clusters": Count | None,
    "clustering": Annotated[str, OneOf(CLUSTERINGS)],
    "neighborhood": Annotated[str, OneOf(NEIGHBORHOODS)],
    "n_epochs": Natural,
    "initial_width": Width | None,
    "final_width": Width,
    "metric": Annotated[str, OneOf(METRICS)],
    "missing": Annotated[str, OneOf(MISSING)],
    "batch_size": Count | None,
    "decay": Share,
}


def validate_parameters(estimator: BaseEstimator) -> Neighborhood:
    """Validates an estimator's parameters and returns its neighbourhood. `fit` calls it, as usual in scikit-learn.

    Raises:
      InputError: a parameter is out of range.
    """
    values = {name: validate(name, getattr(estimator, name), kind) for name, kind in PARAMETERS.items()}
    try:
        check_random_state(estimator.random_state)
    except ValueError as error:
        raise InputError(
            f"random_state is {short_repr(estimator.random_state)}; it must be an integer from 0 to {2**32 - 1}, a "
            "numpy.random.RandomState, or None"
        ) from error
    choose_metric(values["metric"], values["missing"])
    grid = make_grid(values["topology"], values["grid_shape"])
    if values["n_clusters"] is not None:
        validate_n_clusters(values["n_clusters"], grid)
    return Neighborhood(grid, values["neighborhood"])


def validate_n_clusters(n_clusters: int, grid: Grid) -> int:
    """Returns the number of groups of nodes; raises InputError unless it is from 1 to the number of nodes."""
    n_clusters = validate("n_clusters", n_clusters, Count)
    if n_clusters > grid.size:
        raise InputError(f"n_clusters is {n_clusters}; it must be at most the number of nodes, {grid.size}")
    return n_clusters


def validate_feature_weights(feature_weights: ArrayLike | None, n_features: int) -> np.ndarray | None:
    """Returns the weights of features, float64 [d]; None for None.

    Raises:
      InputError: there are more or fewer weights than features, or a weight is out of range.
    """
    if feature_weights is None:
        return None
    values = validate("feature_weights", np.asarray(feature_weights).tolist(), FeatureWeights)
    if len(values) != n_features:
        raise InputError(f"feature_weights has {len(values)} weights; X has {n_features} features")
    return np.array(values, np.float64)
