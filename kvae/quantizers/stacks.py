"""Quantisers made of several: one after the other on what is left, or side by side on parts of the vector."""

from typing import Any

import jax
import jax.numpy as jnp

from kvae.core.errors import InputError
from kvae.core.fields import Depth, Probability
from kvae.quantizers.base import Quantized, Quantizer, check_codes, check_vectors, masked, straight_through
from kvae.quantizers.fsq import FSQ
from kvae.topology import Grid


class Stack(Quantizer):
    """A quantiser of q codebooks of one kind. Abstract: see `ResidualVQ` and `GroupedVQ`.

    Its codes are int32 [..., q], its counts [q, K], its statistics a list of those of its parts.

    Attributes:
      quantizer: the layer that each part is a copy of, with a codebook of its own.
      train: see `Quantizer`.
    """

    quantizer: Quantizer | None = None
    train: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.quantizer, Quantizer) or self.quantizer.n_codebooks is not None:
            found = type(self.quantizer).__name__
            raise InputError(f"quantizer is a {found}; it must have one codebook, as a KohonenVQ has")

    def setup(self):
        self.parts = [self.quantizer.clone(name=None, parent=None) for _ in range(self.n_codebooks)]

    def update(self, statistics: list[Any]) -> None:
        """Updates each codebook with the statistics of its part."""
        for part, of_part in zip(self.parts, statistics, strict=True):
            part.update(of_part)

    def codewords(self) -> jax.Array:
        """The codewords of each codebook, float32 [q, K, d]."""
        return jnp.stack([part.codewords() for part in self.parts])

    @property
    def codebook_size(self) -> int:
        """K, of each codebook."""
        return self.quantizer.codebook_size

    @property
    def grid(self) -> Grid | None:
        """The grid of each codebook."""
        return self.quantizer.grid

    @property
    def is_map(self) -> bool:
        """Whether the codebooks are maps."""
        return self.quantizer.is_map

    def _joined(self, quantized: jax.Array, outs: list[Quantized]) -> Quantized:
        return Quantized(
            quantized,
            jnp.stack([out.codes for out in outs], axis=-1),
            sum(out.loss for out in outs),
            sum(out.perplexity for out in outs) / len(outs),
            jnp.stack([out.counts for out in outs]),
            [out.statistics for out in outs],
        )


def _stacked(sums):
    return jax.tree.map(lambda *parts: jnp.stack(parts), *sums)


class ResidualVQ(Stack):
    """Residual quantiser (Zeghidour et al., "SoundStream", 2021): each codebook quantises what those before it leave.

    The vector is the sum of one codeword of each. With maps as parts, each of the codebooks is a map.

    Attributes:
      quantizer, train: see `Stack`.
      depth: q, the number of codebooks.
      dropout: the probability that a batch in training uses a random number of the first codebooks only, so that codes
        can be cut off later (quantiser dropout). Needs the random stream `dropout`.
    """

    depth: Depth = 4
    dropout: Probability = 0.0

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.quantizer, FSQ):
            raise InputError("quantizer is an FSQ, whose levels do not fit what others leave; use a learned codebook")

    @property
    def n_codebooks(self) -> int:
        """q, which is the depth."""
        return self.depth

    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """As `Quantizer.quantize`."""
        check_vectors(z, mask)
        kept = self._kept() if train and self.dropout else self.depth
        residual, total, outs = masked(z, mask).astype(jnp.float32), 0.0, []
        for level, part in enumerate(self.parts):
            counted = mask
            if train and self.dropout:
                counted = jnp.broadcast_to(level < kept, z.shape[:-1]) & (True if mask is None else mask)
            out = part.quantize(residual, mask=counted, train=train)
            nearest = jnp.where(level < kept, jax.lax.stop_gradient(out.quantized), 0)
            residual, total = residual - nearest, total + nearest
            outs.append(out)
        return self._joined(straight_through(masked(z, mask).astype(jnp.float32), total).astype(z.dtype), outs)

    def _kept(self):
        coin_key, depth_key = jax.random.split(self.make_rng("dropout"))
        some = jax.random.randint(depth_key, (), 1, self.depth + 1)
        return jnp.where(jax.random.bernoulli(coin_key, self.dropout), some, self.depth)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The sum of the codewords of codes [..., q]; [..., fewer] takes the first codebooks only."""
        check_codes(codes, self.depth)
        return sum(part.lookup(codes[..., i]) for i, part in enumerate(self.parts[: codes.shape[-1]]))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """As `Quantizer.batch_sums`, [q, ...]: each codebook is judged by the residuals that it sees."""
        residual, sums = masked(z, mask).astype(jnp.float32), []
        for part in self.parts:
            of_part = part.quantize(residual, mask=mask)
            sums.append(part.batch_sums(residual, of_part, mask))
            residual = residual - part.lookup(of_part.codes)
        return _stacked(sums)


class GroupedVQ(Stack):
    """Product quantiser (Jégou et al., 2011): the vector is cut into equal groups, with a codebook each.

    Attributes:
      quantizer, train: see `Stack`.
      groups: q, which must divide the length of the vectors.
    """

    groups: Depth = 4

    @property
    def n_codebooks(self) -> int:
        """q, which is the number of groups."""
        return self.groups

    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """As `Quantizer.quantize`."""
        check_vectors(z, mask)
        if z.shape[-1] % self.groups:
            raise InputError(f"z has vectors of {z.shape[-1]} numbers; {self.groups} groups do not divide them")
        outs = [part.quantize(z, mask=mask, train=train) for part, z in self._pairs(z)]
        return self._joined(jnp.concatenate([out.quantized for out in outs], axis=-1), outs)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The codewords of codes [..., q], side by side."""
        check_codes(codes, self.groups)
        return jnp.concatenate([part.lookup(codes[..., i]) for i, part in enumerate(self.parts)], axis=-1)

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """As `Quantizer.batch_sums`, [q, ...]."""
        pairs = self._pairs(z)
        return _stacked([part.batch_sums(group, part.quantize(group, mask=mask), mask) for part, group in pairs])

    def _pairs(self, z):
        return zip(self.parts, jnp.split(z, self.groups, axis=-1), strict=True)
