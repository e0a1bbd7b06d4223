"""Supervised maps: `kvae.SOMClassifier` and `kvae.SOMRegressor`, which learn rows and targets together."""

from typing import Annotated, Any, Self

import annotated_types
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_array, check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d

from kvae.core.errors import InputError
from kvae.core.fields import validate
from kvae.som import processes
from kvae.som.estimator import SOM
from kvae.som.parameters import PARAMETERS, validate_feature_weights
from kvae.som.rows import refuse_huge_integers, validated_rows
from kvae.som.supervision import deviation, is_labeled, require_target

TargetWeight = Annotated[float, annotated_types.Ge(1e-6), annotated_types.Le(1 - 1e-6)]


class SupervisedMap(BaseEstimator):
    """Learns a map of rows and targets, see `SOMClassifier`. Abstract: the subclasses define the targets."""

    som_: SOM
    node_targets_: np.ndarray
    n_features_in_: int

    def __init__(
        self,
        grid_shape: tuple[int, ...] = (10, 10),
        *,
        target_weight: float = 0.5,
        topology: str = "plane",
        neighborhood: str = "gaussian",
        n_epochs: int = 10,
        initial_width: float | None = None,
        final_width: float = 1.0,
        feature_weights: ArrayLike | None = None,
        missing: str = "error",
        batch_size: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.grid_shape = grid_shape
        self.target_weight = target_weight
        self.topology = topology
        self.neighborhood = neighborhood
        self.n_epochs = n_epochs
        self.initial_width = initial_width
        self.final_width = final_width
        self.feature_weights = feature_weights
        self.missing = missing
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "ignore"
        return tags

    def _learned_rows(self, X: ArrayLike) -> np.ndarray:
        """Returns the rows of `fit`, validated."""
        validate("missing", self.missing, PARAMETERS["missing"])
        return validated_rows(self, X, reset=True)

    def _learn_layers(self, X: np.ndarray, targets: np.ndarray, sample_weight: ArrayLike | None) -> None:
        """Learns the map from rows [n, d] and targets [n, t], NaN where unknown."""
        processes.refuse_several(type(self).__name__)
        target_weight = validate("target_weight", self.target_weight, TargetWeight)
        feature_weights = validate_feature_weights(self.feature_weights, X.shape[1])
        feature_weights = np.ones(X.shape[1]) if feature_weights is None else feature_weights
        with refuse_huge_integers("sample_weight"):
            sample_weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        scale = deviation(X, sample_weight, feature_weights)
        target_scale = deviation(targets, sample_weight, np.ones(targets.shape[1]))
        layers = np.concatenate([X / scale, targets / target_scale], axis=1, dtype=X.dtype)
        weights = np.concatenate([(1 - target_weight) * feature_weights, np.full(targets.shape[1], target_weight)])
        parameters = {name: getattr(self, name) for name in SHARED_PARAMETERS}
        missing = "ignore" if np.isnan(targets).any() else self.missing
        both = SOM(**parameters, n_epochs=self.n_epochs, feature_weights=weights, missing=missing, verbose=self.verbose)
        both.fit(layers, sample_weight=sample_weight)
        centers, node_targets = np.split(both.cluster_centers_, [X.shape[1]], axis=1)
        self.node_targets_ = node_targets * target_scale
        self.som_ = SOM(
            **parameters,
            n_epochs=0,
            init=centers * scale,
            feature_weights=self.feature_weights,
            missing=self.missing,
        ).fit(X, sample_weight=sample_weight)

    def _predicted_targets(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        return self.node_targets_[self.som_.predict_nodes(validated_rows(self, X))]


SHARED_PARAMETERS = (
    *("grid_shape", "topology", "neighborhood", "initial_width", "final_width"),
    *("batch_size", "random_state"),
)
"""Parameters that a supervised map passes on to `kvae.SOM` unchanged."""


class SOMClassifier(ClassifierMixin, SupervisedMap):
    """Classifier by a self-organising map that learns rows and classes together.

    A row belongs to the node with the lowest

        (1 - target_weight) |x - w_k|^2 / V(x) + target_weight |y - v_k|^2 / V(y),

    where y is 1 for the class of the row and 0 for the others, and V is the total variance over the rows. For
    prediction only the first term counts, and v_k gives the probabilities. This is the xyf map of R's package kohonen
    (Wehrens and Buydens, Journal of Statistical Software 21(5), 2007) with the batch algorithm of `kvae.SOM`.

    Args:
      grid_shape: number of nodes along each axis of the grid; K is their product.
      target_weight: weight of the classes, above 0 and below 1.
      unlabeled: value in y that marks rows of unknown class, such as -1; None if all classes are known. The map learns
        from the features of such rows.
      topology, neighborhood, n_epochs, initial_width, final_width, feature_weights, missing, batch_size, random_state,
        verbose: as in `kvae.SOM`.

    Attributes:
      classes_: the classes, sorted, [C].
      node_targets_: share of each class at each node, float [K, C].
      som_: the fitted `kvae.SOM` of the features, which `kvae.plots` draws.
      n_features_in_: d.
      feature_names_in_: names of the columns, if X is a data frame.

    Example:
      >>> import kvae
      >>> from sklearn.datasets import load_iris
      >>> X, y = load_iris(return_X_y=True)
      >>> classifier = kvae.SOMClassifier((6, 8), n_epochs=5).fit(X, y)
      >>> classifier.score(X, y) > 0.9, classifier.predict_proba(X).shape
      (True, (150, 3))
    """

    classes_: np.ndarray

    def __init__(
        self,
        grid_shape: tuple[int, ...] = (10, 10),
        *,
        target_weight: float = 0.5,
        unlabeled: Any = None,
        topology: str = "plane",
        neighborhood: str = "gaussian",
        n_epochs: int = 10,
        initial_width: float | None = None,
        final_width: float = 1.0,
        feature_weights: ArrayLike | None = None,
        missing: str = "error",
        batch_size: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        super().__init__(
            grid_shape,
            target_weight=target_weight,
            topology=topology,
            neighborhood=neighborhood,
            n_epochs=n_epochs,
            initial_width=initial_width,
            final_width=final_width,
            feature_weights=feature_weights,
            missing=missing,
            batch_size=batch_size,
            random_state=random_state,
            verbose=verbose,
        )
        self.unlabeled = unlabeled

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learns the map. Time is O(n_epochs n K (d + C)).

        Args:
          X: float [n, d], an array or a data frame.
          y: classes [n]; see `unlabeled`.
          sample_weight: weight of each row, float [n], at least 0; None for 1.

        Returns:
          The fitted estimator.

        Raises:
          InputError: a parameter or a value is out of range, or no row has a class.
          ValueError: scikit-learn rejects X, y or the weights.
        """
        require_target(self, y)
        X = self._learned_rows(X)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        labeled = is_labeled(y, self.unlabeled)
        if not np.any(labeled):
            raise InputError(f"every value of y is {self.unlabeled!r}, which marks rows of unknown class")
        assert_all_finite(y[labeled], input_name="y")
        check_classification_targets(y[labeled])
        self.classes_, codes = np.unique(y[labeled], return_inverse=True)
        targets = np.full((len(y), len(self.classes_)), np.nan, X.dtype)
        targets[labeled] = np.eye(len(self.classes_))[codes]
        self._learn_layers(X, targets, sample_weight)
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Returns the share of each class at the node of each row, float [n, C].

        Args:
          X: float [n, d], an array or a data frame.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X.
        """
        shares = np.maximum(self._predicted_targets(X), 0) + np.finfo(np.float32).tiny
        return shares / shares.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Returns the most probable class of each row, [n]. Arguments and exceptions are as in `predict_proba`."""
        codes = self.predict_proba(X).argmax(axis=1)
        return self.classes_[codes]


class SOMRegressor(RegressorMixin, SupervisedMap):
    """Regressor by a self-organising map that learns rows and targets together.

    Works like `kvae.SOMClassifier`, but the targets y are numbers. The prediction is the mean target at the node of a
    row.

    Args:
      grid_shape: number of nodes along each axis of the grid; K is their product.
      target_weight: weight of the targets, above 0 and below 1.
      topology, neighborhood, n_epochs, initial_width, final_width, feature_weights, missing, batch_size, random_state,
        verbose: as in `kvae.SOM`.

    Attributes:
      node_targets_: mean targets at each node, float [K, t].
      som_: the fitted `kvae.SOM` of the features, which `kvae.plots` draws.
      n_features_in_: d.
      feature_names_in_: names of the columns, if X is a data frame.

    Example:
      >>> import kvae
      >>> from sklearn.datasets import load_diabetes
      >>> X, y = load_diabetes(return_X_y=True)
      >>> kvae.SOMRegressor((6, 8)).fit(X, y).score(X, y) > 0.3
      True
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learns the map. Time is O(n_epochs n K (d + t)).

        Args:
          X: float [n, d], an array or a data frame.
          y: targets, float [n] or [n, t]; NaN marks an unknown one. The map learns from the features of such rows.
          sample_weight: weight of each row, float [n], at least 0; None for 1.

        Returns:
          The fitted estimator.

        Raises:
          InputError: a parameter or a value is out of range, or no target is known.
          ValueError: scikit-learn rejects X, y or the weights.
        """
        require_target(self, y)
        X = self._learned_rows(X)
        with refuse_huge_integers("y"):
            y = check_array(y, dtype=X.dtype, ensure_2d=False, ensure_all_finite="allow-nan", input_name="y")
        check_consistent_length(X, y)
        if np.isnan(y).all():
            raise InputError("every value of y is NaN, which marks an unknown target")
        self._is_single = y.ndim == 1
        self._learn_layers(X, y.reshape(len(y), -1), sample_weight)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Returns the mean target at the node of each row, float [n], or [n, t] if y was [n, t].

        Args:
          X: float [n, d], an array or a data frame.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X.
        """
        targets = self._predicted_targets(X)
        return targets[:, 0] if self._is_single else targets

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
