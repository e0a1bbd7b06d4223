"""Checks and scales the targets of supervised maps."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from kvae.core.errors import InputError, short_repr


def require_target(estimator: BaseEstimator, y: Any) -> None:
    """Raises InputError, with the message that scikit-learn expects, if y is None."""
    if y is None:
        raise InputError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")


def is_labeled(y: np.ndarray, unlabeled: Any) -> np.ndarray:
    """Returns True for each row whose class is known, bool [n].

    Args:
      y: classes [n].
      unlabeled: value in y of rows of unknown class; it may be NaN. None if all classes are known.

    Raises:
      InputError: `unlabeled` is not a single value.
    """
    if unlabeled is None:
        return np.ones(len(y), bool)
    if not np.isscalar(unlabeled):
        raise InputError(f"unlabeled is {short_repr(unlabeled)}; it must be a single value of y, such as -1, or None")
    is_nan = unlabeled != unlabeled
    return y == y if is_nan else y != unlabeled


def deviation(values: np.ndarray, weights: np.ndarray, feature_weights: np.ndarray) -> float:
    """Returns the square root of the total variance of the known values in [n, d].

    If they vary by less than their precision, it returns the largest absolute value, or 1 if all are 0.
    """
    unit = float(np.max(np.abs(np.nan_to_num(values)))) or 1.0
    shares = np.where(np.isnan(values), 0, weights[:, None])
    shares = shares / np.maximum(shares.sum(axis=0), np.finfo(np.float64).tiny)
    precision, values = 8 * np.finfo(values.dtype).eps, np.nan_to_num(values / unit)
    variances = np.sum(shares * np.square(values - np.sum(shares * values, axis=0)), axis=0)
    relative = float(np.sqrt(feature_weights @ variances))
    return unit * relative if relative > precision else unit
