"""`kvae.SOM` beside MiniSom, fastersom and somoclu, where those are installed: seconds at equal quality."""

import importlib.util
import statistics
import time
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.benchmark.timing import say
from kvae.grids import Plane
from kvae.som import SOM

CASES = [(100_000, 64, (30, 30)), (10_000, 784, (20, 20)), (100_000, 64, (100, 100))]
"""Rows, features and grid."""

EPOCHS, TURNS = 10, 3

SLOW = {"MiniSom", "somoclu"}
"""They take minutes where others take seconds: one turn, of the smaller maps."""

INITIAL_WIDTH, FINAL_WIDTH = 0.5, 0.5
"""Of the grid's side, and in nodes; a width is sqrt(2) sigma."""


def soms(share: float) -> dict[str, dict]:
    """Median seconds of a fit, in turns, from the same codewords and at the same widths; and how good the map is.

    Args:
      share: of the rows that are used.
    """
    rows = {}
    for count, dimension, grid in CASES:
        label = f"{int(count * share):,} x {dimension}, {grid[0]} x {grid[1]}"
        data = mixture(int(count * share), dimension)
        start = np.random.default_rng(1).permutation(data)[: grid[0] * grid[1]]
        start = np.resize(start, (grid[0] * grid[1], dimension))
        fits = {"kvae": fit_kvae}
        for name, fit in PEERS.items():
            if name in SLOW and grid[0] * grid[1] > 1_000:
                continue
            if importlib.util.find_spec(name.lower()) is None:
                say(f"{name} is left out: it is not installed; pip install {name.lower()}")
            else:
                fits[name] = fit
        rows |= {f"{label}: {name}": row for name, row in in_turns(fits, data, start, grid).items()}
    return rows


def in_turns(fits: dict[str, Callable], data, start, grid) -> dict[str, dict]:
    """Runs every fit for one epoch, so that all is compiled, and then in turns."""
    seconds, codewords = {name: [] for name in fits}, {}
    for name, fit in fits.items():
        if name not in SLOW:
            fit(data, start, grid, 1)
    for turn in range(TURNS):
        for name, fit in fits.items():
            if turn and name in SLOW:
                continue
            started = time.perf_counter()
            codewords[name] = fit(data, start, grid, EPOCHS)
            seconds[name].append(time.perf_counter() - started)
            say(f"{name}: {seconds[name][-1]:.1f} s")
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {
        name: {
            "seconds": medians[name],
            "times_kvae's": medians[name] / medians["kvae"],
            "quantization_error": float(measures.quantization_error(data, jnp.asarray(codewords[name]))),
            "topographic_error": float(measures.topographic_error(data, jnp.asarray(codewords[name]), Plane(grid))),
        }
        for name in fits
    }


def mixture(count: int, dimension: int) -> np.ndarray:
    """Fifty Gaussians that are wide in eight directions, float32 [n, d]."""
    random = np.random.default_rng(0)
    centers, axes = random.normal(size=(50, 8)), random.normal(size=(8, dimension)) / np.sqrt(8)
    hidden = centers[random.integers(0, 50, count)] + 0.3 * random.normal(size=(count, 8))
    return (hidden @ axes + 0.1 * random.normal(size=(count, dimension))).astype(np.float32)


def widths(grid, epochs: int) -> np.ndarray:
    """The width of each epoch, [epochs]."""
    return np.geomspace(INITIAL_WIDTH * max(grid), FINAL_WIDTH, max(2, epochs))[:epochs]


def fit_kvae(data, start, grid, epochs):
    """Trains `kvae.SOM`; returns the codewords, [K, d]."""
    ends = {"initial_width": INITIAL_WIDTH * max(grid), "final_width": FINAL_WIDTH}
    return SOM(grid, n_epochs=epochs, init=start, **ends).fit(data).cluster_centers_


def fit_fastersom(data, start, grid, epochs):
    """The same by fastersom, which reaches its last width one epoch after the end."""
    import fastersom

    first, *_, last = widths(grid, max(2, epochs)) / np.sqrt(2)
    last = first * (last / first) ** (epochs / max(1, epochs - 1))
    som = fastersom.SOM(*grid, n_epochs=epochs, init=start, sigma_initial=first, sigma_final=last)
    return som.fit(data).weights_


def fit_minisom(data, start, grid, epochs):
    """The same by MiniSom's form that sees all data before it moves."""
    import minisom

    sigmas = widths(grid, epochs) / np.sqrt(2)
    som = minisom.MiniSom(*grid, data.shape[1], sigma=sigmas[0], learning_rate=1.0)
    som._learning_rate_decay_function = lambda rate, epoch, epochs: rate
    som._sigma_decay_function = lambda sigma, epoch, epochs: sigmas[epoch]
    som._weights = start.reshape(*grid, -1).astype(float)
    som.train_batch_offline(data, epochs)
    return som.get_weights().reshape(start.shape).astype(np.float32)


def fit_somoclu(data, start, grid, epochs):
    """The same by somoclu, whose radius is 2 sigma."""
    import somoclu

    rows, columns = grid
    som = somoclu.Somoclu(columns, rows, initialcodebook=start.copy(), compactsupport=False)
    first, *_, last = np.sqrt(2) * widths(grid, max(2, epochs))
    # Its exponential cooling never ends where it is told to; its linear one does.
    som.train(data, epochs, radius0=first, radiusN=last, scale0=1.0, scaleN=1.0)
    return som.codebook.reshape(start.shape)


PEERS = {"MiniSom": fit_minisom, "fastersom": fit_fastersom, "somoclu": fit_somoclu}
