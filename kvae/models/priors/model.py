"""`Prior`, a transformer that learns the distribution of an image's codes."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Len

from kvae.core.errors import InputError
from kvae.core.fields import Channels, Count, OneOf, Positive, Repeats, Share
from kvae.models.model import DTYPES, Batch, LossAndMetrics, Metric, Model
from kvae.models.priors import sampling
from kvae.models.priors.embeddings import EMBEDDING_INIT, EMBEDDINGS
from kvae.models.priors.heads import HEADS, Factors
from kvae.models.priors.layout import CodebookFields, Layout, Level, layout_of
from kvae.models.priors.targets import LOSSES, Softness
from kvae.models.priors.transformer import Transformer


class Prior(Model):
    """A causal transformer over codes: log p(codes) = sum_t log p(code_t | code_1, ..., code_{t-1}).

    `Layout` defines the order of the codes. The input at a position is the embedding of the code before it, plus
    learned embeddings of the row, the column and the level of the code to predict and, if the prior is conditional, of
    the label. Codes come from a data set such as `tokens`, which also determines `codebooks` and `label_names`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codebook = ("codebook", (2, 3), 8, (2, 4), "plane", 0)  # 2 x 3 codes an image; 8 codes on a 2 x 4 grid
      >>> prior = Prior(width=8, num_heads=2, embeddings=("table",), codebooks=(codebook,))
      >>> codes = {"codebook": jnp.array([[[0, 1, 2], [3, 4, 5]]])}
      >>> likelihood, variables = jax.eval_shape(
      ...     lambda: prior.init_with_output(jax.random.key(0), codes, method="log_likelihood")
      ... )
      >>> likelihood.shape  # nats
      (1,)

    Attributes:
      width: dimension of the transformer.
      depth: number of blocks.
      num_heads: number of attention heads; must divide `width`.
      dropout: probability of dropout in training.
      embeddings: input embeddings of a code, which are added, names in `EMBEDDINGS`: "table", "address" (a sum over the
        axes of the grid) and "codeword" (a linear map of the codeword).
      head: how codes are predicted, one of `HEADS`: "softmax", "address" (one factor for each axis of the grid),
        "clusters" (a block of the grid, then the code in it), or "codewords" (a softmax tied to the codewords).
      loss: the training loss, one of `LOSSES`: "one_hot", "smoothed", "soft_grid" (codes near the right one on
        the grid count as partly right) or "soft_codewords" (codes with similar codewords do).
      smoothing: probability that the loss "smoothed" spreads evenly over all codes.
      temperature: temperature of the loss "soft_grid", in nodes, or "soft_codewords", in mean distances between nearest
        codewords.
      conditional: True learns p(codes | label); the data set needs labels.
      codebooks: the codebooks of the data set; () reads them from the data set.
      label_names: names of the classes of a conditional prior; () reads them from the data set.
      dtype: dtype of the transformer; parameters, logits and losses are float32.
    """

    width: Channels = 64
    depth: Repeats = 2
    num_heads: Count = 4
    dropout: Share = 0.1
    embeddings: Annotated[tuple[Annotated[str, OneOf(EMBEDDINGS)], ...], Len(1, 16)] = ("codeword", "table")
    head: Annotated[str, OneOf(HEADS)] = "softmax"
    loss: Annotated[str, OneOf(LOSSES)] = "one_hot"
    smoothing: Share = 0.1
    temperature: Positive = 0.5
    conditional: bool = False
    codebooks: tuple[CodebookFields, ...] = ()
    label_names: tuple[str, ...] = ()
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    methods: ClassVar = ("log_likelihood", "log_probability")

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.num_heads:
            raise InputError(f"width is {self.width}; it must be a multiple of num_heads ({self.num_heads})")

    @classmethod
    def fields_from_data(cls, fields: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
        """Returns `codebooks` and, for a conditional prior, `label_names` of a data set.

        Raises:
          InputError: the data set has no codes, or no labels although the prior is conditional.
        """
        if not dataset.codebooks:
            raise InputError(
                'the data set has no codes, which a prior needs; set dataset.name to "tokens" and dataset.path to a '
                "folder that python -m kvae.tokenize wrote"
            )
        codebooks = tuple(
            (name, tuple(book.shape), book.size, tuple(book.grid_shape), book.topology, _dim(book.codewords))
            for name, book in dataset.codebooks.items()
        )
        if fields["conditional"] and not ("label" in dataset.train[0] and dataset.label_names):
            raise InputError(
                "model.conditional is True, but the data set has no labels with names; tokenise a folder with one "
                "subfolder for each class, or set model.conditional=False"
            )
        return {"codebooks": codebooks, "label_names": tuple(dataset.label_names) if fields["conditional"] else ()}

    def variables_from_data(self, dataset: Any) -> dict[str, Any]:
        """Returns the codewords of the data set, which are not trained: {"codebook": {"codewords_0": [K, d], ...}}."""
        codewords = [book.codewords for book in dataset.codebooks.values() if book.codewords is not None]
        levels = [level for array in codewords for level in (array if array.ndim == 3 else array[None])]
        variables = {f"codewords_{number}": jnp.asarray(level) for number, level in enumerate(levels)}
        return {"codebook": variables} if variables else {}

    def setup(self) -> None:
        levels = self.layout.levels
        self.transformer = Transformer(self.depth, self.num_heads, self.dropout, DTYPES[self.dtype])
        self.embedders = [[EMBEDDINGS[name](level, self.width) for name in self.embeddings] for level in levels]
        self.predictors = [HEADS[self.head](level=level, width=self.width) for level in levels]
        self.codewords = [self._codewords_of(number, level) for number, level in enumerate(levels)]
        self.start = self.param("start", EMBEDDING_INIT, (self.width,))
        sizes = {"level": len(levels), "row": self.layout.row.max() + 1, "column": self.layout.column.max() + 1}
        self.places = {name: nn.Embed(int(n), self.width, embedding_init=EMBEDDING_INIT) for name, n in sizes.items()}
        if self.conditional:
            self.label = nn.Embed(len(self.label_names), self.width, embedding_init=EMBEDDING_INIT)

    def _codewords_of(self, number: int, level: Level) -> jax.Array:
        """Returns the codewords of a level, float32 [K, d], which are constants of the model."""
        if not level.dim:
            return jnp.zeros((level.size, 0))  # not stored: files of checkpoints cannot hold empty arrays
        return self.variable("codebook", f"codewords_{number}", jnp.zeros, (level.size, level.dim)).value

    @property
    def layout(self) -> Layout:
        """The order of the codes."""
        return layout_of(self.codebooks)

    def embedded_codes(self) -> jax.Array:
        """Returns the vector of each code of each level, float32 [K_1 + K_2 + ..., width]; see `Level.first`."""
        pairs = zip(self.embedders, self.codewords, strict=True)
        return jnp.concatenate([sum(part(codewords) for part in parts) for parts, codewords in pairs])

    def factors(self) -> list[Factors]:
        """Returns the output weights of each level."""
        return [head(codewords) for head, codewords in zip(self.predictors, self.codewords, strict=True)]

    def context(self, label: jax.Array | None) -> jax.Array:
        """Returns the inputs that do not depend on codes, for places and label, float32 [1 or b, T, width]."""
        layout = self.layout
        places = sum(self.places[name](getattr(layout, name)) for name in ("level", "row", "column"))[None]
        return places + self.label(label)[:, None] if self.conditional else places

    def hidden(self, sequence: jax.Array, label: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Returns the vectors from which each position is predicted.

        Args:
          sequence: codes int [b, T].
          label: int [b], for a conditional prior.
          train: True applies dropout.

        Returns:
          float32 [b, T, width]; position t depends on the codes before t.
        """
        offsets = np.array([level.first for level in self.layout.levels])[self.layout.level]
        vectors = self.embedded_codes()[sequence[:, :-1] + offsets[:-1]]
        start = jnp.broadcast_to(self.start, (len(sequence), 1, self.width))
        x = jnp.concatenate([start, vectors], axis=1) + self.context(label)
        return self.transformer(x, train=train)

    def level_codewords(self, variables: Mapping[str, Any]) -> dict[Level, np.ndarray | None]:
        """Returns the codewords [K, d] of each level, which come from the data; None where they are unknown."""
        stored = variables.get("codebook", {})
        return {level: stored.get(f"codewords_{number}") for number, level in enumerate(self.layout.levels)}

    def decode(self, x: jax.Array) -> jax.Array:
        """Returns the hidden vectors [b, 1, width] of the next position, from its input; see `Transformer.__call__`."""
        return self.transformer(x, decode=True)

    def sampling_parts(self, label: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array, list[Factors]]:
        """Returns `start`, `embedded_codes()`, `context(label)` and `factors()`, which sampling needs at every step."""
        return self.start, self.embedded_codes(), self.context(label), self.factors()

    def sample(self, variables: Mapping[str, Any], keys: jax.Array, **options: Any) -> dict[str, np.ndarray]:
        """Samples codes, one image for each key; see `kvae.models.priors.sampling.sample`."""
        return sampling.sample(self, variables, keys, **options)

    def _by_level(self, sequence: jax.Array, hidden: jax.Array) -> list[tuple]:
        """Returns for each level its factors, its hidden vectors [b, n, width], its codes [b, n] and its codewords."""
        positions = [self.layout.positions(number) for number in range(len(self.layout.levels))]
        parts = zip(self.layout.levels, self.factors(), positions, self.codewords, strict=True)
        return [(factors, hidden[:, at], sequence[:, at], level, vectors) for level, factors, at, vectors in parts]

    def log_probability(self, codes: Mapping[str, jax.Array], label: jax.Array | None = None) -> dict[str, jax.Array]:
        """Returns the log probability of each code given those before it, in nats.

        Args:
          codes: by codebook, int32 [b, h', w'] or [b, h', w', q].
          label: int32 [b], for a conditional prior.

        Returns:
          Arrays of the same shapes, float32.
        """
        sequence = self.layout.to_sequence(codes)
        parts = self._by_level(sequence, self.hidden(sequence, label))
        total = jnp.zeros(sequence.shape)
        for number, (factors, hidden, level_codes, *_) in enumerate(parts):
            total = total.at[:, self.layout.positions(number)].set(factors.log_probability(hidden, level_codes))
        return self.layout.to_codes(total)

    def log_likelihood(self, codes: Mapping[str, jax.Array], label: jax.Array | None = None) -> jax.Array:
        """Returns log p of all codes of each image, float32 [b], in nats; arguments as in `log_probability`."""
        return sum(part.reshape(len(part), -1).sum(axis=1) for part in self.log_probability(codes, label).values())

    def loss_and_metrics(self, batch: Batch, *, train: bool = True) -> LossAndMetrics:
        """Returns the mean loss per code, and `bits` per code; `mask` selects the examples to include."""
        sequence = self.layout.to_sequence(batch)
        hidden = self.hidden(sequence, batch.get("label"), train=train)
        softness, loss, bits = Softness(self.smoothing, self.temperature), 0.0, {}
        for factors, vectors, codes, level, codewords in self._by_level(sequence, hidden):
            weight = codes.shape[1] / self.layout.length
            losses = LOSSES[self.loss](factors, vectors, codes, level, codewords, softness)
            loss += weight * jnp.mean(losses, where=batch["mask"][:, None])
            nats = -jnp.mean(factors.log_probability(vectors, codes), where=batch["mask"][:, None])
            bits[level.name] = weight * nats / math.log(2), nats / math.log(2)
        metrics = {"loss": loss, "bits": sum(part for part, _ in bits.values())}
        if len(bits) > 1:
            metrics |= {f"bits_{name}": part for name, (_, part) in bits.items()}
        return LossAndMetrics(loss, metrics)

    def batch_sums(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns sums over examples of the metrics of `loss_and_metrics`, and of the accuracies.

        `accuracy` is the share of codes that are the likeliest one, and `accuracy_near` the share that are the
        likeliest one or its neighbour on the grid.
        """
        sums = super().batch_sums(batch)
        sequence = self.layout.to_sequence(batch)
        hidden = self.hidden(sequence, batch.get("label"))
        right = near = 0.0
        for factors, vectors, codes, level, _ in self._by_level(sequence, hidden):

            def likeliest(vectors: jax.Array, factors: Factors = factors) -> jax.Array:
                return jnp.argmax(factors.log_probabilities(vectors), axis=-1)

            # One position at a time, so that b x T x K probabilities never exist at once.
            predicted = jax.lax.map(likeliest, jnp.swapaxes(vectors, 0, 1)).T
            counts = batch["mask"][:, None] / self.layout.length
            right += jnp.sum((predicted == codes) * counts)
            if level.grid is not None:
                radius = next(iter(level.grid.adjacency.values()))
                near += jnp.sum((level.grid.distance(predicted, codes) < radius) * counts)
        has_grids = all(level.grid is not None for level in self.layout.levels)
        return {**sums, "accuracy": right, **({"accuracy_near": near} if has_grids else {})}

    @property
    def metrics(self) -> dict[str, Metric]:
        """Loss, bits per code and accuracies; with several levels also the bits of each."""
        levels = self.layout.levels
        bits = {"bits": Metric(panel=("Size", "bits per code"), label="all", column="bits per code", better=min)}
        if len(levels) > 1:
            bits |= {
                f"bits_{level.name}": Metric(panel=("Size", "bits per code"), label=level.name) for level in levels
            }
        accuracy = {
            "accuracy": Metric(panel=("Accuracy", "share of codes"), label="the code", column="accuracy", better=max)
        }
        if all(level.grid is not None for level in levels):
            accuracy["accuracy_near"] = Metric(panel=("Accuracy", "share of codes"), label="or a neighbour on the grid")
        return {"loss": Metric(panel=("Loss", "nats per code"), better=min), **bits, **accuracy}


def _dim(codewords: np.ndarray | None) -> int:
    """Returns d, the length of a codeword; 0 if codewords are unknown."""
    return 0 if codewords is None else codewords.shape[-1]
