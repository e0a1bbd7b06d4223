"""The training loop: steps, logs, evaluations, checkpoints and pictures."""

import logging
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.buckets import as_path
from kvae.core.errors import InputError
from kvae.data import Examples, pipeline
from kvae.training import pictures
from kvae.training.best import LOSS, mean_over_replicas
from kvae.training.evaluate import Evaluation
from kvae.training.parallel import devices
from kvae.training.parallel.cluster import wait_for_all
from kvae.training.parallel.devices import ReplicaGroups, Replicas, scalar_or_list
from kvae.training.step import MetricSums
from kvae.training.workdir.journal import summary

log = logging.getLogger(__name__)

DYING_SHARE = 0.05
DYING_STEPS = 500
BATCHES_AHEAD = 4


def training_batches(config: Mapping, examples: Examples, first_step: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the global batches of all replicas: arrays [replicas, b, ...] by name."""
    streams = [
        pipeline.train_batches(
            examples,
            seed=config["seed"] + replica,
            batch_size=config["batch_size"],
            first_step=first_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for replica in range(config["replicas"])
    ]
    for parts in zip(*streams, strict=True):
        yield {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def on_devices(batches: Iterator[dict[str, np.ndarray]], replicas: Replicas) -> Iterator[ReplicaGroups]:
    """Global batches as groups of arrays [g, b, ...] on the devices."""
    sharding = devices.batch_sharding(replicas.mesh)
    for batch in batches:
        yield [devices.to_devices(sharding, group) for group in replicas.split(batch)]


class Loop:
    """The one training loop: steps, logs, evaluations, checkpoints, and a clean way out.

    Args:
      config: of the run, resolved.
      workdir: its folder.
      replicas: how the seeds lie on the devices.
      evaluator: of the model on the data set.
      checkpoints: of the run.
      journal: of the run.
      mirror: of the folder: its small files, and its lock.
      stop: whether the run was asked to.
    """

    def __init__(self, config, workdir, replicas, evaluator, checkpoints, journal, mirror, stop):
        self.workdir, self.mirror, self.figures = workdir, mirror, pathlib.Path(mirror.folder) / "figures"
        self.config, self.replicas, self.evaluator = config, replicas, evaluator
        self.checkpoints, self.journal, self.stop = checkpoints, journal, stop
        self.warned, self.failed = False, set()

    def run(self, step, groups: ReplicaGroups, first_step: int) -> int:
        """Trains from `first_step` to the last; returns the step that was reached, as `train` does."""
        if first_step >= self.config["steps"] or self.journal.early_stopping.is_over():
            log.info("nothing is left to do: the run is at its end")
            return self.config["steps"]
        batches = training_batches(self.config, self.evaluator.dataset.train, first_step)
        batches = on_devices(batches, self.replicas)
        log.info("compiling the training step ...")
        with pipeline.prefetch(batches, BATCHES_AHEAD) as batches:
            for done in range(first_step + 1, self.config["steps"] + 1):
                groups = step(groups, next(batches))
                if done == first_step + 1:
                    jax.block_until_ready(groups)
                    started, at_step = time.monotonic(), done
                self.journal.advance()
                if self.is_due("log_every_steps", done):
                    logged = self.replicas.on_host([(g.metric_sums, g.finite, g.step) for g in groups])
                    rates = self.rates(done - at_step, time.monotonic() - started)
                    groups = [g.replace(metric_sums=jax.tree.map(jnp.zeros_like, g.metric_sums)) for g in groups]
                    self.log(groups, done, *logged, rates)
                    started, at_step = time.monotonic(), done
                    if self.journal.early_stopping.is_over():
                        log.info("stopped at step %d: the validation loss falls no more", done)
                        break
                if self.stop.requested(done) and done < self.config["steps"]:
                    self.save(groups, done, None)
                    self.checkpoints.wait()
                    log.warning("stopped at step %d; run the same command again to go on", done)
                    return done
        if (self.figures / "index.html").exists():
            log.info("all pictures are in %s", as_path(self.workdir) / "figures" / "index.html")
        return self.config["steps"]

    def is_due(self, field: str, done: int) -> bool:
        """Whether a step is one of those that come every `field` steps, or the last."""
        return done % self.config[field] == 0 or done == self.config["steps"]

    def log(
        self, groups: ReplicaGroups, done: int, metric_sums, finite: np.ndarray, at: np.ndarray, rates: dict
    ) -> None:
        """Writes the row of a step, with an evaluation where that is due; then saves, and then draws.

        A checkpoint never runs ahead of its row, and a picture never of the checkpoint.
        """
        self.mirror.check()
        self.stop_if_all_failed(done, finite, at)
        self.warn_if_dying(metric_sums.counts, finite, done)
        row, evaluation = {"step": done, **training_means(metric_sums, finite), **rates}, None
        if self.is_due("evaluate_every_steps", done):
            evaluation = self.evaluator.evaluate([group.variables for group in groups], finite)
            row |= evaluation.row
        self.journal.write(row, summary(row, metric_sums.counts))
        self.mirror.publish()
        if not (self.is_due("checkpoint_every_steps", done) or self.journal.early_stopping.is_over()):
            return
        self.save(groups, done, evaluation)
        # Pictures take longer than an evaluation, so they come with the checkpoints only.
        if evaluation is not None and jax.process_index() == 0:
            pictures.draw(self.evaluator.model, evaluation, self.evaluator.pictured, self.journal.rows, self.figures)
        wait_for_all("drawn")  # collectives on a CPU do not wait for longer than half a minute

    def save(self, groups: ReplicaGroups, done: int, evaluation: Evaluation | None) -> None:
        """Saves a checkpoint, in the background, once all rows are where it will be."""
        self.mirror.publish_rows()
        loss = mean_over_replicas(evaluation.row[LOSS]) if evaluation else None
        self.checkpoints.save(done, self.replicas.joined(groups), self.config, loss)

    def rates(self, steps: int, seconds: float) -> dict[str, float]:
        """Steps and images a second since the last log, without compilation, evaluation and drawing."""
        if not steps:
            return {}
        images = steps * self.config["batch_size"] * self.config["replicas"]
        return {"steps_per_second": steps / seconds, "images_per_second": images / seconds}

    def stop_if_all_failed(self, done: int, finite: np.ndarray, at: np.ndarray) -> None:
        """Says which replica has failed since the last log.

        Raises:
          InputError: no replica has a finite loss any more.
        """
        if not np.any(finite):
            failed_at, rate = int(np.max(at)) + 1, self.config["optimizer"]["learning_rate"]
            what_helps = f"a lower optimizer.learning_rate (now {rate}) may help"
            if failed_at == 1:
                what_helps = "so early it is seldom the learning rate: do the data fit the model?"
            raise InputError(
                f"the loss is not finite at step {failed_at}; the checkpoints before it are whole, and {what_helps}"
            )
        failed = set(np.flatnonzero(~finite).tolist())
        for replica in sorted(failed - self.failed):
            seed = self.config["seed"] + replica
            log.warning("seed %d stopped: its loss is not finite at step %d", seed, at[replica] + 1)
        self.failed = failed

    def warn_if_dying(self, counts: Mapping[str, np.ndarray], finite: np.ndarray, done: int) -> None:
        """Says, once, that hardly any code is in use, and what would help."""
        epoch = len(self.evaluator.dataset.train) // self.config["batch_size"]
        if self.warned or done < min(DYING_STEPS, max(epoch, 1)):
            return
        for name, of_codes in counts.items():
            size = np.shape(of_codes)[-1]
            of_codes = of_codes.reshape(len(finite), -1, size)[finite]  # by seed and codebook
            used = np.count_nonzero(of_codes, axis=-1)
            # Fewer wins than codes cannot use them all.
            if np.any(used < DYING_SHARE * np.minimum(size, np.sum(of_codes, axis=-1))):
                self.warned = True
                log.warning(
                    "the %s is dying: %d of %d codes were used since the last log; %s",
                    name if name in ("codebook", "map") else f"{name} codebook",
                    np.min(used),
                    size,
                    self.evaluator.model.collapse_hint,
                )


def training_means(metric_sums: MetricSums, finite: np.ndarray) -> dict[str, Any]:
    """The metrics of training, averaged since the last log; not a number for a replica that has failed."""
    steps = np.maximum(metric_sums.steps, 1)
    means = {name: np.where(finite, total / steps, np.nan) for name, total in metric_sums.metrics.items()}
    return {f"train/{name}": scalar_or_list(mean.tolist()) for name, mean in means.items()}
