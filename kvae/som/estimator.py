"""Kohonen's self-organising map as a scikit-learn estimator: `kvae.SOM`."""

from typing import TYPE_CHECKING, Self

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from kvae.core.fields import validate
from kvae.som import processes
from kvae.som.learning import MapLearner
from kvae.som.metrics import SPARSE_METRICS
from kvae.som.missing import predict_deviations, refuse_unknown_rows
from kvae.som.parameters import PARAMETERS, validate_n_clusters, validate_parameters
from kvae.som.rows import Data, open_rows, validated_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SOM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, MapLearner):
    """Self-organising map: clustering with centres on a grid, where neighbouring centres are similar.

    The map is trained by Kohonen's batch algorithm (Eqs. 19-21 of Irie et al., 2023). In each epoch every centre
    becomes a weighted mean of the rows,

        w_k = sum_i A[k, c_i] x_i / sum_i A[k, c_i],    c_i = argmin_k |x_i - w_k|,

    where the neighbourhood A weights a row by the distance on the grid between node k and the row's node c_i. The width
    of A shrinks from epoch to epoch by a constant factor. Without a neighbourhood the algorithm is K-means.

    Features are not scaled: scale them first, for example with `make_pipeline(StandardScaler(), SOM())`.

    `X` may be an array [n, d] or a data frame, and with the metrics "euclidean" and "cosine" a sparse matrix, whose
    zeros are not filled in. Except in `transform` it may also be read block by block: a memory-mapped array, an array
    of dask, zarr or h5py, an Arrow table or data set, a Parquet file, a lazy frame, or an iterable of batches, such as
    a list of arrays or a data loader. If a batch is a tuple, such as (rows, labels), its first element is used. `fit`
    reads the first batches of an iterable for its sample, then all of them once for each epoch and once for `labels_`.
    The sums are exact for any split into batches.

    An epoch takes O(n K d) time, plus O(K^2 d) for the neighbourhood (less for "hard", and for "gaussian" on a plane
    or torus). Working memory is O(batch_size d + K d) on the devices, plus O(K^2) if the neighbourhood needs its
    matrix. Data of up to 1 GiB on a CPU (16 GiB on an accelerator) stay on the devices between epochs.

    Under `jax.distributed`, all processes must call `fit` or `partial_fit`, each with its own rows. They learn one map
    of all rows and exchange K (d + 1) numbers per process and epoch. `labels_` cover the process's own rows, and the
    errors all rows. `predict` and `score` do not communicate.

    Args:
      grid_shape: number of nodes along each axis of the grid; K is their product.
      n_clusters: number of groups of nodes. `labels_` and `predict` then give groups; with None, they give nodes.
      clustering: how nodes are grouped: "ward", Ward's method on nodes that are adjacent on the grid; "consensus",
        average linkage over resampled nodes, as in FlowSOM.
      topology: "plane", "torus", "cylinder" (left and right edges are connected), "hexagonal", "hexagonal_torus", or a
        name added to `kvae.GRIDS`.
      neighborhood: weight of a node at distance D on the grid, for a width w: "gaussian", exp(-D^2 / w^2);
        "exponential", exp(-D / w); "hard", min(1, w^2) where D < 1.5; "none", 0; or a name added to
        `kvae.NEIGHBORHOODS`. The node itself has weight 1. A Gaussian has sigma = w / sqrt(2).
      n_epochs: number of passes over the data, with one update each.
      initial_width: width in nodes in the first epoch; None for half of the grid's longest side.
      final_width: width in nodes in the last epoch. A larger width gives more order but a larger quantisation error.
      init: "pca" (on the plane of the first principal components of a sample), "random" (at rows of a sample), or
        an array of initial centres [K, d].
      metric: "euclidean"; "cosine", which scales rows and centres to length 1; "correlation", which first subtracts
        from each row the mean of its features; or "manhattan", the sum of absolute differences. Centres are means under
        every metric. Under "manhattan", where medians would minimise the distances, only the search for the nearest
        centre uses the metric.
      feature_weights: weight of each feature in squared distances (in absolute differences for "manhattan"), [d], from
        1e-6 to 1e6, such as 1 / m for each feature of a group of m; None for 1.
      missing: "error", or "ignore": a NaN in X is a missing value, distances are computed over the known features and
        scaled by sqrt(d / known), and centres are means of the known values. Needs the metric "euclidean".
      batch_size: number of rows processed at once; None for about 2^24 values.
      decay: factor, at least 0 and below 1, by which each `partial_fit` multiplies the sums of earlier calls.
      random_state: seed or RandomState of the sample and of `init="random"`.
      verbose: True shows a progress bar with the quantisation error.

    Attributes:
      cluster_centers_: centres, float [K, d], in the dtype of the data. Node k is at
        `np.unravel_index(k, grid_shape)`.
      nodes_: node of every row in the last call, int32 [n]; not set if an iterable reorders its rows between passes.
      cluster_: group of every node, int32 [K]; without `n_clusters` every node is a group of its own.
      labels_: group of every row in the last call, `cluster_[nodes_]`, int32 [n]; not set if `nodes_` is not.
      quantization_error_: mean distance of the rows from their centres.
      topographic_error_: share of the rows whose two nearest centres are not neighbours on the grid, from 0 to 1.
      history_: after `fit`, arrays [n_epochs]: "width" in nodes, and "quantization_error" before each update.
      grid_: grid of the nodes, a `kvae.grids.Grid`.
      n_iter_: number of updates so far.
      n_features_in_: d.
      feature_names_in_: names of the columns, if X is a data frame.

    Example:
      >>> import kvae
      >>> from sklearn.datasets import load_iris
      >>> X, y = load_iris(return_X_y=True)
      >>> som = kvae.SOM(grid_shape=(6, 8), n_epochs=5).fit(X)
      >>> som.cluster_centers_.shape, som.labels_.shape, som.transform(X).shape
      ((48, 4), (150,), (150, 48))
      >>> kvae.SOM((6, 8), n_clusters=3).fit_predict(X).max()
      np.int32(2)
    """

    def __init__(
        self,
        grid_shape: tuple[int, ...] = (10, 10),
        *,
        n_clusters: int | None = None,
        clustering: str = "ward",
        topology: str = "plane",
        neighborhood: str = "gaussian",
        n_epochs: int = 10,
        initial_width: float | None = None,
        final_width: float = 1.0,
        init: str | ArrayLike = "pca",
        metric: str = "euclidean",
        feature_weights: ArrayLike | None = None,
        missing: str = "error",
        batch_size: int | None = None,
        decay: float = 0.9,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.grid_shape = grid_shape
        self.n_clusters = n_clusters
        self.clustering = clustering
        self.topology = topology
        self.neighborhood = neighborhood
        self.n_epochs = n_epochs
        self.initial_width = initial_width
        self.final_width = final_width
        self.init = init
        self.metric = metric
        self.feature_weights = feature_weights
        self.missing = missing
        self.batch_size = batch_size
        self.decay = decay
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Data, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Trains the map from its initial centres. Time is O(n_epochs n K d).

        Args:
          X: float [n, d]; see the class.
          y: ignored.
          sample_weight: weight of each row, float [n], at least 0; None for 1, as required for iterables of batches.

        Returns:
          The fitted estimator.

        Raises:
          InputError: a parameter or a value is out of range, or X cannot be read twice.
          ValueError: scikit-learn rejects X or the weights.
        """
        neighborhood = validate_parameters(self)
        rows = processes.agree(lambda: open_rows(self, X, sample_weight, self.batch_size, reset=True))
        self._initialize(rows, neighborhood.grid)
        self._learn(rows, neighborhood)
        return self

    def partial_fit(self, X: Data, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Updates the map once, from the sums over these rows plus `decay` times the sums of earlier calls.

        After `fit`, the earlier sums come from its last epoch. The width shrinks over the first `n_epochs` calls, as
        over the epochs of `fit`, and then stays constant. With `decay=0` and the same rows in each call, `n_epochs`
        calls are equivalent to `fit`. Time is O(n K d).

        Args:
          X, y, sample_weight: as in `fit`.

        Returns:
          The fitted estimator.

        Raises:
          InputError, ValueError: as in `fit`, and if `grid_shape`, `topology`, `metric` or `feature_weights` changed.
        """
        neighborhood = validate_parameters(self)
        is_first = not hasattr(self, "cluster_centers_")
        if not is_first:
            self._refuse_changes(neighborhood.grid)
        rows = processes.agree(lambda: open_rows(self, X, sample_weight, self.batch_size, reset=is_first))
        if is_first:
            self._initialize(rows, neighborhood.grid)
        self._learn_more(rows, neighborhood)
        return self

    def predict(self, X: Data) -> np.ndarray:
        """Returns the group of every row if `n_clusters` is set, otherwise its node: int32 [n].

        Args:
          X: float [n, d]; see the class.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X.
        """
        nodes = self.predict_nodes(X)
        return self.cluster_[nodes]

    def predict_nodes(self, X: Data) -> np.ndarray:
        """Returns the node of every row, int32 [n]. Time is O(n K d), memory O(batch_size d).

        Args:
          X: float [n, d]; see the class.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X.
        """
        return self._assign_rows(X)[0]

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Returns the distance of every row from every centre, [n, K]. Time is O(n K d), memory O(n K).

        Args:
          X: float [n, d], an array or a data frame.

        Returns:
          Distances in the dtype of X. Under the Euclidean metric, a dense row that equals a centre has distance 0.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X.
        """
        check_is_fitted(self)
        vectors = validated_rows(self, X)
        if not scipy.sparse.issparse(vectors):
            refuse_unknown_rows(vectors)
        return self._coordinates.distances(vectors, self.cluster_centers_)

    def impute(self, X: ArrayLike, reference: ArrayLike | None = None) -> np.ndarray:
        """Returns the rows, [n, d], with missing values filled from their nearest centres. Needs `missing="ignore"`.

        Args:
          X: float [n, d], an array or a data frame; NaN marks a missing value.
          reference: rows that show which features deviate together, float [m, d], such as the training data. Missing
            values then deviate from the centre as the row's known values predict (`missing.predict_deviations`), which
            is usually more accurate.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X. InputError: a row has no known
          value, X has NaN and `missing` is "error", or X is sparse.

        Example:
          >>> import numpy as np, kvae
          >>> X = np.array([[0.0, 0.0], [0.1, np.nan], [9.0, 5.0], [9.1, 5.0]])
          >>> som = kvae.SOM((2,), missing="ignore", neighborhood="none").fit(X)
          >>> som.impute(X)[1].tolist()
          [0.1, 0.0]
        """
        vectors, filled, deviations = self._deviate(X)
        if reference is not None:
            deviations = predict_deviations(deviations, self._deviate(reference)[2])
            filled = (filled + self._coordinates.unscaled(deviations)).astype(vectors.dtype)
        return np.where(np.isnan(vectors), filled, vectors)

    def score(self, X: Data, y: None = None, sample_weight: ArrayLike | None = None) -> float:
        """Returns minus the quantisation error of X, so that larger is better. Time is O(n K d).

        Args:
          X, y, sample_weight: as in `fit`.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X or the weights.
        """
        return -self._assign_rows(X, sample_weight)[1]

    def clusters(self, n_clusters: int) -> np.ndarray:
        """Groups the nodes by the method `clustering`. The cost does not depend on the number of rows.

        `som.clusters(5)[som.predict_nodes(X)]` assigns the rows of X to five groups, as `n_clusters=5` does.

        Args:
          n_clusters: number of groups, from 1 to K.

        Returns:
          The group of each node, int32 [K].

        Raises:
          NotFittedError: the map is not fitted. InputError: `n_clusters` is out of range.
        """
        check_is_fitted(self)
        validate("clustering", self.clustering, PARAMETERS["clustering"])
        return self._group_nodes(validate_n_clusters(n_clusters, self.grid_))

    def plot(self, X: Data | None = None, y: ArrayLike | None = None) -> "Figure":
        """Draws the U-matrix, hits of X, classes of y and component planes on one page; see `kvae.plots.page`."""
        from kvae import plots

        return plots.page(self, X, y)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = self.missing == "ignore"
        tags.input_tags.sparse = self.missing == "error" and self.metric in SPARSE_METRICS
        return tags
