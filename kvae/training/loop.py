"""The story of a run: from a config to a folder with metrics, checkpoints and pictures."""

import contextlib
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kvae.buckets import place
from kvae.data import Example, Examples, pipeline
from kvae.errors import InputError
from kvae.models.model import Model
from kvae.training import devices, peers, pictures
from kvae.training.checkpoint import Checkpoints
from kvae.training.cluster import StopSignal, first_process_first, wait_for_all
from kvae.training.config import build_model, checked_config, load_data
from kvae.training.evaluate import Evaluation, Evaluator
from kvae.training.journal import Journal, summary
from kvae.training.memory import check_memory
from kvae.training.mirror import Mirror, opened
from kvae.training.optimizer import make_optimizer
from kvae.training.overview import log_overview, log_sizes
from kvae.training.replicas import Groups, Replicas, in_a_row
from kvae.training.step import Interval, example_batch, initial_state, train_step
from kvae.training.workdir import open_workdir

log = logging.getLogger(__name__)

DYING_SHARE = 0.05
DYING_STEPS = 500
BATCHES_AHEAD = 4


def train(
    config: Mapping,
    workdir: str,
    devices_used: Sequence[jax.Device] | None = None,
    mirror: Mirror | None = None,
) -> int:
    """Trains, or goes on training, the run of a folder.

    Args:
      config: see `configs/`, and `kvae.training.config` for the fields and their defaults.
      workdir: the run's folder, made where it does not exist.
      devices_used: those to train on; all by default.
      mirror: of the run, where its log is written already; one of its own by default.

    Returns:
      The step that was reached: `config["steps"]`, also where the loss fell no more, or less where the run was asked to
      stop.

    Raises:
      InputError: something that the user can mend: a field, the data, the folder, a loss that is not finite.
    """
    config = checked_config(config)
    peers.agree("config", lambda: peers.of_program(config))
    mesh = devices.make_mesh(config["replicas"], devices_used)
    devices.check_batch_size(config["batch_size"], mesh, config["micro_batches"])
    replicas = Replicas(config["replicas"], mesh)
    with first_process_first():
        dataset, config = load_data(config)
    log_sizes(config, dataset)
    peers.agree("data set", lambda: peers.of_data(config, dataset))
    model = build_model(config)
    init, step = functions_of(config, model, dataset.train[0], mesh)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        mirror = stack.enter_context(opened(workdir, mirror))
        checkpoints = Checkpoints(workdir)
        stack.callback(checkpoints.close)
        open_workdir(workdir, config, checkpoints)
        groups = replicas.program(init, run_once=True)(seeds(config, replicas))
        step = replicas.program(step, donate=True)
        first_step, groups = newest_state(checkpoints, replicas, groups)
        if first_step:
            log.info("%s is at step %d of %d", workdir, first_step, config["steps"])
        else:
            log_overview(groups[0].params)
        journal = Journal(
            mirror.folder,
            first_step=first_step,
            steps=config["steps"],
            patience=config["patience_evaluations"],
            writes=jax.process_index() == 0,
        )
        stack.callback(journal.close)
        evaluator = Evaluator(model, replicas, dataset, config["batch_size"])
        return Loop(config, workdir, replicas, evaluator, checkpoints, journal, mirror, stop).run(
            step, groups, first_step
        )


def seeds(config: Mapping, replicas: Replicas) -> Groups:
    """The seed of each replica, int32 [g] by group."""
    return replicas.split(config["seed"] + np.arange(replicas.count, dtype=np.int32))


def functions_of(config: Mapping, model: Model, example: Example, mesh: Mesh) -> tuple[Callable, Callable]:
    """The first state from a seed, and the step from a state and a batch to the next state; both of one replica.

    Args:
      config: of the run.
      model: that is trained.
      example: one of the training set; only shapes and types matter.
      mesh: the devices that are to hold it.

    Raises:
      InputError: the batch is to be split, and the model's loss is of a whole one, or the memory holds no step.
    """
    if model.needs_whole_batch and config["micro_batches"] > 1:
        raise InputError(f"micro_batches is {config['micro_batches']}; it must be 1, for this loss is of a whole batch")
    optimizer = make_optimizer(**config["optimizer"], steps=config["steps"])
    init = functools.partial(initial_state, model, optimizer, example_batch(example))
    check_memory(config, init, example, mesh)
    return init, functools.partial(train_step, model, optimizer, config["micro_batches"])


def newest_state(checkpoints: Checkpoints, replicas: Replicas, groups: Groups) -> tuple[int, Groups]:
    """The step and the groups of the newest checkpoint that can be read; 0 and `groups` where there is none."""
    found = checkpoints.restore_newest(replicas.form(groups))
    return (found[0], replicas.split(found[1])) if found else (0, groups)


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


def on_devices(batches: Iterator[dict[str, np.ndarray]], replicas: Replicas) -> Iterator[Groups]:
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

    def run(self, step, groups: Groups, first_step: int) -> int:
        """Trains from `first_step` to the last; returns the step that was reached, as `train` does."""
        if first_step >= self.config["steps"] or self.journal.settling.is_over():
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
                    logged = self.replicas.on_host([(g.interval, g.finite, g.step) for g in groups])
                    rates = self.rates(done - at_step, time.monotonic() - started)
                    groups = [g.replace(interval=jax.tree.map(jnp.zeros_like, g.interval)) for g in groups]
                    self.log(groups, done, *logged, rates)
                    started, at_step = time.monotonic(), done
                    if self.journal.settling.is_over():
                        log.info("stopped at step %d: the validation loss falls no more", done)
                        break
                if self.stop.requested(done) and done < self.config["steps"]:
                    self.save(groups, done, None)
                    self.checkpoints.wait()
                    log.warning("stopped at step %d; run the same command again to go on", done)
                    return done
        if (self.figures / "index.html").exists():
            log.info("all pictures are in %s", place(self.workdir) / "figures" / "index.html")
        return self.config["steps"]

    def is_due(self, field: str, done: int) -> bool:
        """Whether a step is one of those that come every `field` steps, or the last."""
        return done % self.config[field] == 0 or done == self.config["steps"]

    def log(self, groups: Groups, done: int, interval, finite: np.ndarray, at: np.ndarray, rates: dict) -> None:
        """Writes the row of a step, with an evaluation where that is due; then saves, and then draws.

        A checkpoint never runs ahead of its row, and a picture never of the checkpoint.
        """
        self.mirror.check()
        self.stop_if_all_failed(done, finite, at)
        self.warn_if_dying(interval.counts, finite, done)
        row, evaluation = {"step": done, **training_means(interval, finite), **rates}, None
        if self.is_due("evaluate_every_steps", done):
            evaluation = self.evaluator.evaluate([group.variables for group in groups], finite)
            row |= evaluation.row
        self.journal.write(row, summary(row, interval.counts))
        self.mirror.publish()
        if not (self.is_due("checkpoint_every_steps", done) or self.journal.settling.is_over()):
            return
        self.save(groups, done, evaluation)
        # Pictures take longer than an evaluation, so they come with the checkpoints only.
        if evaluation is not None and jax.process_index() == 0:
            pictures.draw(self.evaluator.model, evaluation, self.evaluator.pictured, self.journal.rows, self.figures)
        wait_for_all("drawn")  # collectives on a CPU do not wait for longer than half a minute

    def save(self, groups: Groups, done: int, evaluation: Evaluation | None) -> None:
        """Saves a checkpoint, in the background, once all rows are where it will be."""
        self.mirror.publish_rows()
        loss = evaluation.mean_loss() if evaluation else None
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
                    self.evaluator.model.remedy,
                )


def training_means(interval: Interval, finite: np.ndarray) -> dict[str, Any]:
    """The metrics of training, averaged since the last log; not a number for a replica that has failed."""
    steps = np.maximum(interval.steps, 1)
    means = {name: np.where(finite, total / steps, np.nan) for name, total in interval.metrics.items()}
    return {f"train/{name}": in_a_row(mean.tolist()) for name, mean in means.items()}
