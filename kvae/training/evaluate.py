"""Computes a model's metrics on the validation sets and, if the model needs it, on the training set."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kvae.core.errors import InputError, short_repr
from kvae.data import pipeline
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples
from kvae.models.model import Metric, Model
from kvae.training.parallel import devices
from kvae.training.parallel.devices import ReplicaGroups, Replicas, scalar_or_list, select_replica

log = logging.getLogger(__name__)

SAMPLES = 32
"""Number of validation examples for a model's `extra_metrics`, and the minimum number in its figures."""

PICTURED_BYTES = 2**20
"""Maximum total size of the validation examples in figures; if `SAMPLES` examples are larger, they are all shown."""


class Evaluation(NamedTuple):
    """Result of an evaluation.

    Attributes:
      row: `valid/<metric>`, numbers or lists in seed order; for several validation sets also `valid/<set>/<metric>`.
      sums: sums over all validation sets, and `train_<name>` over the training set; arrays [replicas, ...].
      variables: the model's variables on the host, arrays [replicas, ...].
    """

    row: dict[str, Any]
    sums: dict[str, Any]
    variables: dict[str, Any]


class Evaluator:
    """Measures a model on a data set.

    Args:
      model: the model to measure.
      replicas: the replicas of the run.
      dataset: the validation sets are measured, and the training set too if the model needs it.
      batch_size: number of examples in a batch.

    Attributes:
      samples: validation examples for `extra_metrics`, arrays [n, ...] by name.
      pictured: validation examples for figures, arrays [n, ...] by name.
    """

    def __init__(self, model: Model, replicas: Replicas, dataset: Dataset, batch_size: int):
        self.model, self.replicas, self.dataset = model, replicas, dataset
        self.samples = samples(dataset.validation, SAMPLES)
        self.pictured = samples(dataset.validation, num_pictured(dataset.validation))
        self._batch_size, self._has_warned = batch_size, False

    def evaluate(self, groups: ReplicaGroups, finite: np.ndarray) -> Evaluation:
        """Measures all replicas.

        Args:
          groups: variables of the model.
          finite: bool [replicas], at least one True; where it is False, the replica's metrics are NaN.
        """
        sums_by_set, train = self._all_sums(groups, self.dataset)
        pooled = jax.tree.map(lambda *parts: sum(parts), *sums_by_set.values()) | train
        variables = self.replicas.to_host(groups)
        rows = {}
        for replica in np.flatnonzero(finite).tolist():
            metrics_by_set = {
                name: all_metrics(self.model, select_replica(sums | train, replica))
                for name, sums in sums_by_set.items()
            }
            metrics = all_metrics(self.model, select_replica(pooled, replica))
            rows[replica] = joined_metrics(self.model, metrics, metrics_by_set)
            rows[replica] |= self.extra_metrics(select_replica(variables, replica))
        self._warn_of_metrics_without_values(next(iter(rows.values())))
        failed = dict.fromkeys(next(iter(rows.values())), float("nan"))
        rows = [rows.get(replica, failed) for replica in range(len(finite))]
        return Evaluation({name: scalar_or_list([row[name] for row in rows]) for name in failed}, pooled, variables)

    def check(self, groups: ReplicaGroups) -> None:
        """Measures one batch of each set, so that a mistake in a metric is reported before the first step.

        Args:
          groups: variables of the model.

        Raises:
          InputError: a metric cannot be computed.
        """
        sets = {name: first_examples(examples, self._batch_size) for name, examples in self.dataset.validation.items()}
        part = Dataset(first_examples(self.dataset.train, self._batch_size), sets)
        sums_by_set, train = self._all_sums(groups, part)
        try:
            for sums in sums_by_set.values():
                all_metrics(self.model, select_replica(sums | train, 0))
        except InputError:
            # One batch may be too small for a metric that needs, for example, every class: try all examples.
            self.evaluate(groups, np.ones(self.replicas.count, bool))

    def _all_sums(self, groups: ReplicaGroups, dataset: Dataset) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Returns the sums of each validation set, and of the training set if the model needs them (else empty)."""
        sums_by_set = {name: self.sums(groups, examples) for name, examples in dataset.validation.items()}
        train = self.sums(groups, dataset.train, "train_sums") if self.model.needs_train_sums else {}
        return sums_by_set, {f"train_{name}": total for name, total in train.items()}

    def _warn_of_metrics_without_values(self, row: Mapping[str, Any]) -> None:
        """Logs one warning about metrics that the model declares without a `compute` and never returns."""
        declared = [name for name, metric in self.model.metrics.items() if not metric.compute]
        missing = [name for name in declared if f"valid/{name}" not in row]
        if missing and jax.process_index() == 0 and not self._has_warned:
            log.warning(
                "%s declares the metrics %s but never computes them: give each a compute function, or return it from "
                "compute_metrics or extra_metrics",
                type(self.model).__name__,
                ", ".join(missing),
            )
        self._has_warned = True

    def sums(self, groups: ReplicaGroups, examples: Examples, method: str = "batch_sums") -> dict[str, Any]:
        """Returns the sums of a model method's results over the batches of a set: float64 [replicas, ...]."""
        batches = pipeline.evaluation_batches(
            examples,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sharding, total = devices.shared_batch_sharding(self.replicas.mesh), None
        for batch in batches:
            part = self.replicas.to_host(self._program(method)(groups, devices.to_devices(sharding, batch)))
            part = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part)
            total = part if total is None else jax.tree.map(np.add, total, part)
        return total

    @functools.cache  # noqa: B019 -- an evaluator lives as long as its run
    def _program(self, method: str) -> Callable:
        return self.replicas.program(functools.partial(self.model.apply, method=method), shared=(1,))

    def extra_metrics(self, variables: Mapping[str, Any]) -> dict[str, float]:
        """Returns the model's `extra_metrics` as `valid/<metric>`; processes other than the first return none.

        Args:
          variables: the variables of one replica, on the host.
        """
        if jax.process_index() > 0:
            return {}
        on_device = jax.device_put(variables, jax.local_devices()[0])
        return {f"valid/{name}": value for name, value in self.model.extra_metrics(on_device, self.samples).items()}


def all_metrics(model: Model, sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns the result of the model's `compute_metrics`, plus the metrics with a `compute` that it lacks.

    Raises:
      InputError: a `compute` fails, or `compute_metrics` does not return a dict with the key `loss`.
    """
    metrics = model.compute_metrics(sums)
    if not isinstance(metrics, Mapping) or "loss" not in metrics:
        raise InputError(
            f"compute_metrics of {type(model).__name__} returns {short_repr(metrics)}; it must return a dict of "
            "numbers with the key 'loss'"
        )
    left_out = model.declared_metrics(sums) if {*_computable(model)} - metrics.keys() else {}
    return {**left_out, **metrics}


def _computable(model: Model) -> list[str]:
    """Returns the names of the metrics that define `compute`."""
    return [name for name, metric in model.metrics.items() if metric.compute]


def joined_metrics(
    model: Model, pooled: Mapping[str, float], by_set: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Returns the metrics of several sets as one row; each `Metric` declares whether it is pooled or averaged.

    Args:
      model: the model, which declares its metrics.
      pooled: metrics of all sets together.
      by_set: metrics of each set.
    """
    row = {}
    for name, value in pooled.items():
        if not model.metrics.get(name, Metric()).pooled:
            value = float(np.mean([metrics[name] for metrics in by_set.values()]))
        row[f"valid/{name}"] = value
    if len(by_set) > 1:
        row |= {f"valid/{set_name}/{name}": value for set_name, each in by_set.items() for name, value in each.items()}
    return row


def first_examples(examples: Examples, count: int) -> Examples:
    """Returns the first `count` examples, or all if there are fewer."""
    if isinstance(examples, ArrayExamples):
        return ArrayExamples({name: array[:count] for name, array in examples.arrays.items()})
    return _First(examples, min(count, len(examples)))


@dataclasses.dataclass(frozen=True)
class _First:
    """The first `count` examples of a set that is read from disk."""

    examples: Examples
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def num_pictured(sets: Mapping[str, Examples]) -> int:
    """Returns the number of validation examples in figures: at least `SAMPLES`, or all if there are fewer."""
    size = sum(np.asarray(value).nbytes for value in next(iter(sets.values()))[0].values())
    return min(max(SAMPLES, PICTURED_BYTES // size), sum(map(len, sets.values())))


def samples(sets: Mapping[str, Examples], count: int) -> dict[str, np.ndarray]:
    """Returns `count` examples, evenly spaced over the sets: arrays [count, ...] by name."""
    positions = [(examples, i) for examples in sets.values() for i in range(len(examples))]
    chosen = np.linspace(0, len(positions) - 1, count).round().astype(int)
    examples = [positions[i][0][positions[i][1]] for i in chosen]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
