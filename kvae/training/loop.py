"""The story of a run: from a config to a folder with metrics, checkpoints and pictures."""

import contextlib
import functools
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from kvae import data, models
from kvae.data import Examples, pipeline
from kvae.errors import InputError, errors_of_writing
from kvae.training import devices as meshes
from kvae.training import pictures as draw
from kvae.training.checkpoint import Checkpoints
from kvae.training.cluster import StopSignal, first_process_first, wait_for_all
from kvae.training.config import check_config, open_workdir
from kvae.training.evaluate import Evaluator, samples
from kvae.training.journal import Journal, has_settled
from kvae.training.step import TrainState, initial_state, make_optimizer, over_replicas, replica_of, train_step

log = logging.getLogger(__name__)

DYING_SHARE = 0.05
DYING_STEPS = 500
SAMPLES = 32
BATCHES_AHEAD = 4


def train(config: Mapping, workdir: str, devices: Sequence[jax.Device] | None = None) -> int:
    """Trains, or goes on training, the run of a folder.

    Args:
      config: every field of section 7 of the design; see `configs/`.
      workdir: the run's folder, made where it does not exist.
      devices: those to train on; all by default.

    Returns:
      The step that was reached: `config["steps"]`, also where the loss fell no more, or less where the run was asked to
      stop.

    Raises:
      InputError: something that the user can mend: a field, the data, the folder, a loss that is not finite.
    """
    check_config(config)
    replicas = config["replicas"]
    mesh = meshes.make_mesh(replicas, devices)
    meshes.check_batch_size(config["batch_size"], mesh, config["micro_batches"])
    with first_process_first():
        dataset, config = load_data(config)
    model = models.build(config["model"], mean=config["dataset"]["mean"], std=config["dataset"]["std"])
    optimizer = make_optimizer(**config["optimizer"])
    init, step = make_programs(config, model, optimizer, mesh, dataset.train[0]["image"].shape)
    open_workdir(workdir, config)

    seeds = np.arange(replicas, dtype=np.int32) + config["seed"]
    state = init(seeds if replicas > 1 else seeds[0])
    log_overview(state, replicas)

    with errors_of_writing(workdir), contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir)
        stack.callback(checkpoints.close)
        first_step, state = checkpoints.restore_newest(state) or (0, state)
        if first_step:
            log.info("going on from step %d of %s", first_step, workdir)
        journal = Journal(workdir, first_step=first_step, steps=config["steps"], writes=jax.process_index() == 0)
        stack.callback(journal.close)
        evaluator = Evaluator(model, replicas, mesh)
        return Loop(config, workdir, mesh, dataset, step, evaluator, checkpoints, journal)(state, first_step)


def make_programs(config: Mapping, model, optimizer, mesh: Mesh, image_shape: tuple[int, ...]):
    """The first state of a seed (or of one per replica), and the step from a state and a batch to the next: jitted.

    Both are compiled for the same layout, so that a state never has to move; the step takes over the memory of its own.

    Raises:
      InputError: the batch is to be split, and the model's loss is of a whole one.
    """
    if model.needs_whole_batch and config["micro_batches"] > 1:
        raise InputError(f"micro_batches is {config['micro_batches']}; it must be 1, for this loss is of a whole batch")
    replicas = config["replicas"]
    sharding = meshes.state_sharding(mesh, replicas)
    init = functools.partial(initial_state, model, optimizer, image_shape)
    step = functools.partial(train_step, model, optimizer, config["micro_batches"])
    init = jax.jit(over_replicas(init, replicas), out_shardings=sharding)
    step = jax.jit(
        over_replicas(step, replicas),
        donate_argnums=0,
        out_shardings=sharding,
        compiler_options=meshes.compiler_options(),
    )
    return init, step


def training_batches(config: Mapping, examples: Examples, first_step: int) -> Iterator[np.ndarray]:
    """This process's share of each global batch: uint8 [b, h, w, 3], or [replicas, b, h, w, 3]."""
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
        images = [part["image"] for part in parts]
        yield images[0] if len(images) == 1 else np.stack(images)


class Loop:
    """The one training loop: steps, logs, evaluations, checkpoints, and a clean way out."""

    def __init__(self, config, workdir, mesh, dataset, step, evaluator, checkpoints, journal):
        self.config, self.workdir, self.mesh, self.dataset = config, workdir, mesh, dataset
        self.step, self.evaluator, self.checkpoints, self.journal = step, evaluator, checkpoints, journal
        self.samples = samples(dataset.validation, SAMPLES)
        self.warned, self.failed = False, set()

    def __call__(self, state: TrainState, first_step: int) -> int:
        """Trains from `first_step` to the last; returns the step that was reached, as `train` does."""
        if self.has_settled():
            return self.config["steps"]
        sharding = meshes.batch_sharding(self.mesh, self.config["replicas"])
        batches = training_batches(self.config, self.dataset.train, first_step)
        batches = (meshes.to_devices(sharding, images) for images in batches)
        with StopSignal() as stop, pipeline.prefetch(batches, BATCHES_AHEAD) as batches:
            started, at_step = time.monotonic(), first_step
            for done in range(first_step + 1, self.config["steps"] + 1):
                state = self.step(state, next(batches))
                self.journal.advance()
                if self.is_due("log_every_steps", done):
                    state, row = self.read_interval(state, done)
                    seconds = time.monotonic() - started
                    row |= self.rates(done - at_step, seconds)
                    self.log(state, done, row)
                    if self.has_settled():
                        log.info("stopped at step %d: the validation loss falls no more", done)
                        break
                    started, at_step = time.monotonic(), done
                if stop.requested(done) and done < self.config["steps"]:
                    if not self.is_due("checkpoint_every_steps", done):
                        self.save(state, done, None)
                    self.checkpoints.wait()
                    log.warning("stopped at step %d; run the same command again to go on", done)
                    return done
        return self.config["steps"]

    def is_due(self, field: str, done: int) -> bool:
        """Whether a step is one of those that come every `field` steps, or the last."""
        return done % self.config[field] == 0 or done == self.config["steps"]

    def has_settled(self) -> bool:
        """Whether the loss falls no more."""
        return has_settled(self.journal.rows, self.config["patience_evaluations"])

    def read_interval(self, state: TrainState, done: int) -> tuple[TrainState, dict]:
        """The means since the last log as a row, and the state with a new interval."""
        interval = jax.device_get(state.interval)
        finite, at = jax.device_get((state.finite, state.step))
        if not np.any(finite):
            raise InputError(
                f"the loss is not finite at step {int(np.max(at)) + 1}; the checkpoints before it are whole, and a "
                f"lower optimizer.learning_rate (now {self.config['optimizer']['learning_rate']}) may help"
            )
        failed = set(np.flatnonzero(~np.atleast_1d(finite)).tolist())
        for replica in sorted(failed - self.failed):
            log.warning(
                "replica %d (seed %d) stopped: its loss is not finite at step %d",
                replica,
                self.config["seed"] + replica,
                np.atleast_1d(at)[replica] + 1,
            )
        self.failed = failed
        row = {"step": done}
        for name, total in interval.metrics.items():
            mean = np.where(finite, total / np.maximum(interval.steps, 1), np.nan)
            row[f"train/{name}"] = mean.tolist()
        self.warn_if_dying(interval.counts, finite, done)
        self.codes_used = [
            f"{name} {np.mean(np.count_nonzero(counts, axis=-1)):.0f}/{np.shape(counts)[-1]} codes"
            for name, counts in interval.counts.items()
        ]
        zeros = jax.tree.map(jnp.zeros_like, state.interval)
        return state.replace(interval=zeros), row

    def log(self, state: TrainState, done: int, row: dict) -> None:
        """Evaluates and draws if that is due, writes the row, then saves: a checkpoint never runs ahead of its row."""
        loss = None
        if self.is_due("evaluate_every_steps", done):
            metrics, totals = self.evaluator.metrics(
                state.variables, self.dataset.validation, self.config["batch_size"], self.dataset.train
            )
            if jax.process_index() == 0:
                # On a device of its own: what only one process computes must not wait for the others.
                variables = jax.device_put(jax.device_get(state.variables), jax.local_devices()[0])
                metrics |= self.inspect(variables)
            row |= without_failed(metrics, jax.device_get(state.finite))
            valid = np.atleast_1d(row["valid/loss"])[np.isfinite(np.atleast_1d(row["valid/loss"]))]
            loss = float(np.mean(valid)) if valid.size else None
        self.journal.write(row, self.summary(row))
        saves = self.is_due("checkpoint_every_steps", done) or self.has_settled()
        # Pictures, which take longer than an evaluation, come with the checkpoints.
        if loss is not None and saves and jax.process_index() == 0:
            first = replica_of((variables, totals), 0, self.config["replicas"])
            folder = pathlib.Path(self.workdir) / "figures"
            draw.draw(self.evaluator.model, first[0], self.samples, first[1], self.journal.rows, folder)
        wait_for_all("drawn")  # collectives on a CPU do not wait for longer than half a minute
        if saves:
            self.save(state, done, loss)

    def inspect(self, variables) -> dict:
        """The measures of `draw.inspect`; with replicas, lists in seed order."""
        replicas = self.config["replicas"]
        found = [
            draw.inspect(self.evaluator.model, replica_of(variables, replica, replicas), self.samples)
            for replica in range(replicas)
        ]
        return {
            f"valid/{name}": value if replicas == 1 else [metrics[name] for metrics in found]
            for name, value in found[0].items()
        }

    def save(self, state: TrainState, done: int, loss: float | None) -> None:
        """Saves a checkpoint, in the background."""
        self.checkpoints.save(done, state, self.config, loss)

    def rates(self, steps: int, seconds: float) -> dict:
        """Steps and images a second since the last log, evaluation and drawing left out."""
        images = steps * self.config["batch_size"] * self.config["replicas"]
        return {"steps_per_second": steps / seconds, "images_per_second": images / seconds}

    def summary(self, row: dict) -> str:
        """A row in a few words, for the terminal and the log."""
        mean = lambda name: np.nanmean(row[name])  # noqa: E731
        words = [f"loss {mean('train/loss'):.4f}"]
        if "valid/loss" in row:
            words.append(f"valid {mean('valid/loss'):.4f}")
        return "  ".join([*words, *self.codes_used, f"{row['images_per_second']:.0f} images/s"])

    def warn_if_dying(self, counts: dict, finite: np.ndarray, done: int) -> None:
        """Says, once, that hardly any code is in use, and what would help."""
        epoch = len(self.dataset.train) // self.config["batch_size"]
        if self.warned or done < min(DYING_STEPS, max(epoch, 1)):
            return
        for name, of_codes in counts.items():
            used, size = np.count_nonzero(of_codes, axis=-1), np.shape(of_codes)[-1]
            # Fewer wins than codes cannot use them all.
            if np.any((used < DYING_SHARE * np.minimum(size, np.sum(of_codes, axis=-1))) & finite):
                self.warned = True
                log.warning(
                    "the %s is dying: %d of %d codes were used since the last log; %s",
                    name if name in ("codebook", "map") else f"{name} codebook",
                    np.min(used),
                    size,
                    self.evaluator.model.remedy,
                )


def without_failed(metrics: dict, finite: np.ndarray) -> dict:
    """The metrics of an evaluation, NaN for replicas that have failed: theirs are of the state before they did."""
    if np.all(finite):
        return metrics
    return {
        name: [value if ok else np.nan for value, ok in zip(values, finite, strict=True)]
        for name, values in metrics.items()
    }


def load_data(config: Mapping) -> tuple[data.Dataset, dict]:
    """The data set, and the config with its mean and std filled in where it has none."""
    fields = dict(config["dataset"])
    mean, std = fields.pop("mean"), fields.pop("std")
    dataset = data.load(**fields)
    names, classes = config["model"].get("label_names", ()), dataset.label_names
    if names and classes and len(names) != len(classes):
        raise InputError(f"model.label_names has {len(names)} names; {fields['name']} has {len(classes)} classes")
    if not len(mean) or not len(std):
        mean, std = data.channel_statistics(dataset.train)
    return dataset, {**config, "dataset": {**fields, "mean": list(mean), "std": list(std)}}


def log_overview(state: TrainState, replicas: int) -> None:
    """Logs the names, shapes and number of the parameters."""
    params = replica_of(state.params, 0, replicas)
    for line in parameter_overview.get_parameter_overview(params, include_stats=False).splitlines():
        log.info("%s", line)
