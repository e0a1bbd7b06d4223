"""The contract of a model: the methods that training, evaluation, reports and `kvae.load` call."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvae.core.errors import InputError, first_line, short_repr
from kvae.core.fields import validate_attributes
from kvae.models.codebook_views import CodebookView

Batch = Mapping[str, jax.Array]
"""Arrays by name: data such as `image` uint8 [b, h, w, 3], and `mask` bool [b], False for padding."""


@struct.dataclass
class LossAndMetrics:
    """The result of `Model.loss_and_metrics` for one batch.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = jnp.float32(0.5)
      >>> LossAndMetrics(loss, {"loss": loss}).counts
      {}

    Attributes:
      loss: float32 [], the value that the optimiser minimises.
      metrics: float32 [] by name, averaged over the steps between two logs; one of them is `loss`.
      counts: the number of times each code or neuron was chosen, float32 [K] by codebook or map; may be empty.
      statistics: the argument of `Model.update_codebooks`, a tree of arrays; summed over micro-batches.
    """

    loss: jax.Array
    metrics: Mapping[str, jax.Array]
    counts: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    statistics: Any = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metric:
    """Declares how a validation metric is computed, pooled over sets, plotted and tabulated.

    Example:
      >>> accuracy = Metric(lambda sums: float(sums["correct"] / sums["examples"]), column="accuracy", better=max)
      >>> accuracy.compute({"correct": 3, "examples": 4})
      0.75

    Attributes:
      compute: computes the metric from the sums of `Model.batch_sums`, NumPy arrays by name. It returns a number, or
        None if a sum that it needs is missing. Use None if `Model.compute_metrics` or `Model.extra_metrics` computes
        the metric.
      pooled: for several validation sets, True computes the metric from the sums over all sets, and False averages the
        metric over the sets.
      panel: title of the panel in which the metric is plotted over time, and label of the panel's axis; None does not
        plot it.
      label: legend of the metric's line, for a panel with several metrics.
      column: heading of the metric's column in tables; None omits the column.
      total: name of the metric that holds N, the number of vectors in a count; tables show N next to the count.
      size: K, the number of codes, which limits the metric; tables also show the metric as a share of its limit.
      decimals: number of decimals in tables.
      better: `min` or `max`, which selects the best of several values; None if no value is better than another.
    """

    compute: Callable[[Mapping[str, Any]], float | None] | None = None
    pooled: bool = False
    panel: tuple[str, str] | None = None
    label: str = ""
    column: str | None = None
    total: str | None = None
    size: int | None = None
    decimals: int = 2
    better: Callable | None = None

    def __post_init__(self):
        validate_attributes(self)


class Model(nn.Module):
    """A model that `python -m kvae.main` can train. Abstract: a subclass defines `loss_and_metrics`.

    `kvae.MODELS["mine"] = MyModel` registers a model, and `config.model.name = "mine"` selects it. The fields of the
    subclass are the fields of `config.model`.

    The optimiser trains the collection `params`. Only `update_codebooks` changes the collection `codebook`. Forward
    passes in training may update other collections, such as `batch_stats`. In training, `make_rng` provides the random
    streams `augmentation` and `dropout`; in evaluation there are no random streams.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, kvae
      >>> class Line(kvae.Model):
      ...     use_bias: bool = True
      ...
      ...     def setup(self):
      ...         self.dense = nn.Dense(1, use_bias=self.use_bias)
      ...
      ...     def loss_and_metrics(self, batch, *, train=True):
      ...         errors = jnp.square(self.dense(batch["x"])[:, 0] - batch["y"])
      ...         loss = jnp.mean(errors, where=batch["mask"])
      ...         return kvae.LossAndMetrics(loss, {"loss": loss})
      >>> batch = {"x": jnp.ones((4, 2)), "y": jnp.zeros(4), "mask": jnp.array([True, True, True, False])}
      >>> model = Line(use_bias=False)
      >>> variables = model.init(jax.random.key(0), batch, method="loss_and_metrics")
      >>> outcome = model.apply(variables, batch, method="loss_and_metrics")
      >>> sums = model.apply(variables, batch, method="batch_sums")
      >>> int(sums["examples"])
      3
      >>> model.compute_metrics(sums) == {"loss": float(outcome.loss)}
      True

    Attributes:
      needs_whole_batch: True if the loss is not a mean over examples, so that micro-batches would change it.
      needs_train_sums: True if `compute_metrics` also needs the `train_sums` of the training set.
      collapse_hint: advice to log when few codes or neurons are in use.
      methods: names of the methods that can be called on a run opened with `kvae.load`. They take arrays and must not
        use random numbers. A model that lists `encode` and `decode` is a tokeniser, see
        `kvae.models.tokenisers`.
    """

    needs_whole_batch: ClassVar[bool] = False
    needs_train_sums: ClassVar[bool] = False
    collapse_hint: ClassVar[str] = "a lower optimizer.learning_rate may help"
    methods: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        validate_attributes(self)
        super().__post_init__()

    @classmethod
    def fields_from_data(cls, fields: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
        """Returns those fields of the section `model` that a `kvae.data.Dataset` determines; none by default.

        Called before training. config.json records the result, so that opening a run does not need its data.
        """
        return {}

    def variables_from_data(self, dataset: Any) -> dict[str, Any]:
        """Returns variables, by collection, that come from a `kvae.data.Dataset` instead of `init`; none by default."""
        return {}

    def loss_and_metrics(self, batch: Batch, *, train: bool = True) -> LossAndMetrics:
        """Returns the loss of a batch. The model is initialised through this method, on one example.

        It must not change the collection `codebook`. Instead, it returns `statistics` for `update_codebooks`.

        Args:
          batch: arrays [b, ...] of the data set by name, and `mask` bool [b]. The loss is the mean over examples where
            `mask` is True. In training, `mask` is True everywhere.
          train: True in training, where random streams exist and collections other than `codebook` are mutable.

        Returns:
          The loss, float32 [], and `metrics`. Every batch has the same metrics, including `loss`.
        """
        raise NotImplementedError

    def update_codebooks(self, statistics: Any) -> None:
        """Updates the collection `codebook`, which is mutable in this method. Does nothing by default.

        Called once per step, after the gradients are computed with the old codebook.

        Args:
          statistics: `LossAndMetrics.statistics` of the whole global batch.
        """

    def train_sums(self, batch: Batch) -> dict[str, Any]:
        """Returns sums over a batch of the training set. Called in evaluations if `needs_train_sums`.

        Args:
          batch: arrays [b, ...] of the data set by name, and `mask` bool [b], False for padding.

        Returns:
          A tree of arrays, which is summed over the training set for `compute_metrics`.
        """
        raise NotImplementedError

    def batch_sums(self, batch: Batch) -> dict[str, Any]:
        """Returns sums over an evaluation batch; `compute_metrics` computes metrics from the sums of all batches.

        Args:
          batch: arrays [b, ...] of the data set by name, and `mask` bool [b], False for padding.

        Returns:
          A tree of arrays, which is summed over a validation set as float64. The default has `examples` [], the number
          of unmasked examples, and each metric of `loss_and_metrics`, float32 [], times that number.
        """
        examples = jnp.sum(batch["mask"])
        metrics = self.loss_and_metrics(batch, train=False).metrics
        return {"examples": examples, **{name: metric * examples for name, metric in metrics.items()}}

    def compute_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of a validation set.

        Args:
          sums: `batch_sums` summed over the set, NumPy float64. If `needs_train_sums`, also the sums of `train_sums`
            over the training set, under the names `train_<name>`.

        Returns:
          Numbers by name, including `loss`: a run keeps the checkpoint with the lowest loss. The default has each
          scalar sum divided by `examples`, and `declared_metrics`.
        """
        scalars = {key: sums[key] for key in sums if not isinstance(sums[key], Mapping) and np.ndim(sums[key]) == 0}
        means = {key: float(total / sums["examples"]) for key, total in scalars.items()}
        means.pop("examples", None)
        return means | self.declared_metrics(sums)

    def declared_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Returns the values of those `metrics` that have a `compute`, without values that are None.

        An evaluation adds them to the metrics that `compute_metrics` returns.

        Args:
          sums: see `compute_metrics`.

        Raises:
          InputError: a `compute` fails or does not return a number, or a value in `metrics` is not a `Metric`.
        """
        for name, metric in self.metrics.items():
            if not isinstance(metric, Metric):
                kind = type(self).__name__
                raise InputError(f"metrics of {kind}: {name!r} is {short_repr(metric)}; it must be a kvae.Metric")
        values = {name: _computed(name, metric, sums) for name, metric in self.metrics.items() if metric.compute}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def metrics(self) -> dict[str, Metric]:
        """Declares the metrics by name. Metrics not listed are averaged over sets and not plotted."""
        return {"loss": Metric(panel=("Loss", "loss"), better=min)}

    def extra_metrics(self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns metrics that cannot be computed from sums, such as the order of a map; none by default.

        Args:
          variables: the variables of one replica, for `model.apply`.
          samples: a few validation examples, arrays [n, ...] by name.

        Returns:
          Numbers by name.
        """
        return {}

    def codebook_views(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]
    ) -> dict[str, CodebookView]:
        """Returns the samples' codes in each codebook, for the HTML report; none by default.

        Args:
          variables, samples: see `extra_metrics`; the samples have `image` uint8 [n, h, w, 3].

        Returns:
          `CodebookView`s by name of the codebook; empty if the model does not encode images.
        """
        return {}

    def pictures(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray], sums: Mapping[str, Any], step: int
    ) -> dict[str, Callable[[pathlib.Path], None]]:
        """Returns functions that draw the pictures in `figures/` of a run; none by default.

        Args:
          variables, samples: see `extra_metrics`.
          sums: the sums for `compute_metrics`, over all validation sets.
          step: the training step of the variables.

        Returns:
          Functions by file name without suffix. Each writes a PNG file to the path that is its argument.
        """
        return {}


def _computed(name: str, metric: Metric, sums: Mapping[str, Any]) -> float | None:
    """Returns a metric computed from sums, as a Python number; None if its `compute` returns None."""
    try:
        value = metric.compute(sums)
        number = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    except Exception as error:  # users write `compute`
        reason = f"{type(error).__name__}: {first_line(error)}"
        sum_names = f"; the sums are {', '.join(sums)}" if isinstance(error, KeyError) else ""
        raise InputError(f"metrics[{name!r}].compute fails: {reason}{sum_names}") from error
    if number is not None and not isinstance(number, (int, float)):
        raise InputError(f"metrics[{name!r}].compute returns {short_repr(value)}; it must return a number or None")
    return number


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Maps the values of a field `dtype` to dtypes of the arithmetic; bfloat16 is faster on accelerators."""
