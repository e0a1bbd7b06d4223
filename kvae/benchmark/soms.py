"""Times `kvae.SOM` against whichever of MiniSom, fastersom and somoclu are installed, and compares the maps' errors."""

import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.benchmark.timing import log_progress
from kvae.grids import Plane
from kvae.som import SOM

Fit = Callable[[np.ndarray, np.ndarray, tuple[int, ...], int], np.ndarray]
"""Maps (data [n, d], first codewords [K, d], grid shape, epochs) to the trained codewords [K, d]."""

CASES = [(100_000, 64, (30, 30)), (10_000, 784, (20, 20)), (100_000, 64, (100, 100))]
"""Number of rows, number of features, and grid shape of each case."""

FIT_EPOCHS, TURNS = 10, 3

WIDEST, NARROWEST = 0.5, 0.5
"""First width, as a share of the grid's longer side, and last width, in nodes; sigma = width / sqrt(2)."""


def time_soms(share: float) -> dict[str, dict]:
    """Returns the median seconds of a fit, and the errors of the map, by case and library.

    All libraries start from the same codewords and have the same widths in each epoch.

    Args:
      share: Share of the rows of each case to use, larger than 0 and at most 1.
    """
    rows = {}
    for count, dimension, grid in CASES:
        label = f"{int(count * share):,} x {dimension}, {grid[0]} x {grid[1]}"
        data = make_mixture(int(count * share), dimension)
        start = np.random.default_rng(1).permutation(data)[: grid[0] * grid[1]]
        start = np.resize(start, (grid[0] * grid[1], dimension))
        fits, slow = installed_fits(without=SLOW_LIBRARIES if grid[0] * grid[1] > 1_000 else ())
        timed, _ = time_fits(fits, slow, data, start, grid)
        rows |= {f"{label}: {name}": row for name, row in timed.items()}
    return rows


def installed_fits(without: Collection[str] = ()) -> tuple[dict[str, Fit], set[str]]:
    """Returns the fits of kvae and of the installed libraries by name and version, and which of them are slow.

    Args:
      without: Names of libraries to leave out.
    """
    fits: dict[str, Fit] = {"kvae": fit_kvae}
    slow = set()
    for name, library in LIBRARIES.items():
        if name in without:
            continue
        if importlib.util.find_spec(name.lower()) is None:
            log_progress(f"{name} is left out, because it is not installed: pip install {name.lower()}{library.note}")
            continue
        version = f"{name} {importlib.metadata.version(name.lower())}{library.form}"
        fits[version] = library.fit
        slow |= {version} if library.is_slow else set()
    return fits, slow


def time_fits(
    fits: dict[str, Fit], slow: set[str], data: np.ndarray, start: np.ndarray, grid: tuple[int, ...]
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Times fits alternately, and returns their median seconds and errors, and their codewords, by name.

    Args:
      fits: Fits by name; one is "kvae".
      slow: Names of the fits that are timed only once, without a warm-up epoch.
      data: The rows, float32 [n, d].
      start: The first codewords, float32 [K, d].
      grid: Shape of the map.
    """
    seconds, codewords = {name: [] for name in fits}, {}
    for name, fit in fits.items():
        if name not in slow:
            fit(data, start, grid, 1)  # compiles
    for turn in range(TURNS):
        for name, fit in fits.items():
            if turn and name in slow:
                continue
            started = time.perf_counter()
            codewords[name] = fit(data, start, grid, FIT_EPOCHS)
            seconds[name].append(time.perf_counter() - started)
            log_progress(f"{name}: {seconds[name][-1]:.1f} s")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = {
        name: {
            "seconds": medians[name],
            "relative_to_kvae": medians[name] / medians["kvae"],
            "quantization_error": float(measures.quantization_error(data, jnp.asarray(codewords[name]))),
            "topographic_error": float(measures.topographic_error(data, jnp.asarray(codewords[name]), Plane(grid))),
        }
        for name in fits
    }
    return rows, codewords


def make_mixture(count: int, dimension: int) -> np.ndarray:
    """Draws rows from fifty Gaussian clusters in an eight-dimensional subspace, plus noise: float32 [n, d]."""
    random = np.random.default_rng(0)
    centers, axes = random.normal(size=(50, 8)), random.normal(size=(8, dimension)) / np.sqrt(8)
    hidden = centers[random.integers(0, 50, count)] + 0.3 * random.normal(size=(count, 8))
    return (hidden @ axes + 0.1 * random.normal(size=(count, dimension))).astype(np.float32)


def epoch_widths(grid: tuple[int, ...], epochs: int) -> np.ndarray:
    """Returns the width in each epoch, in nodes, float [epochs]."""
    return np.geomspace(WIDEST * max(grid), NARROWEST, max(2, epochs))[:epochs]


def fit_kvae(data: np.ndarray, start: np.ndarray, grid: tuple[int, ...], epochs: int) -> np.ndarray:
    """Fits `kvae.SOM`; see `Fit`."""
    widths = {"initial_width": WIDEST * max(grid), "final_width": NARROWEST}
    return SOM(grid, n_epochs=epochs, init=start, **widths).fit(data).cluster_centers_


def fit_fastersom(data: np.ndarray, start: np.ndarray, grid: tuple[int, ...], epochs: int) -> np.ndarray:
    """Fits fastersom; see `Fit`. It reaches its last width one epoch after the end, so that width is adjusted."""
    import fastersom

    first, *_, last = epoch_widths(grid, max(2, epochs)) / np.sqrt(2)
    last = first * (last / first) ** (epochs / max(1, epochs - 1))
    som = fastersom.SOM(*grid, n_epochs=epochs, init=start, sigma_initial=first, sigma_final=last)
    return som.fit(data).weights_


def fit_minisom(data: np.ndarray, start: np.ndarray, grid: tuple[int, ...], epochs: int) -> np.ndarray:
    """Fits MiniSom's NumPy implementation in batch mode; see `Fit`."""
    import minisom

    sigmas = epoch_widths(grid, epochs) / np.sqrt(2)
    som = minisom.MiniSom(*grid, data.shape[1], sigma=sigmas[0], learning_rate=1.0)
    som._learning_rate_decay_function = lambda rate, epoch, epochs: rate
    som._sigma_decay_function = lambda sigma, epoch, epochs: sigmas[epoch]
    som._weights = start.reshape(*grid, -1).astype(float)
    som.train_batch_offline(data, epochs)
    return som.get_weights().reshape(start.shape).astype(np.float32)


def fit_somoclu(data: np.ndarray, start: np.ndarray, grid: tuple[int, ...], epochs: int) -> np.ndarray:
    """Fits somoclu, in which the radius is 2 sigma; see `Fit`."""
    import somoclu

    rows, columns = grid
    som = somoclu.Somoclu(columns, rows, initialcodebook=start.copy(), compactsupport=False)
    first, *_, last = np.sqrt(2) * epoch_widths(grid, max(2, epochs))
    # Its exponential cooling does not reach radiusN; its linear cooling does.
    som.train(data, epochs, radius0=first, radiusN=last, scale0=1.0, scaleN=1.0)
    return som.codebook.reshape(start.shape)


class Library(NamedTuple):
    """Another implementation of the map.

    Attributes:
      fit: Trains a map.
      is_slow: True if a fit takes minutes: it is timed only once, and not on the largest map.
      form: Suffix of its name in the table, which says what implementation is timed.
      note: Requirement of its installation, for the log.
    """

    fit: Fit
    is_slow: bool = False
    form: str = ""
    note: str = ""


LIBRARIES = {
    "MiniSom": Library(fit_minisom, is_slow=True, form=" (NumPy form)"),
    "fastersom": Library(fit_fastersom, note=" (0.6 needs Python 3.12 or newer)"),
    "somoclu": Library(fit_somoclu, is_slow=True),
}
"""Other implementations by name. The package has the same name in lower case."""

SLOW_LIBRARIES = {name for name, library in LIBRARIES.items() if library.is_slow}
"""Names of the libraries that are left out if a fit would take too long."""
