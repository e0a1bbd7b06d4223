"""Kohonen's self-organising map as a scikit-learn estimator: `kvae.SOM`."""

import warnings
from typing import TYPE_CHECKING, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from kvae.grids import Grid
from kvae.kohonen import Statistics
from kvae.som import blocks
from kvae.som.clustering import ward_clusters
from kvae.som.coordinates import Coordinates
from kvae.som.distances import center_distances
from kvae.som.initial import SAMPLE_ROWS, initial_centers
from kvae.som.parameters import validate_parameters
from kvae.som.rows import Data, RowReader, open_rows, validated_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SOM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Self-organising map: clustering with centres on a grid, where neighbouring centres are similar.

    The map is trained by Kohonen's batch algorithm (Eqs. 19-21 of Irie et al., 2023). In each epoch every centre
    becomes a weighted mean of the rows,

        w_k = sum_i A[k, c_i] x_i / sum_i A[k, c_i],    c_i = argmin_k |x_i - w_k|,

    where the neighbourhood A weights a row by the distance on the grid between node k and the row's node c_i. The width
    of A shrinks from epoch to epoch by a constant factor. Without a neighbourhood the algorithm is K-means.

    `X` may be an array [n, d], a data frame or a memory-mapped array, which is read in batches. Except in `transform`
    it may also be an iterable of batches, such as a list of arrays or a data loader. If a batch is a tuple, such as
    (rows, labels), its first element is used. `fit` reads the first batches for its sample, then all of them once for
    each epoch and once for `labels_`. The sums are exact for any split into batches.

    An epoch takes O(n K d) time, plus O(K^2 d) for the neighbourhood (less for "hard", and for "gaussian" on a plane
    or torus). Working memory is O(batch_size d + K d) on the devices, plus O(K^2) if the neighbourhood needs its
    matrix. Data of up to 1 GiB on a CPU (16 GiB on an accelerator) stay on the devices between epochs.

    Args:
      grid_shape: number of nodes along each axis of the grid; K is their product.
      topology: "plane", "torus", "hexagonal", or a name added to `kvae.GRIDS`.
      neighborhood: weight of a node at distance D on the grid, for a width w: "gaussian", exp(-D^2 / w^2);
        "exponential", exp(-D / w); "hard", min(1, w^2) where D < 1.5; "none", 0; or a name added to
        `kvae.NEIGHBORHOODS`. The node itself has weight 1. A Gaussian has sigma = w / sqrt(2).
      n_epochs: number of passes over the data, with one update each.
      initial_width: width in nodes in the first epoch; None for half of the grid's longest side.
      final_width: width in nodes in the last epoch. A larger width gives more order but a larger quantisation error.
      init: "pca" (on the plane of the first principal components of a sample), "random" (at rows of a sample), or
        an array of initial centres [K, d].
      metric: "euclidean", or "cosine", which scales rows and centres to length 1.
      batch_size: number of rows processed at once; None for about 2^24 values.
      decay: factor, at least 0 and below 1, by which each `partial_fit` multiplies the sums of earlier calls.
      random_state: seed or RandomState of the sample and of `init="random"`.
      verbose: True shows a progress bar with the quantisation error.

    Attributes:
      cluster_centers_: centres, float [K, d], in the dtype of the data. Node k is at
        `np.unravel_index(k, grid_shape)`.
      labels_: node of every row in the last call, int32 [n]; not set if an iterable reorders its rows between passes.
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
      >>> som.quantization_error_ < 0.5, som.topographic_error_ < 0.2
      (True, True)
      >>> groups = som.clusters(3)[som.predict(X)]  # a group for each row
    """

    cluster_centers_: np.ndarray
    labels_: np.ndarray
    quantization_error_: float
    topographic_error_: float
    history_: dict[str, np.ndarray]
    grid_: Grid
    n_iter_: int

    def __init__(
        self,
        grid_shape: tuple[int, ...] = (10, 10),
        *,
        topology: str = "plane",
        neighborhood: str = "gaussian",
        n_epochs: int = 10,
        initial_width: float | None = None,
        final_width: float = 1.0,
        init: str | ArrayLike = "pca",
        metric: str = "euclidean",
        batch_size: int | None = None,
        decay: float = 0.9,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.grid_shape = grid_shape
        self.topology = topology
        self.neighborhood = neighborhood
        self.n_epochs = n_epochs
        self.initial_width = initial_width
        self.final_width = final_width
        self.init = init
        self.metric = metric
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
        rows = open_rows(self, X, sample_weight, self.batch_size, reset=True)
        self._initialize(rows, neighborhood.grid)
        coordinates = self._coordinates
        with coordinates.precision():
            cache = list(coordinates.blocks(rows)) if blocks.fits_cache(rows.nbytes) else None
            codewords, errors = coordinates.codewords(self.cluster_centers_), []
            with tqdm(range(self.n_epochs), disable=not self.verbose, desc="SOM", unit="epoch") as epochs:
                for epoch in epochs:
                    sums = blocks.sum_blocks(cache or coordinates.blocks(rows), codewords, self.metric)
                    codewords, error = self._update(sums, neighborhood, epoch, codewords)
                    errors.append(error)
                    if self.verbose:
                        epochs.set_postfix(quantization_error=f"{coordinates.distance(error):.4g}")
                    self._sums = sums
            self._sums = jax.tree.map(np.asarray, self._sums)
            self._store(codewords, self.n_epochs, rows, cache)
        widths = [self._width(epoch) for epoch in range(self.n_epochs)]
        errors = [coordinates.distance(error) for error in errors]
        self.history_ = {"width": np.array(widths), "quantization_error": np.array(errors)}
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
          InputError, ValueError: as in `fit`.
        """
        neighborhood = validate_parameters(self)
        is_first = not hasattr(self, "cluster_centers_")
        rows = open_rows(self, X, sample_weight, self.batch_size, reset=is_first)
        if is_first:
            self._initialize(rows, neighborhood.grid)
        coordinates = self._coordinates
        with coordinates.precision():
            codewords = coordinates.codewords(self.cluster_centers_)
            sums = blocks.sum_blocks(coordinates.blocks(rows), codewords, self.metric)
            self._sums = jax.tree.map(lambda old, new: self.decay * old + np.asarray(new), self._sums, sums)
            codewords, _ = self._update(self._sums, neighborhood, self.n_iter_, codewords)
            self._store(codewords, self.n_iter_ + 1, rows)
        return self

    def predict(self, X: Data) -> np.ndarray:
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
          Distances in the dtype of X. Under the Euclidean metric, a row that equals a centre has distance exactly 0.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X.
        """
        check_is_fitted(self)
        return center_distances(validated_rows(self, X), self.cluster_centers_, self._coordinates)

    def score(self, X: Data, y: None = None, sample_weight: ArrayLike | None = None) -> float:
        """Returns minus the quantisation error of X, so that larger is better. Time is O(n K d).

        Args:
          X, y, sample_weight: as in `fit`.

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects X or the weights.
        """
        return -self._assign_rows(X, sample_weight)[1]

    def clusters(self, n_clusters: int) -> np.ndarray:
        """Groups the nodes into connected regions by Ward's method. The cost does not depend on the number of rows.

        `som.clusters(5)[som.predict(X)]` assigns the rows of X to five groups.

        Args:
          n_clusters: number of groups, from 1 to K.

        Returns:
          The group of each node, int64 [K].

        Raises:
          NotFittedError: the map is not fitted. ValueError: scikit-learn rejects `n_clusters`.
        """
        check_is_fitted(self)
        return ward_clusters(self._coordinates.scaled(self.cluster_centers_), self.grid_, n_clusters)

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
        return tags

    def _initialize(self, rows: RowReader, grid: Grid) -> None:
        self.grid_, self.n_iter_ = grid, 0
        random = check_random_state(self.random_state)
        vectors, weights = rows.sample(max(SAMPLE_ROWS, grid.size), random)
        self._coordinates = coordinates = Coordinates.of_sample(vectors, weights, self.metric)
        self.cluster_centers_ = initial_centers(self.init, vectors, weights, grid, random, coordinates)
        zeros = np.zeros_like(self.cluster_centers_)
        self._sums = blocks.BlockSums(Statistics(zeros, zeros[:, 0]), zeros[0, 0])

    def _width(self, update: int) -> float:
        initial = self.initial_width or max(self.final_width, max(self.grid_.shape) / 2)
        return initial * (self.final_width / initial) ** min(1.0, update / max(1, self.n_epochs - 1))

    def _update(self, sums, neighborhood, update: int, codewords) -> tuple[jax.Array, jax.Array]:
        return blocks.update_codewords(sums, neighborhood, jnp.float32(self._width(update)), codewords, self.metric)

    def _assign(self, counted_blocks) -> tuple[np.ndarray, float, float]:
        codewords = self._coordinates.codewords(self.cluster_centers_)
        codes, error, disorder = blocks.assign_blocks(counted_blocks, codewords, self.grid_, self.metric)
        return codes, self._coordinates.distance(error), disorder

    def _assign_rows(self, X, sample_weight=None) -> tuple[np.ndarray, float, float]:
        check_is_fitted(self)
        rows = open_rows(self, X, sample_weight, self.batch_size, reset=False)
        with self._coordinates.precision():
            return self._assign(self._coordinates.blocks(rows))

    def _store(self, codewords: jax.Array, n_iter: int, rows: RowReader, cache: list | None = None) -> None:
        self.cluster_centers_, self.n_iter_ = self._coordinates.centers(codewords), n_iter
        assigned = self._assign(cache or self._coordinates.blocks(rows))
        self.labels_, self.quantization_error_, self.topographic_error_ = assigned
        if not rows.is_ordered():
            del self.labels_
            message = (
                "X yields its rows in a different order in each pass, so labels_ is not set; call predict on an array"
            )
            warnings.warn(message, UserWarning, stacklevel=3)
