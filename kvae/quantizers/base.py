"""The interface of quantisers, on which models, the training program and `kvae.testing` rely."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvae import kohonen, measures
from kvae.core.code_range import first_outside
from kvae.core.errors import InputError
from kvae.core.fields import validate_attributes
from kvae.topology import Grid


@struct.dataclass
class Quantized:
    """Output of a quantiser, the same in training and in evaluation.

    Attributes:
      quantized: [..., d], the codeword of each vector, in the dtype of the input; gradients pass through to the input.
      codes: int32 [...], or [..., q] for a quantiser with q codebooks.
      loss: float32 [], the quantiser's part of the training loss, already weighted.
      perplexity: float32 [], exp(-sum p log p) of this batch's codes, from 1 to K; with several codebooks, the mean.
      counts: float32 [K], or [q, K], number of times this batch used each code.
      statistics: argument of `Quantizer.update`, a tree of arrays; the trees of micro-batches can be added.
    """

    quantized: jax.Array
    codes: jax.Array
    loss: jax.Array
    perplexity: jax.Array
    counts: jax.Array
    statistics: Any


class Quantizer(nn.Module):
    """Abstract layer that maps vectors to codes and back. Define `quantize`, `lookup` and `codebook_size`.

    A subclass has an attribute `train`, None by default, like `use_running_average` of `flax.linen.BatchNorm`. Set the
    attribute under `nn.vmap`, `nn.scan` and `nn.remat`, because these drop or trace the arguments of a call.

    `flax.nnx.bridge.ToNNX` keeps codebook updates only in graph mode; in NNX, use the layers of `kvae.nnx` instead.

    Example:
      >>> import jax, jax.numpy as jnp, kvae
      >>> from kvae.quantizers import Quantized, Quantizer
      >>> class Sign(Quantizer):
      ...     '''Two codes: the signs of 1-dimensional vectors.'''
      ...
      ...     train: bool | None = None
      ...
      ...     codebook_size = 2
      ...
      ...     def quantize(self, z, *, mask=None, train=False):
      ...         codes = (z[..., 0] > 0).astype(jnp.int32)
      ...         counts = jnp.sum(jax.nn.one_hot(codes, 2), axis=range(codes.ndim))
      ...         quantized = z + jax.lax.stop_gradient(self.lookup(codes) - z)
      ...         return Quantized(quantized, codes, jnp.float32(0), kvae.measures.perplexity(counts), counts, {})
      ...
      ...     def lookup(self, codes):
      ...         return 2.0 * codes[..., None] - 1
      >>> Sign().apply({}, jnp.array([[0.3], [-2.0]])).codes.tolist()
      [1, 0]
    """

    def __post_init__(self):
        validate_attributes(self)
        super().__post_init__()

    def __call__(self, z: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> Quantized:
        """Quantises vectors and, in training, updates the codebook afterwards.

        Args:
          z: vectors, float [..., d].
          train: True updates the codebook; None uses the attribute `train`. If both are None, the codebook is not
            updated, and must not be mutable.
          mask: optional bool [...], False for positions to leave out of loss, statistics and perplexity.

        Returns:
          The output of `quantize`: a `Quantized` with `quantized`, `codes`, `loss`, `perplexity` and `counts`.

        Raises:
          InputError: `z` or `mask` has the wrong shape or dtype; `train` is True, but the codebook is not mutable; or
            the codebook is mutable, but neither the argument nor the attribute `train` is set.
        """
        train = self.train if train is None else train
        has_state = bool(self.variables.get("codebook")) and not self.is_initializing()
        is_mutable = self.is_mutable_collection("codebook")
        if train is None and has_state and is_mutable:
            kind = type(self).__name__
            raise InputError(
                f"train is None, but the codebook of {kind} is mutable; pass train=True or train=False to the call; "
                f"under nn.vmap and nn.scan, which drop keyword arguments, set the attribute: {kind}(..., train=True)"
            )
        if train and has_state and not is_mutable:
            raise InputError(
                'train is True, but the collection "codebook" is not mutable; call '
                'apply(..., mutable=["codebook"]), or pass train=False'
            )
        out = self.quantize(z, mask=mask, train=bool(train))
        if train and has_state:
            self.update(out.statistics)
        return out

    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors without changing any variable.

        To learn from micro-batches, call this method for each, add their `statistics`, and call `update` once.

        Args:
          z: vectors, float [..., d].
          mask: optional bool [...], False for positions to leave out of loss, statistics and perplexity.
          train: True in training. It matters only to layers with dropout or `axis_name`.
        """
        raise NotImplementedError

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the vectors [..., d] of codes, int [...] or [..., q].

        Raises:
          InputError: the codes have the wrong shape or dtype, or one is outside 0 to K - 1. A compiled program cannot
            check values: there, such a code gives an arbitrary vector.
        """
        raise NotImplementedError

    def update(self, statistics: Any) -> None:
        """Updates the mutable collection `codebook`, if the layer has one, with the statistics of a batch."""

    @property
    def codebook_size(self) -> int:
        """K, the number of codes of each codebook."""
        raise NotImplementedError

    @property
    def n_codebooks(self) -> int | None:
        """q, the length of the last axis of the codes; None for a single codebook, whose codes lack this axis."""
        return None

    @property
    def grid(self) -> Grid | None:
        """Grid on which the codes of each codebook are arranged; None if there is no grid."""
        return None

    @property
    def is_map(self) -> bool:
        """True if codewords that are near on the grid are similar."""
        return False

    def stored(self, collection: str, name: str) -> jax.Array:
        """Returns a variable; raises InputError if the variables lack it."""
        if not self.has_variable(collection, name):
            kind = type(self).__name__
            raise InputError(
                f"the variables have no {collection}/{name}, which this {kind} needs; pass all variables that its "
                "init returned"
            )
        return self.get_variable(collection, name)

    def codewords(self) -> jax.Array:
        """Returns the vector of each code, float32 [K, d], or [q, K, d] for q codebooks."""
        return self.lookup(jnp.arange(self.codebook_size))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns sums over a batch, which evaluation adds up over a data set.

        Args:
          z: vectors, float [..., d].
          out: output of `quantize` for these vectors.
          mask: bool [...], False for positions to leave out.

        Returns:
          `counts` [K], `quantization_error` [], and `topographic_error_<adjacency>` [] for each adjacency of the grid;
          with a leading axis [q] for q codebooks.
        """
        return codebook_sums(z, out, mask, self.lookup(out.codes), self.codewords(), self.grid)


def codebook_sums(
    z: jax.Array, out: Quantized, mask: jax.Array, nearest: jax.Array, codewords: jax.Array, grid: Grid | None
) -> dict[str, jax.Array]:
    """Returns `Quantizer.batch_sums` for one codebook; `nearest` [..., d] holds the vectors' codewords."""
    distance = jnp.sqrt(jnp.sum(jnp.square(z.astype(jnp.float32) - nearest.astype(jnp.float32)), axis=-1))
    sums = {"counts": out.counts, "quantization_error": jnp.sum(jnp.where(mask, distance, 0))}
    for adjacency in grid.adjacency if grid else ():
        sums[f"topographic_error_{adjacency}"] = measures.topographic_errors(z, codewords, grid, adjacency, mask)
    return sums


def masked(z: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns vectors with masked ones set to 0, because a NaN in one of them would make the gradient NaN."""
    return jnp.asarray(z) if mask is None else jnp.where(mask[..., None], z, 0)


def along_last_axis(vector: jax.Array | np.ndarray, like: jax.Array) -> jax.Array:
    """Returns a vector [d] with the rank of `like`, because `jax_numpy_rank_promotion` can reject other ranks."""
    return jnp.reshape(vector, (1,) * (like.ndim - 1) + (-1,))


def quantized_of(quantized: jax.Array, codes: jax.Array, loss: jax.Array, statistics: kohonen.Statistics) -> Quantized:
    """Returns the output of a layer with one codebook."""
    return Quantized(quantized, codes, loss, measures.perplexity(statistics.counts), statistics.counts, statistics)


def masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the mean of values [..., d] over the positions where `mask` [...] is True; 0 if there are none."""
    if mask is None:
        return jnp.sum(values) / jnp.maximum(values.size, 1)
    elements = (jnp.maximum(jnp.sum(mask), 1) * values.shape[-1]).astype(values.dtype)
    return jnp.sum(jnp.where(mask[..., None], values, 0.0)) / elements


def check_vectors(z: jax.Array, mask: jax.Array | None) -> None:
    """Raises InputError unless z is float [..., d] with d at least 1, and mask is None or bool [...]."""
    shape, dtype = getattr(z, "shape", None), getattr(z, "dtype", None)
    if not shape or not shape[-1] or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 8:
        raise InputError(f"z is {_array_type(z)}; it must be a float array [..., d] with d at least 1")
    if mask is not None and (getattr(mask, "shape", None) != shape[:-1] or mask.dtype != bool):
        raise InputError(f"mask is {_array_type(mask)}; for this z it must be bool{list(shape[:-1])}")


def check_codes(
    codes: jax.Array, size: int, n_codebooks: int | None = None, *, fewest: int | None = None, lowest: int = 0
) -> None:
    """Raises InputError unless codes are int [...], or [..., q], from 0 to `size` - 1.

    The range is not checked during tracing, when values are unknown, or for arrays that are partly on other hosts.

    Args:
      codes: the codes.
      size: K.
      n_codebooks: q; None for codes without this axis.
      fewest: minimum length of the last axis; q by default.
      lowest: lowest valid code; -1 if that marks a dropped codebook.
    """
    shape, dtype = getattr(codes, "shape", None), getattr(codes, "dtype", None)
    fewest = n_codebooks if fewest is None else fewest
    is_fitting = shape is not None and (n_codebooks is None or (shape and fewest <= shape[-1] <= n_codebooks))
    if not is_fitting or not jnp.issubdtype(dtype, jnp.integer):
        wanted = "[...]" if n_codebooks is None else f"[..., {n_codebooks}]"
        raise InputError(f"codes are {_array_type(codes)}; they must be an integer array {wanted}")
    if isinstance(codes, jax.core.Tracer) or not getattr(codes, "is_fully_addressable", True):
        return
    values = np.asarray(codes)
    position = first_outside(values, size, lowest)
    if position is not None:
        index = f"[{', '.join(map(str, position))}]" if position else ""
        dropped = ", or -1 for a dropped codebook" if lowest < 0 else ""
        raise InputError(f"codes{index} is {values[position]}; codes must be from 0 to {size - 1}{dropped}")


def check_dimension(z: jax.Array, codewords: jax.Array) -> None:
    """Raises InputError unless vectors [..., d] and codewords [K, d] have the same d."""
    if z.shape[-1] != codewords.shape[-1]:
        raise InputError(
            f"z has {z.shape[-1]}-dimensional vectors; for this codebook they must be {codewords.shape[-1]}-dimensional"
        )


def check_size(codewords: jax.Array, field: str, shape: tuple[int, ...]) -> None:
    """Raises InputError unless a restored codebook [K, d] has a codeword for each node of the layer's `field`."""
    if len(codewords) != math.prod(shape):
        raise InputError(
            f"{field} is {shape}, which has {math.prod(shape)} nodes, but the codebook has {len(codewords)} codewords; "
            f"use the {field} that the codebook was made with, or initialise the layer again"
        )


def check_codebook_size(codewords: jax.Array, size: int) -> None:
    """Raises InputError unless a restored codebook [K, d] has the number of codewords that the layer has as a field."""
    if len(codewords) != size:
        raise InputError(
            f"codebook_size is {size}, but the codebook has {len(codewords)} codewords; use the codebook_size that the "
            "codebook was made with, or initialise the layer again"
        )


def _array_type(value: Any) -> str:
    """Returns an array's dtype and shape, such as "float32[3, 8]", or the type's name of any other value."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{value.dtype}{list(shape)}"
