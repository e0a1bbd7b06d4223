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
from kvae.core.fields import check_attributes
from kvae.models.coding import Coding

Batch = Mapping[str, jax.Array]
"""Arrays by name, such as `image` uint8 [b, h, w, 3], and `mask` bool [b], False where an example only fills up."""


@flax.struct.dataclass
class Objective:
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
      value: the metric from totals, which are NumPy arrays by name; None where `Model.inspect` measures it.
      pooled: whether totals of several validation sets are added up first; otherwise the metric is the mean over sets.
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
    """A model that the program can train. Abstract: a subclass defines `objective`, and what else it wants to differ.

    The program initialises it with one example, through `objective`; its variables are `params`, trained by gradient
    descent, and other collections, which forward passes in training may update. Two random streams are there in
    training: `augmentation` and `dropout`.

    Attributes:
      needs_whole_batch: whether the loss is not a mean over examples, so that micro-batches would change it.
      tallies_train: whether `summarize` also reads the sums of `tally` over the training set, as `train_<name>`.
      remedy: what the user is told where hardly any code or neuron is in use.
      abilities: methods that `kvae.load` offers; each takes arrays, and needs no random stream.
    """

    needs_whole_batch: ClassVar[bool] = False
    tallies_train: ClassVar[bool] = False
    remedy: ClassVar[str] = "a lower optimizer.learning_rate may help"
    abilities: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check_attributes(self)
        super().__post_init__()

    def objective(self, batch: Batch, *, train: bool = True) -> Objective:
        """The loss of a batch: a mean over the examples whose `mask` is True, in training all. Codebooks stay."""
        raise NotImplementedError

    def update_codebooks(self, statistics: Any) -> None:
        """Updates the (mutable) collection `codebook` with the statistics of a whole batch."""

    def tally(self, batch: Batch) -> dict[str, Any]:
        """Sums over a batch of the training set, for a model with `tallies_train`."""
        raise NotImplementedError

    def totals(self, batch: Batch) -> dict[str, Any]:
        """Sums over the examples of an evaluation batch, any tree of arrays, added up over batches for `summarize`.

        `examples` is their number; by default the rest are the metrics of `objective`, each times that number.
        """
        examples = jnp.sum(batch["mask"])
        metrics = self.objective(batch, train=False).metrics
        return {"examples": examples, **{name: metric * examples for name, metric in metrics.items()}}

    def summarize(self, totals: Mapping[str, Any]) -> dict[str, float]:
        """Metrics from the totals (NumPy) of a validation set; `loss` is one. By default the means over examples."""
        return {name: float(total / totals["examples"]) for name, total in totals.items() if name != "examples"}

    @property
    def metrics(self) -> dict[str, Metric]:
        """What is to be said of the metrics by name; one that is not named is a mean over sets, and is not drawn."""
        return {"loss": Metric(panel=("Loss", "loss"), better=min)}

    def inspect(self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> dict[str, float]:
        """What can be measured of a trained model apart from totals, by name; `samples` are validation examples."""
        return {}

    def codings(self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> dict[str, Coding]:
        """By codebook, the images among the samples in its codes, to be shown; empty where there are none."""
        return {}

    def pictures(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray], totals: Mapping[str, Any], step: int
    ) -> dict[str, Callable[[str], None]]:
        """The model's pictures: by file name without suffix, a function that draws the PNG file at a path."""
        return {}


DTYPES = {"float32": "as everywhere else", "bfloat16": "faster on accelerators"}
"""Types of the convolutions, by name."""


def check_images(images: jax.Array) -> None:
    """Raises InputError unless images are uint8 [b, h, w, 3]."""
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(f"images are {images.dtype}{list(images.shape)}; they must be uint8[b, h, w, 3]")
