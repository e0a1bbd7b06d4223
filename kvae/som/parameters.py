"""The types and ranges of the parameters of `kvae.SOM`."""

from typing import Annotated

from sklearn.base import BaseEstimator

from kvae.core.fields import Count, Counts, Natural, OneOf, Positive, Share, validate
from kvae.grids import GRIDS, make_grid
from kvae.som.blocks import DISTANCES
from kvae.topology import NEIGHBORHOODS, Neighborhood

PARAMETERS = {
    "grid_shape": Counts,
    "topology": Annotated[str, OneOf(GRIDS)],
    "neighborhood": Annotated[str, OneOf(NEIGHBORHOODS)],
    "n_epochs": Natural,
    "initial_width": Positive | None,
    "final_width": Positive,
    "metric": Annotated[str, OneOf(DISTANCES)],
    "batch_size": Count | None,
    "decay": Share,
}


def validate_parameters(estimator: BaseEstimator) -> Neighborhood:
    """Validates an estimator's parameters, as scikit-learn does in `fit`, and returns its neighbourhood.

    Raises:
      InputError: a parameter is out of range.
    """
    values = {name: validate(name, getattr(estimator, name), kind) for name, kind in PARAMETERS.items()}
    return Neighborhood(make_grid(values["topology"], values["grid_shape"]), values["neighborhood"])
