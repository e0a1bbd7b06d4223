"""Quantiser layers with one codebook, which may be a map."""

import functools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae import kohonen
from kvae.core.fields import Counts, NotNegative, OneOf, Positive, Share
from kvae.kohonen import Codebook, Statistics
from kvae.quantizers.base import (
    GRADIENTS,
    Quantized,
    Quantizer,
    check_codes,
    check_dimension,
    check_vectors,
    masked,
    masked_mean,
    quantized_of,
    straight_through,
)
from kvae.topology import GRIDS, NEIGHBORHOODS, Grid, Neighborhood, kernel_of, make_grid, spread

METRICS = {"euclidean": lambda vectors: vectors, "cosine": kohonen.unit}
"""By name, how vectors and codewords are scaled before they are compared."""

PULLS = {"encoder": "z, as Fortuin et al. write", "codeword": "the winning codeword, as the code of Irie et al. has it"}
"""By name, what the neighbours of a winner are pulled to."""


class MapVQ(Quantizer):
    """A quantiser whose codes are nodes of a grid. Abstract: use `KohonenVQ` or `GradientVQ`.

    Attributes:
      grid_shape: number of nodes along each axis; their product is K.
      neighborhood: how far an update reaches on the grid, a name in `kvae.NEIGHBORHOODS`; "none" is EMA-VQ.
      shrink_step: tau, how fast the neighbourhood shrinks: after t updates its width is
        max(lowest_width, initial_width / sqrt(1 + t tau)), without the root for the exponential kernel.
      radius: reach of the hard neighbourhood, in nodes.
      commitment_weight: lambda, the weight of the commitment loss.
      topology: arrangement of the nodes, a name in `kvae.GRIDS`.
      initial_width: width of the neighbourhood at first, in nodes; None takes the kernel's default. The paper's is 1.
      lowest_width: width below which it never falls, in nodes; None takes the kernel's default. The paper's is 0.
      train: default for the argument `train` of a call.
    """

    grid_shape: Counts
    neighborhood: Annotated[str, OneOf(NEIGHBORHOODS)] = "hard"
    shrink_step: NotNegative = 0.1
    radius: Positive = 1.5
    commitment_weight: NotNegative = 0.25
    topology: Annotated[str, OneOf(GRIDS)] = "plane"
    initial_width: Positive | None = None
    lowest_width: NotNegative | None = None
    train: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        _ = self.spreading  # an impossible neighbourhood fails here, not in the first step

    @property
    def spreading(self) -> Neighborhood:
        """The neighbourhood on its grid, with its schedule."""
        kernel = kernel_of(self.neighborhood)
        return _neighborhood(
            topology=self.topology,
            grid_shape=self.grid_shape,
            kernel=self.neighborhood,
            shrink_step=self.shrink_step,
            radius=self.radius,
            initial_width=kernel.initial_width if self.initial_width is None else self.initial_width,
            lowest_width=kernel.lowest_width if self.lowest_width is None else self.lowest_width,
        )

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.spreading.grid.size

    @property
    def grid(self) -> Grid:
        """The grid."""
        return self.spreading.grid

    @property
    def is_map(self) -> bool:
        """Whether there is a neighbourhood."""
        return self.neighborhood != "none"

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The codewords of codes."""
        check_codes(codes)
        return kohonen.codewords_of(codes, self.codewords())


@functools.lru_cache
def _neighborhood(topology: str, grid_shape: tuple[int, ...], **schedule) -> Neighborhood:
    """Cached, because a neighbourhood lists the neighbours of every node."""
    return Neighborhood(make_grid(topology, grid_shape), **schedule)


class KohonenVQ(MapVQ):
    """Vector quantiser whose codebook is learned by Kohonen's self-organising map (Irie et al., 2023, Section 2.2).

    The codebook lives in the collection `codebook` (`codewords` [K, d], `sums` [K, d], `counts` [K], `step` []). A call
    with `train=True` updates it, after it was used. Under `jit` over a sharded batch the statistics are sums over the
    global batch: nothing needs to be synchronised. Under `shard_map` or `pmap`, where each device sees its own part,
    name the mapped axis as `axis_name`, or the codebooks of the devices drift apart.

    A vector with a number that is not finite, or too large to be squared, is left out of the statistics, and so never
    harms the codebook; the loss shows it.

    Example:
      >>> import jax, jax.numpy as jnp, kvae
      >>> layer = kvae.KohonenVQ(grid_shape=(4, 8))
      >>> z = jax.random.normal(jax.random.key(1), (2, 5, 5, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.quantized.shape, out.codes.shape, updated["codebook"]["codewords"].shape
      ((2, 5, 5, 16), (2, 5, 5), (32, 16))

    Attributes:
      grid_shape, neighborhood, shrink_step, radius, commitment_weight, topology, initial_width, lowest_width, train:
        see `MapVQ`.
      decay: 1 - beta of the moving averages.
      init_count: N^(0), the initial count of every code.
      update_empty: whether codes without members are updated, and the counts smoothed.
      metric: how vectors are compared; for "cosine" they and the codewords are scaled to length 1.
      gradient: how gradients pass to the encoder, a name in `kvae.quantizers.base.GRADIENTS`.
      restart_below: averaged count below which a code is placed at a vector of the batch; 0 is never.
      axis_name: of the mapped axis over which statistics are added up, under `shard_map` or `pmap` only.
    """

    decay: Share = 0.99
    init_count: NotNegative = 1.0
    update_empty: bool = True
    metric: Annotated[str, OneOf(METRICS)] = "euclidean"
    gradient: Annotated[str, OneOf(GRADIENTS)] = "straight_through"
    restart_below: NotNegative = 0.0
    axis_name: str | None = None

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """As `Quantizer.quantize`; what is measured over `axis_name` in training is of this device in evaluation."""
        check_vectors(z, mask)
        scaled = METRICS[self.metric]
        initial = None
        if self.is_initializing():
            initial = kohonen.initial_codebook(
                self.make_rng("params"), self.codebook_size, z.shape[-1], self.init_count
            )
            initial = initial._replace(codewords=scaled(initial.codewords))
        for leaf in Codebook._fields:
            self.variable("codebook", leaf, lambda leaf=leaf: getattr(initial, leaf))
        codewords = self.codewords()
        check_dimension(z, codewords)
        z32 = scaled(masked(z, mask).astype(jnp.float32))
        codes = kohonen.nearest_code(jax.lax.stop_gradient(z32), codewords)
        statistics = kohonen.batch_statistics(z32, codes, len(codewords), mask)
        if self.restart_below:
            step = self.get_variable("codebook", "step")
            statistics = statistics._replace(samples=kohonen.drawn_samples(z32, len(codewords), step, mask))
        if self.axis_name is not None and train and not self.is_initializing():
            statistics = jax.lax.psum(statistics, self.axis_name)
        nearest = kohonen.codewords_of(codes, codewords)
        loss = self.commitment_weight * masked_mean(jnp.square(nearest - z32), mask)
        quantized = GRADIENTS[self.gradient](z32, nearest).astype(z.dtype)
        return quantized_of(quantized, codes, loss, statistics)

    def codewords(self) -> jax.Array:
        """The codewords, float32 [K, d]."""
        return self.get_variable("codebook", "codewords")

    def codebook(self) -> Codebook:
        """The codebook and its moving averages."""
        return Codebook(*(self.get_variable("codebook", leaf) for leaf in Codebook._fields))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """As `Quantizer.batch_sums`, of the vectors as they are compared."""
        return super().batch_sums(METRICS[self.metric](z.astype(jnp.float32)), out, mask)

    def update(self, statistics: Statistics) -> None:
        """Updates the (mutable) codebook with the statistics of a batch, or with the sum of its micro-batches'."""
        updated = kohonen.update_codebook(
            self.codebook(), statistics, self.spreading, decay=self.decay, update_empty=self.update_empty
        )
        updated = updated._replace(codewords=METRICS[self.metric](updated.codewords))
        if self.restart_below:
            updated = kohonen.restart(updated, statistics.samples, self.restart_below)
        for leaf, value in updated._asdict().items():
            self.put_variable("codebook", leaf, value)


class GradientVQ(MapVQ):
    """Vector quantiser whose codebook is learned by gradient descent (van den Oord et al., 2017; Table 5).

    With a neighbourhood it is SOM-VAE (Fortuin et al., 2019): the winner's neighbours on the grid are pulled too. The
    loss is mean |sg(z) - w_code|^2 + lambda mean |z - sg(w_code)|^2 + neighbor_weight times the mean over positions of
    sum_{k != code} A[code, k] |w_k - sg(target)|^2, the first two means being over all elements.

    `codewords` [K, d] are in `params`; the collection `codebook` holds `step` [].

    Attributes:
      grid_shape, neighborhood, shrink_step, radius, commitment_weight, topology, initial_width, lowest_width, train:
        see `MapVQ`.
      pull: what the neighbours of a winner are pulled to, a name in `PULLS`.
      neighbor_weight: weight of the neighbours' term.
    """

    neighborhood: Annotated[str, OneOf(NEIGHBORHOODS)] = "none"
    pull: Annotated[str, OneOf(PULLS)] = "encoder"
    neighbor_weight: NotNegative = 1.0

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """As `Quantizer.quantize`; training and evaluation do the same."""
        check_vectors(z, mask)
        self.variable("codebook", "step", lambda: jnp.zeros((), jnp.int32))
        if self.has_variable("params", "codewords"):
            check_dimension(z, self.codewords())
        codewords = self.param("codewords", nn.initializers.normal(1.0), (self.codebook_size, z.shape[-1]), jnp.float32)
        stop = jax.lax.stop_gradient
        z32 = masked(z, mask).astype(jnp.float32)
        codes = kohonen.nearest_code(stop(z32), stop(codewords))
        statistics = kohonen.batch_statistics(z32, codes, len(codewords), mask)
        nearest = kohonen.codewords_of(codes, codewords)
        loss = masked_mean(jnp.square(nearest - stop(z32)), mask)
        loss += self.commitment_weight * masked_mean(jnp.square(stop(nearest) - z32), mask)
        loss += self.neighbor_weight * self._neighbors_loss(codewords, stop(z32), codes, statistics, mask)
        return quantized_of(straight_through(z32, nearest).astype(z.dtype), codes, loss, statistics)

    def _neighbors_loss(self, codewords, z, codes, statistics, mask):
        """Mean over positions of sum_{k != code} A[code, k] |w_k - target|^2.

        Expanding the square leaves three sums over the positions of a code, of 1, of the target and of its squared
        length; they are spread over the grid, and no position ever meets all K codes.
        """
        if self.pull == "encoder":
            sums = statistics.sums
            squared_norms = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
            squares = kohonen.batch_statistics(squared_norms, codes, self.codebook_size, mask).sums[:, 0]
        else:
            targets = jax.lax.stop_gradient(codewords)
            sums = statistics.counts[:, None] * targets
            squares = statistics.counts * jnp.sum(jnp.square(targets), axis=-1)

        def to_neighbors(values):
            return spread(self.spreading, values, self.get_variable("codebook", "step")) - values

        by_code = (
            to_neighbors(statistics.counts) * jnp.sum(jnp.square(codewords), axis=-1)
            - 2 * jnp.sum(to_neighbors(sums) * codewords, axis=-1)
            + to_neighbors(squares)
        )
        return jnp.sum(by_code) / jnp.maximum(jnp.sum(statistics.counts), 1.0)

    def codewords(self) -> jax.Array:
        """The codewords, float32 [K, d]."""
        return self.get_variable("params", "codewords")

    def update(self, statistics: Statistics) -> None:
        """Counts an update in the (mutable) collection; the codewords themselves are moved by the optimiser."""
        self.put_variable("codebook", "step", self.get_variable("codebook", "step") + 1)
