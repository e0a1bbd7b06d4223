"""The contract of a quantiser: what models, the training program and `kvae.testing` need from it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvae import kohonen, measures
from kvae.core.errors import InputError
from kvae.core.fields import validate_attributes
from kvae.topology import Grid


@struct.dataclass
class Quantized:
    """Output of a quantiser, the same in training and in evaluation.

    Attributes:
      quantized: [..., d], the codeword of each vector, in the dtype of the input; gradients pass through to the input.
      codes: int32 [...], or [..., q] for a quantiser with q codebooks.
      loss: float32 [], the quantiser's part of the training loss, weighted.
      perplexity: float32 [], exp(-sum p log p) of this batch's codes, from 1 to K; the mean over several codebooks.
      counts: float32 [K], or [q, K], how often this batch used each code.
      statistics: argument of `Quantizer.update`, a tree of arrays; the trees of micro-batches add up to the batch's.
    """

    quantized: jax.Array
    codes: jax.Array
    loss: jax.Array
    perplexity: jax.Array
    counts: jax.Array
    statistics: Any


class Quantizer(nn.Module):
    """A layer that maps vectors to codes and back. Abstract: define `quantize`, `lookup` and `codebook_size`.

    A subclass has an attribute `train`, None by default, as `flax.linen.BatchNorm` has `use_running_average`: under
    `nn.vmap`, `nn.scan` and `nn.remat`, which drop or trace the arguments of a call, set the attribute instead.

    `flax.nnx.bridge.ToNNX` keeps what a codebook learns in graph mode only; in NNX use the layers of `kvae.nnx`.

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
          train: True updates the codebook; None takes the attribute `train`. If that is None too, the layer does not
            learn, and raises if its codebook is mutable.
          mask: optional bool [...]; where False, the position does not count in loss, statistics and perplexity.

        Returns:
          The output of `quantize`.

        Raises:
          InputError: `z` or `mask` has the wrong shape or dtype; the codebook is to be updated and its collection is
            not mutable; or it is mutable, and neither the argument nor the attribute `train` is set.
        """
        train = self.train if train is None else train
        has_state = bool(self.variables.get("codebook")) and not self.is_initializing()
        is_mutable = self.is_mutable_collection("codebook")
        if train is None and has_state and is_mutable:
            kind = type(self).__name__
            raise InputError(
                f"train is not set for {kind}, whose codebook is mutable: pass train=True or train=False to the call, "
                f"or set the attribute, {kind}(..., train=True), since nn.vmap and nn.scan drop arguments given by name"
            )
        if train and has_state and not is_mutable:
            raise InputError(
                "train=True updates the codebook, and its collection is not mutable: call "
                'apply(..., mutable=["codebook"]), or train=False'
            )
        out = self.quantize(z, mask=mask, train=bool(train))
        if train and has_state:
            self.update(out.statistics)
        return out

    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors without changing any variable.

        To learn from micro-batches, call this for each, add their `statistics`, and call `update` once.

        Args:
          z: vectors, float [..., d].
          mask: optional bool [...]; where False, the position does not count in loss, statistics and perplexity.
          train: True in training, for layers that then differ in more than updates, such as dropout.
        """
        raise NotImplementedError

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the vectors [..., d] of codes, int [...] or [..., q]; raises InputError for other dtypes.

        A code outside 0 to K - 1 is an InputError too. Inside a compiled program, where values are unknown, it gives an
        arbitrary vector instead: check the codes before.
        """
        raise NotImplementedError

    def update(self, statistics: Any) -> None:
        """Updates the mutable collection `codebook`, if the layer has one, with the statistics of a whole batch."""

    @property
    def codebook_size(self) -> int:
        """K, the number of codes of each codebook."""
        raise NotImplementedError

    @property
    def n_codebooks(self) -> int | None:
        """q, the length of the last axis of the codes; None for a single codebook, whose codes have no such axis."""
        return None

    @property
    def grid(self) -> Grid | None:
        """Grid on which the codes of each codebook are arranged; None without a grid."""
        return None

    @property
    def is_map(self) -> bool:
        """True if codewords that are near on the grid are similar."""
        return False

    def codewords(self) -> jax.Array:
        """Returns the vector of each code, float32 [K, d], or [q, K, d] for q codebooks."""
        return self.lookup(jnp.arange(self.codebook_size))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns sums over a batch for evaluation, which adds them up over a data set.

        Args:
          z: vectors, float [..., d].
          out: output of `quantize` for them.
          mask: bool [...], False where a position does not count.

        Returns:
          `counts` [K], `quantization_error` [], and `topographic_error_<adjacency>` [] for each adjacency of the grid;
          with a leading axis [q] for q codebooks.
        """
        return codebook_sums(z, out, mask, self.lookup(out.codes), self.codewords(), self.grid)


def codebook_sums(
    z: jax.Array, out: Quantized, mask: jax.Array, nearest: jax.Array, codewords: jax.Array, grid: Grid | None
) -> dict[str, jax.Array]:
    """Returns `Quantizer.batch_sums` of one codebook; `nearest` [..., d] are the codewords of the vectors."""
    distance = jnp.sqrt(jnp.sum(jnp.square(z.astype(jnp.float32) - nearest.astype(jnp.float32)), axis=-1))
    sums = {"counts": out.counts, "quantization_error": jnp.sum(jnp.where(mask, distance, 0))}
    for adjacency in grid.adjacency if grid else ():
        errors = measures.topographic_errors(z, codewords, grid, adjacency, mask)
        sums[f"topographic_error_{adjacency}"] = errors
    return sums


def masked(z: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns vectors, 0 where they are masked: a NaN there would make the gradient 0 times NaN."""
    return jnp.asarray(z) if mask is None else jnp.where(mask[..., None], z, 0)


def straight_through(z: jax.Array, nearest: jax.Array) -> jax.Array:
    """Returns the nearest codewords, with the gradient of z (van den Oord et al., 2017)."""
    return _with_gradient_of(z, nearest)


def rotation(z: jax.Array, nearest: jax.Array) -> jax.Array:
    """Returns the nearest codewords, as if z were rotated and scaled to them (Fifty et al., "rotation trick", 2024).

    With e = z / |z|, q = w / |w| and r the unit vector of e + q: (|w| / |z|) (z - 2 (r . z) r + 2 (e . z) q), where
    |w| / |z|, r, e and q count as constants.
    """
    stop, nearest = jax.lax.stop_gradient, jax.lax.stop_gradient(nearest)
    e, q = kohonen.unit(stop(z)), kohonen.unit(nearest)
    r, scale = kohonen.unit(e + q), _length(nearest) / jnp.maximum(_length(stop(z)), kohonen.EPSILON)

    def component(direction):
        return jnp.sum(direction * z, axis=-1, keepdims=True)

    return _with_gradient_of(scale * (z - 2 * component(r) * r + 2 * component(e) * q), nearest)


def _with_gradient_of(carrier: jax.Array, nearest: jax.Array) -> jax.Array:
    # Adding x - sg(x), which is 0, keeps the values exact.
    return jax.lax.stop_gradient(nearest) + (carrier - jax.lax.stop_gradient(carrier))


def _length(vectors: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))


GRADIENTS = {"straight_through": straight_through, "rotation": rotation}
"""Maps the names that the field `gradient` accepts to functions of (z, nearest codewords)."""


def quantized_of(quantized: jax.Array, codes: jax.Array, loss: jax.Array, statistics: kohonen.Statistics) -> Quantized:
    """Returns the output of a layer with one codebook."""
    return Quantized(quantized, codes, loss, measures.perplexity(statistics.counts), statistics.counts, statistics)


def masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the mean of values [..., d] over the positions where `mask` [...] is True; 0 if it is nowhere."""
    if mask is None:
        return jnp.sum(values) / jnp.maximum(values.size, 1)
    elements = jnp.maximum(jnp.sum(mask), 1) * values.shape[-1]
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

    The range is not checked while a program is traced, when values are unknown, nor for arrays on other hosts.

    Args:
      codes: the codes.
      size: K.
      n_codebooks: q; None for codes without such an axis.
      fewest: fewest codebooks whose codes suffice; q by default.
      lowest: lowest code, -1 if that means a codebook that was dropped.
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
    is_outside = (values < lowest) | (values >= size)
    if is_outside.any():
        place = np.unravel_index(np.argmax(is_outside), values.shape)
        index = f"[{', '.join(map(str, place))}]" if place else ""
        dropped = ", or -1 for a codebook that was dropped" if lowest < 0 else ""
        raise InputError(f"codes{index} is {values[place]}; codes must be from 0 to {size - 1}{dropped}")


def check_dimension(z: jax.Array, codewords: jax.Array) -> None:
    """Raises InputError unless vectors [..., d] and codewords [K, d] have the same d."""
    if z.shape[-1] != codewords.shape[-1]:
        raise InputError(f"z has {z.shape[-1]}-dimensional vectors; the codebook has {codewords.shape[-1]} dimensions")


def check_size(codewords: jax.Array, field: str, shape: tuple[int, ...]) -> None:
    """Raises InputError unless a restored codebook [K, d] has as many codewords as the layer's `field` has nodes."""
    if len(codewords) != math.prod(shape):
        raise InputError(
            f"the variables are of a grid with {len(codewords)} nodes, and {field} is {shape}, with "
            f"{math.prod(shape)} nodes; make the layer with the {field} of the variables, or initialise it again"
        )


def _array_type(value: Any) -> str:
    """Returns dtype and shape, such as "float32[3, 8]"; the type's name for other values."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{value.dtype}{list(shape)}"
