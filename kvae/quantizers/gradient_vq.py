"""Quantiser layer with one codebook on a grid, learned by gradient descent."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae import kohonen
from kvae.core.fields import NotNegative, OneOf
from kvae.kohonen import Statistics
from kvae.quantizers.base import (
    Quantized,
    check_dimension,
    check_size,
    check_vectors,
    masked_mean,
    quantized_of,
)
from kvae.quantizers.gradients import GRADIENTS
from kvae.quantizers.maps import DISTANCE_METRICS, MapVQ
from kvae.topology import NEIGHBORHOODS, spread


def _to_encoder(
    z: jax.Array, codes: jax.Array, statistics: Statistics, codewords: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    squared_norms = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
    return statistics.sums, kohonen.batch_statistics(squared_norms, codes, len(codewords), mask).sums[:, 0]


def _to_codeword(
    z: jax.Array, codes: jax.Array, statistics: Statistics, codewords: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    targets, counts = jax.lax.stop_gradient(codewords), statistics.counts
    return counts[:, None] * targets, counts * jnp.sum(jnp.square(targets), axis=-1)


PULLS = {"encoder": _to_encoder, "codeword": _to_codeword}
"""Maps the values of the field `pull` to functions that sum the neighbours' targets, by the code of the winner.

The target is z (Fortuin et al., 2019) or the winning codeword (the code of Irie et al., 2023). The functions return the
sums of the targets, float32 [K, d], and of their squared lengths, float32 [K].
"""


def orthogonality(codewords: jax.Array) -> jax.Array:
    """Returns how far the directions of codewords are from orthogonal (Shin et al., 2021, arXiv:2112.00384).

    If E holds the K codewords scaled to length 1, the value is |E E^T - I|^2 / K^2. It is computed as
    (|E^T E|^2 - K) / K^2, which needs a d x d matrix instead of a K x K matrix.

    Args:
      codewords: float32 [K, d].

    Returns:
      float32 [], from 0 (orthogonal) to 1 - 1 / K (parallel).
    """
    size, units = len(codewords), kohonen.unit(codewords)
    products = jnp.matmul(units.T, units, precision=jax.lax.Precision.HIGHEST)
    return (jnp.sum(jnp.square(products)) - size) / size**2


class GradientVQ(MapVQ):
    """Vector quantiser whose codebook is learned by gradient descent (van den Oord et al., 2017).

    With a neighbourhood this is SOM-VAE (Fortuin et al., 2019), which also pulls the winner's neighbours on the grid.
    The loss is mean |sg(z) - w_code|^2 + commitment_weight * mean |z - sg(w_code)|^2 (means over all elements) plus
    neighbor_weight * mean over positions of sum_{k != code} A(t)[code, k] |w_k - sg(target)|^2, plus
    orthogonal_weight * `orthogonality`.

    The collection `params` holds `codewords`, float32 [K, d]. The collection `codebook` holds `step`, int32 [], which
    is t in A(t).

    Example:
      >>> import jax, jax.numpy as jnp, kvae
      >>> layer = kvae.GradientVQ(grid_shape=(4, 8), neighborhood="hard")
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> jax.grad(lambda params: layer.apply({**variables, "params": params}, z).loss)(
      ...     variables["params"]
      ... )["codewords"].shape
      (32, 16)

    Attributes:
      grid_shape: number of nodes along each axis of the grid; their product is K.
      neighborhood: kernel of A, the neighbourhood, a name in `kvae.NEIGHBORHOODS`; "none" pulls only the winner.
      shrink_step: tau, how fast the neighbourhood shrinks: after t updates its width in nodes is
        max(lowest_width, initial_width / sqrt(1 + t tau)), without the root for the exponential kernel.
      radius: reach of the hard neighbourhood, in nodes; 1.5 includes the diagonal neighbours on a plane.
      commitment_weight: weight of the commitment loss.
      topology: the grid, a name in `kvae.GRIDS`: "plane", "torus", "cylinder" (left and right edges are
        connected), "hexagonal" or "hexagonal_torus".
      initial_width: width of the neighbourhood before the first update, in nodes; None uses the kernel's default.
      lowest_width: lower bound of the width, in nodes; None uses the kernel's default.
      metric: distance between vectors and codewords, "euclidean" or "cosine"; "cosine" scales both to length 1.
      gradient: gradient estimator for the encoder, "straight_through", "rotation" (the rotation trick) or "diveq",
        which also moves the codewords.
      codebook_dim: length d of the codewords; None uses the length of z. If the lengths differ, two learned linear
        layers project vectors to d dimensions and back (Yu et al., "ViT-VQGAN", 2021, arXiv:2110.04627).
      train: default for the argument `train` of a call.
      pull: target of the winner's neighbours, "encoder" for z or "codeword" for the winning codeword.
      neighbor_weight: weight of the neighbours' term in the loss.
      orthogonal_weight: weight in the loss of a penalty on codewords that are not orthogonal.
    """

    neighborhood: Annotated[str, OneOf(NEIGHBORHOODS)] = "none"
    pull: Annotated[str, OneOf(PULLS)] = "encoder"
    neighbor_weight: NotNegative = 1.0
    orthogonal_weight: NotNegative = 0.0

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`); `train` has no effect."""
        check_vectors(z, mask)
        self.variable("codebook", "step", lambda: jnp.zeros((), jnp.int32))
        dimension = self.codebook_dim or z.shape[-1]
        self.declare_projections(z, dimension)
        z32 = self.compared(z, mask)
        if self.has_variable("params", "codewords"):
            check_size(self.codewords(), "grid_shape", self.grid_shape)
            check_dimension(z32, self.codewords())
        self.param("codewords", nn.initializers.normal(1.0), (self.codebook_size, dimension), jnp.float32)
        codewords, stop = self.codewords(), jax.lax.stop_gradient
        codes = kohonen.nearest_code(stop(z32), stop(codewords))
        statistics = kohonen.batch_statistics(z32, codes, len(codewords), mask)
        nearest = kohonen.codewords_of(codes, codewords)
        loss = masked_mean(jnp.square(nearest - stop(z32)), mask)
        loss += self.commitment_weight * masked_mean(jnp.square(stop(nearest) - z32), mask)
        loss += self.neighbor_weight * self._neighbors_loss(codewords, stop(z32), codes, statistics, mask)
        if self.orthogonal_weight:
            loss += self.orthogonal_weight * orthogonality(codewords)
        quantized = self.project_out(GRADIENTS[self.gradient](z32, nearest)).astype(z.dtype)
        return quantized_of(quantized, codes, loss, statistics)

    def _neighbors_loss(
        self, codewords: jax.Array, z: jax.Array, codes: jax.Array, statistics: Statistics, mask: jax.Array | None
    ) -> jax.Array:
        """Returns the mean over positions of sum_{k != code} A[code, k] |w_k - target|^2.

        Expanding the square gives three sums over the positions of each code: their number, their targets and the
        targets' squared lengths. Only these sums are spread over the grid, so that no array is N x K.
        """
        sums, squares = PULLS[self.pull](z, codes, statistics, codewords, mask)

        def to_neighbors(values):
            return spread(self.spreading, values, self.get_variable("codebook", "step")) - values

        by_code = (
            to_neighbors(statistics.counts) * jnp.sum(jnp.square(codewords), axis=-1)
            - 2 * jnp.sum(to_neighbors(sums) * codewords, axis=-1)
            + to_neighbors(squares)
        )
        return jnp.sum(by_code) / jnp.maximum(jnp.sum(statistics.counts), 1.0)

    def codewords(self) -> jax.Array:
        """Returns the codewords, float32 [K, d]."""
        return DISTANCE_METRICS[self.metric](self.stored("params", "codewords"))

    def update(self, statistics: Statistics) -> None:
        """Increments `step` in the mutable collection; the optimiser updates the codewords."""
        self.put_variable("codebook", "step", self.get_variable("codebook", "step") + 1)
