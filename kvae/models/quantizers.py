"""Quantiser layers for any Flax model."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae import kohonen, measures
from kvae.errors import InputError
from kvae.kohonen import Codebook, Statistics
from kvae.topology import Neighborhood, spread

PULLS = ("encoder", "codeword")


@flax.struct.dataclass
class Quantized:
    """What a quantiser returns, in training and in evaluation alike.

    Attributes:
      quantized: [..., d], the codeword of each vector in the dtype of the input; gradients pass straight through to it.
      codes: int32 [...].
      loss: float32 [], the quantiser's share of the loss, weighted.
      perplexity: float32 [], exp(-sum p log p) of this batch's codes, from 1 to K.
      statistics: this batch's sums and counts, before spreading.
    """

    quantized: jax.Array
    codes: jax.Array
    loss: jax.Array
    perplexity: jax.Array
    statistics: Statistics


class KohonenVQ(nn.Module):
    """Vector quantiser whose codebook is learned by Kohonen's self-organising map (Irie et al., 2023, Section 2.2).

    The codebook lives in the collection `codebook` (`codewords` [K, d], `sums` [K, d], `counts` [K], `step` []) and is
    updated, after it was used, when `train=True` and the collection is mutable. Under `jit` over a sharded batch the
    statistics are sums over the global batch: nothing needs to be synchronised.

    Example:
      >>> import jax, jax.numpy as jnp, kvae
      >>> layer = kvae.KohonenVQ(grid_shape=(4, 8))
      >>> z = jax.random.normal(jax.random.key(1), (2, 5, 5, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.quantized.shape, out.codes.shape, updated["codebook"]["codewords"].shape
      ((2, 5, 5, 16), (2, 5, 5), (32, 16))

    Attributes:
      grid_shape: nodes of the map along each axis; K is their product.
      neighborhood: "none" (EMA-VQ), "hard", "gaussian" or "exponential": `kvae.topology.KERNELS`.
      shrink_step: tau, how fast the neighbourhood shrinks.
      radius: reach of the hard neighbourhood on the grid.
      decay: 1 - beta of the moving averages.
      init_count: N^(0), the initial count of every code.
      update_empty: whether codes without members are updated, and the counts smoothed.
      commitment_weight: lambda of the commitment loss.
      schedule: how the neighbourhood's strength falls with the updates: `kvae.topology.SCHEDULES`.
    """

    grid_shape: tuple[int, ...]
    neighborhood: str = "hard"
    shrink_step: float = 0.1
    radius: float = 1.5
    decay: float = 0.99
    init_count: float = 1.0
    update_empty: bool = True
    commitment_weight: float = 0.25
    schedule: str = "inverse"

    def __post_init__(self):
        super().__post_init__()
        _neighborhood_of(self)  # an impossible field fails here, not in the first step
        if not 0 <= self.decay < 1:
            raise InputError(f"decay is {self.decay}; it must be in [0, 1)")
        if not self.init_count >= 0:
            raise InputError(f"init_count is {self.init_count}; it must be 0 or larger")
        _check_weight("commitment_weight", self.commitment_weight)

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> Quantized:
        """Quantises vectors, then, in training, updates the codebook with them.

        Args:
          z: vectors, float [..., d].
          train: whether the codebook learns from them (if its collection is mutable).
          mask: optional bool [...]; where False the position is left out of loss, statistics and perplexity.

        Raises:
          InputError: `z` is not a float array of the codebook's dimension, or `mask` does not fit it.
        """
        _check_vectors(z, mask)
        size = _neighborhood_of(self).size
        initial = None
        if self.is_initializing():
            initial = kohonen.initial_codebook(self.make_rng("params"), size, z.shape[-1], self.init_count)
        for leaf in Codebook._fields:
            self.variable("codebook", leaf, lambda leaf=leaf: getattr(initial, leaf))
        codewords = self.codebook().codewords
        _check_dimension(z, codewords)
        codes = kohonen.nearest_code(jax.lax.stop_gradient(z), codewords)
        statistics = kohonen.batch_statistics(z, codes, size, mask)
        nearest = codewords[codes]
        loss = self.commitment_weight * _masked_mean(jnp.square(nearest - z.astype(jnp.float32)), mask)
        if train and self.is_mutable_collection("codebook") and not self.is_initializing():
            self.update(statistics)
        return Quantized(_straight_through(z, nearest), codes, loss, measures.perplexity(statistics.counts), statistics)

    def codebook(self) -> Codebook:
        """The codebook and its moving averages."""
        return Codebook(*(self.get_variable("codebook", leaf) for leaf in Codebook._fields))

    def codewords(self) -> jax.Array:
        """The codewords, float32 [K, d]."""
        return self.get_variable("codebook", "codewords")

    def update(self, statistics: Statistics) -> None:
        """Updates the (mutable) codebook with the statistics of a batch, or with the sum of its micro-batches'."""
        updated = kohonen.update_codebook(
            self.codebook(), statistics, _neighborhood_of(self), decay=self.decay, update_empty=self.update_empty
        )
        for leaf, value in updated._asdict().items():
            self.put_variable("codebook", leaf, value)


class GradientVQ(nn.Module):
    """Vector quantiser whose codebook is learned by gradient descent (van den Oord et al., 2017; Table 5).

    With a neighbourhood it is SOM-VAE (Fortuin et al., 2019): the winner's neighbours on the grid are pulled too. The
    loss is mean |sg(z) - w_code|^2 + lambda mean |z - sg(w_code)|^2 + neighbor_weight times the mean over positions of
    sum_{k != code} A[code, k] |w_k - sg(target)|^2, the first two means being over all elements.

    `codewords` [K, d] are in `params`; the collection `codebook` holds `step` [].

    Attributes:
      grid_shape, neighborhood, shrink_step, radius, commitment_weight, schedule: as in `KohonenVQ`.
      pull: the target of the neighbours: "encoder", z, as Fortuin et al. write; or "codeword", the winning codeword,
        as the code of Irie et al. does.
      neighbor_weight: weight of the neighbours' term.
    """

    grid_shape: tuple[int, ...]
    neighborhood: str = "none"
    pull: str = "encoder"
    neighbor_weight: float = 1.0
    shrink_step: float = 0.1
    radius: float = 1.5
    commitment_weight: float = 0.25
    schedule: str = "inverse"

    def __post_init__(self):
        super().__post_init__()
        _neighborhood_of(self)
        if self.pull not in PULLS:
            raise InputError(f"pull is {self.pull!r}; it must be one of {', '.join(PULLS)}")
        _check_weight("neighbor_weight", self.neighbor_weight)
        _check_weight("commitment_weight", self.commitment_weight)

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> Quantized:
        """Quantises vectors; arguments, result and errors as of `KohonenVQ`."""
        _check_vectors(z, mask)
        size = _neighborhood_of(self).size
        self.variable("codebook", "step", lambda: jnp.zeros((), jnp.int32))
        if self.has_variable("params", "codewords"):
            _check_dimension(z, self.codewords())
        codewords = self.param("codewords", nn.initializers.normal(1.0), (size, z.shape[-1]), jnp.float32)
        codes = kohonen.nearest_code(jax.lax.stop_gradient(z), jax.lax.stop_gradient(codewords))
        statistics = kohonen.batch_statistics(z, codes, size, mask)
        nearest, z32 = codewords[codes], z.astype(jnp.float32)
        stop = jax.lax.stop_gradient
        loss = _masked_mean(jnp.square(nearest - stop(z32)), mask)
        loss += self.commitment_weight * _masked_mean(jnp.square(stop(nearest) - z32), mask)
        loss += self.neighbor_weight * self._neighbors_loss(codewords, stop(z32), codes, statistics, mask)
        if train and self.is_mutable_collection("codebook") and not self.is_initializing():
            self.update(statistics)
        return Quantized(
            _straight_through(z, stop(nearest)), codes, loss, measures.perplexity(statistics.counts), statistics
        )

    def _neighbors_loss(self, codewords, z, codes, statistics, mask):
        """Mean over positions of sum_{k != code} A[code, k] |w_k - target|^2.

        Expanding the square leaves three sums over the positions of a code, of 1, of the target and of its squared
        length; they are spread over the grid, and no position ever meets all K codes.
        """
        neighborhood = _neighborhood_of(self)
        if self.pull == "encoder":
            sums = statistics.sums
            squared_norms = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
            squares = kohonen.batch_statistics(squared_norms, codes, neighborhood.size, mask).sums[:, 0]
        else:
            targets = jax.lax.stop_gradient(codewords)
            sums = statistics.counts[:, None] * targets
            squares = statistics.counts * jnp.sum(jnp.square(targets), axis=-1)

        def to_neighbors(values):
            return spread(neighborhood, values, self.get_variable("codebook", "step")) - values

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
        del statistics
        self.put_variable("codebook", "step", self.get_variable("codebook", "step") + 1)


QUANTIZERS = {"kohonen": KohonenVQ, "gradient": GradientVQ}


def _neighborhood_of(layer) -> Neighborhood:
    return Neighborhood(tuple(layer.grid_shape), layer.neighborhood, layer.shrink_step, layer.radius, layer.schedule)


def _straight_through(z, nearest):
    """The nearest codewords, with the gradient of z; adding z - sg(z), which is 0, leaves their values exact."""
    return jax.lax.stop_gradient(nearest).astype(z.dtype) + (z - jax.lax.stop_gradient(z))


def _masked_mean(values, mask):
    """Mean over the elements of the positions where `mask` (values' shape but the last axis) holds; 0 if none does."""
    if mask is None:
        return jnp.sum(values) / max(values.size, 1)
    elements = jnp.maximum(jnp.sum(mask), 1) * values.shape[-1]
    return jnp.sum(jnp.where(mask[..., None], values, 0.0)) / elements


def _check_vectors(z, mask):
    if z.ndim < 1 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise InputError(f"z is {z.dtype}{list(z.shape)}; it must be a float array [..., d]")
    if mask is not None and (mask.shape != z.shape[:-1] or mask.dtype != bool):
        raise InputError(f"mask is {mask.dtype}{list(mask.shape)}; for this z it must be bool{list(z.shape[:-1])}")


def _check_dimension(z, codewords):
    if z.shape[-1] != codewords.shape[-1]:
        raise InputError(f"z has vectors of {z.shape[-1]} numbers, the codebook of {codewords.shape[-1]}")


def _check_weight(name, value):
    if not value >= 0:
        raise InputError(f"{name} is {value}; it must be 0 or larger")
