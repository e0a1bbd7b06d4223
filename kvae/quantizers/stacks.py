"""Quantisers with several codebooks: one after the other on residuals, or in parallel on groups of elements."""

from collections.abc import Iterator
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae.core.errors import InputError, short_repr
from kvae.core.fields import Channels, OneOf, Probability, Repeats
from kvae.quantizers.base import Quantized, Quantizer, check_codes, check_vectors, masked
from kvae.quantizers.fsq import FSQ
from kvae.quantizers.gradients import straight_through
from kvae.quantizers.lookup_free import BSQ, LFQ
from kvae.quantizers.projections import Projected
from kvae.topology import Grid

CODEBOOKS = {"separate": lambda n_parts: [*range(n_parts)], "shared": lambda n_parts: [0] * n_parts}
"""Maps the values of the field `codebooks` to functions that return the number of each part's codebook."""


class _Stack(Projected):
    """Base class of `ResidualVQ` and `GroupedVQ`: a quantiser with q codebooks.

    Codes are int32 [..., q] and counts float32 [q, K]. Statistics are a list with one entry for each part.
    """

    quantizer: Quantizer
    codebooks: Annotated[str, OneOf(CODEBOOKS)] = "separate"
    codebook_dim: Channels | None = None
    train: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.quantizer, Quantizer):
            if hasattr(self.quantizer, "linen"):
                kind = type(self.quantizer).__name__
                raise InputError(f"quantizer is a kvae.nnx.{kind}; it must be the linen layer, kvae.{kind}")
            text = short_repr(self.quantizer)
            raise InputError(f"quantizer is {text}; it must be a linen layer, such as kvae.KohonenVQ((4, 8))")

    def setup(self) -> None:
        numbers = CODEBOOKS[self.codebooks](self.n_parts)
        layers = {number: self.quantizer.clone(name=None, parent=None) for number in numbers}
        self.parts = [layers[number] for number in numbers]

    @property
    def n_parts(self) -> int:
        """Number of parts, each a copy of `quantizer`."""
        raise NotImplementedError

    def update(self, statistics: list[Any]) -> None:
        """Updates each codebook with the sum of the statistics of its parts."""
        sums, parts = {}, {}
        for number, part, added in zip(CODEBOOKS[self.codebooks](self.n_parts), self.parts, statistics, strict=True):
            sums[number] = jax.tree.map(jnp.add, sums[number], added) if number in sums else added
            parts[number] = part
        for number, part in parts.items():
            part.update(sums[number])

    def codewords(self) -> jax.Array:
        """Returns the codewords of each codebook, float32 [q, K, d], with d the dimension of a part's vectors."""
        return self._join([part.codewords() for part in self.parts])

    @property
    def codebook_size(self) -> int:
        """K, the number of codes of each codebook."""
        return self.quantizer.codebook_size

    @property
    def grid(self) -> Grid | None:
        """The grid of each codebook."""
        return self.quantizer.grid

    @property
    def is_map(self) -> bool:
        """True if the codebooks are maps."""
        return self.quantizer.is_map

    def _join(self, arrays: list[jax.Array], axis: int = 0) -> jax.Array:
        """Stacks the parts' arrays along an axis of codebooks, or concatenates them if they already have this axis."""
        join = jnp.stack if self.quantizer.n_codebooks is None else jnp.concatenate
        return join(arrays, axis=axis)

    def _join_outputs(self, quantized: jax.Array, outs: list[Quantized], perplexity: jax.Array) -> Quantized:
        return Quantized(
            quantized,
            self._join([out.codes for out in outs], axis=-1),
            sum(out.loss for out in outs),
            perplexity,
            self._join([out.counts for out in outs]),
            [out.statistics for out in outs],
        )

    def _join_sums(self, sums: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
        return jax.tree.map(lambda *parts: self._join(parts), *sums)


class ResidualVQ(_Stack):
    """Residual quantiser (Zeghidour et al., "SoundStream", 2021): each codebook quantises the previous one's residual.

    A quantised vector is the sum of q codewords, one from each codebook. Codes are int32 [..., q].

    Example:
      >>> import jax, kvae
      >>> layer = kvae.ResidualVQ(kvae.KohonenVQ(grid_shape=(4, 8)), depth=3)
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.codes.shape
      (10, 3)

    Attributes:
      quantizer: layer that is copied for each part; fields such as `commitment_weight` apply to each copy.
      codebooks: "separate" gives each part its own codebook; "shared" gives all parts the same one.
      codebook_dim: length d of the codewords; None uses the length of z. If the lengths differ, two learned linear
        layers project vectors to d dimensions and sums of codewords back.
      train: default for the argument `train` of a call.
      depth: q, the number of codebooks.
      dropout: probability of quantiser dropout: a training batch then uses only the first n codebooks, with a random n,
        so that codes can be truncated later. The codes of dropped codebooks are -1 and are left out of counts and
        perplexity. Requires the random stream "dropout".
    """

    depth: Repeats = 4
    dropout: Probability = 0.0

    def __post_init__(self):
        super().__post_init__()
        kind = type(self.quantizer).__name__
        if self.quantizer.n_codebooks is not None:
            raise InputError(f"quantizer is a {kind}; it must be a layer with one codebook, such as a KohonenVQ")
        if isinstance(self.quantizer, (FSQ, LFQ, BSQ)):
            raise InputError(f"quantizer is {kind}; it must be a layer with a learned codebook, such as a KohonenVQ")
        if getattr(self.quantizer, "codebook_dim", None) is not None:
            raise InputError(
                f"quantizer.codebook_dim is {self.quantizer.codebook_dim}; it must be None: set codebook_dim of the "
                "ResidualVQ instead, which projects once, before the first codebook"
            )

    @property
    def n_codebooks(self) -> int:
        """q, equal to `depth`."""
        return self.depth

    @property
    def n_parts(self) -> int:
        """q, equal to `depth`."""
        return self.depth

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`). The codes of dropped codebooks are -1."""
        check_vectors(z, mask)
        kept = self._kept() if train and self.dropout else self.depth
        self.declare_projections(z, self.codebook_dim or z.shape[-1])
        vectors = self.project_in(masked(z, mask))
        residual, total, outs = vectors, 0.0, []
        for level, part in enumerate(self.parts):
            counted = mask
            if train and self.dropout:
                counted = jnp.broadcast_to(level < kept, z.shape[:-1]) & (True if mask is None else mask)
            out = part.quantize(residual, mask=counted, train=train)
            nearest = jnp.where(level < kept, jax.lax.stop_gradient(out.quantized), 0)
            residual, total = residual - nearest, total + nearest
            outs.append(out.replace(codes=jnp.where(level < kept, out.codes, -1)))
        total_perplexity = sum(jnp.where(level < kept, out.perplexity, 0) for level, out in enumerate(outs))
        quantized = self.project_out(straight_through(vectors, total)).astype(z.dtype)
        return self._join_outputs(quantized, outs, total_perplexity / jnp.float32(kept))

    def _kept(self) -> jax.Array:
        """Draws the number of codebooks that a training batch uses."""
        coin_key, depth_key = jax.random.split(self.make_rng("dropout"))
        depth = jax.random.randint(depth_key, (), 1, self.depth + 1)
        return jnp.where(jax.random.bernoulli(coin_key, self.dropout), depth, self.depth)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the sum of the codewords of codes [..., q], or of fewer codes from the first codebooks.

        The code -1 marks a dropped codebook; its codeword is 0.
        """
        check_codes(codes, self.codebook_size, self.depth, fewest=1, lowest=-1)
        levels = jnp.moveaxis(jnp.asarray(codes), -1, 0)
        words = [part.lookup(jnp.maximum(level, 0)) for part, level in zip(self.parts, levels, strict=False)]
        kept = [jnp.where(level[..., None] < 0, 0, word) for level, word in zip(levels, words, strict=True)]
        return self.project_out(sum(kept))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns `Quantizer.batch_sums` [q, ...]; each codebook is evaluated on the residuals that it quantises."""
        residual, sums = self.project_in(masked(z, mask)), []
        for part in self.parts:
            part_out = part.quantize(residual, mask=mask)
            sums.append(part.batch_sums(residual, part_out, mask))
            residual = residual - part.lookup(part_out.codes)
        return self._join_sums(sums)


class GroupedVQ(_Stack):
    """Product quantiser (Jégou et al., 2011): splits vectors into equal groups of elements, with a codebook for each.

    Codes are int32 [..., q]. If `quantizer` is a residual quantiser, the codebooks of a group are adjacent along q.

    Example:
      >>> import jax, kvae
      >>> layer = kvae.GroupedVQ(kvae.KohonenVQ(grid_shape=(4, 8)), groups=2)
      >>> z = jax.random.normal(jax.random.key(1), (10, 16))
      >>> variables = layer.init(jax.random.key(0), z)
      >>> out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.codes.shape
      (10, 2)

    Attributes:
      quantizer: layer that is copied for each group; its fields apply to each copy.
      codebooks: "separate" gives each group its own codebook; "shared" gives all groups the same one, like the heads of
        vector-quantize-pytorch.
      codebook_dim: length d of the codewords; None uses the length of z divided by the number of groups. If z does not
        have groups * d elements, two learned linear layers project vectors to this length and back.
      train: default for the argument `train` of a call.
      groups: number of groups. Without `codebook_dim`, it must divide the length of the vectors.
    """

    groups: Repeats = 4

    @property
    def n_codebooks(self) -> int:
        """q, the number of groups times the number of codebooks in each."""
        return self.groups * (self.quantizer.n_codebooks or 1)

    @property
    def n_parts(self) -> int:
        """The number of groups."""
        return self.groups

    @nn.compact
    def quantize(self, z: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Quantized:
        """Quantises vectors (see `Quantizer.quantize`)."""
        check_vectors(z, mask)
        if self.codebook_dim is None and z.shape[-1] % self.groups:
            raise InputError(
                f"z has {z.shape[-1]}-dimensional vectors; the dimension must be a multiple of groups, {self.groups}"
            )
        self.declare_projections(z, z.shape[-1] if self.codebook_dim is None else self.groups * self.codebook_dim)
        outs = [part.quantize(group, mask=mask, train=train) for part, group in self._pairs(masked(z, mask))]
        perplexity = sum(out.perplexity for out in outs) / len(outs)
        quantized = self.project_out(jnp.concatenate([out.quantized for out in outs], axis=-1))
        return self._join_outputs(quantized.astype(z.dtype), outs, perplexity)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Returns the concatenated codewords of codes [..., q]."""
        several = self.quantizer.n_codebooks
        check_codes(codes, self.codebook_size, self.n_codebooks, lowest=0 if several is None else -1)
        groups = jnp.split(jnp.asarray(codes), self.groups, axis=-1)
        words = [
            part.lookup(group if several else group[..., 0]) for part, group in zip(self.parts, groups, strict=True)
        ]
        return self.project_out(jnp.concatenate(words, axis=-1))

    def batch_sums(self, z: jax.Array, out: Quantized, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns `Quantizer.batch_sums` [q, ...]."""
        pairs = self._pairs(masked(z, mask))
        sums = [part.batch_sums(group, part.quantize(group, mask=mask), mask) for part, group in pairs]
        return self._join_sums(sums)

    def _pairs(self, z: jax.Array) -> Iterator[tuple[Quantizer, jax.Array]]:
        return zip(self.parts, jnp.split(self.project_in(z), self.groups, axis=-1), strict=True)
