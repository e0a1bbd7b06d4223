"""Measures of reconstruction, codebook use and map quality.

All functions are pure functions of arrays. `squared_error` and `psnr` return a value for each example, not the mean.

Example:
  >>> import jax, jax.numpy as jnp
  >>> from kvae import measures
  >>> from kvae.topology import Plane
  >>> print(measures.perplexity(jnp.array([5, 5, 5, 5])))
  4.0
  >>> codewords = jnp.arange(6.0)[:, None]  # in order on a line
  >>> z = jax.random.uniform(jax.random.key(0), (100, 1)) * 5
  >>> print(measures.topographic_error(z, codewords, Plane((6,))))
  0.0
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
    """Returns the mean squared error of each example, the first term of Eq. 5 of Irie et al. (2023).

    Args:
      x, x_hat: float [b, ...].

    Returns:
      float32 [b].
    """
    difference = x.astype(jnp.float32) - x_hat.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, x.ndim)))


def to_uint8(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Undoes the normalisation (image - mean) / std, rounds and clips.

    Args:
      images: normalised images, float [..., c].
      mean, std: float [c], [] or [1, 1, 1, c], on the 0-255 scale.

    Returns:
      uint8 [..., c].
    """
    images, mean, std = jnp.broadcast_arrays(*(jnp.asarray(array, jnp.float32) for array in (images, mean, std)))
    return jnp.clip(jnp.round(images * std + mean), 0, 255).astype(jnp.uint8)


@jax.jit
def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Returns the peak signal-to-noise ratio of each image, 10 log10(255^2 / MSE), in dB.

    The MSE is at least the error of one value that is off by 1. Identical images therefore have a finite PSNR, the
    highest possible: 83.0 dB for 32 x 32 x 3.

    Args:
      images, reconstructions: [..., h, w, c], values from 0 to 255, of any dtype.

    Returns:
      float32 [...].
    """
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    error = jnp.mean(jnp.square(difference), axis=(-3, -2, -1))
    return 10 * jnp.log10(255.0**2 / jnp.maximum(error, 1 / math.prod(images.shape[-3:])))


# Codebook use.


@jax.jit
def perplexity(counts: jax.Array) -> jax.Array:
    """Returns the perplexity exp(-sum_k p_k log p_k), from 1 (one code is used) to K (all are used equally).

    The formula in Appendix C.1 of Irie et al. (2023) lacks the minus sign.

    Args:
      counts: number of uses of each code, integers or floats [K]. If all are 0, the perplexity is 1.

    Returns:
      float32 [].
    """
    counts = counts.astype(jnp.float32)
    total = jnp.sum(counts)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(counts / jnp.where(total > 0, total, 1.0))))


def codes_used(counts: jax.Array) -> jax.Array:
    """Returns the number of codes used at least once: [K] -> int32 []."""
    return jnp.sum(counts > 0, dtype=jnp.int32)


def attainable_codes(size: int, n_vectors: int) -> float:
    """Returns the expected number of codes that N vectors use if all K codes are equally likely, K (1 - e^(-N / K)).

    Compare `codes_used` with this number. Even if all codes are equally likely, 65,536 vectors use only about 63% of
    65,536 codes. To use 99%, N must be 4.6 K.

    Example:
      >>> from kvae import measures
      >>> [round(measures.attainable_codes(65_536, n)) for n in (16_384, 65_536, 786_432)]
      [14497, 41427, 65536]

    Args:
      size: K, the number of codes.
      n_vectors: N, the number of vectors.
    """
    return -size * math.expm1(-n_vectors / size)


# Map quality.


def quantization_error(z: jax.Array, codewords: jax.Array) -> jax.Array:
    """Returns the mean Euclidean distance between vectors and their codewords (Kohonen, "Self-Organizing Maps", 2001).

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].

    Returns:
      float32 [].
    """
    return jnp.mean(jnp.linalg.norm(z.astype(jnp.float32) - codewords[nearest_code(z, codewords)], axis=-1))


def topographic_error(z: jax.Array, codewords: jax.Array, grid: Grid, adjacency: str | None = None) -> jax.Array:
    """Returns `topographic_errors` as a share of the vectors: float32 [], from 0 (best) to 1."""
    return topographic_errors(z, codewords, grid, adjacency) / math.prod(z.shape[:-1])


def topographic_errors(
    z: jax.Array, codewords: jax.Array, grid: Grid, adjacency: str | None = None, mask: jax.Array | None = None
) -> jax.Array:
    """Returns the number of vectors whose two nearest codewords are not neighbours on the grid.

    This is the measure of Kiviluoto, "Topology preservation in self-organizing maps" (1996). The lower code wins ties.
    A map with one code has no errors. The numbers of several batches can be added.

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].
      grid: a grid with K nodes.
      adjacency: definition of "neighbour", a name in `Grid.adjacency`; the first by default.
      mask: optional bool [...], False for vectors that are not counted.

    Returns:
      int32 [].

    Raises:
      InputError: the grid does not have K nodes, or has no such adjacency.
    """
    _check_grid(codewords, grid)
    return jnp.sum(far_apart(*_two_nearest(z, codewords), grid, adjacency), where=mask, dtype=jnp.int32)


def far_apart(codes: jax.Array, others: jax.Array, grid: Grid, adjacency: str | None = None) -> jax.Array:
    """True where two codes are neither equal nor neighbours (see `topographic_errors`): int [...] -> bool [...]."""
    return (codes != others) & (grid.distance(codes, others) >= _reach(grid, adjacency))


@jax.jit
def _two_nearest(z: jax.Array, codewords: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest and the second nearest code, int32 [...] each."""
    return by_chunks(two_lowest, z, codewords)


def two_lowest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the codes of the lowest and the second lowest score, equal if there is only one code.

    Args:
      scores: float32 [n, K].

    Returns:
      int32 [n] each.
    """
    nearest, codes = lowest(scores), jnp.arange(scores.shape[-1], dtype=jnp.int32)
    return nearest, lowest(jnp.where(codes[None] == nearest[:, None], jnp.inf, scores))


def trustworthiness(codewords: jax.Array, grid: Grid, n_neighbors: int) -> jax.Array:
    """Returns how well codes that are neighbours on the grid are also near in space, from 0 to 1 (best).

    The value is 1 - 2 / (K n (2K - 3n - 1)) sum_i sum_j max(0, r(i, j) - n), where j runs over the n codes nearest to i
    on the grid and r(i, j) is the rank of j by distance from w_i in space (Venna and Kaski, "Neighborhood preservation
    in nonlinear projection methods: an experimental study", 2001).

    Distances on a grid have many ties. Ties on the grid are broken by the distance in space, so that a perfect map
    scores 1. Ties in space are broken by the code.

    Args:
      codewords: float32 [K, d].
      grid: a grid with K nodes.
      n_neighbors: n, below K / 2.

    Returns:
      float32 [].

    Raises:
      InputError: the grid does not have K nodes, or `n_neighbors` is out of range.
    """
    return _preservation(codewords, grid, n_neighbors)[0]


def neighborhood_preservation(codewords: jax.Array, grid: Grid, n_neighbors: int) -> jax.Array:
    """Returns how well codes that are near in space are also neighbours on the grid, from 0 to 1 (best).

    This measure, also called continuity, is `trustworthiness` with space and grid exchanged: j runs over the n codes
    nearest to i in space, and r(i, j) is its rank on the grid (Venna and Kaski, 2001). Arguments, ties and errors are
    the same.
    """
    return _preservation(codewords, grid, n_neighbors)[1]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _preservation(codewords: jax.Array, grid: Grid, n_neighbors: int) -> jax.Array:
    """Returns trustworthiness and neighbourhood preservation, float32 [2], without forming a K x K array."""
    _check_grid(codewords, grid)
    size = len(codewords)
    if not 0 < n_neighbors < size / 2:
        raise InputError(f"n_neighbors is {n_neighbors}; it must be at least 1 and below K / 2, {size / 2:g}")

    def penalties(code):
        # The code itself has rank 0, even if another code has the same codeword.
        in_space = jnp.sum(jnp.square(codewords - codewords[code][None]), axis=-1).at[code].set(-1)
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
    """Returns the mean Euclidean distance from each codeword to its grid neighbours (Ultsch and Siemon, 1990).

    Args:
      codewords: float32 [K, d].
      grid: a grid with K nodes.
      adjacency: as in `topographic_errors`.

    Returns:
      float32 [*grid_shape]; 0 for a node without neighbours.

    Raises:
      InputError: the grid does not have K nodes, or has no such adjacency.
    """
    _check_grid(codewords, grid)
    codes, are_neighbors = grid.neighbors(_reach(grid, adjacency))
    total = jnp.zeros(grid.size, codewords.dtype)
    for code, is_neighbor in zip(codes, are_neighbors, strict=True):
        total += jnp.where(is_neighbor, jnp.linalg.norm(codewords - codewords[code], axis=-1), 0.0)
    n_neighbors = np.maximum(np.sum(are_neighbors, axis=0), 1).astype(total.dtype)
    return (total / n_neighbors).reshape(grid.shape)


def _check_grid(codewords: jax.Array, grid: Grid) -> None:
    if not isinstance(grid, Grid):  # users often pass a shape such as (16, 32)
        raise InputError(f"grid is {grid!r}; it must be a grid, such as kvae.topology.Plane((16, 32))")
    if grid.size != len(codewords):
        raise InputError(
            f"grid has the shape {grid.shape} and {grid.size} nodes; it must have one for each of the "
            f"{len(codewords)} codewords"
        )


def _reach(grid: Grid, adjacency: str | None) -> float:
    """Returns the distance below which nodes are neighbours."""
    if adjacency is None:
        return next(iter(grid.adjacency.values()))
    if adjacency not in grid.adjacency:
        names = ", ".join(map(repr, grid.adjacency))
        raise InputError(f"adjacency is {adjacency!r}; for this grid it must be one of {names}")
    return grid.adjacency[adjacency]
