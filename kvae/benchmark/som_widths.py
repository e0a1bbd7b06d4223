"""Measures `kvae.SOM` on held-out rows for several final widths, on six real data sets that scikit-learn ships."""

from collections.abc import Callable

import numpy as np
from sklearn import datasets
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.model_selection import KFold
from sklearn.preprocessing import scale

from kvae.som import SOM

WIDTHS = (0.5, 0.7, 1.0, 1.5, 2.0)

GRID, FOLDS = (10, 10), 3


def _patches() -> np.ndarray:
    """Returns 5,000 grey patches of 8 x 8 pixels from a photograph, [5000, 64]."""
    grey = datasets.load_sample_image("china.jpg").mean(axis=-1)
    return extract_patches_2d(grey, (8, 8), max_patches=5000, random_state=0).reshape(-1, 64)


SETS: dict[str, Callable[[], np.ndarray]] = {
    "iris": lambda: scale(datasets.load_iris().data),
    "wine": lambda: scale(datasets.load_wine().data),
    "breast cancer": lambda: scale(datasets.load_breast_cancer().data),
    "digits": lambda: datasets.load_digits().data,
    "diabetes": lambda: scale(datasets.load_diabetes().data),
    "patches of a photograph": _patches,
}
"""Maps names of data sets to functions that return their rows [n, d]."""


def compare_widths() -> dict[str, dict[str, float]]:
    """Measures the errors of a 10 x 10 map on held-out rows of each data set, for each final width.

    Returns:
      {data set: {"0.5 error": ..., "0.5 disorder": ..., ...}}: the quantisation error divided by the one at the first
      width, and the topographic error; means over three folds.
    """
    rows = {}
    for name, load in SETS.items():
        X, errors = load(), {}
        for width in WIDTHS:
            folds = [
                _errors(X[fitted], X[held_out], width)
                for fitted, held_out in KFold(FOLDS, shuffle=True, random_state=0).split(X)
            ]
            errors[width] = np.mean(folds, axis=0)
        rows[name] = {}
        for width, (error, disorder) in errors.items():
            rows[name] |= {f"{width} error": error / errors[WIDTHS[0]][0], f"{width} disorder": disorder}
    return rows


def _errors(fitted: np.ndarray, held_out: np.ndarray, width: float) -> tuple[float, float]:
    """Returns quantisation and topographic error of held-out rows."""
    centers = SOM(GRID, final_width=width).fit(fitted).cluster_centers_
    # With n_epochs=0 the map keeps these centres, so `fit` only measures its rows.
    som = SOM(GRID, init=centers, n_epochs=0).fit(held_out)
    return som.quantization_error_, som.topographic_error_
