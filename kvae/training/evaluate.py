"""Every validation metric.

Models are measured over the exact validation sets, over the training set where they ask for it, and by a look inside.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kvae.data import pipeline
from kvae.data.dataset import Dataset, Examples
from kvae.models.model import Metric, Model
from kvae.training.parallel import devices
from kvae.training.parallel.devices import ReplicaGroups, Replicas, scalar_or_list, select_replica

SAMPLES = 32
"""How many validation examples a model inspects."""

PICTURED_BYTES = 2**20
"""How large the validation examples are, all together, of which pictures are drawn."""


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      row: `valid/<metric>`, numbers or lists in seed order; where there are several sets `valid/<set>/<metric>` too.
      sums: of all sets together, and of the training set as `train_<name>`; arrays [replicas, ...].
      variables: on the host, arrays [replicas, ...].
    """

    row: dict[str, Any]
    sums: dict[str, Any]
    variables: dict[str, Any]


class Evaluator:
    """Measures a model on a data set.

    Args:
      model: what is measured.
      replicas: of which there are variables.
      dataset: whose validation sets are gone through.
      batch_size: examples in a batch.
    """

    def __init__(self, model: Model, replicas: Replicas, dataset: Dataset, batch_size: int):
        self.model, self.dataset, self.samples = model, dataset, samples(dataset.validation, SAMPLES)
        self.pictured = samples(dataset.validation, pictured(dataset.validation))
        self._replicas, self._batch_size = replicas, batch_size

    def evaluate(self, groups: ReplicaGroups, finite: np.ndarray) -> Evaluation:
        """Measures all replicas.

        Args:
          groups: their variables.
          finite: bool [replicas], at least one; those that have failed get NaN: their state is of before they did.
        """
        by_set = {name: self.sums(groups, examples) for name, examples in self.dataset.validation.items()}
        train = self.sums(groups, self.dataset.train, "train_sums") if self.model.needs_train_sums else {}
        train = {f"train_{name}": total for name, total in train.items()}
        pooled = jax.tree.map(lambda *parts: sum(parts), *by_set.values()) | train
        variables = self._replicas.on_host(groups)
        rows = {}
        for replica in np.flatnonzero(finite).tolist():
            of_sets = {
                name: self.model.compute_metrics(select_replica(sums | train, replica)) for name, sums in by_set.items()
            }
            rows[replica] = joined_metrics(
                self.model, self.model.compute_metrics(select_replica(pooled, replica)), of_sets
            )
            rows[replica] |= self.extra_metrics(select_replica(variables, replica))
        failed = dict.fromkeys(next(iter(rows.values())), float("nan"))
        rows = [rows.get(replica, failed) for replica in range(len(finite))]
        return Evaluation({name: scalar_or_list([row[name] for row in rows]) for name in failed}, pooled, variables)

    def sums(self, groups: ReplicaGroups, examples: Examples, method: str = "batch_sums") -> dict[str, Any]:
        """What a method of the model gives for each batch, added up over one set: float64 [replicas, ...]."""
        batches = pipeline.evaluation_batches(
            examples,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sharding, total = devices.shared_batch_sharding(self._replicas.mesh), None
        for batch in batches:
            part = self._replicas.on_host(self._program(method)(groups, devices.to_devices(sharding, batch)))
            part = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part)
            total = part if total is None else jax.tree.map(np.add, total, part)
        return total

    @functools.cache  # noqa: B019 -- an evaluator lives as long as its run
    def _program(self, method):
        return self._replicas.program(functools.partial(self.model.apply, method=method), shared=(1,))

    def extra_metrics(self, variables) -> dict[str, float]:
        """What the model measures of itself, on the first process only, for it has no collectives."""
        if jax.process_index() > 0:
            return {}
        on_device = jax.device_put(variables, jax.local_devices()[0])
        return {f"valid/{name}": value for name, value in self.model.extra_metrics(on_device, self.samples).items()}


def joined_metrics(model: Model, pooled: Mapping[str, float], by_set: Mapping[str, Mapping[str, float]]) -> dict:
    """Metrics of several sets as one row: pooled, or means over the sets, as each `Metric` says."""
    row = {}
    for name, value in pooled.items():
        if not model.metrics.get(name, Metric()).pooled:
            value = float(np.mean([metrics[name] for metrics in by_set.values()]))
        row[f"valid/{name}"] = value
    if len(by_set) > 1:
        row |= {f"valid/{of}/{name}": value for of, metrics in by_set.items() for name, value in metrics.items()}
    return row


def pictured(sets: Mapping[str, Examples]) -> int:
    """How many validation examples pictures are drawn of: at least `SAMPLES` where there are so many."""
    size = sum(np.asarray(value).nbytes for value in next(iter(sets.values()))[0].values())
    return min(max(SAMPLES, PICTURED_BYTES // size), sum(map(len, sets.values())))


def samples(sets: Mapping[str, Examples], count: int) -> dict[str, np.ndarray]:
    """`count` examples, evenly spaced over the validation sets: arrays [count, ...] by name."""
    places = [(examples, i) for examples in sets.values() for i in range(len(examples))]
    chosen = np.linspace(0, len(places) - 1, count).round().astype(int)
    found = [places[i][0][places[i][1]] for i in chosen]
    return {name: np.stack([example[name] for example in found]) for name in found[0]}
