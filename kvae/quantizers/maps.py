"""Quantiser layers with one codebook on a grid: their base class, and the layer that learns by Kohonen's rule."""

import functools
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae import kohonen
from kvae.core.fields import Channels, NotNegative, OneOf, Positive, Shape, Share
from kvae.kohonen import CodebookState, Statistics
from kvae.quantizers import restarts, starts
from kvae.quantizers.base import (
    Quantized,
    check_codes,
    check_dimension,
    check_size,
    check_vectors,
    codebook_sums,
    masked,
    masked_mean,
    quantized_of,
)
from kvae.quantizers.gradients import GRADIENTS
from kvae.quantizers.projections import Projected
from kvae.topology import GRIDS, NEIGHBORHOODS, Grid, Neighborhood, kernel_of, make_grid

DISTANCE_METRICS = {"euclidean": lambda vectors: vectors, "cosine": kohonen.unit}
"""Maps the values of the field `metric` to functions that scale vectors and codewords before they are compared."""


class MapVQ(Projected):
    """Base class of `KohonenVQ` and `GradientVQ`: a quantiser whose codes are nodes of a grid."""

    grid_shape: Shape
    neighborhood: Annotated[str, OneOf(NEIGHBORHOODS)] = "hard"
    shrink_step: NotNegative = 0.1
    radius: Positive = 1.5
    commitment_weight: NotNegative = 0.25
    topology: Annotated[str, OneOf(GRIDS)] = "plane"
    initial_width: Positive | None = None
    lowest_width: NotNegative | None = None
    metric: Annotated[str, OneOf(DISTANCE_METRICS)] = "euclidean"
    gradient: Annotated[str, OneOf(GRADIENTS)] = "straight_through"
    codebook_dim: Channels | None = None
    train: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        _ = self.spreading  # raises for an invalid neighbourhood now, not in the first training step

    @property
    def spreading(self) -> Neighborhood:
        """The neighbourhood on the layer's grid, with the layer's schedule of widths."""
        kernel = kernel_of(self.neighborhood)
        return _neighborhood(
            (GRIDS.get(self.topology), kernel),
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
        """K, the product of `grid_shape`."""
        return self.spreading.grid.size

    @property
    def grid(self) -> Grid:
        """The grid of the codes."""
        return self.spreading.grid

    @property
    def is_map(self) -> bool:
        """True unless `neighborhood` is "none"."""
        return self.neighborhood != "none"

    def compared(self, z: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns the vectors that are compared with codewords: projected and scaled, float32 [..., d]."""
        return DISTANCE_METRICS[self.metric](self.project_in(masked(z, mask)))

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the vectors [..., D] of codes, int [...]."""
        check_codes(codes, self.codebook_size)
        codewords = self.codewords()
        check_size(codewords, "grid_shape", self.grid_shape)
        return self.project_out(kohonen.codewords_of(jnp.asarray(codes), codewords))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns `Quantizer.batch_sums` of the vectors that are compared with codewords."""
        codewords = self.codewords()
        nearest = kohonen.codewords_of(out.codes, codewords)
        return codebook_sums(self.compared(z, mask), out, mask, nearest, codewords, self.grid)


@functools.lru_cache
def _neighborhood(entries: tuple, topology: str, grid_shape: tuple[int, ...], **schedule) -> Neighborhood:
    """Returns a neighbourhood, cached because it lists the neighbours of every node.

    `entries`, the grid and kernel now registered under these names, keep a redefined one from matching the cache.
    """
    return Neighborhood(make_grid(topology, grid_shape), **schedule)


class KohonenVQ(MapVQ):
    """Vector quantiser whose codebook is learned by Kohonen's self-organising map (Irie et al., 2023, Section 2.2).

    A call with `train=True` quantises a batch, then updates the codebook by Eqs. 9-11: with the sum s_k and the number
    c_k of the vectors with code k, beta = 1 - decay, and the neighbourhood A(t) after t updates,

        m <- decay m + (1 - decay) A(t)^T s,   N <- decay N + (1 - decay) A(t)^T c,   w_k <- m_k / N_k.

    The collection `codebook` holds w, m, N and t: `codewords` [K, d], `sums` [K, d], `counts` [K], all float32, and
    `step` [], int32. The loss is commitment_weight * mean |sg(w_code) - z|^2.

    Under `jit` with a sharded batch, the sums cover the global batch, so nothing needs to be synchronised. Under
    `shard_map` or `pmap`, each device sees only its own part: set `axis_name`, or the devices' codebooks will diverge.

    Vectors that contain NaN or infinity, or are too large to be squared, are left out of s and c, so they cannot
    corrupt the codebook. They still make the loss non-finite.

    Example:
      >>> import jax, jax.numpy as jnp, kvae
      >>> layer = kvae.KohonenVQ(grid_shape=(4, 8))
      >>> z = jax.random.normal(jax.random.key(1), (2, 5, 5, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.quantized.shape, out.codes.shape, updated["codebook"]["codewords"].shape
      ((2, 5, 5, 16), (2, 5, 5), (32, 16))

    Attributes:
      grid_shape: number of nodes along each axis of the grid; their product is K.
      neighborhood: kernel of A, the neighbourhood, a name in `kvae.NEIGHBORHOODS`: "hard", "gaussian", "exponential",
        or "none" (EMA-VQ).
      shrink_step: tau, how fast the neighbourhood shrinks: after t updates its width in nodes is
        max(lowest_width, initial_width / sqrt(1 + t tau)), without the root for the exponential kernel.
      radius: reach of the hard neighbourhood, in nodes; 1.5 includes the diagonal neighbours on a plane.
      commitment_weight: lambda, the weight of the commitment loss.
      topology: the grid, a name in `kvae.GRIDS`: "plane", "torus", "cylinder" (left and right edges are
        connected), "hexagonal" or "hexagonal_torus".
      initial_width: width of the neighbourhood before the first update, in nodes; None uses the kernel's default. The
        paper uses 1.
      lowest_width: lower bound of the width, in nodes; None uses the kernel's default. The paper uses 0.
      metric: distance between vectors and codewords, "euclidean" or "cosine"; "cosine" scales both to length 1.
      gradient: gradient estimator for the encoder, "straight_through", "rotation" (the rotation trick) or "diveq".
      codebook_dim: length d of the codewords; None uses the length of z. If the lengths differ, two learned linear
        layers project vectors to d dimensions and back (Yu et al., "ViT-VQGAN", 2021, arXiv:2110.04627).
      train: default for the argument `train` of a call.
      decay: 1 - beta, the decay of the moving averages.
      init_count: N^(0), the initial count of every code.
      update_empty: True also updates codes without vectors, and smooths the counts; False leaves such codes unchanged.
      restart_below: a code whose average count falls below this restarts at a vector of the batch; 0 means never.
      start: source of the first codewords: "normal" draws them from N(0, 1), "samples" takes vectors of the first
        batch, and "kmeans" does the same and then runs K-means over the next nine batches.
      axis_name: name of the mapped axis to sum statistics over; needed only under `shard_map` or `pmap`.
    """

    decay: Share = 0.99
    init_count: NotNegative = 1.0
    update_empty: bool = True
    restart_below: NotNegative = 0.0
    start: Annotated[str, OneOf(starts.STARTS)] = "normal"
    axis_name: str | None = None

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`). In training, statistics are summed over `axis_name`."""
        check_vectors(z, mask)
        dimension = self.codebook_dim or z.shape[-1]
        self.declare_projections(z, dimension)
        initial = None
        if self.is_initializing():
            initial = kohonen.initial_codebook(self.make_rng("params"), self.codebook_size, dimension, self.init_count)
            initial = initial._replace(codewords=DISTANCE_METRICS[self.metric](initial.codewords))
        for leaf in CodebookState._fields:
            self.variable("codebook", leaf, lambda leaf=leaf: getattr(initial, leaf))
        codewords = self.codewords()
        check_size(codewords, "grid_shape", self.grid_shape)
        z32 = self.compared(z, mask)
        check_dimension(z32, codewords)
        codes = kohonen.nearest_code(jax.lax.stop_gradient(z32), codewords)
        statistics = kohonen.batch_statistics(z32, codes, len(codewords), mask)
        is_mapped = self.axis_name is not None and train and not self.is_initializing()
        if self.restart_below or starts.STARTS[self.start]:
            step = self.get_variable("codebook", "step")
            part = jax.lax.axis_index(self.axis_name) if is_mapped else 0
            samples = restarts.draw_samples(z32, len(codewords), step, mask, part)
            statistics = statistics._replace(samples=samples)
        if is_mapped:
            statistics = jax.lax.psum(statistics, self.axis_name)
        nearest = kohonen.codewords_of(codes, codewords)
        loss = self.commitment_weight * masked_mean(jnp.square(nearest - z32), mask)
        quantized = self.project_out(GRADIENTS[self.gradient](z32, nearest)).astype(z.dtype)
        return quantized_of(quantized, codes, loss, statistics)

    def codewords(self) -> jax.Array:
        """Returns the codewords, float32 [K, d]."""
        return self.stored("codebook", "codewords")

    def codebook(self) -> CodebookState:
        """Returns the codebook and its moving averages."""
        return CodebookState(*(self.stored("codebook", leaf) for leaf in CodebookState._fields))

    def update(self, statistics: Statistics) -> None:
        """Updates the mutable codebook with the statistics of a batch."""
        before, scaled = self.codebook(), DISTANCE_METRICS[self.metric]
        after = kohonen.update_codebook(
            before, statistics, self.spreading, decay=self.decay, update_empty=self.update_empty
        )
        after = after._replace(codewords=scaled(after.codewords))
        if self.restart_below:
            after = restarts.restart(after, statistics.samples, self.restart_below)
        if n_updates := starts.STARTS[self.start]:
            started = starts.start(before, statistics)
            started = started._replace(codewords=scaled(started.codewords))
            after = jax.tree.map(lambda *leaves: jnp.where(before.step < n_updates, *leaves), started, after)
        for leaf, value in after._asdict().items():
            self.put_variable("codebook", leaf, value)
