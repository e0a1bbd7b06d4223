"""Evaluation over the exact validation sets, and over the training set where a model asks for it."""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from kvae.data import pipeline
from kvae.data.dataset import Examples
from kvae.training import devices as meshes
from kvae.training.step import over_replicas

POOLED = ("perplexity", "codes_used", "neural_selectivity", "dead_neurons")
"""Metrics that are taken over all validation sets together; the others are means over the sets."""


class Evaluator:
    """Adds up a model's totals.

    Args:
      model: see `kvae.models.objective`.
      replicas: how many share the program.
      mesh: the devices.
    """

    def __init__(self, model: nn.Module, replicas: int, mesh: Mesh):
        self.model, self._replicas, self._mesh = model, replicas, mesh
        # Every replica sees the same validation batch, split over the data axis only.
        self._batch_sharding = meshes.batch_sharding(mesh, 1)

    @functools.cache  # noqa: B019 -- an evaluator lives as long as its run
    def _program(self, method):
        def of_batch(variables, batch):
            return self.model.apply(variables, batch, method=method)

        return jax.jit(
            over_replicas(of_batch, self._replicas, shared_arguments=(1,)),
            out_shardings=meshes.state_sharding(self._mesh, self._replicas),
            compiler_options=meshes.compiler_options(),
        )

    def totals(self, variables, examples: Examples, batch_size: int, method: str = "totals") -> dict[str, np.ndarray]:
        """What a method of the model gives for each batch, added up over one set: float64, replicas leading."""
        batches = pipeline.evaluation_batches(
            examples,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        total = None
        for batch in batches:
            part = self._program(method)(variables, meshes.to_devices(self._batch_sharding, batch))
            part = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(part))
            total = part if total is None else jax.tree.map(np.add, total, part)
        return total

    def metrics(
        self, variables, sets: Mapping[str, Examples], batch_size: int, train: Examples | None = None
    ) -> tuple[dict, dict]:
        """Metrics of all sets, and their totals added up.

        Returns:
          `valid/<metric>`: means over the sets, or pooled (`POOLED`); where there are several sets
          `valid/<set>/<metric>` too. With replicas each is a list in seed order. And the totals of all sets together.
          Where the model keeps a tally of the training set, and that is given, they have it too, as `train_<name>`.
        """
        by_set = {name: self.totals(variables, examples, batch_size) for name, examples in sets.items()}
        pooled = jax.tree.map(lambda *parts: sum(parts), *by_set.values())
        tally = self.totals(variables, train, batch_size, "tally") if train and self.model.tallies_train else {}
        tally = {f"train_{name}": total for name, total in tally.items()}
        pooled |= tally
        summaries = {name: self.per_replica(self.model.summarize, totals | tally) for name, totals in by_set.items()}
        row = {}
        for name, value in self.per_replica(self.model.summarize, pooled).items():
            if not name.startswith(POOLED):
                value = np.mean([summary[name] for summary in summaries.values()], axis=0).tolist()
            row[f"valid/{name}"] = value
        if len(sets) > 1:
            row |= {f"valid/{name}/{metric}": value for name, s in summaries.items() for metric, value in s.items()}
        return row, pooled

    def per_replica(self, summarize: Callable[[dict], dict], totals: dict) -> dict:
        """`summarize` of totals: numbers, or lists in seed order where there are replicas."""
        if self._replicas == 1:
            return summarize(totals)
        rows = [summarize({name: leaf[i] for name, leaf in totals.items()}) for i in range(self._replicas)]
        return {name: [row[name] for row in rows] for name in rows[0]}


def samples(sets: Mapping[str, Examples], count: int) -> np.ndarray:
    """`count` images, evenly spaced over the validation sets: uint8 [count, h, w, 3]."""
    places = [(examples, i) for examples in sets.values() for i in range(len(examples))]
    chosen = np.linspace(0, len(places) - 1, count).round().astype(int)
    return np.stack([places[i][0][places[i][1]]["image"] for i in chosen])
