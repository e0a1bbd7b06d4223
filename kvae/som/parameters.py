"""The types and ranges of the parameters of `kvae.SOM`."""

from typing import Annotated

import annotated_types
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from kvae.core.errors import InputError, short_repr
from kvae.core.fields import Count, Counts, Natural, OneOf, Share, validate
from kvae.grids import GRIDS, make_grid
from kvae.som.blocks import DISTANCES
from kvae.topology import NEIGHBORHOODS, Neighborhood

Width = Annotated[float, annotated_types.Ge(1e-6), annotated_types.Le(1e6)]
"""A width in nodes. The limits keep its square, and squares of distances divided by it, within the range of float32."""

PARAMETERS = {
    "grid_shape": Counts,
    "topology": Annotated[str, OneOf(GRIDS)],
    "neighborhood": Annotated[str, OneOf(NEIGHBORHOODS)],
    "n_epochs": Natural,
    "initial_width": Width | None,
    "final_width": Width,
    "metric": Annotated[str, OneOf(DISTANCES)],
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
    return Neighborhood(make_grid(values["topology"], values["grid_shape"]), values["neighborhood"])
