"""Measures `kvae.SOM` and other libraries on real data sets: time, errors, populations and missing values."""

import functools
import importlib.util
import itertools
import math
import time
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from kvae.benchmark.real_sets import Rows, read_set
from kvae.benchmark.soms import FIT_EPOCHS, SLOW_LIBRARIES, installed_fits, time_fits
from kvae.benchmark.timing import log_progress
from kvae.core.errors import InputError
from kvae.kohonen import nearest_code
from kvae.som import SOM

GRIDS = {"cytometry": (30, 30), "peppaPic": (30, 30), "letters": (20, 20), "satellite": (20, 20)}
"""Grid of the map of each data set."""

POPULATION_GRID, POPULATIONS, SEEDS = (10, 10), 15, 10
"""Grid for populations, number of populations of a set without labels, and number of seeds."""

FITTED = 0.8
"""Share of the rows that populations are fitted on."""

SLOW_DISTANCES = 1e9
"""Slow libraries are left out if a fit computes more distances than this."""

HIDDEN = 0.1
"""Share of the known values that are hidden, to measure imputation."""


def compare_real_maps(folders: Sequence[str]) -> dict[str, dict]:
    """Measures all data sets that are found: {"set: library": {measure: value}}.

    Args:
      folders: folders to search for the files of the data sets.
    """
    rows, found = {}, {}
    for name in (*GRIDS, "yeast"):
        try:
            found[name] = read_set(name, folders)
        except InputError as error:
            log_progress(str(error))
    for name in [name for name in GRIDS if name in found]:
        rows |= {f"{name}, {label}": row for label, row in measure_maps(found[name], GRIDS[name]).items()}
    for name in [name for name in GRIDS if name in found]:
        rows |= {f"{name}, {label}": row for label, row in measure_populations(found[name]).items()}
    if "yeast" in found:
        rows |= {f"yeast, {label}": row for label, row in measure_imputation(found["yeast"].vectors).items()}
    if not rows:
        raise InputError("no data set was found; the lines above say how to get them")
    return rows


def measure_maps(data: Rows, grid: tuple[int, ...]) -> dict[str, dict]:
    """Returns the seconds and errors of a map by library, and how well its nodes separate the labels."""
    nodes = math.prod(grid)
    start = np.random.default_rng(1).permutation(data.vectors)[:nodes]
    is_large = len(data.vectors) * nodes * FIT_EPOCHS > SLOW_DISTANCES
    fits, slow = installed_fits(without=SLOW_LIBRARIES if is_large else ())
    fits |= {"MiniBatchKMeans": fit_kmeans}
    label = f"{len(data.vectors):,} x {data.vectors.shape[1]}, {grid[0]} x {grid[1]}"
    rows, codewords = time_fits(fits, slow, data.vectors, start, grid)
    rows["MiniBatchKMeans"].pop("topographic_error")  # it has no grid
    if data.labels is not None:
        for name, trained in codewords.items():
            rows[name] |= separation(np.asarray(nearest_code(data.vectors, trained)), data.labels)
    return {f"{label}: {name}": row for name, row in rows.items()}


def fit_kmeans(data: np.ndarray, start: np.ndarray, grid: tuple[int, ...], epochs: int) -> np.ndarray:
    """Fits scikit-learn's MiniBatchKMeans from the same start; see `kvae.benchmark.soms.Fit`."""
    means = MiniBatchKMeans(len(start), init=start, n_init=1, max_iter=epochs, random_state=0)
    return means.fit(data).cluster_centers_


def separation(nodes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the purity, the share of rows with the most frequent label of their node, and the NMI.

    Example:
      >>> import numpy as np
      >>> separation(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 7]))["purity"]
      0.75
    """
    _, names = np.unique(labels, return_inverse=True)
    counts = np.zeros((nodes.max() + 1, names.max() + 1), int)
    np.add.at(counts, (nodes, names), 1)
    return {"purity": float(counts.max(axis=1).sum() / len(nodes)), "nmi": normalized_mutual_info_score(labels, nodes)}


def measure_populations(data: Rows) -> dict[str, dict]:
    """Returns, by method, the seconds, the stability of populations, and their agreement with the labels.

    Each of ten seeds draws `FITTED` of the rows; the method is fitted on them and assigns all rows to populations.
    Stability is the mean adjusted Rand index between two seeds.
    """
    count = POPULATIONS if data.labels is None else len(np.unique(data.labels))
    rows = {}
    for name, assign in POPULATION_METHODS.items():
        if name == "FlowSOM" and importlib.util.find_spec("flowsom") is None:
            log_progress("FlowSOM is left out, because it is not installed: pip install flowsom")
            continue
        found, seconds = [], []
        for seed in (0, *range(SEEDS)):  # the first one twice, because it compiles
            drawn = np.random.default_rng(seed).random(len(data.vectors)) < FITTED
            started = time.perf_counter()
            found.append(assign(data.vectors[drawn], data.vectors, count, seed))
            seconds.append(time.perf_counter() - started)
        pairs = list(itertools.combinations(found[1:], 2))
        row = {"seconds": float(np.median(seconds[1:]))}
        row["stability"] = float(np.mean([adjusted_rand_score(a, b) for a, b in pairs]))
        if data.labels is not None:
            row["ari_with_labels"] = float(np.mean([adjusted_rand_score(data.labels, one) for one in found[1:]]))
        rows[f"{count} populations: {name}"] = row
        log_progress(f"{name}: {row['seconds']:.1f} s for {count} populations")
    return rows


def kvae_populations(fitted: np.ndarray, data: np.ndarray, count: int, seed: int, clustering: str) -> np.ndarray:
    """Assigns rows to populations with `kvae.SOM`."""
    som = SOM(POPULATION_GRID, n_clusters=count, clustering=clustering, random_state=seed)
    return som.fit(fitted).predict(data)


def kmeans_populations(fitted: np.ndarray, data: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assigns rows to populations with MiniBatchKMeans."""
    return MiniBatchKMeans(count, n_init=3, random_state=seed).fit(fitted).predict(data)


def flowsom_populations(fitted: np.ndarray, data: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assigns rows to populations with FlowSOM: a map, and consensus of hierarchies of its nodes."""
    from flowsom.models import FlowSOMEstimator

    rows, columns = POPULATION_GRID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(seed)  # the resampling has no seed of its own
        model = FlowSOMEstimator(xdim=rows, ydim=columns, seed=seed, n_clusters=count)
        return np.asarray(model.fit(fitted.astype(np.float64)).predict(data.astype(np.float64)))


POPULATION_METHODS = {
    "kvae, Ward": functools.partial(kvae_populations, clustering="ward"),
    "kvae, consensus": functools.partial(kvae_populations, clustering="consensus"),
    "FlowSOM": flowsom_populations,
    "MiniBatchKMeans": kmeans_populations,
}
"""Methods by name: functions of the rows to fit on, all rows, the number of populations and the seed, to int [n]."""


def measure_imputation(vectors: np.ndarray) -> dict[str, dict]:
    """Returns, by method, the root mean square error of values that were known and are hidden; means of three seeds."""

    def with_som(hidden: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
        return SOM(POPULATION_GRID, missing="ignore", n_epochs=20).fit(hidden).impute(hidden, reference)

    methods = {
        "kvae": lambda hidden: with_som(hidden, None),
        "kvae, with a reference": lambda hidden: with_som(hidden, hidden),
        "KNNImputer": KNNImputer().fit_transform,
        "mean of the feature": SimpleImputer().fit_transform,
    }
    errors = {name: [] for name in methods}
    for seed in range(3):
        hide = (np.random.default_rng(seed).random(vectors.shape) < HIDDEN) & ~np.isnan(vectors)
        hidden = np.where(hide, np.nan, vectors)
        kept = ~np.isnan(hidden).all(axis=1)
        for name, fill in methods.items():
            filled = fill(hidden[kept])
            errors[name].append(np.sqrt(np.mean(np.square(filled - vectors[kept])[hide[kept]])))
    return {f"imputation: {name}": {"imputation_error": float(np.mean(values))} for name, values in errors.items()}
