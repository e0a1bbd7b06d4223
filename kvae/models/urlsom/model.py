"""URL-SOM: a network whose output layer is the map (N. Kermiche, "Self-Organizing Representation Learning", 2021)."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.core.errors import InputError
from kvae.core.fields import Count, Counts, Depth, NotNegative, OneOf, Positive, Probability, Share, Widths
from kvae.models import coding
from kvae.models.coding import CodebookView
from kvae.models.model import DTYPES, Batch, LossAndMetrics, Metric, Model, check_images
from kvae.models.urlsom import losses as urlsom_measures
from kvae.models.urlsom.losses import METRICS
from kvae.models.urlsom.resnet import ResNet
from kvae.models.urlsom.views import Augmentation, view
from kvae.topology import LARGEST_DENSE_SIZE, Plane

FILTERS = {
    "gaussian": lambda squared, sigma: jnp.exp(-squared / (2 * sigma**2)),
    "student": lambda squared, sigma: 1 / (1 + squared / (2 * sigma**2)),
}
"""Weight of a neighbour as a function of the squared grid distance r^2, before the weights are made to sum to 1.

Both are 1 at the centre, and equally curved there. The paper writes the Student-t filter 1 / (1 + r^2 / c); its c of 1
and 18 are a sigma of 0.7071 and 3.
"""

EVALUATION_KEY = 0
"""Of the two views whose loss is measured on validation images: the same at every evaluation."""


def radial_filter(grid_shape: tuple[int, ...], kernel: str, sigma: float) -> jax.Array:
    """The fixed radial convolution over the map as a matrix, float32 [n, n]: activations = projection @ matrix.

    Row k is the filter, centred on neuron k: beyond the border of the map there is nothing. The Gaussian is cut off
    where it is 6 sigma wide (Section III.B), |offset| <= 3 sigma on each axis; the Student-t filter is not, for it
    "requires a filter size that is bigger than the SOM" (Section V.E).

    The weights about the neuron in the middle of the map sum to 1, as those of a filter that blurs images do; the paper
    does not say. With weights of 1 at the centre all outputs are one-hot from the start, and the map collapses.

    Args:
      grid_shape: the map, of n neurons.
      kernel: a name in `FILTERS`.
      sigma: width of the filter, in neurons.
    """
    points = jnp.asarray(Plane(grid_shape).coordinates, jnp.float32)
    offsets = points[:, None] - points[None, :]
    weights = FILTERS[kernel](jnp.sum(jnp.square(offsets), axis=-1), sigma)
    if kernel == "gaussian":
        weights = jnp.where(jnp.max(jnp.abs(offsets), axis=-1) <= 3 * sigma, weights, 0.0)
    return weights / jnp.max(jnp.sum(weights, axis=-1))


class URLSOM(Model):
    """Images uint8 [b, h, w, 3] -> activations of a map of neurons, of which the highest wins.

    ResNet -> global average pool -> (dropout) -> linear -> fixed radial convolution over the map -> softmax. No
    non-linearity stands between the linear layer and the convolution.

    Attributes:
      mean, std: statistics of each channel, on the 0-255 scale.
      grid_shape: of the map, such as (rows, columns); neuron k sits at `np.unravel_index(k, grid_shape)`.
      kernel: the radial filter, a name in `FILTERS`.
      sigma: width of the radial filter, in neurons.
      similarity_weight: gamma, weight of the similarity term in Eq. 8.
      collapse_weight: weight of the collapse term, 1 in the paper; 0 leaves the term out.
      dropout: share of the features left out before the projection, in training.
      projection_decay: weight of the sum of squares of the projection's kernel, added to the loss (L2 regularisation).
      channels: filters of each stage of the ResNet.
      blocks: residual blocks in each stage of the ResNet.
      crop_sizes: smallest and largest side of the square that a view shows, in pixels.
      flip_probability: how often a view swaps left and right.
      jitter: how far brightness, contrast, saturation and hue of a view may move.
      jitter_probability: how often a view's colours are changed at all.
      greyscale_probability: how often a view has no colours.
      label_names: the classes, by which neurons are judged and never trained; without names labels are not read.
      dtype: type of the convolutions; parameters, statistics, map and losses are float32.
    """

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[Positive, Positive, Positive] = (127.5, 127.5, 127.5)
    grid_shape: Counts = (30, 30)
    kernel: Annotated[str, OneOf(FILTERS)] = "gaussian"
    sigma: Positive = 5.0
    similarity_weight: NotNegative = 2.0
    collapse_weight: NotNegative = 1.0
    dropout: Share = 0.0
    projection_decay: NotNegative = 0.0
    channels: Widths = (16, 48, 256)
    blocks: Depth = 3
    crop_sizes: tuple[Count, Count] = (22, 32)
    flip_probability: Probability = 0.5
    jitter: NotNegative = 0.4
    jitter_probability: Probability = 0.8
    greyscale_probability: Probability = 0.5
    label_names: tuple[str, ...] = ()
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    # Eqs. 4 and 5 hold for the mean over a batch: no sum over parts of it gives them.
    needs_whole_batch: ClassVar = True
    needs_train_sums: ClassVar = True
    methods: ClassVar = ("winners", "map")
    collapse_hint: ClassVar = "a larger model.collapse_weight, or a lower optimizer.learning_rate, spreads the winners"

    def __post_init__(self):
        super().__post_init__()
        if self.neurons < 2:
            raise InputError(f"grid_shape is {self.grid_shape}; a map has at least two neurons")
        if self.neurons > LARGEST_DENSE_SIZE:
            raise InputError(f"grid_shape is {self.grid_shape}; a map has at most {LARGEST_DENSE_SIZE} neurons")
        if self.crop_sizes[0] > self.crop_sizes[1]:
            raise InputError(f"crop_sizes is {self.crop_sizes}; it must be a smallest and a largest side")

    @property
    def neurons(self) -> int:
        """The number of neurons, n."""
        return int(np.prod(self.grid_shape))

    @property
    def augmentation(self) -> Augmentation:
        """The views on which the network is trained."""
        return Augmentation(
            self.crop_sizes, self.flip_probability, self.jitter, self.jitter_probability, self.greyscale_probability
        )

    def setup(self):
        self.backbone = ResNet(self.channels, self.blocks, self.dtype)
        self.features_dropout = nn.Dropout(self.dropout, rng_collection="dropout")
        self.projection = nn.Dense(self.neurons, precision=jax.lax.Precision.HIGHEST)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Activations v of the map, before the softmax, of uint8 images [b, h, w, 3]: float32 [b, n]."""
        return self.activations(_from_uint8(images), train=train)

    def activations(self, images: jax.Array, *, train: bool) -> jax.Array:
        """As `__call__`, of images float32 [b, h, w, 3] from 0 to 1."""
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        features = self.backbone((255 * images - mean) / std, train=train)
        projected = self.projection(self.features_dropout(features, deterministic=not train))
        return jnp.matmul(projected, self.filter(), precision=jax.lax.Precision.HIGHEST)

    def filter(self) -> jax.Array:
        """The fixed convolution over the map, as a matrix: float32 [n, n]."""
        return radial_filter(self.grid_shape, self.kernel, self.sigma)

    def neuron_vectors(self) -> jax.Array:
        """For each neuron the vector whose product with the features, plus a constant, is its activation: [n, d]."""
        kernel = self.projection.variables["params"]["kernel"]
        return jnp.matmul(kernel, self.filter(), precision=jax.lax.Precision.HIGHEST).T

    def winners(self, images: jax.Array) -> jax.Array:
        """The neuron with the highest activation for each uint8 image: int32 [b]."""
        return jnp.argmax(self(images), axis=-1).astype(jnp.int32)

    def map(self, images: jax.Array) -> jax.Array:
        """The softmax output for each uint8 image, laid on the map: float32 [b, *grid_shape]."""
        return jax.nn.softmax(self(images)).reshape(-1, *self.grid_shape)

    def views(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Two views of each uint8 image, one after the other: float32 [2b, h, w, 3], from 0 to 1."""
        images = jnp.repeat(_from_uint8(images), 2, axis=0)
        keys = jax.random.split(key, len(images))
        return jax.vmap(view, in_axes=(0, 0, None))(keys, images, self.augmentation)

    def loss(self, terms: Mapping[str, Any]):
        """The terms with this model's weights, added up (Eq. 8)."""
        return urlsom_measures.url_som_loss(terms, self.similarity_weight, self.collapse_weight)

    def loss_and_metrics(self, batch: Batch, *, train: bool = True) -> LossAndMetrics:
        """The loss of two random views of each uint8 image of a training batch (Eq. 8)."""
        views = self.views(batch["image"], self.make_rng("augmentation"))
        activations = self.activations(views, train=train)
        winners = jax.nn.one_hot(jnp.argmax(activations, axis=-1), self.neurons)
        probabilities = jax.nn.softmax(activations).reshape(-1, 2, self.neurons)
        metrics = urlsom_measures.terms(probabilities[:, 0], probabilities[:, 1])
        loss = self.loss(metrics)
        decay = self.projection_decay * jnp.sum(jnp.square(self.projection.variables["params"]["kernel"]))
        return LossAndMetrics(loss + decay, {"loss": loss, **metrics}, {"map": jnp.sum(winners, axis=0)})

    def train_sums(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """How often each neuron wins, and for which labels, over the examples of a batch without augmentation.

        Args:
          batch: `image` uint8 [b, h, w, 3], `mask` bool [b], False for padding, and `label` int32 [b] if there is one.

        Returns:
          `counts` [n], a `topographic_error_...` [] of each adjacency, and `table` [n, classes] where there are labels.
        """
        activations = self(batch["image"])
        first, second = jnp.moveaxis(jax.lax.top_k(activations, 2)[1], -1, 0)
        won = jnp.where(batch["mask"][:, None], jax.nn.one_hot(first, self.neurons), 0)
        sums = {"counts": jnp.sum(won, axis=0)}
        grid = Plane(self.grid_shape)
        for adjacency in grid.adjacency:
            apart = measures.far_apart(first, second, grid, adjacency)
            sums[f"topographic_error_{adjacency}"] = jnp.sum(apart, where=batch["mask"])
        if self.label_names and "label" in batch:
            labels = jax.nn.one_hot(batch["label"], len(self.label_names))
            sums["table"] = jnp.matmul(won.T, labels, precision=jax.lax.Precision.HIGHEST)
        return sums

    def batch_sums(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Sums over an evaluation batch: those of `train_sums`, and what the losses of two views are made of."""
        mask = batch["mask"]
        views = self.views(batch["image"], jax.random.key(EVALUATION_KEY))
        probabilities = jax.nn.softmax(self.activations(views, train=False))
        directions = urlsom_measures.directions(probabilities).reshape(-1, 2, self.neurons)
        similarity = jax.vmap(urlsom_measures.similarity_loss)(directions[:, 0], directions[:, 1])
        return self.train_sums(batch) | {
            "examples": jnp.sum(mask),
            "direction": jnp.sum(jnp.where(mask[:, None], jnp.mean(directions, axis=1), 0), axis=0),
            "similarity_loss": jnp.sum(jnp.where(mask, similarity, 0)),
        }

    def compute_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Metrics from the sums of validation sets and, where there is one, the sums of the training set."""
        found = {name: metric.value(sums) for name, metric in self.metrics.items()}
        found["loss"] = self.loss(found)
        return {name: value for name, value in found.items() if value is not None}

    @property
    def metrics(self) -> dict[str, Metric]:
        """`METRICS`, and a topographic error for each way in which neurons of the grid are neighbours."""
        found = dict(METRICS)
        for adjacency in Plane(self.grid_shape).adjacency:
            name = f"topographic_error_{adjacency}"
            found[name] = Metric(lambda sums, name=name: float(sums[name] / sums["examples"]))
        return found

    def extra_metrics(self, variables, samples):
        """Trustworthiness and neighbourhood preservation of the vectors that the neurons answer to."""
        return coding.order(self.bind(variables).neuron_vectors(), Plane(self.grid_shape))

    def codebook_views(self, variables, samples):
        """The winner of each image."""
        winners = coding.in_batches(self, variables, samples["image"], "winners")[:, None, None]
        grid = Plane(self.grid_shape)
        return {"map": CodebookView(winners, self.neurons, grid, True, unit="neuron", event="winning", context=1)}

    def pictures(self, variables, samples, sums, step):
        """What neurons win and how often, on the validation and the training set, and, with labels, for which."""
        from kvae.plots import maps
        from kvae.plots import urlsom as urlsom_figures

        def mean_images(path):
            images, coding = samples["image"], self.codebook_views(variables, samples)["map"]
            title = f"Mean of the images that each neuron wins, of {len(images):,} validation images (step {step})"
            means = coding.mean_patches(images)
            maps.codebook_map(path, means, title, coding.counts, unit="neurons", event="winning")

        def hit_map(counts, which, path):
            title = f"How often each neuron wins on the {which} set (step {step})"
            maps.hit_map(path, counts.reshape(self.grid_shape), title, unit="neurons", event="winning")

        def winners(table, which, path):
            # The scatter is random within a neuron: who won what for which label is all that there is to know.
            won, labels = (np.repeat(index.ravel(), table.ravel()) for index in np.indices(table.shape))
            title = f"Winners on the {which} set, by label (step {step})"
            urlsom_figures.winners(path, won, labels, self.label_names, self.grid_shape, title)

        found = {"mean_images": mean_images}
        for prefix, which in (("", "validation"), ("train_", "training")):
            found[f"{prefix}hit_map"] = functools.partial(hit_map, np.asarray(sums[f"{prefix}counts"]), which)
            if f"{prefix}table" in sums:
                table = np.asarray(sums[f"{prefix}table"]).astype(int)
                found[f"{prefix}winners"] = functools.partial(winners, table, which)
        return found


def _from_uint8(images):
    """Images from 0 to 1, float32."""
    check_images(images)
    return images.astype(jnp.float32) / 255
