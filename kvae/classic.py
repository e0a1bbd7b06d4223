"""The classic forms of Kohonen's map on plain arrays: online, Hebbian and batch (Appendix A of Irie et al., 2023).

`*_update` are single steps, compiled once for each neighbourhood; `fit_*` train a map on the rows of an array. A map
that has to unfold starts with a wide neighbourhood: `Neighborhood(grid, "gaussian", initial_width=4.0,
lowest_width=0.5)` is 4 nodes wide at first.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kvae.core.errors import InputError
from kvae.kohonen import Statistics, batch_statistics, nearest_code
from kvae.topology import Neighborhood, spread, spread_at


@functools.partial(jax.jit, static_argnames="neighborhood")
def online_update(codewords: jax.Array, x: jax.Array, neighborhood: Neighborhood, step, learning_rate) -> jax.Array:
    """One step of the online form: w_k + beta A_{k*,k} (x - w_k), with k* the code nearest to x (Eqs. 12 and 13).

    With the kernel `none` this is online K-means.

    Args:
      codewords: w, float32 [K, d].
      x: one vector, float [d].
      neighborhood: A; its width is taken at `step`.
      step: updates done so far, integer [].
      learning_rate: beta, float [].

    Returns:
      The new codewords, float32 [K, d].
    """
    pull = learning_rate * _weights(neighborhood, nearest_code(x, codewords), step)
    return codewords + pull[:, None] * (x - codewords)


@functools.partial(jax.jit, static_argnames="neighborhood")
def hebbian_update(codewords: jax.Array, x: jax.Array, neighborhood: Neighborhood, step, learning_rate) -> jax.Array:
    """One step of the map as Hebbian learning: W + (beta A y) (x - W^T y)^T, y = hardmax(W x) (Eqs. 17 and 18).

    It differs from `online_update` twice. The winner y has the largest dot product with x, which is the nearest one
    if all codewords have the same length. And W^T y is the *winner's* codeword: neighbours move along with the winner,
    in parallel, where Eq. 13 moves each one towards x. With the same winner both move the winner alike, and with the
    kernel `none` they are equal. Arguments and result are those of `online_update`; the first of equal winners wins.
    """
    winner = jnp.argmax(jnp.matmul(codewords, x, precision=jax.lax.Precision.HIGHEST))
    pull = learning_rate * _weights(neighborhood, winner, step)
    return codewords + pull[:, None] * (x - codewords[winner])


@functools.partial(jax.jit, static_argnames="neighborhood")
def batch_update(codewords: jax.Array, data: jax.Array, neighborhood: Neighborhood, step) -> jax.Array:
    """One step of the batch form: every codeword becomes the mean of its and its neighbours' members (Eqs. 19-21).

    With the kernel `none` this is Lloyd's K-means.

    Args:
      codewords: w, float32 [K, d].
      data: all vectors, float [..., d].
      neighborhood: A; its width is taken at `step`.
      step: updates done so far, integer [].

    Returns:
      The new codewords, float32 [K, d]. One whose weighted count N_k is 0 stays.
    """
    statistics = batch_statistics(data, nearest_code(data, codewords), neighborhood.grid.size)
    return weighted_means(statistics, neighborhood, neighborhood.width(step), codewords)


def weighted_means(
    statistics: Statistics, neighborhood: Neighborhood, width: jax.Array, codewords: jax.Array
) -> jax.Array:
    """The mean of each code's and its neighbours' members, by their sums and numbers (Eqs. 19-21).

    Args:
      statistics: of all vectors; those of parts of the data add up.
      neighborhood: A, taken at this width.
      width: in nodes, float32 [].
      codewords: float [K, d], what a code keeps whose weighted count N_k is 0.

    Returns:
      The new codewords, [K, d].
    """
    sums = spread_at(neighborhood, statistics.sums, width)
    counts = spread_at(neighborhood, statistics.counts, width)
    # Below 1e-30, in the far tail of a Gaussian, the sums lose their digits to float32's smallest number.
    moves = counts > 1e-30
    return jnp.where(moves[:, None], sums / jnp.where(moves, counts, 1.0)[:, None], codewords)


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
      neighborhood: the grid, the kernel and how it shrinks over the steps.
      steps: number of updates.
      learning_rate: beta, a number, or a function of the step such as an optax schedule.
      key: of the draws.
      codewords: initial codewords, float [K, d]; by default random rows of `data`.

    Returns:
      The codewords, float32 [K, d].

    Raises:
      InputError: data without rows or of another form than [n, d], or initial codewords that do not fit.
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
    """Trains a map with `batch_update`, one update an epoch.

    Args:
      data: float [n, d].
      neighborhood: the grid, the kernel and how it shrinks over the epochs.
      epochs: number of updates.
      key: of the initial codewords.
      codewords: initial codewords, float [K, d]; by default random rows of `data`.

    Returns:
      The codewords, float32 [K, d].

    Raises:
      InputError: as `fit_online`.
    """
    data, codewords = _start(data, neighborhood, key, codewords)
    return jax.lax.fori_loop(0, epochs, lambda t, w: batch_update(w, data, neighborhood, t), codewords)


def _weights(neighborhood, winner, step):
    """The winner's row of A(t), float32 [K], without forming the matrix where `spread` does not."""
    return spread(neighborhood, jax.nn.one_hot(winner, neighborhood.grid.size), step)


def _start(data, neighborhood, key, codewords):
    """The data and the initial codewords, float32, checked."""
    data = jnp.asarray(data, jnp.float32)
    if data.ndim != 2 or len(data) == 0:
        raise InputError(f"data has the shape {data.shape}; a map is trained on [n, d], n at least 1")
    shape = (neighborhood.grid.size, data.shape[1])
    if codewords is None:
        # Different rows, as long as there are enough.
        rows = jax.random.choice(key, len(data), shape[:1], replace=len(data) < neighborhood.grid.size)
        codewords = data[rows]
    if codewords.shape != shape:
        raise InputError(f"codewords have the shape {codewords.shape}; this grid and these data need {shape}")
    return data, jnp.asarray(codewords, jnp.float32)
