"""The contract of a model: what the training program, the report and `kvae.load` need of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError
from kvae.core.fields import validate_attributes
from kvae.models.coding import CodebookView

Batch = Mapping[str, jax.Array]
"""Arrays by name, such as `image` uint8 [b, h, w, 3], and `mask` bool [b], False where an example only fills up."""


@flax.struct.dataclass
class LossAndMetrics:
    """The outcome of a batch.

    Attributes:
      loss: float32 [], what the optimiser minimises.
      metrics: float32 [] by name, averaged over the steps between two logs; `loss` is one of them.
      counts: float32 [K] by map, how often each code or neuron won; may be empty.
      statistics: what `Model.update_codebooks` takes, any tree; those of micro-batches are added up.
    """

    loss: jax.Array
    metrics: Mapping[str, jax.Array]
    counts: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    statistics: Any = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A validation metric: how it is made, and how it is shown. All that is said of a metric is said here.

    Attributes:
      value: the metric from sums, which are NumPy arrays by name; None where `Model.extra_metrics` measures it.
      pooled: whether sums of several validation sets are added up first; otherwise the metric is the mean over sets.
      panel: title of the panel that shows it among the curves, and the unit of its axis; None leaves it out.
      label: of its line, where a panel shows several metrics.
      column: heading in a table, None where tables leave it out.
      decimals: in a table.
      better: picks the best of several values, `min` or `max`; None where neither end is better.
    """

    value: Callable[[Mapping[str, Any]], float] | None = None
    pooled: bool = False
    panel: tuple[str, str] | None = None
    label: str = ""
    column: str | None = None
    decimals: int = 2
    better: Callable | None = None


class Model(nn.Module):
    """A model that the program can train. Abstract: subclasses define `loss_and_metrics`, and override what differs.

    The program initialises it on one example through `loss_and_metrics`. Its variables are `params`, trained by
    gradient descent, and other collections, which forward passes in training may update. Training provides two
    random streams: `augmentation` and `dropout`.

    Attributes:
      needs_whole_batch: whether the loss is not a mean over examples, so that micro-batches would change it.
      needs_train_sums: whether `compute_metrics` also needs `train_sums` over the training set, as `train_<name>`.
      collapse_hint: what the user is told where hardly any code or neuron is in use.
      methods: methods that `kvae.load` offers; each takes arrays, and needs no random stream.
    """

    needs_whole_batch: ClassVar[bool] = False
    needs_train_sums: ClassVar[bool] = False
    collapse_hint: ClassVar[str] = "a lower optimizer.learning_rate may help"
    methods: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        validate_attributes(self)
        super().__post_init__()

    def loss_and_metrics(self, batch: Batch, *, train: bool = True) -> LossAndMetrics:
        """The loss of a batch: a mean over the examples whose `mask` is True, in training all. Codebooks stay."""
        raise NotImplementedError

    def update_codebooks(self, statistics: Any) -> None:
        """Updates the (mutable) collection `codebook` with the statistics of a whole batch."""

    def train_sums(self, batch: Batch) -> dict[str, Any]:
        """Sums over a batch of the training set, for a model with `needs_train_sums`."""
        raise NotImplementedError

    def batch_sums(self, batch: Batch) -> dict[str, Any]:
        """Sums over an evaluation batch, any tree of arrays; added up over batches for `compute_metrics`.

        `examples` is their number; by default the rest are the metrics of `loss_and_metrics`, each times that number.
        """
        examples = jnp.sum(batch["mask"])
        metrics = self.loss_and_metrics(batch, train=False).metrics
        return {"examples": examples, **{name: metric * examples for name, metric in metrics.items()}}

    def compute_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Metrics from the sums (NumPy) of a validation set; `loss` is one. By default the means over examples."""
        return {name: float(total / sums["examples"]) for name, total in sums.items() if name != "examples"}

    @property
    def metrics(self) -> dict[str, Metric]:
        """What is to be said of the metrics by name; one that is not named is a mean over sets, and is not drawn."""
        return {"loss": Metric(panel=("Loss", "loss"), better=min)}

    def extra_metrics(self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> dict[str, float]:
        """What can be measured of a trained model apart from sums, by name; `samples` are validation examples."""
        return {}

    def codebook_views(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]
    ) -> dict[str, CodebookView]:
        """By codebook, the images among the samples in its codes, to be shown; empty where there are none."""
        return {}

    def pictures(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray], sums: Mapping[str, Any], step: int
    ) -> dict[str, Callable[[str], None]]:
        """The model's pictures: by file name without suffix, a function that draws the PNG file at a path."""
        return {}


DTYPES = {"float32": "as everywhere else", "bfloat16": "faster on accelerators"}
"""Types of the convolutions, by name."""


def check_images(images: jax.Array) -> None:
    """Raises InputError unless images are uint8 [b, h, w, 3]."""
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(f"images are {images.dtype}{list(images.shape)}; they must be uint8[b, h, w, 3]")
