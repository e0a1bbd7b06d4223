"""URL-SOM (N. Kermiche, "Self-Organizing Representation Learning", 2021): its output layer is a map of neurons."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.core.errors import InputError
from kvae.core.fields import Count, NotNegative, OneOf, Positive, Probability, Repeats, Shape, Share, StageChannels
from kvae.core.image_arrays import check_images
from kvae.models.codebook_views import CodebookView, apply_in_batches, map_order
from kvae.models.model import DTYPES, Batch, LossAndMetrics, Metric, Model
from kvae.models.urlsom.filters import FILTERS, radial_filter
from kvae.models.urlsom.losses import URLSOM_METRICS, directions, loss_terms, similarity_loss, url_som_loss
from kvae.models.urlsom.resnet import ResNet
from kvae.models.urlsom.views import ViewSettings, random_view
from kvae.topology import LARGEST_DENSE_SIZE, Plane

EVALUATION_KEY = 0
"""Seed of the two views of each validation image, so that every evaluation uses the same views."""


class URLSOM(Model):
    """URL-SOM: images uint8 [b, h, w, 3] -> activations of a map of n neurons, float32 [b, n].

    The neuron with the highest activation wins the image. The network is ResNet -> global average pool -> (dropout) ->
    linear -> fixed radial convolution over the map -> softmax, without a non-linearity between the linear layer and the
    convolution. The loss is Eq. 8 on two views of each image: winner-take-all + collapse_weight * collapse +
    similarity_weight * similarity, see `kvae.models.urlsom.losses`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kvae.models import URLSOM
      >>> model = URLSOM(grid_shape=(4, 5), sigma=1.0, channels=(4, 8), blocks=1)
      >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
      >>> variables = model.init(jax.random.key(0), images)
      >>> model.apply(variables, images, method="map").shape
      (2, 4, 5)

    Attributes:
      mean, std: mean and standard deviation of each channel, on the 0-255 scale.
      grid_shape: shape of the map, such as (rows, columns); neurons are numbered row by row.
      kernel: the radial filter, a name in `FILTERS`.
      sigma: width of the radial filter, in neurons.
      similarity_weight: gamma, weight of the similarity term in Eq. 8.
      collapse_weight: weight of the collapse term, 1 in the paper; 0 removes the term.
      dropout: probability of dropping a feature before the linear layer, in training.
      projection_decay: weight of the L2 regularisation: the sum of squares of the linear layer's kernel.
      channels: filters of each stage of the ResNet.
      blocks: residual blocks in each stage of the ResNet.
      crop_sizes: smallest and largest side of the square that a view shows, in pixels.
      flip_probability: probability that a view is flipped horizontally.
      jitter: largest change of a view's brightness, contrast and saturation (factors 1 +- jitter) and hue (as a
        fraction of the colour circle).
      jitter_probability: probability that a view's colours change at all.
      greyscale_probability: probability that a view is grey.
      label_names: names of the classes, to measure neural selectivity; if empty, labels are ignored. Training never
        uses labels.
      dtype: dtype of the convolutions; parameters, statistics, map and losses are float32.
    """

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[Positive, Positive, Positive] = (127.5, 127.5, 127.5)
    grid_shape: Shape = (30, 30)
    kernel: Annotated[str, OneOf(FILTERS)] = "gaussian"
    sigma: Positive = 5.0
    similarity_weight: NotNegative = 2.0
    collapse_weight: NotNegative = 1.0
    dropout: Share = 0.0
    projection_decay: NotNegative = 0.0
    channels: StageChannels = (16, 48, 256)
    blocks: Repeats = 3
    crop_sizes: tuple[Count, Count] = (22, 32)
    flip_probability: Probability = 0.5
    jitter: NotNegative = 0.4
    jitter_probability: Probability = 0.8
    greyscale_probability: Probability = 0.5
    label_names: tuple[str, ...] = ()
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    # Eqs. 4 and 5 are functions of a mean over the batch, not means over examples.
    needs_whole_batch: ClassVar[bool] = True
    needs_train_sums: ClassVar[bool] = True
    methods: ClassVar[tuple[str, ...]] = ("winners", "map")
    collapse_hint: ClassVar[str] = "a larger model.collapse_weight or a lower optimizer.learning_rate may help"

    def __post_init__(self):
        super().__post_init__()
        if self.neurons < 2:
            raise InputError(f"grid_shape is {self.grid_shape}; the map must have at least two neurons")
        if self.neurons > LARGEST_DENSE_SIZE:
            raise InputError(f"grid_shape is {self.grid_shape}; the map must have at most {LARGEST_DENSE_SIZE} neurons")
        if self.crop_sizes[0] > self.crop_sizes[1]:
            raise InputError(f"crop_sizes is {self.crop_sizes}; the first side must not be larger than the second")

    @property
    def neurons(self) -> int:
        """The number n of neurons."""
        return int(np.prod(self.grid_shape))

    @property
    def view_settings(self) -> ViewSettings:
        """The distribution of the views that the network is trained on."""
        return ViewSettings(
            self.crop_sizes, self.flip_probability, self.jitter, self.jitter_probability, self.greyscale_probability
        )

    def setup(self) -> None:
        self.backbone = ResNet(self.channels, self.blocks, DTYPES[self.dtype])
        self.features_dropout = nn.Dropout(self.dropout, rng_collection="dropout")
        self.projection = nn.Dense(self.neurons, precision=jax.lax.Precision.HIGHEST)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the activations of the map before the softmax, float32 [b, n], for uint8 images [b, h, w, 3]."""
        return self.activations(_from_uint8(images), train=train)

    def activations(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the activations, float32 [b, n], for images float32 [b, h, w, 3] from 0 to 1."""
        mean, std = (jnp.float32(channels).reshape(1, 1, 1, 3) for channels in (self.mean, self.std))
        features = self.backbone((255 * images - mean) / std, train=train)
        projected = self.projection(self.features_dropout(features, deterministic=not train))
        return jnp.matmul(projected, self.filter(), precision=jax.lax.Precision.HIGHEST)

    def filter(self) -> jax.Array:
        """Returns the fixed convolution over the map as a matrix, float32 [n, n]."""
        return radial_filter(self.grid_shape, self.kernel, self.sigma)

    def neuron_vectors(self) -> jax.Array:
        """Returns the weights of each neuron, [n, d]; their product with features is the activation, up to a bias."""
        kernel = self.projection.variables["params"]["kernel"]
        return jnp.matmul(kernel, self.filter(), precision=jax.lax.Precision.HIGHEST).T

    def winners(self, images: jax.Array) -> jax.Array:
        """Returns the neuron with the highest activation, int32 [b], for uint8 images [b, h, w, 3]."""
        return jnp.argmax(self(images), axis=-1).astype(jnp.int32)

    def map(self, images: jax.Array) -> jax.Array:
        """Returns the softmax output, float32 [b, *grid_shape], for uint8 images [b, h, w, 3]."""
        return jax.nn.softmax(self(images)).reshape(-1, *self.grid_shape)

    def views(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Returns two random views of each image, uint8 [b, h, w, 3].

        Returns:
          float32 [2b, h, w, 3], from 0 to 1; views 2i and 2i + 1 show image i.
        """
        images = jnp.repeat(_from_uint8(images), 2, axis=0)
        keys = jax.random.split(key, len(images))
        return jax.vmap(random_view, in_axes=(0, 0, None))(keys, images, self.view_settings)

    def loss(self, terms: Mapping[str, Any]) -> Any:
        """Returns the sum of the terms with this model's weights (Eq. 8)."""
        return url_som_loss(terms, self.similarity_weight, self.collapse_weight)

    def loss_and_metrics(self, batch: Batch, *, train: bool = True) -> LossAndMetrics:
        """Returns Eq. 8 for two random views of each image `image`, uint8 [b, h, w, 3]; `mask` is ignored.

        The metric `loss` is Eq. 8. The loss to minimise also contains the L2 regularisation.
        """
        views = self.views(batch["image"], self.make_rng("augmentation"))
        activations = self.activations(views, train=train)
        winners = jax.nn.one_hot(jnp.argmax(activations, axis=-1), self.neurons)
        probabilities = jax.nn.softmax(activations).reshape(-1, 2, self.neurons)
        metrics = loss_terms(probabilities[:, 0], probabilities[:, 1])
        loss = self.loss(metrics)
        decay = self.projection_decay * jnp.sum(jnp.square(self.projection.variables["params"]["kernel"]))
        return LossAndMetrics(loss + decay, {"loss": loss, **metrics}, {"map": jnp.sum(winners, axis=0)})

    def train_sums(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the number of images that each neuron wins in a batch without augmentation, in total and by label.

        Args:
          batch: `image` uint8 [b, h, w, 3], `mask` bool [b], False for padding, and perhaps `label` int32 [b].

        Returns:
          `counts` [n], `topographic_error_<adjacency>` [] and, if there are labels, `table` [n, classes].
        """
        activations = self(batch["image"])
        first, second = jnp.moveaxis(jax.lax.top_k(activations, 2)[1], -1, 0)
        wins = jnp.where(batch["mask"][:, None], jax.nn.one_hot(first, self.neurons), 0)
        sums = {"counts": jnp.sum(wins, axis=0)}
        grid = Plane(self.grid_shape)
        for adjacency in grid.adjacency:
            is_error = measures.far_apart(first, second, grid, adjacency)
            sums[f"topographic_error_{adjacency}"] = jnp.sum(is_error, where=batch["mask"])
        if self.label_names and "label" in batch:
            labels = jax.nn.one_hot(batch["label"], len(self.label_names))
            sums["table"] = jnp.matmul(wins.T, labels, precision=jax.lax.Precision.HIGHEST)
        return sums

    def batch_sums(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the sums of `train_sums`, and sums from which the loss of two views is computed.

        Returns:
          The sums of `train_sums`; `examples` []; `direction` [n], where each image adds the mean P of its two views;
          and `similarity_loss` [].
        """
        mask = batch["mask"]
        views = self.views(batch["image"], jax.random.key(EVALUATION_KEY))
        probabilities = jax.nn.softmax(self.activations(views, train=False))
        pairs = directions(probabilities).reshape(-1, 2, self.neurons)
        similarity = jax.vmap(similarity_loss)(pairs[:, 0], pairs[:, 1])
        return self.train_sums(batch) | {
            "examples": jnp.sum(mask),
            "direction": jnp.sum(jnp.where(mask[:, None], jnp.mean(pairs, axis=1), 0), axis=0),
            "similarity_loss": jnp.sum(jnp.where(mask, similarity, 0)),
        }

    def compute_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics whose sums are available: some need labels, some need sums over the training set."""
        values = self.declared_metrics(sums)
        return {"loss": self.loss(values), **values}

    @property
    def metrics(self) -> dict[str, Metric]:
        """`URLSOM_METRICS`, and a topographic error for each adjacency of the grid."""
        metrics = dict(URLSOM_METRICS)
        for adjacency in Plane(self.grid_shape).adjacency:
            name = f"topographic_error_{adjacency}"
            metrics[name] = Metric(lambda sums, name=name: float(sums[name] / sums["examples"]))
        return metrics

    def extra_metrics(self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns measures of the order of the neurons' weight vectors on the map."""
        return map_order(self.bind(variables).neuron_vectors(), Plane(self.grid_shape))

    def codebook_views(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]
    ) -> dict[str, CodebookView]:
        """Returns a view of the map; the code of an image is its winning neuron."""
        winners = apply_in_batches(self, variables, samples["image"], "winners")[:, None, None]
        grid = Plane(self.grid_shape)
        view = CodebookView(winners, self.neurons, grid, True, code_name="neuron", usage="winning", patch_width=1)
        return {"map": view}

    def pictures(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray], sums: Mapping[str, Any], step: int
    ) -> dict[str, Callable[[pathlib.Path], None]]:
        """Returns functions that draw mean images of neurons, hit maps and, if there are labels, winners by class."""
        from kvae.plots import codebooks
        from kvae.plots import urlsom as urlsom_figures

        def mean_images(path: pathlib.Path) -> None:
            images, view = samples["image"], self.codebook_views(variables, samples)["map"]
            title = f"Mean of the images that each neuron wins, among {len(images):,} validation images (step {step})"
            codebooks.draw_codebook_map(
                path, view.mean_patches(images), title, view.counts, unit="neurons", usage="winning"
            )

        def hit_map(counts: np.ndarray, split: str, path: pathlib.Path) -> None:
            title = f"Wins of each neuron on the {split} set (step {step})"
            codebooks.draw_hit_map(path, counts.reshape(self.grid_shape), title, unit="neurons", usage="winning")

        def winners(table: np.ndarray, split: str, path: pathlib.Path) -> None:
            # The figure scatters points at random within a neuron, so it needs only the table.
            neurons, labels = (np.repeat(index.ravel(), table.ravel()) for index in np.indices(table.shape))
            title = f"Winners on the {split} set, by label (step {step})"
            urlsom_figures.draw_winners(path, neurons, labels, self.label_names, self.grid_shape, title)

        drawings = {"mean_images": mean_images}
        for prefix, split in (("", "validation"), ("train_", "training")):
            drawings[f"{prefix}hit_map"] = functools.partial(hit_map, np.asarray(sums[f"{prefix}counts"]), split)
            if f"{prefix}table" in sums:
                table = np.asarray(sums[f"{prefix}table"]).astype(int)
                drawings[f"{prefix}winners"] = functools.partial(winners, table, split)
        return drawings


def _from_uint8(images: jax.Array) -> jax.Array:
    """Maps uint8 images to float32, from 0 to 1."""
    check_images("images", images)
    return images.astype(jnp.float32) / 255
