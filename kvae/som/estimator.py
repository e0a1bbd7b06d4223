"""Kohonen's self-organising map as a scikit-learn estimator: `kvae.SOM`."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics.pairwise import cosine_distances
from sklearn.preprocessing import normalize
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from tqdm import tqdm

from kvae.core.errors import InputError, choose
from kvae.core.fields import Count, Counts, Natural, OneOf, Positive, Share, validate
from kvae.grids import GRIDS, make_grid
from kvae.kohonen import Statistics
from kvae.som import batches
from kvae.som.rows import FLOATS, Rows, rows_of
from kvae.topology import NEIGHBORHOODS, Neighborhood

SAMPLE_ROWS = 2_000
"""Of how many rows, at least, the first codewords are made."""

KEPT_BYTES = {"cpu": 2**30}
"""Up to which size data stay on the devices from epoch to epoch; 2^34 on accelerators."""

PARAMETERS = {
    "grid_shape": Counts,
    "topology": Annotated[str, OneOf(GRIDS)],
    "neighborhood": Annotated[str, OneOf(NEIGHBORHOODS)],
    "n_epochs": Natural,
    "initial_width": Positive | None,
    "final_width": Positive,
    "metric": Annotated[str, OneOf(batches.METRICS)],
    "batch_size": Count | None,
    "decay": Share,
}


class SOM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Kohonen's self-organising map in its batch form: clusters whose centres lie on a grid, near ones being alike.

    In each epoch every centre becomes the mean of the vectors that are nearest to it or, by a weight that falls with
    the distance on the grid, to its neighbours (Eqs. 19-21 of Irie et al., 2023). The width of the neighbourhood falls
    from epoch to epoch by a constant factor. The sums are exact however the data are cut into batches.

    Wherever `X` stands it may be an array, a data frame, a memory-mapped array, which is read in batches, or, but for
    `transform`, an iterable of batches [n, d], such as a list of arrays or a data loader: `fit` looks at the first
    ones, and runs through all once for each epoch and once more.

        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> som = kvae.SOM(grid_shape=(12, 12)).fit(X)
        >>> som.predict(X[:2])      # the node of each row; node k is at np.unravel_index(k, (12, 12))

    Args:
      grid_shape: nodes along each axis of the grid; K is their product.
      topology: "plane", "torus" or "hexagonal", or a name that was added to `kvae.GRIDS`.
      neighborhood: how the weight falls with the distance D on the grid: "gaussian", exp(-D^2 / width^2);
        "exponential", exp(-D / width); "hard", min(1, width^2) within 1.5 nodes; "none", which is K-means; or a
        name added to `kvae.NEIGHBORHOODS`. The width is sqrt(2) times what others call sigma.
      n_epochs: how often all data are seen, each time for one update.
      initial_width: in nodes, of the first epoch; by default half of the grid's longest side.
      final_width: in nodes, of the last epoch.
      init: "pca", on the plane of the first principal components of a sample; "random", rows of the data; or the
        centres, [K, d].
      metric: "euclidean", or "cosine", where vectors and centres are scaled to length 1.
      batch_size: rows that are worked on at once; by default as many as have 2^24 numbers.
      decay: for `partial_fit`, how much the statistics of earlier calls still count at the next.
      random_state: of the sample, a seed or a RandomState.
      verbose: shows the epochs as they pass, with the error so far.

    Attributes:
      cluster_centers_: [K, d], the codewords, of the type of the data.
      labels_: int32 [n], the node of every row of the data (of the last batch, after `partial_fit`).
      quantization_error_: mean distance of the rows from their centres.
      topographic_error_: share of the rows whose two nearest centres are not neighbours on the grid, from 0 to 1.
      history_: by name, [n_epochs]: "width", and "quantization_error" before the update of the epoch.
      grid_: the `kvae.grids.Grid`.
      n_iter_: updates done.
      n_features_in_: d.

    Raises:
      InputError: a parameter that is out of range; ValueError: data that scikit-learn refuses.
    """

    def __init__(
        self,
        grid_shape=(10, 10),
        *,
        topology="plane",
        neighborhood="gaussian",
        n_epochs=10,
        initial_width=None,
        final_width=0.5,
        init="pca",
        metric="euclidean",
        batch_size=None,
        decay=0.9,
        random_state=None,
        verbose=False,
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

    def fit(self, X, y=None, sample_weight=None):
        """Trains the map from its start.

        Args:
          X: float [n, d]; see the class.
          y: ignored.
          sample_weight: [n], how often each row counts; not for an iterable of batches.
        """
        self._neighborhood()
        rows = self._rows(X, sample_weight, reset=True)
        self._start(rows)
        with self._precision():
            is_kept = rows.bytes is not None and rows.bytes <= KEPT_BYTES.get(jax.default_backend(), 2**34)
            kept = list(self._placed(rows)) if is_kept else None
            codewords, errors = self._codewords(), []
            with tqdm(range(self.n_epochs), disable=not self.verbose, desc="SOM", unit="epoch") as epochs:
                for epoch in epochs:
                    summary = self._summary(kept or self._placed(rows), codewords)
                    codewords, error = self._moved(summary, epoch, codewords)
                    errors.append(error)
                    if self.verbose:
                        epochs.set_postfix(quantization_error=f"{error:.4g}")
                    self._remembered = summary
            self._remembered = jax.tree.map(np.asarray, self._remembered)
            self._keep(codewords, self.n_epochs)
            self._judge(kept or self._placed(rows))
        widths = [self._width(epoch) for epoch in range(self.n_epochs)]
        self.history_ = {"width": np.array(widths), "quantization_error": np.array(errors, float)}
        return self

    def partial_fit(self, X, y=None, sample_weight=None):
        """One update, by the statistics of these rows and, `decay` times for each call, of those before.

        After `fit`, those before are its last epoch's. The width falls over the first `n_epochs` calls, as it does over
        the epochs of `fit`, and stays. With `decay` 0 and all data at each call, `n_epochs` calls are a `fit`.
        """
        self._neighborhood()
        is_first = not hasattr(self, "cluster_centers_")
        rows = self._rows(X, sample_weight, reset=is_first)
        if is_first:
            self._start(rows)
        with self._precision():
            codewords = self._codewords()
            summary = self._summary(self._placed(rows), codewords)
            self._remembered = jax.tree.map(
                lambda old, new: self.decay * old + np.asarray(new), self._remembered, summary
            )
            self._keep(self._moved(self._remembered, self.n_iter_, codewords)[0], self.n_iter_ + 1)
            self._judge(self._placed(rows))
        return self

    def predict(self, X):
        """The node of every row, int32 [n]."""
        check_is_fitted(self)
        rows = self._rows(X)
        with self._precision():
            return self._judged(self._placed(rows))[0]

    def transform(self, X):
        """Distances of every row from every centre, [n, K], of the type of X."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        # Euclidean ones by differences, not by a product of matrices: a row on its centre is at 0.
        distances = {"euclidean": cdist, "cosine": cosine_distances}[self.metric](X, self.cluster_centers_)
        return distances.astype(X.dtype, copy=False)

    def score(self, X, y=None, sample_weight=None):
        """The mean distance of the rows from their centres, times -1: larger is better."""
        check_is_fitted(self)
        rows = self._rows(X, sample_weight)
        with self._precision():
            return -self._judged(self._placed(rows))[1]

    def clusters(self, n_clusters: int) -> np.ndarray:
        """Groups of nodes that hang together on the grid, by Ward's method on their centres: int64 [K].

        `som.clusters(5)[som.predict(X)]` are the groups of rows.
        """
        check_is_fitted(self)
        codes, there = self.grid_.neighbors(next(iter(self.grid_.adjacency.values())))
        own = np.broadcast_to(np.arange(self.grid_.size), codes.shape)
        links = scipy.sparse.coo_array((np.ones(there.sum()), (own[there], codes[there])), shape=[self.grid_.size] * 2)
        ward = AgglomerativeClustering(n_clusters, linkage="ward", connectivity=links.tocsr())
        return ward.fit_predict(self.cluster_centers_)

    def plot(self, X=None, y=None):
        """A page of pictures, a matplotlib figure: `kvae.plots.page`; that module has them one by one."""
        from kvae import plots

        check_is_fitted(self)
        return plots.page(self, X, y)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _neighborhood(self) -> Neighborhood:
        """What the parameters ask for; raises InputError where one is out of range."""
        given = {name: validate(name, getattr(self, name), kind) for name, kind in PARAMETERS.items()}
        return Neighborhood(make_grid(given["topology"], given["grid_shape"]), given["neighborhood"])

    def _rows(self, X, sample_weight=None, reset=False) -> Rows:
        return rows_of(self, X, sample_weight, self.batch_size, reset=reset)

    def _start(self, rows):
        """The first centres, by which the type of all others is set."""
        self.grid_ = self._neighborhood().grid
        random = check_random_state(self.random_state)
        vectors, weights = rows.sample(max(SAMPLE_ROWS, self.grid_.size), random)
        is_cosine = self.metric == "cosine"
        vectors = normalize(vectors) if is_cosine else vectors
        # Distances are found by squares, which lose their digits far from the origin.
        self._offset = np.zeros_like(vectors[0]) if is_cosine else np.average(vectors, axis=0, weights=weights)
        self._offset = self._offset.astype(vectors.dtype)
        centers = self._first_centers(vectors, weights, random).astype(vectors.dtype)
        self.cluster_centers_ = normalize(centers) if is_cosine else centers
        self.n_iter_ = 0
        zeros = np.zeros_like(centers)
        self._remembered = batches.Summary(Statistics(zeros, zeros[:, 0]), zeros[0, 0])

    def _first_centers(self, vectors, weights, random):
        shape = (self.grid_.size, vectors.shape[1])
        if not isinstance(self.init, str):
            centers = check_array(self.init, dtype=vectors.dtype)
            if centers.shape != shape:
                raise InputError(f"init has the shape {centers.shape}; this grid and these data need {shape}")
            return centers
        return choose("init", self.init, batches.INITIAL)(vectors, weights, self.grid_, random)

    def _codewords(self):
        return batches.everywhere(self.cluster_centers_ - self._offset)

    def _keep(self, codewords, n_iter):
        self.cluster_centers_ = np.asarray(codewords) + self._offset
        self.n_iter_ = n_iter

    def _precision(self):
        """Sums of float64 data are float64; lookups are always float32."""
        return jax.enable_x64(self.cluster_centers_.dtype == np.float64)

    def _placed(self, rows) -> Iterator[tuple[batches.Batch, int]]:
        """Batches on the devices, and how many rows of each are rows of the data."""
        for vectors, weights in rows.read():
            vectors = vectors.astype(self.cluster_centers_.dtype, copy=False)
            vectors = normalize(vectors) if self.metric == "cosine" else vectors - self._offset
            yield batches.placed(vectors, weights), len(vectors)

    def _summary(self, placed, codewords) -> batches.Summary:
        return batches.summary_of((batch for batch, _ in placed), codewords, self.metric)

    def _width(self, update: int) -> float:
        """Width of the neighbourhood, in nodes, after so many updates."""
        initial = self.initial_width or max(self.final_width, max(self.grid_.shape) / 2)
        share = min(1.0, update / max(1, self.n_epochs - 1))
        return initial * (self.final_width / initial) ** share

    def _moved(self, summary, update, codewords):
        neighborhood = self._neighborhood()
        return batches.moved(summary, neighborhood, jnp.float32(self._width(update)), codewords, self.metric)

    def _judged(self, placed: Iterable) -> tuple[np.ndarray, float, float]:
        """Codes int32 [n], quantisation error and topographic error."""
        codewords = self._codewords()
        codes, sums = [], []
        for batch, count in placed:
            found = batches.judged(batch, codewords, self.grid_, self.metric)
            codes.append(np.asarray(found.codes)[:count])
            sums.append(found[1:])
        error, disordered, weight = np.sum(sums, axis=0)
        return np.concatenate(codes), float(error / weight), float(disordered / weight)

    def _judge(self, placed):
        self.labels_, self.quantization_error_, self.topographic_error_ = self._judged(placed)
