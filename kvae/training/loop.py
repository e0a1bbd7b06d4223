"""The training loop: steps, logs, evaluations, checkpoints and figures."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.buckets import as_path
from kvae.core.errors import InputError
from kvae.data import Examples, pipeline
from kvae.training import pictures
from kvae.training.best import LOSS
from kvae.training.evaluate import Evaluation, Evaluator
from kvae.training.parallel import devices
from kvae.training.parallel.cluster import StopSignal, wait_for_all
from kvae.training.parallel.devices import ReplicaGroups, Replicas, scalar_or_list
from kvae.training.step import MetricSums
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import Journal, summary
from kvae.training.workdir.mirror import Mirror

log = logging.getLogger(__name__)

DYING_SHARE = 0.05
"""A codebook is collapsing if less than this share of its codes is used between two logs."""

DYING_STEPS = 500
"""Code usage is checked after this many steps, or after one epoch if that is shorter."""

LEAST_STEPS = 50
"""Code usage is never checked before this step."""

BATCHES_AHEAD = 4
"""Number of batches that are prepared in the background while the devices train."""


def training_batches(config: Mapping[str, Any], examples: Examples, first_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's slice of the global batches of all replicas.

    Args:
      config: the run's config.
      examples: the training set.
      first_step: updates done so far; the stream continues after them.

    Yields:
      Arrays [replicas, b, ...] by name; replica i draws its order from seed + i.
    """
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
    for batches in zip(*streams, strict=True):
        yield {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def on_devices(batches: Iterator[dict[str, np.ndarray]], replicas: Replicas) -> Iterator[ReplicaGroups]:
    """Yields each batch as one tree of global arrays [g, b, ...] per group, on the devices."""
    sharding = devices.batch_sharding(replicas.mesh)
    for batch in batches:
        yield [devices.to_devices(sharding, group) for group in replicas.split(batch)]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files that a run writes.

    Attributes:
      workdir: the run's folder, on a disk or in a bucket.
      mirror: the small files on this machine, and the lock of the run.
      checkpoints: the checkpoints.
      journal: the metrics and the log.
    """

    workdir: str
    mirror: Mirror
    checkpoints: Checkpoints
    journal: Journal

    @property
    def figures(self) -> pathlib.Path:
        """The folder of the figures, on this machine."""
        return pathlib.Path(self.mirror.folder) / "figures"


class Loop:
    """Runs the training loop, and writes metrics, checkpoints and figures.

    Args:
      config: the validated config.
      step: the compiled training step, from groups and a batch to groups.
      evaluator: measures the model on the data set.
      files: the files to write.
      stop: records signals that ask the run to stop.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        step: Callable[[ReplicaGroups, ReplicaGroups], ReplicaGroups],
        evaluator: Evaluator,
        files: RunFiles,
        stop: StopSignal,
    ):
        self.config, self.step, self.evaluator, self.files, self.stop = config, step, evaluator, files, stop
        self.replicas, self.early_stopping = evaluator.replicas, files.journal.early_stopping
        self.has_warned, self.failed = False, set()

    def run(self, groups: ReplicaGroups, first_step: int) -> int:
        """Trains from `first_step` until the last step, early stopping or a stop signal.

        Returns:
          The last step of the config, also after early stopping. If a signal stopped the run, the step that it reached.
        """
        steps = self.config["steps"]
        if first_step >= steps or self.early_stopping.is_over():
            log.info("the run is complete; nothing is left to train")
            return steps
        log.info("compiling the training step ...")
        self.evaluator.check([group.variables for group in groups])
        batches = training_batches(self.config, self.evaluator.dataset.train, first_step)
        with pipeline.prefetch(on_devices(batches, self.replicas), BATCHES_AHEAD) as batches:
            for done in range(first_step + 1, steps + 1):
                with self.saved_if_it_fails(groups, done - 1):
                    batch = next(batches)
                groups = self.step(groups, batch)
                if done == first_step + 1:
                    jax.block_until_ready(groups)
                    started, logged_step = time.monotonic(), done
                self.files.journal.advance()
                if self.is_due("log_every_steps", done):
                    values = self.replicas.to_host([(g.metric_sums, g.finite, g.step) for g in groups])
                    rates = self.rates(done - logged_step, time.monotonic() - started)
                    groups = [g.replace(metric_sums=jax.tree.map(jnp.zeros_like, g.metric_sums)) for g in groups]
                    self.log(groups, done, *values, rates)
                    started, logged_step = time.monotonic(), done
                    if self.early_stopping.is_over():
                        log.info("stopped at step %d: the validation loss no longer falls", done)
                        break
                if self.stop.requested(done) and done < steps:
                    self.save(groups, done, None)
                    self.files.checkpoints.wait()
                    log.warning("stopped at step %d; run the same command again to resume", done)
                    return done
        if (self.files.figures / "index.html").exists():
            log.info("all figures are in %s", as_path(self.files.workdir) / "figures" / "index.html")
        return steps

    @contextlib.contextmanager
    def saved_if_it_fails(self, groups: ReplicaGroups, done: int) -> Iterator[None]:
        """Saves the state of the step `done` if the block fails, for example because an image was deleted."""
        try:
            yield
        except Exception:
            if done and jax.process_count() == 1:  # saving needs all processes, and the others do not know of the error
                self.save(groups, done, None)
                self.files.checkpoints.wait()
                log.warning("saved step %d, because the next one failed", done)
            raise

    def is_due(self, field: str, done: int) -> bool:
        """True if a step is a multiple of config[field] or is the last step."""
        return done % self.config[field] == 0 or done == self.config["steps"]

    def log(
        self,
        groups: ReplicaGroups,
        done: int,
        metric_sums: MetricSums,
        finite: np.ndarray,
        reached: np.ndarray,
        rates: Mapping[str, float],
    ) -> None:
        """Writes the row of a step; evaluates, saves a checkpoint and draws figures if they are due.

        The row is written before the checkpoint is saved, so that a run that is killed has a row for each checkpoint.

        Args:
          groups: the state.
          done: the step.
          metric_sums: sums since the last log, arrays [replicas, ...].
          finite: bool [replicas], False for replicas that have failed.
          reached: int32 [replicas], the step of each replica's state.
          rates: the result of the method `rates`.
        """
        self.files.mirror.check()
        self.check_failures(done, finite, reached)
        self.warn_if_dying(metric_sums.counts, finite, done)
        row, evaluation = {"step": done, **training_means(metric_sums, finite), **rates}, None
        if self.is_due("evaluate_every_steps", done):
            evaluation = self.evaluate(groups, finite, row, metric_sums)
            row |= evaluation.row
        self.files.journal.write(row, summary(row, metric_sums.counts))
        self.files.mirror.upload()
        if not (self.is_due("checkpoint_every_steps", done) or self.early_stopping.is_over()):
            return
        self.save(groups, done, evaluation)
        # Drawing takes longer than an evaluation, so figures are drawn only with checkpoints.
        if evaluation is not None and jax.process_index() == 0:
            rows = self.files.journal.rows
            pictures.draw(self.evaluator.model, evaluation, self.evaluator.pictured, rows, self.files.figures)
        wait_for_all("drawn")  # otherwise the other processes' next collective could time out

    def evaluate(
        self, groups: ReplicaGroups, finite: np.ndarray, row: Mapping[str, Any], metric_sums: MetricSums
    ) -> Evaluation:
        """Evaluates the state. If that fails before the last step, writes the row alone and saves a checkpoint."""
        try:
            return self.evaluator.evaluate([group.variables for group in groups], finite)
        except Exception:
            # With a checkpoint of the last step, the run would be complete and would never repeat the evaluation.
            if row["step"] < self.config["steps"]:
                with self.saved_if_it_fails(groups, row["step"]):
                    self.files.journal.write(row, summary(row, metric_sums.counts))
                    raise
            raise

    def save(self, groups: ReplicaGroups, done: int, evaluation: Evaluation | None) -> None:
        """Uploads all rows if the run is in a bucket, then starts saving a checkpoint in the background."""
        self.files.mirror.upload_rows()
        loss = evaluation.row[LOSS] if evaluation else None
        self.files.checkpoints.save(done, self.replicas.join(groups), self.config, loss)

    def rates(self, steps: int, seconds: float) -> dict[str, float]:
        """Returns steps and images per second since the last log; compilation, evaluation and drawing do not count."""
        if not steps:
            return {}
        images = steps * self.config["batch_size"] * self.config["replicas"]
        return {"steps_per_second": steps / seconds, "images_per_second": images / seconds}

    def check_failures(self, done: int, finite: np.ndarray, reached: np.ndarray) -> None:
        """Logs which replicas have failed since the last log.

        Raises:
          InputError: all replicas have failed.
        """
        if not np.any(finite):
            failed_at, rate = int(np.max(reached)) + 1, self.config["optimizer"]["learning_rate"]
            remedy = f"earlier checkpoints are intact; try a lower optimizer.learning_rate (now {rate})"
            if failed_at == 1:
                remedy = "at the first step the cause is rarely the learning rate: check that the data fit the model"
            raise InputError(f"the loss is not finite at step {failed_at}; {remedy}")
        failed = set(np.flatnonzero(~finite).tolist())
        for replica in sorted(failed - self.failed):
            seed = self.config["seed"] + replica
            log.warning("seed %d stopped: its loss is not finite at step %d", seed, reached[replica] + 1)
        self.failed = failed

    def warn_if_dying(self, counts: Mapping[str, np.ndarray], finite: np.ndarray, done: int) -> None:
        """Logs one warning, with the model's remedy, if a codebook uses too few of its codes.

        Args:
          counts: by codebook, how often each code was chosen: float32 [replicas, ..., K].
          finite: bool [replicas], False for replicas that have failed.
          done: the step.
        """
        epoch = len(self.evaluator.dataset.train) // self.config["batch_size"]
        if self.has_warned or done < min(DYING_STEPS, max(epoch, LEAST_STEPS)):
            return
        for name, code_counts in counts.items():
            size = np.shape(code_counts)[-1]
            code_counts = code_counts.reshape(len(finite), -1, size)[finite]
            used = np.count_nonzero(code_counts, axis=-1)
            # Fewer vectors than codes cannot use them all.
            if np.any(used < DYING_SHARE * np.minimum(size, np.sum(code_counts, axis=-1))):
                self.has_warned = True
                log.warning(
                    "the %s is collapsing: %d vectors used only %d of %d codes since the last log; %s",
                    name if name in ("codebook", "map") else f"{name} codebook",
                    np.sum(code_counts, axis=-1).flat[np.argmin(used)],
                    np.min(used),
                    size,
                    self.evaluator.model.collapse_hint,
                )


def training_means(metric_sums: MetricSums, finite: np.ndarray) -> dict[str, Any]:
    """Returns the means since the last log as `train/<metric>`; NaN for replicas that have failed."""
    steps = np.maximum(metric_sums.steps, 1)
    means = {name: np.where(finite, total / steps, np.nan) for name, total in metric_sums.metrics.items()}
    return {f"train/{name}": scalar_or_list(mean.tolist()) for name, mean in means.items()}
