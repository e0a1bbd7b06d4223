"""The classic forms of Kohonen's map on plain arrays: online, Hebbian and batch (Appendix A of Irie et al., 2023).

`*_update` functions take one step and are compiled once for each neighbourhood; `fit_*` functions train a map on the
rows of an array. To unfold, a map needs a wide neighbourhood at first, as in the example.

Example:
  >>> import jax
  >>> from kvae import classic, measures
  >>> from kvae.topology import Neighborhood, Plane
  >>> data = jax.random.uniform(jax.random.key(0), (500, 2))
  >>> grid = Plane((6, 6))
  >>> neighborhood = Neighborhood(grid, "gaussian", shrink_step=1.0, initial_width=4.0, lowest_width=0.5)
  >>> codewords = classic.fit_batch(data, neighborhood, epochs=60, key=jax.random.key(1))
  >>> bool(measures.topographic_error(data, codewords, grid) < 0.1)
  True
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kvae.core.errors import InputError
from kvae.kohonen import Statistics, batch_statistics, nearest_code
from kvae.topology import Neighborhood, spread, spread_at


@functools.partial(jax.jit, static_argnames="neighborhood")
def online_update(
    codewords: jax.Array,
    x: jax.Array,
    neighborhood: Neighborhood,
    step: jax.Array | int,
    learning_rate: jax.Array | float,
) -> jax.Array:
    """Takes one step of the online form: w_k + beta A_{k*,k} (x - w_k), with k* the code nearest to x (Eqs. 12, 13).

    With the kernel `none` this is online K-means.

    Args:
      codewords: w, float32 [K, d].
      x: one vector, float [d].
      neighborhood: A, evaluated at `step`.
      step: number of updates so far, integer [].
      learning_rate: beta, float [].

    Returns:
      The new codewords, float32 [K, d].
    """
    pull = learning_rate * _weights(neighborhood, nearest_code(x, codewords), step)
    return codewords + pull[:, None] * (x[None] - codewords)


@functools.partial(jax.jit, static_argnames="neighborhood")
def hebbian_update(
    codewords: jax.Array,
    x: jax.Array,
    neighborhood: Neighborhood,
    step: jax.Array | int,
    learning_rate: jax.Array | float,
) -> jax.Array:
    """Takes one step of Hebbian learning: W + (beta A y) (x - W^T y)^T, y = hardmax(W x) (Eqs. 17 and 18).

    It differs from `online_update` in two ways. First, the winner is the codeword with the largest dot product with x,
    which is the nearest codeword if all have the same length; the first code wins ties. Second, neighbours move
    parallel to the winner, because W^T y is the winner's codeword, whereas Eq. 13 moves each neighbour towards x. The
    winner itself moves in the same way. With the kernel `none` and the same winner, the updates are equal.

    Nothing in kvae trains with it; it is public so that the paper's two forms can be compared.

    Arguments and result are the same as in `online_update`.
    """
    winner = jnp.argmax(jnp.matmul(codewords, x, precision=jax.lax.Precision.HIGHEST))
    pull = learning_rate * _weights(neighborhood, winner, step)
    return codewords + pull[:, None] * (x - codewords[winner])[None]


@functools.partial(jax.jit, static_argnames="neighborhood")
def batch_update(codewords: jax.Array, data: jax.Array, neighborhood: Neighborhood, step: jax.Array | int) -> jax.Array:
    """Takes one batch step: each codeword becomes a weighted mean of its own and its neighbours' vectors (Eqs. 19-21).

    With the kernel `none` this is Lloyd's K-means.

    Args:
      codewords: w, float32 [K, d].
      data: all vectors, float [..., d].
      neighborhood: A, evaluated at `step`.
      step: number of updates so far, integer [].

    Returns:
      The new codewords, float32 [K, d]; codewords whose weighted count N_k is 0 do not change.
    """
    statistics = batch_statistics(data, nearest_code(data, codewords), neighborhood.grid.size)
    return weighted_means(statistics, neighborhood, neighborhood.width(step), codewords)


def weighted_means(
    statistics: Statistics, neighborhood: Neighborhood, width: jax.Array, codewords: jax.Array
) -> jax.Array:
    """Returns for each code the weighted mean of its own and its neighbours' vectors (Eqs. 19-21).

    Args:
      statistics: sum and number of the vectors of each code, over all data; counts are [K], or [K, d] if features have
        different numbers of known values.
      neighborhood: A, evaluated at `width`.
      width: width in nodes, float32 [].
      codewords: current codewords, float [K, d]; entries whose weighted count is 0 do not change.

    Returns:
      The new codewords, [K, d].
    """
    sums = spread_at(neighborhood, statistics.sums, width)
    counts = spread_at(neighborhood, statistics.counts.reshape(len(codewords), -1), width)
    # Below 1e-30, in the far tail of a Gaussian, float32 sums lose precision.
    moves = counts > 1e-30
    return jnp.where(moves, sums / jnp.where(moves, counts, 1.0), codewords)


def fit_online(
    data: jax.Array,
    neighborhood: Neighborhood,
    steps: int,
    learning_rate: float | Callable[[jax.Array], jax.Array],
    key: jax.Array,
    codewords: jax.Array | None = None,
) -> jax.Array:
    """Trains a map with `online_update` on rows drawn at random, with replacement.

    Args:
      data: float [n, d].
      neighborhood: grid, kernel, and schedule of widths over the steps.
      steps: number of updates.
      learning_rate: beta, a number, or a function of the step such as an optax schedule.
      key: random key.
      codewords: initial codewords, float [K, d]; by default random rows of `data`.

    Returns:
      The codewords, float32 [K, d].

    Raises:
      InputError: `data` is not [n, d] with n at least 1, or `codewords` has the wrong shape.
    """
    start_key, draw_key = jax.random.split(key)
    data, codewords = _start(data, neighborhood, start_key, codewords)

    def update(step, codewords):
        row = jax.random.randint(jax.random.fold_in(draw_key, step), (), 0, len(data))
        beta = learning_rate(step) if callable(learning_rate) else learning_rate
        return online_update(codewords, data[row], neighborhood, step, beta)

    return jax.lax.fori_loop(0, steps, update, codewords)


def fit_batch(
    data: jax.Array,
    neighborhood: Neighborhood,
    epochs: int,
    key: jax.Array,
    codewords: jax.Array | None = None,
) -> jax.Array:
    """Trains a map with `batch_update`, one update per epoch.

    Args:
      data: float [n, d].
      neighborhood: grid, kernel, and schedule of widths over the epochs.
      epochs: number of updates.
      key: random key for the initial codewords.
      codewords: initial codewords, float [K, d]; by default random rows of `data`.

    Returns:
      The codewords, float32 [K, d].

    Raises:
      InputError: as in `fit_online`.
    """
    data, codewords = _start(data, neighborhood, key, codewords)
    return jax.lax.fori_loop(0, epochs, lambda t, w: batch_update(w, data, neighborhood, t), codewords)


def _weights(neighborhood: Neighborhood, winner: jax.Array, step: jax.Array | int) -> jax.Array:
    """Returns the winner's row of A(t), float32 [K]."""
    return spread(neighborhood, jax.nn.one_hot(winner, neighborhood.grid.size, dtype=jnp.float32), step)


def _start(
    data: jax.Array, neighborhood: Neighborhood, key: jax.Array, codewords: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the data and the initial codewords as float32."""
    data = jnp.asarray(data, jnp.float32)
    if data.ndim != 2 or len(data) == 0:
        raise InputError(f"data has the shape {data.shape}; it must be [n, d] with n at least 1")
    shape = (neighborhood.grid.size, data.shape[1])
    if codewords is None:
        # Draw distinct rows if there are enough.
        rows = jax.random.choice(key, len(data), shape[:1], replace=len(data) < neighborhood.grid.size)
        codewords = data[rows]
    if codewords.shape != shape:
        raise InputError(f"codewords has the shape {codewords.shape}; for this grid and data it must be {shape}")
    return data, jnp.asarray(codewords, jnp.float32)
