"""Measures: reconstruction, use of the codebook, quality of the map, and the losses of URL-SOM.

Pure functions of arrays. `squared_error` and `psnr` return a value for each example, and the caller takes the mean.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from kvae.errors import InputError
from kvae.kohonen import by_chunks, nearest_code
from kvae.topology import coordinates

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


def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image, 10 log10(255^2 / MSE), in dB.

    The mean squared error is taken to be at least that of an image in which one value is off by one, so that the
    ratio of identical images is finite, and no other pair exceeds it: 83.0 dB for 32 x 32 x 3.

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


def shift_codes(codes: jax.Array, grid_shape: tuple[int, ...], offset) -> jax.Array:
    """Moves codes over the grid, stopping at its border (the perturbations of Figure 3 of Irie et al., 2023).

    The paper shifts the codes of EMA-VQ, which have no grid, by their index: that is `grid_shape=(K,)`.

    Args:
      codes: int [...].
      grid_shape: the grid.
      offset: how many nodes to move, an integer for all axes or one for each; may be negative.

    Returns:
      int32 [...].
    """
    offsets = jnp.broadcast_to(jnp.asarray(offset), (len(grid_shape),))
    moved = [axis + step for axis, step in zip(jnp.unravel_index(codes, grid_shape), offsets, strict=True)]
    return jnp.ravel_multi_index(moved, grid_shape, mode="clip").astype(jnp.int32)


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


def topographic_error(z: jax.Array, codewords: jax.Array, grid_shape, neighbors: int = 8) -> jax.Array:
    """Share of the vectors that are `topographic_errors`: float32 [], from 0, the best, to 1."""
    return topographic_errors(z, codewords, grid_shape, neighbors) / math.prod(z.shape[:-1])


def topographic_errors(z, codewords, grid_shape, neighbors: int = 8, mask: jax.Array | None = None) -> jax.Array:
    """Number of the vectors whose two nearest codewords are not neighbours on the grid; those of batches add up.

    The measure is Kiviluoto's, "Topology preservation in self-organizing maps" (1996). Of codewords that are
    equally near, the one of the lowest code is the nearest. A map of one code has no errors.

    Args:
      z: vectors, float [..., d].
      codewords: float32 [K, d].
      grid_shape: the grid, of K nodes.
      neighbors: who is a neighbour: 8, diagonals too; 4, only along one axis. On a line both mean the adjacent two.
      mask: optional bool [...]; where False, the vector is not counted.

    Returns:
      int32 [].

    Raises:
      InputError: a grid that is not of K nodes, or another value of `neighbors`.
    """
    _check_grid(codewords, grid_shape, neighbors)
    return jnp.sum(far_apart(*_two_nearest(z, codewords), grid_shape, neighbors), where=mask, dtype=jnp.int32)


def far_apart(codes: jax.Array, others: jax.Array, grid_shape, neighbors: int = 8) -> jax.Array:
    """Whether two codes, int [...], are neither equal nor neighbours (8 or 4, see `topographic_errors`): bool [...]."""
    position = jnp.asarray(coordinates(grid_shape))
    apart = jnp.abs(position[codes] - position[others])
    return (jnp.max(apart, axis=-1) if neighbors == 8 else jnp.sum(apart, axis=-1)) > 1


@jax.jit
def _two_nearest(z, codewords):
    """The nearest and the second nearest code, int32 [...] each."""
    half_norms = 0.5 * jnp.sum(jnp.square(codewords), axis=-1)

    def lookup(z):
        scores = half_norms - jnp.matmul(z, codewords.T, precision=jax.lax.Precision.HIGHEST)
        nearest = jnp.argmin(scores, axis=-1, keepdims=True)
        others = jnp.where(jnp.arange(len(codewords)) == nearest, jnp.inf, scores)
        return nearest[:, 0], jnp.argmin(others, axis=-1)

    return by_chunks(lookup, z, len(codewords))


def trustworthiness(codewords: jax.Array, grid_shape: tuple[int, ...], n_neighbors: int) -> jax.Array:
    """Are a code's neighbours on the grid also near it in space? From 0 to 1, the best.

    1 - 2 / (K n (2K - 3n - 1)) sum_i sum_j max(0, r(i, j) - n), j over the n nearest of i on the grid, r(i, j) its
    rank among the codewords by their distance from w_i (Venna and Kaski, "Neighborhood preservation in nonlinear
    projection methods: an experimental study", 2001).

    A grid is full of ties. Codes at the same distance on the grid are put in the order of their distance in space,
    so that a map without a fault scores 1; codewords at the same distance in space, in the order of their codes.

    Args:
      codewords: float32 [K, d].
      grid_shape: the grid, of K nodes.
      n_neighbors: n, below K / 2.

    Returns:
      float32 [].

    Raises:
      InputError: a grid that is not of K nodes, or `n_neighbors` out of range.
    """
    return _preservation(codewords, tuple(grid_shape), n_neighbors)[0]


def neighborhood_preservation(codewords: jax.Array, grid_shape: tuple[int, ...], n_neighbors: int) -> jax.Array:
    """Are the codewords near a codeword also its neighbours on the grid? From 0 to 1, the best.

    Also called continuity: `trustworthiness` with space and grid exchanged, j over the n nearest of i in space and
    r(i, j) its rank on the grid (Venna and Kaski, 2001). Arguments, ties and result are those of `trustworthiness`.
    """
    return _preservation(codewords, tuple(grid_shape), n_neighbors)[1]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _preservation(codewords, grid_shape, n_neighbors):
    """Trustworthiness and neighbourhood preservation, float32 [2]; the ranks are formed code by code, not K x K."""
    _check_grid(codewords, grid_shape)
    size = len(codewords)
    if not 0 < n_neighbors < size / 2:
        raise InputError(f"n_neighbors is {n_neighbors}; it must be above 0 and below half of the {size} codes")
    position = jnp.asarray(coordinates(grid_shape))

    def penalties(code):
        # The code itself has rank 0, even where another codeword is equal to its own.
        in_space = jnp.sum(jnp.square(codewords - codewords[code]), axis=-1).at[code].set(-1)
        on_grid = jnp.sum(jnp.square(position - position[code]), axis=-1)
        space_rank = jnp.argsort(jnp.argsort(in_space))
        grid_rank = jnp.argsort(jnp.lexsort((in_space, on_grid)))
        over_grid = jnp.sum(jnp.maximum(space_rank - n_neighbors, 0), where=grid_rank <= n_neighbors)
        over_space = jnp.sum(jnp.maximum(grid_rank - n_neighbors, 0), where=space_rank <= n_neighbors)
        return jnp.stack([over_grid, over_space]).astype(jnp.float32)

    total = jnp.sum(jax.lax.map(penalties, jnp.arange(size)), axis=0)
    return 1 - 2 / (size * n_neighbors * (2 * size - 3 * n_neighbors - 1)) * total


def u_matrix(codewords: jax.Array, grid_shape: tuple[int, ...], neighbors: int = 8) -> jax.Array:
    """Mean Euclidean distance of each codeword to those of its neighbours on the grid (Ultsch and Siemon, 1990).

    Args:
      codewords: float32 [K, d].
      grid_shape: the grid, of K nodes.
      neighbors: 8 or 4, as in `topographic_errors`.

    Returns:
      float32, of shape `grid_shape`; 0 for a node without neighbours.

    Raises:
      InputError: a grid that is not of K nodes, or another value of `neighbors`.
    """
    _check_grid(codewords, grid_shape, neighbors)
    position = coordinates(grid_shape)
    total, count = jnp.zeros(len(codewords)), 0
    for offset in itertools.product((-1, 0, 1), repeat=len(grid_shape)):
        if not any(offset) or (neighbors == 4 and np.abs(offset).sum() > 1):
            continue
        inside = np.all((position + offset >= 0) & (position + offset < grid_shape), axis=-1)
        neighbor = np.ravel_multi_index((position + offset).T, grid_shape, mode="clip")
        total += inside * jnp.linalg.norm(codewords - codewords[neighbor], axis=-1)
        count += inside
    return (total / np.maximum(count, 1)).reshape(grid_shape)


def _check_grid(codewords, grid_shape, neighbors=8):
    size = math.prod(grid_shape)
    if size != len(codewords):
        raise InputError(f"grid_shape is {grid_shape}, which has {size} nodes; there are {len(codewords)} codewords")
    if neighbors not in (4, 8):
        raise InputError(f"neighbors is {neighbors!r}; it must be 4 (along one axis) or 8 (diagonals too)")


# URL-SOM: N. Kermiche, "Self-Organizing Representation Learning" (2021).


def directions(probabilities: jax.Array) -> jax.Array:
    """P = p / |p|, points of the unit sphere (Eq. 2): float [..., n] -> float32 [..., n]."""
    probabilities = probabilities.astype(jnp.float32)
    return probabilities / jnp.linalg.norm(probabilities, axis=-1, keepdims=True)


def _mean_direction(probabilities):
    """The mean of P over all leading axes, [n]."""
    return jnp.mean(directions(probabilities), axis=range(probabilities.ndim - 1))


def winner_take_all_loss(probabilities: jax.Array) -> jax.Array:
    """mean_i P_i . U, with P = p / |p| and U = (1, ..., 1) / sqrt(n) (Eq. 4): 1 for even outputs, 1/sqrt(n) one-hot.

    Args:
      probabilities: p, float [..., n]; its rows sum to 1.

    Returns:
      float32 [].
    """
    return jnp.sum(_mean_direction(probabilities)) / math.sqrt(probabilities.shape[-1])


def collapse_loss(probabilities: jax.Array) -> jax.Array:
    """1 - A . U, with A = a / |a| and a = mean_i P_i (Eq. 5): 0 for spread winners, 1 - 1/sqrt(n) for a single one.

    Arguments and result: as `winner_take_all_loss`.
    """
    return 1 - jnp.sum(directions(_mean_direction(probabilities))) / math.sqrt(probabilities.shape[-1])


def similarity_loss(probabilities: jax.Array, others: jax.Array) -> jax.Array:
    """1 - mean_i P+_i . P-_i, of two views of the same images, [..., n] each (Eq. 6): float32 [], 0 if they agree."""
    return 1 - jnp.mean(jnp.sum(directions(probabilities) * directions(others), axis=-1))


def url_som_loss(probabilities: jax.Array, others: jax.Array, similarity_weight: float = 2.0) -> jax.Array:
    """Winner-take-all loss + collapse loss + gamma similarity loss (Eq. 8).

    Args:
      probabilities: p+, float [N, n], of one view of each image.
      others: p-, float [N, n], of the other view.
      similarity_weight: gamma.

    Returns:
      float32 [].
    """
    # Eqs. 4 and 5 see P only through its mean, and the mean of (P+ + P-) / 2 (Eq. 7) is that of all 2N views.
    views = jnp.stack([probabilities, others])
    similarity = similarity_loss(probabilities, others)
    return winner_take_all_loss(views) + collapse_loss(views) + similarity_weight * similarity
