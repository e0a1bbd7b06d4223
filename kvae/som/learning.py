"""The batch algorithm over rows as private methods of an estimator."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from kvae.core.errors import InputError, short_repr
from kvae.grids import Grid
from kvae.kohonen import Statistics
from kvae.som import blocks, processes
from kvae.som.clustering import CLUSTERINGS
from kvae.som.coordinates import Coordinates
from kvae.som.initial import SAMPLE_ROWS, initial_centers
from kvae.som.metrics import Metric, choose_metric
from kvae.som.missing import fill_by_means, refuse_unknown_features
from kvae.som.parameters import validate_feature_weights
from kvae.som.rows import Data, RowReader, open_rows, validated_rows
from kvae.topology import Neighborhood


class MapLearner(BaseEstimator):
    """Learns a map from rows, and assigns rows to nodes. Abstract: `kvae.SOM` declares and documents the parameters."""

    cluster_centers_: np.ndarray
    labels_: np.ndarray
    nodes_: np.ndarray
    cluster_: np.ndarray
    quantization_error_: float
    topographic_error_: float
    history_: dict[str, np.ndarray]
    grid_: Grid
    n_iter_: int
    _coordinates: Coordinates
    _sums: blocks.BlockSums

    def _initialize(self, rows: RowReader, grid: Grid) -> None:
        self.grid_, self.n_iter_ = grid, 0
        random = check_random_state(processes.shared_seed(self.random_state))
        sample = processes.agree(lambda: rows.sample(max(SAMPLE_ROWS, grid.size), random))
        vectors, weights = processes.join_samples(*sample)
        vectors = fill_by_means(vectors, weights)
        feature_weights = validate_feature_weights(self.feature_weights, vectors.shape[1])
        self._coordinates = coordinates = Coordinates.of_sample(vectors, weights, self.metric, feature_weights)
        self.cluster_centers_ = initial_centers(self.init, vectors, weights, grid, random, coordinates)
        zeros = np.zeros_like(self.cluster_centers_)
        self._sums = blocks.BlockSums(Statistics(zeros, zeros[:, :1]), zeros[0, 0], zeros[0, 0])

    def _learn(self, rows: RowReader, neighborhood: Neighborhood) -> None:
        """Runs all epochs from the initial centres."""
        coordinates = self._coordinates
        with coordinates.precision():
            is_cached = blocks.fits_cache(rows.nbytes)
            cache = processes.agree(lambda: list(coordinates.blocks(rows)) if is_cached else None)
            codewords, errors = coordinates.codewords(self.cluster_centers_), []
            with tqdm(range(self.n_epochs), disable=not self.verbose, desc="SOM", unit="epoch") as epochs:
                for epoch in epochs:
                    sums = self._sum(cache or coordinates.blocks(rows), codewords)
                    codewords, error = self._update(sums, neighborhood, epoch, codewords)
                    errors.append(error)
                    if self.verbose:
                        epochs.set_postfix(quantization_error=f"{coordinates.distance(error):.4g}")
                    self._sums = sums
            self._sums = jax.tree.map(np.asarray, self._sums)
            if self.n_epochs > 0:
                refuse_unknown_features(self._sums.statistics.counts)
            self._store(codewords, self.n_epochs, rows, cache)
        widths = [self._width(epoch) for epoch in range(self.n_epochs)]
        errors = [coordinates.distance(error) for error in errors]
        self.history_ = {"width": np.array(widths), "quantization_error": np.array(errors)}

    def _learn_more(self, rows: RowReader, neighborhood: Neighborhood) -> None:
        """Updates the map once, from the sums over these rows plus `decay` times the sums of earlier calls."""
        coordinates = self._coordinates
        with coordinates.precision():
            codewords = coordinates.codewords(self.cluster_centers_)
            sums = self._sum(coordinates.blocks(rows), codewords)
            self._sums = jax.tree.map(lambda old, new: self.decay * old + np.asarray(new), self._sums, sums)
            codewords, _ = self._update(self._sums, neighborhood, self.n_iter_, codewords)
            self._store(codewords, self.n_iter_ + 1, rows)

    def _refuse_changes(self, grid: Grid) -> None:
        """Raises InputError if a parameter that the map was trained with has changed."""
        fitted = self._coordinates
        weights = validate_feature_weights(self.feature_weights, len(fitted.offset))
        for name, is_same in (
            ("grid_shape", grid.shape == self.grid_.shape),
            ("topology", grid == self.grid_),
            ("metric", self.metric == fitted.metric),
            ("feature_weights", np.array_equal(weights, fitted.feature_weights)),
        ):
            if not is_same:
                value = short_repr(getattr(self, name))
                raise InputError(f"{name} is {value}, but the map has another one; call fit to train a new map")

    @property
    def _metric(self) -> Metric:
        return choose_metric(self._coordinates.metric, self.missing)

    def _width(self, update: int) -> float:
        initial = self.initial_width or max(self.final_width, max(self.grid_.shape) / 2)
        return initial * (self.final_width / initial) ** min(1.0, update / max(1, self.n_epochs - 1))

    def _update(self, sums, neighborhood, update: int, codewords) -> tuple[jax.Array, jax.Array]:
        return blocks.update_codewords(sums, neighborhood, jnp.float32(self._width(update)), codewords, self._metric)

    def _group_nodes(self, n_clusters: int) -> np.ndarray:
        cluster = CLUSTERINGS[self.clustering]
        return cluster(self._coordinates.scaled(self.cluster_centers_), self.grid_, n_clusters)

    def _sum(self, counted_blocks, codewords) -> blocks.BlockSums:
        """Returns the sums over the rows of all processes."""
        sums = processes.agree(lambda: blocks.sum_blocks(counted_blocks, codewords, self._metric))
        return processes.add(sums)

    def _assign(self, counted_blocks) -> tuple[np.ndarray, blocks.ErrorSums]:
        codewords = self._coordinates.codewords(self.cluster_centers_)
        return blocks.assign_blocks(counted_blocks, codewords, self.grid_, self._metric)

    def _errors(self, sums: blocks.ErrorSums) -> tuple[float, float]:
        """Returns the quantisation error and the topographic error."""
        return self._coordinates.distance(float(sums.error / sums.weight)), float(sums.disordered / sums.weight)

    def _assign_rows(self, X: Data, sample_weight=None) -> tuple[np.ndarray, float, float]:
        check_is_fitted(self)
        rows = open_rows(self, X, sample_weight, self.batch_size, reset=False)
        with self._coordinates.precision():
            nodes, sums = self._assign(self._coordinates.blocks(rows))
            return nodes, *self._errors(sums)

    def _deviate(self, X: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the rows, their centres, and the rows' deviations from them in scaled coordinates, each [n, d]."""
        check_is_fitted(self)
        vectors = validated_rows(self, X)
        if scipy.sparse.issparse(vectors):
            raise InputError("X is sparse; its zeros are known values, so impute has nothing to fill")
        nodes = self._assign_rows(X)[0]
        centers, scaled = self.cluster_centers_[nodes], self._coordinates.scaled
        return vectors, centers, scaled(vectors.astype(np.float64)) - scaled(centers.astype(np.float64))

    def _store(self, codewords: jax.Array, n_iter: int, rows: RowReader, cache: list | None = None) -> None:
        self.cluster_centers_, self.n_iter_ = self._coordinates.centers(codewords), n_iter
        self.cluster_ = np.arange(self.grid_.size, dtype=np.int32)
        if self.n_clusters is not None:
            self.cluster_ = self._group_nodes(self.n_clusters)
        self.nodes_, sums = processes.agree(lambda: self._assign(cache or self._coordinates.blocks(rows)))
        self.quantization_error_, self.topographic_error_ = self._errors(processes.add(sums))
        self.labels_ = self.cluster_[self.nodes_]
        if not rows.is_ordered():
            del self.nodes_, self.labels_
            message = (
                "X yields its rows in a different order in each pass, so labels_ is not set; call predict on an array"
            )
            warnings.warn(message, UserWarning, stacklevel=4)
