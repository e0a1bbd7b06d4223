"""Measures: reconstruction, use of the codebook, and quality of the map.

Pure functions of arrays. `squared_error` and `psnr` return a value for each example, and the caller takes the mean.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError
from kvae.kohonen import by_chunks, lowest, nearest_code
from kvae.topology import Grid

# Reconstruction.


def squared_error(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Mean squared error of each example (first term of Eq. 5 of Irie et al., 2023): float [b, ...] -> float32 [b]."""
    difference = x.astype(jnp.float32) - x_hat.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, x.ndim)))


def to_uint8(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Undoes the normalisation (image - mean) / std, rounds and clips: float [..., c] -> uint8 [..., c].

    Args:
      images: normalised images.
      mean: float [c] or [], on the 0-255 scale.
      std: float [c] or [], on the 0-255 scale.
    """
    return jnp.clip(jnp.round(images.astype(jnp.float32) * std + mean), 0, 255).astype(jnp.uint8)


@jax.jit
def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image, 10 log10(255^2 / MSE), in dB.

    The MSE is floored at that of one value off by one, so identical images get a finite PSNR that no other pair
    exceeds: 83.0 dB for 32 x 32 x 3.

    Args:
      images: [..., h, w, c], values 0 to 255, of any type.
      reconstructions: as `images`.

    Returns:
      float32 [...].
    """
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    error = jnp.mean(jnp.square(difference), axis=(-3, -2, -1))
    return 10 * jnp.log10(255.0**2 / jnp.maximum(error, 1 / math.prod(images.shape[-3:])))


# Use of the codebook.


@jax.jit
def perplexity(counts: jax.Array) -> jax.Array:
    """exp(-sum_k p_k log p_k), the number of codes that would be in use were all used equally, from 1 to K.

    The formula in Appendix C.1 of Irie et al. (2023) has lost its minus sign.

    Args:
      counts: [K], how often each code was used; integers or floats. All zero counts give 1.

    Returns:
      float32 [].
    """
    counts = counts.astype(jnp.float32)
    total = jnp.sum(counts)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(counts / jnp.where(total > 0, total, 1.0))))


def codes_used(counts: jax.Array) -> jax.Array:
    """The number of codes that were used at least once: [K] -> int32 []."""
    return jnp.sum(counts > 0, dtype=jnp.int32)


# Quality of the map.


def quantization_error(z: jax.Array, codewords: jax.Array) -> jax.Array:
    """Mean Euclidean distance of the vectors to their codewords (Kohonen, "Self-Organizing Maps", 2001).

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].

    Returns:
      float32 [].
    """
    return jnp.mean(jnp.linalg.norm(z.astype(jnp.float32) - codewords[nearest_code(z, codewords)], axis=-1))


def topographic_error(z: jax.Array, codewords: jax.Array, grid: Grid, adjacency: str | None = None) -> jax.Array:
    """Share of the vectors that are `topographic_errors`: float32 [], from 0, the best, to 1."""
    return topographic_errors(z, codewords, grid, adjacency) / math.prod(z.shape[:-1])


def topographic_errors(
    z: jax.Array, codewords: jax.Array, grid: Grid, adjacency: str | None = None, mask: jax.Array | None = None
) -> jax.Array:
    """Number of the vectors whose two nearest codewords are not neighbours on the grid; those of batches add up.

    The measure is Kiviluoto's, "Topology preservation in self-organizing maps" (1996). Of codewords that are
    equally near, the one of the lowest code is the nearest. A map of one code has no errors.

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].
      grid: of K nodes.
      adjacency: who is a neighbour, a name in the grid's `adjacency`; its first by default.
      mask: optional bool [...]; where False, the vector is not counted.

    Returns:
      int32 [].

    Raises:
      InputError: a grid that is not of K nodes, or that has no such adjacency.
    """
    _check_grid(codewords, grid)
    return jnp.sum(far_apart(*_two_nearest(z, codewords), grid, adjacency), where=mask, dtype=jnp.int32)


def far_apart(codes: jax.Array, others: jax.Array, grid: Grid, adjacency: str | None = None) -> jax.Array:
    """Whether two codes, int [...], are neither equal nor neighbours (see `topographic_errors`): bool [...]."""
    return (codes != others) & (grid.distance(codes, others) >= _reach(grid, adjacency))


@jax.jit
def _two_nearest(z, codewords):
    """The nearest and the second nearest code, int32 [...] each."""
    return by_chunks(two_lowest, z, codewords)


def two_lowest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The codes of the lowest and of the second lowest score: int32 [n] each, equal where there is but one code."""
    nearest = lowest(scores)
    return nearest, lowest(jnp.where(jnp.arange(scores.shape[-1]) == nearest[:, None], jnp.inf, scores))


def trustworthiness(codewords: jax.Array, grid: Grid, n_neighbors: int) -> jax.Array:
    """Are a code's neighbours on the grid also near it in space? From 0 to 1, the best.

    1 - 2 / (K n (2K - 3n - 1)) sum_i sum_j max(0, r(i, j) - n), j over the n nearest of i on the grid, r(i, j) its
    rank among the codewords by their distance from w_i (Venna and Kaski, "Neighborhood preservation in nonlinear
    projection methods: an experimental study", 2001).

    A grid is full of ties. Codes at the same distance on the grid are put in the order of their distance in space,
    so that a map without a fault scores 1; codewords at the same distance in space, in the order of their codes.

    Args:
      codewords: float32 [K, d].
      grid: of K nodes.
      n_neighbors: n, below K / 2.

    Returns:
      float32 [].

    Raises:
      InputError: a grid that is not of K nodes, or `n_neighbors` out of range.
    """
    return _preservation(codewords, grid, n_neighbors)[0]


def neighborhood_preservation(codewords: jax.Array, grid: Grid, n_neighbors: int) -> jax.Array:
    """Are the codewords near a codeword also its neighbours on the grid? From 0 to 1, the best.

    Also called continuity: `trustworthiness` with space and grid exchanged, j over the n nearest of i in space and
    r(i, j) its rank on the grid (Venna and Kaski, 2001). Arguments, ties and result are those of `trustworthiness`.
    """
    return _preservation(codewords, grid, n_neighbors)[1]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _preservation(codewords, grid, n_neighbors):
    """Trustworthiness and neighbourhood preservation, float32 [2]; the ranks are formed code by code, not K x K."""
    _check_grid(codewords, grid)
    size = len(codewords)
    if not 0 < n_neighbors < size / 2:
        raise InputError(f"n_neighbors is {n_neighbors}; it must be above 0 and below half of the {size} codes")

    def penalties(code):
        # The code itself has rank 0, even where another codeword is equal to its own.
        in_space = jnp.sum(jnp.square(codewords - codewords[code]), axis=-1).at[code].set(-1)
        on_grid = grid.distance(code, jnp.arange(size))
        space_rank = jnp.argsort(jnp.argsort(in_space))
        grid_rank = jnp.argsort(jnp.lexsort((in_space, on_grid)))
        over_grid = jnp.sum(jnp.maximum(space_rank - n_neighbors, 0), where=grid_rank <= n_neighbors)
        over_space = jnp.sum(jnp.maximum(grid_rank - n_neighbors, 0), where=space_rank <= n_neighbors)
        return jnp.stack([over_grid, over_space]).astype(jnp.float32)

    total = jnp.sum(jax.lax.map(penalties, jnp.arange(size)), axis=0)
    return 1 - 2 / (size * n_neighbors * (2 * size - 3 * n_neighbors - 1)) * total


@functools.partial(jax.jit, static_argnames=("grid", "adjacency"))
def u_matrix(codewords: jax.Array, grid: Grid, adjacency: str | None = None) -> jax.Array:
    """Mean Euclidean distance of each codeword to those of its neighbours on the grid (Ultsch and Siemon, 1990).

    Args:
      codewords: float32 [K, d].
      grid: of K nodes.
      adjacency: as in `topographic_errors`.

    Returns:
      float32, of the shape of the grid; 0 for a node without neighbours.

    Raises:
      InputError: a grid that is not of K nodes, or that has no such adjacency.
    """
    _check_grid(codewords, grid)
    codes, there = grid.neighbors(_reach(grid, adjacency))
    total = jnp.zeros(grid.size)
    for code, here in zip(codes, there, strict=True):
        total += jnp.where(here, jnp.linalg.norm(codewords - codewords[code], axis=-1), 0.0)
    return (total / np.maximum(np.sum(there, axis=0), 1)).reshape(grid.shape)


def _check_grid(codewords, grid):
    if not isinstance(grid, Grid):
        raise InputError(f"grid is {grid!r}; it must be a grid, such as kvae.topology.Plane((16, 32))")
    if grid.size != len(codewords):
        raise InputError(
            f"grid_shape is {grid.shape}, which has {grid.size} nodes; there are {len(codewords)} codewords"
        )


def _reach(grid, adjacency):
    """The distance that neighbours lie below."""
    if adjacency is None:
        return next(iter(grid.adjacency.values()))
    if adjacency not in grid.adjacency:
        raise InputError(f"adjacency is {adjacency!r}; this grid has {', '.join(map(repr, grid.adjacency))}")
    return grid.adjacency[adjacency]
