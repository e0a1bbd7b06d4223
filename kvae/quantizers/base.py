"""The contract of a quantiser: what a model, the program and `kvae.testing` need of it."""

import sys
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from kvae import kohonen, measures
from kvae.core.errors import InputError
from kvae.core.fields import show_plainly, validate_attributes
from kvae.topology import Grid


@struct.dataclass
class Quantized:
    """What a quantiser returns, in training and in evaluation alike.

    Attributes:
      quantized: [..., d], the codeword of each vector in the dtype of the input; gradients pass straight through to it.
      codes: int32 [...], or [..., q] of a quantiser with several codebooks.
      loss: float32 [], the quantiser's share of the loss, weighted.
      perplexity: float32 [], exp(-sum p log p) of this batch's codes, from 1 to K; the mean over several codebooks.
      counts: float32 [K], or [q, K], how often this batch used each code.
      statistics: what `Quantizer.update` learns from, any tree; those of the parts of a batch add up.
    """

    quantized: jax.Array
    codes: jax.Array
    loss: jax.Array
    perplexity: jax.Array
    counts: jax.Array
    statistics: Any


class Quantizer(nn.Module):
    """A layer from vectors to codes and back. Abstract: a subclass defines `quantize`, `lookup` and `codebook_size`.

    A subclass has an attribute `train`, None by default, as `flax.linen.BatchNorm` has `use_running_average`: under
    `nn.vmap`, `nn.scan` or `nn.remat`, which trace or drop the arguments of a call, set the attribute instead.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        show_plainly(cls)

    def __post_init__(self):
        validate_attributes(self)
        super().__post_init__()

    def __call__(self, z: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> Quantized:
        """Quantises vectors, then, in training, learns from them: the output is that of `quantize`.

        Args:
          z: vectors, float [..., d].
          train: whether the codebook learns from them; by default the attribute, else False.
          mask: optional bool [...]; where False the position is left out of loss, statistics and perplexity.

        Raises:
          InputError: `z` or `mask` does not fit, or the codebook is to learn and its collection is not mutable.
        """
        train = bool(self.train) if train is None else train
        out = self.quantize(z, mask=mask, train=train)
        if train and not self.is_initializing():
            if not self.is_mutable_collection("codebook"):
                raise InputError(
                    "train=True updates the codebook, and its collection is not mutable: call "
                    'apply(..., mutable=["codebook"]), or train=False'
                )
            _warn_under_bridge(z)
            self.update(out.statistics)
        return out

    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors; no variable changes. A model that learns from micro-batches calls this, and `update` once.

        Arguments are those of `__call__`; `train` is for what differs in training apart from learning.
        """
        raise NotImplementedError

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The vectors [..., d] that codes stand for; an InputError where codes are no integers."""
        raise NotImplementedError

    def update(self, statistics: Any) -> None:
        """Updates the (mutable) collection `codebook` with the statistics of a whole batch, if the layer has one."""

    @property
    def codebook_size(self) -> int:
        """K, the number of codes of each codebook."""
        raise NotImplementedError

    @property
    def n_codebooks(self) -> int | None:
        """q, the length of the last axis of the codes of a quantiser made of several; None where codes have none."""
        return None

    @property
    def grid(self) -> Grid | None:
        """Where the codes of each codebook lie; None where they have no neighbours."""
        return None

    @property
    def is_map(self) -> bool:
        """Whether training makes codes that are near on the grid alike."""
        return False

    def codewords(self) -> jax.Array:
        """What each code stands for, float32 [K, d], or [q, K, d] of several codebooks."""
        return self.lookup(jnp.arange(self.codebook_size))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """What an evaluation adds up: counts [K] and sums of errors []; of several codebooks, [q, ...].

        Args:
          z: vectors, float [..., d].
          out: what `quantize` made of them.
          mask: bool [...], False where a position does not count.
        """
        return codebook_sums(z, out, mask, self.lookup(out.codes), self.codewords(), self.grid)


def _warn_under_bridge(z) -> None:
    """Warns where Flax NNX wraps a linen layer inside a transformation: in tree mode what it learns there is lost."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(z, jax.core.Tracer):
        return
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is nnx.bridge.ToNNX.__call__.__code__:
            message = "nnx.bridge.ToNNX keeps what a codebook learns in graph mode only; use the layer of kvae.nnx"
            warnings.warn(message, stacklevel=2)
            return
        frame = frame.f_back


def codebook_sums(z, out: Quantized, mask, nearest, codewords, grid: Grid | None) -> dict[str, jax.Array]:
    """See `Quantizer.batch_sums`; `nearest` are the codewords of the vectors."""
    distance = jnp.sqrt(jnp.sum(jnp.square(z.astype(jnp.float32) - nearest.astype(jnp.float32)), axis=-1))
    sums = {"counts": out.counts, "quantization_error": jnp.sum(jnp.where(mask, distance, 0))}
    for adjacency in grid.adjacency if grid else ():
        errors = measures.topographic_errors(z, codewords, grid, adjacency, mask)
        sums[f"topographic_error_{adjacency}"] = errors
    return sums


def masked(z: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Vectors, 0 where they are masked: one that is not finite would make 0 times NaN of the gradient."""
    return jnp.asarray(z) if mask is None else jnp.where(mask[..., None], z, 0)


def straight_through(z: jax.Array, nearest: jax.Array) -> jax.Array:
    """The nearest codewords, with the gradient of z (van den Oord et al., 2017)."""
    return _with_gradient_of(z, nearest)


def rotation(z: jax.Array, nearest: jax.Array) -> jax.Array:
    """The nearest codewords, as if z were turned and stretched to them (Fifty et al., "rotation trick", 2024).

    With e = z / |z|, q = w / |w| and r the unit vector of e + q: (|w| / |z|) (z - 2 (r . z) r + 2 (e . z) q), whose
    matrix and factor count as constants.
    """
    stop, nearest = jax.lax.stop_gradient, jax.lax.stop_gradient(nearest)
    e, q = kohonen.unit(stop(z)), kohonen.unit(nearest)
    r, scale = kohonen.unit(e + q), _length(nearest) / jnp.maximum(_length(stop(z)), kohonen.EPSILON)

    def along(direction):
        return jnp.sum(direction * z, axis=-1, keepdims=True)

    return _with_gradient_of(scale * (z - 2 * along(r) * r + 2 * along(e) * q), nearest)


def _with_gradient_of(carrier, nearest):
    # Adding x - sg(x), which is 0, leaves the values exact.
    return jax.lax.stop_gradient(nearest) + (carrier - jax.lax.stop_gradient(carrier))


def _length(vectors):
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))


GRADIENTS = {"straight_through": straight_through, "rotation": rotation}
"""By name, codewords that pass gradients to the encoder."""


def quantized_of(quantized: jax.Array, codes: jax.Array, loss: jax.Array, statistics) -> Quantized:
    """The output of a layer with one codebook."""
    return Quantized(quantized, codes, loss, measures.perplexity(statistics.counts), statistics.counts, statistics)


def masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean over the elements of the positions where `mask` (values' shape but the last axis) holds; 0 if none does."""
    if mask is None:
        return jnp.sum(values) / jnp.maximum(values.size, 1)
    elements = jnp.maximum(jnp.sum(mask), 1) * values.shape[-1]
    return jnp.sum(jnp.where(mask[..., None], values, 0.0)) / elements


def check_vectors(z, mask) -> None:
    """Raises InputError unless z is float [..., d], d at least 1, and mask, if there is one, bool [...]."""
    shape, dtype = getattr(z, "shape", None), getattr(z, "dtype", None)
    if not shape or not shape[-1] or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 8:
        found = type(z).__name__ if shape is None else f"{dtype}{list(shape)}"
        raise InputError(f"z is {found}; it must be a float array [..., d], d at least 1")
    if mask is not None and (getattr(mask, "shape", None) != shape[:-1] or mask.dtype != bool):
        found = f"{mask.dtype}{list(mask.shape)}" if hasattr(mask, "shape") else type(mask).__name__
        raise InputError(f"mask is {found}; for this z it must be bool{list(shape[:-1])}")


def check_codes(codes, n_codebooks: int | None = None) -> None:
    """Raises InputError unless codes are int [...], or [..., q], which may be cut after the first codebooks.

    Whether they are in 0 to K - 1 is not checked, for that is not known while a program is traced.
    """
    shape, dtype = getattr(codes, "shape", None), getattr(codes, "dtype", None)
    fits = shape is not None and (n_codebooks is None or (shape and 1 <= shape[-1] <= n_codebooks))
    if not fits or not jnp.issubdtype(dtype, jnp.integer):
        found = type(codes).__name__ if shape is None else f"{dtype}{list(shape)}"
        wanted = "[...]" if n_codebooks is None else f"[..., {n_codebooks}]"
        raise InputError(f"codes are {found}; they must be an integer array {wanted}")


def check_dimension(z, codewords) -> None:
    """Raises InputError unless the vectors are as long as the codewords."""
    if z.shape[-1] != codewords.shape[-1]:
        raise InputError(f"z has vectors of {z.shape[-1]} numbers, the codebook of {codewords.shape[-1]}")
